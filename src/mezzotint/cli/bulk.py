"""`mezzotint generate`: prompts from the command line, or requests from a file, here or on Ray."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import MezzotintError, UsageError
from ..tasks import TASKS
from .draw import SOME_PROMPTS, command
from .options import parsed_size
from .show import Show

OPENS = ("model", "device", "precision", "engine", "variant", "download")  # what a model is opened with
ALONE = (
    "film",
    "sheet",
    "slides",
    "together",
    "sign",
    "force",
)  # options that are for prompts of the command line
File = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE.jsonl",
        help="Requests, one JSON object a line, with options as their defaults; what is there is not made again.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, help="With --prompts and --engine ray: processes that draw, 2 if not given."
    ),
]


def generate() -> Callable[..., None]:
    """The command: `text2img`'s, and what it does with a file."""
    plain = command(TASKS["text2img"])

    @wraps(plain)
    def run(*, file: Path | None, workers: int | None, **given: Any) -> None:
        if file is not None:
            bulk(file, workers, given)
            return
        if workers is not None or given["engine"] == "ray":
            raise UsageError("--engine ray and --workers are for requests in a file; give it with --prompts")
        if not given["prompts"]:
            raise UsageError("give a PROMPT, or a file of requests with --prompts")
        plain(**given)

    words = [SOME_PROMPTS if p.name == "prompts" else p for p in inspect.signature(plain).parameters.values()]
    own = [
        inspect.Parameter("file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=File),
        inspect.Parameter("workers", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Workers),
    ]
    vars(run)["__signature__"] = inspect.Signature([*words, *own])  # what typer reads
    run.__annotations__ = {p.name: p.annotation for p in [*words, *own]}
    return run


def bulk(file: Path, workers: int | None, given: dict[str, Any]) -> None:
    """Draw the lines of a file. Raises MezzotintError in the end if some could not be drawn."""
    from ..bulk import Outcome, draw_line, draw_on_ray, read_lines

    if given["prompts"] or any(given[name] for name in ALONE):
        one = "PROMPT" if given["prompts"] else next(f"--{name}" for name in ALONE if given[name])
        raise UsageError(f"{one} and --prompts do not go together")
    out: Path = given["out"]
    if out.suffix.lower() == ".png":
        raise UsageError(f"-o {out} names one picture; with --prompts, give a folder")
    on_ray = given["engine"] == "ray"
    if workers is not None and not on_ray:
        raise UsageError("--workers goes with --engine ray")
    lines, show = read_lines(file), Show(given["as_json"])
    opened = {name: given[name] for name in OPENS} | {"extras": given["lora_dir"] or ()}
    opened |= {"engine": "torch"} if on_ray else {}
    known = {*given} - {*OPENS, *ALONE, "prompts", "out", "size", "lora_dir", "as_json"}
    shared = {name: given[name] for name in known if given[name] is not None}
    shared |= {"task": "text2img"} | parsed_size(given["size"])

    def outcomes() -> Iterator[Outcome]:
        if on_ray:
            yield from draw_on_ray(opened, lines, out, shared, workers=workers or 2)
            return
        from ..pipeline import Pipeline

        pipeline = Pipeline.load(**opened)
        yield from (draw_line(pipeline, line, out, shared) for line in lines)

    pictures = made = failed = 0
    for outcome in show.each(outcomes(), len(lines), str(file), unit="line"):
        pictures, made = pictures + len(outcome.paths), made + outcome.made
        for path in outcome.paths:
            show.result(path, event="picture", line=outcome.line, path=path)
        if outcome.error:
            failed += 1
            show.event(event="failed", line=outcome.line, error=outcome.error)
            show.note(f"{file}:{outcome.line}: {outcome.error}")
    show.note(f"{made} pictures made, {pictures - made} were there")
    if failed:
        raise MezzotintError(
            f"{failed} of the {len(lines)} lines of {file} were not drawn; see above for each"
        )
