"""Options: those of every drawing command come from the fields of `Request`, where each knob is named once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from ..errors import UsageError
from ..inputs import Given
from ..request import Request, flag
from ..tasks import Task

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="An embedded model's name, a diffusers folder, a .safetensors file, or owner/name in the Hub's cache.",
    ),
]
Download = Annotated[
    bool,
    typer.Option("--download", help="Fetch owner/name from the Hugging Face Hub if it is not in the cache."),
]
Variant = Annotated[
    str | None, typer.Option("--variant", help="Which of a folder's weights: for instance fp16.")
]
LoraDir = Annotated[
    list[Path] | None,
    typer.Option(
        "--lora-dir",
        "--embedding-dir",
        metavar="FOLDER",
        help="Where LoRAs and embeddings are found by name, before the folders in $MEZZOTINT_MODELS; may be repeated.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, ...")]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        help="float32, bfloat16 or float16; auto: float32 for small models, for large ones what the device does fast.",
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        help="Who computes the U-Net: torch; openvino or openvino-int8, from the extra `openvino`. For requests in a "
        "file (generate --prompts) also ray: torch, in processes of a Ray cluster.",
    ),
]
Sign = Annotated[
    Path | None,
    typer.Option(
        "--sign",
        metavar="FOLDER",
        help="Sign pictures (Content Credentials) with this folder's certificates.pem and key.pem, made if not there.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line, for scripts.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace files that exist.")]
Size = Annotated[
    str,
    typer.Option("--size", metavar="WxH", help="Width and height in pixels; the model's own if not given."),
]


def with_fields(
    command: Callable[..., None], own: Sequence[inspect.Parameter], task: Task, fields: Sequence[str]
) -> Callable[..., None]:
    """A command with parameters of its `own` and an option for each of those `fields` of a task that has a flag.

    It gets as `asked` those that were given on the command line and nothing else.
    """
    flagged = [name for name in fields if flag(name)]

    @wraps(command)
    def filled(**given: Any) -> None:
        values = {name: given.pop(name) for name in flagged}
        command(**given, asked={name: value for name, value in values.items() if value is not None})

    made = [_option(name, task.heeds.get(name)) for name in flagged]
    vars(filled)["__signature__"] = inspect.Signature([*own, *made])  # what typer reads
    filled.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *made]}
    return filled


def with_request(task: Task) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command with an option for each field that a task heeds; see `with_fields`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name != "asked"]
        return with_fields(command, own, task, task.fields)

    return decorate


def _option(name: str, chosen: Any) -> inspect.Parameter:
    """The option of a field; `chosen` is what its task takes if it is not given."""
    field, called = Request.model_fields[name], flag(name)
    assert called is not None
    plain: Any = next(
        (kind for kind in get_args(field.annotation) if kind is not type(None)), field.annotation
    )
    plain = Path if plain is Given else list[str] if get_origin(field.annotation) is tuple else plain
    default = field.default if chosen is None else chosen
    shown = f" [default: {default}]" if default not in (None, "", ()) else ""
    help_text = f"{(field.description or '')[:1].upper()}{(field.description or '')[1:]}.{shown}"
    option = typer.Option(*called.names, help=help_text, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[plain | None, option]
    )


def parsed_size(size: str) -> dict[str, int]:
    """Width and height of a `WxH`, or of one number for both; nothing of an empty text."""
    if not size:
        return {}
    found = re.fullmatch(r"(\d+)(?:\s*[xX×]\s*(\d+))?", size.strip())
    if not found:
        raise UsageError(f"--size {size}: write it as WIDTHxHEIGHT, for instance 128x128")
    return {"width": int(found[1]), "height": int(found[2] or found[1])}


def free(path: Path) -> Path:
    """`path`, or with a number before its suffix if something stands there."""
    names = [path, *(path.with_stem(f"{path.stem}-{i}") for i in range(2, 10_000))]
    return next((name for name in names if not name.exists()), path)
