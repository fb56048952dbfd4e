"""The commands that draw: one for each row of `tasks.TASKS`, with that task's own options.

A command's words are what its task must be given, in the same order; prompts come last, as many as one likes, each a
request of its own. `generate` is text2img.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..bulk import slug
from ..errors import MezzotintError, UsageError
from ..request import PICTURES, Request
from ..tasks import Task
from .options import (
    Device,
    Download,
    Engine,
    Force,
    Json,
    LoraDir,
    Model,
    Precision,
    Sign,
    Size,
    Variant,
    free,
    parsed_size,
    with_fields,
)
from .show import Show

if TYPE_CHECKING:
    from ..pipeline import Event, Picture, Pipeline
    from ..request import Settled

Words = Callable[..., list[Request]]  # (fields, prompts, **extra) -> the requests that they ask for


def each(fields: dict[str, Any], prompts: list[str]) -> list[Request]:
    """One request for each prompt."""
    return [Request.parse(fields | ({"prompt": prompt} if prompt else {})) for prompt in prompts or [""]]


def command(
    task: Task, requests: Words = each, *, extra: Sequence[inspect.Parameter] = ()
) -> Callable[..., None]:
    """The command of a task; `requests` says what its prompts ask for, with parameters of its own if it needs any."""

    def run(*, asked: dict[str, Any], prompts: Sequence[str] = (), size: str = "", **kept: Any) -> None:
        fields = {"task": task.name} | asked | parsed_size(size)
        fields |= {name: kept.pop(name) for name in task.given if name in kept}
        own = {one.name: kept.pop(one.name) for one in extra}
        draw(requests(fields, list(prompts or ()), **own), **kept)

    run.__doc__ = f"{task.about} Prints where the pictures lie; each carries the recipe that makes it again."
    own = [_word(name) for name in task.given if name != "prompt"]
    if "prompt" in task.fields:
        own.append(PROMPTS if "prompt" in task.given else SOME_PROMPTS)
    shared = [p for p in inspect.signature(draw, eval_str=True).parameters.values() if p.name != "requests"]
    size_option = inspect.Parameter("size", inspect.Parameter.KEYWORD_ONLY, default="", annotation=Size)
    optional = [name for name in task.fields if name not in task.given]
    return with_fields(run, [*own, *extra, size_option, *shared], task, optional)


def _word(name: str) -> inspect.Parameter:
    """What must be given: a picture or a word."""
    described = Request.model_fields[name].description or ""
    text = f"{described[:1].upper()}{described[1:]}."
    kind: Any = Annotated[str, typer.Argument(metavar=name.upper(), help=text)]
    if name in PICTURES:
        kind = Annotated[Path, typer.Argument(metavar="PICTURE", help=text)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)


PROMPTS, SOME_PROMPTS = (
    inspect.Parameter(
        "prompts",
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, typer.Argument(metavar=metavar, help="What the pictures show.")],
    )
    for default, kind, metavar in (
        (inspect.Parameter.empty, list[str], "PROMPT..."),
        (None, list[str] | None, "[PROMPT...]"),
    )
)


def draw(
    requests: list[Request],
    *,
    model: Model = "emoji",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A folder, or the name of the picture (.png) if it is one.")
    ] = Path("out"),
    film: Annotated[
        Path | None, typer.Option(help="Also write how the first picture came about (.gif).")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Also write all pictures on one contact sheet (.png).")
    ] = None,
    slides: Annotated[
        Path | None, typer.Option(help="Also write all pictures, one after the other, as a film (.gif).")
    ] = None,
    together: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pictures drawn at a time, as many as it pays to if not given; it does not change them.",
        ),
    ] = None,
    lora_dir: LoraDir = None,
    device: Device = "auto",
    precision: Precision = "auto",
    engine: Engine = "torch",
    variant: Variant = None,
    download: Download = False,
    sign: Sign = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Draw what is asked for and print where it lies."""
    show = Show(as_json)
    single = out.suffix.lower() == ".png"
    if single and sum(request.num_images for request in requests) > 1:
        raise UsageError(f"-o {out} names one picture, and more are asked for; give a folder")
    for path, suffix in ((film, ".gif"), (slides, ".gif"), (sheet, ".png")):
        if path is not None and path.suffix.lower() != suffix:
            raise UsageError(f"{path}: give a name that ends in {suffix}")
    beside = film.with_suffix(".png") if film is not None else None
    for target in filter(None, (out if single else None, film, beside, slides, sheet)):
        if target.exists() and not force:
            raise UsageError(f"{target} exists; choose another name, or replace it with --force")
    _writable(out.parent if single else out)

    from ..formats.credentials import Signing
    from ..formats.image import save_image
    from ..formats.sheet import contact_sheet, save_film
    from ..pipeline import Pipeline, Progress

    begun = time.perf_counter()
    signing = Signing.read(sign) if sign else None
    pipeline = Pipeline.load(
        model,
        device=device,
        precision=precision,
        engine=engine,
        variant=variant,
        download=download,
        extras=lora_dir or (),
    )
    settled = [pipeline.settle(request) for request in requests]
    made: list[Picture] = []
    reel: list[Any] = []
    start = 0.0
    for request, event in _drawn(pipeline, settled, together, show):
        if isinstance(event, Progress):
            if film is not None and not made and event.first == 0:
                start = event.start
                reel.append((event.sigma, event.state()[0], event.look()[0]))
            continue
        made.append(event)
        path = out if single else out / f"{slug(_title(request))}-{event.seed}.png"
        path = path if force else free(path)
        save_image(path, event.image, event.recipe, signing=signing, replace=force)
        show.result(str(path), event="picture", path=str(path), **event.recipe)
    if film is not None:
        from ..film import reverse_film, save_film_and_sheet

        moments = reverse_film(_title(settled[0]), reel, start)
        for path in save_film_and_sheet(film, moments, recipe=made[0].recipe, replace=force):
            show.result(str(path), event="film", path=str(path))
    if slides is not None:
        recipe = {"slides": [picture.recipe for picture in made]}
        save_film(slides, [picture.image for picture in made], recipe=recipe, seconds=0.2, replace=force)
        show.result(str(slides), event="slides", path=str(slides))
    if sheet is not None:
        labels = [str(picture.recipe.get("prompt", "")) for picture in made]
        scale = max(1, 256 // max(picture.image.width for picture in made))
        images = [
            picture.image.resize((picture.image.width * scale, picture.image.height * scale))
            for picture in made
        ]
        save_image(sheet, contact_sheet(images, labels), {"sheet": [p.recipe for p in made]}, replace=force)
        show.result(str(sheet), event="sheet", path=str(sheet))
    show.note(f"{len(made)} picture{'s' * (len(made) != 1)} in {time.perf_counter() - begun:.1f} s")


def _title(request: Request) -> str:
    """What to call what is asked for."""
    if request.at is not None:
        return f"{request.prompt} {request.at:.3f} {request.prompt_to or ''}"
    if request.prompt or request.image is None:
        return request.prompt
    return f"{Path(request.image.path or 'picture').stem} {request.task}"


def _drawn(
    pipeline: Pipeline, requests: list[Settled], together: int | None, show: Show
) -> Iterator[tuple[Settled, Event]]:
    """All events of all requests, with a live bar over all steps."""
    from ..pipeline import Progress

    total = sum(request.num_images * request.num_inference_steps for request in requests)
    with show.bar() as progress:
        task = progress.add_task("", total=total, note="")
        for request in requests:
            for event in pipeline.generate(request, together=together):
                if isinstance(event, Progress):
                    progress.update(
                        task,
                        advance=event.count,
                        description=f"{_title(request)[:40]}, {event.first + 1} of {request.num_images}",
                        note=f"sigma {event.sigma:.3g}",
                    )
                    show.event(
                        event="step",
                        prompt=request.prompt,
                        number=event.first,
                        step=event.step,
                        steps=event.steps,
                        sigma=event.sigma,
                    )
                yield request, event


def _writable(folder: Path) -> None:
    """Raises MezzotintError now rather than when the first picture is done."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise MezzotintError(f"{nearest} is not a folder; choose another place with -o")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise MezzotintError(f"the folder {nearest} may not be written to; choose another one with -o")
