"""`mezzotint generate`: words to pictures on disk."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import MezzotintError, UsageError
from .options import Device, Force, Json, Model, Size, free, parsed_size, slug, with_request
from .show import Show

if TYPE_CHECKING:
    from ..pipeline import Event, Picture, Pipeline
    from ..request import Settled


@with_request
def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What the pictures show.")],
    asked: dict[str, Any],
    model: Model = "emoji",
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A folder, or the name of the picture (.png) if it is one.")
    ] = Path("out"),
    size: Size = "",
    film: Annotated[
        Path | None, typer.Option(help="Also write how the first picture came about (.gif).")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Also write all pictures on one contact sheet (.png).")
    ] = None,
    together: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pictures drawn at a time, as many as it pays to if not given; it does not change them.",
        ),
    ] = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Draw pictures from words; prints where they lie. Each carries the recipe that makes it again."""
    from ..request import Request

    show = Show(as_json)
    fields = asked | parsed_size(size)
    requests = [Request.parse(fields | {"prompt": prompt}) for prompt in prompts]
    single = out.suffix.lower() == ".png"
    if single and sum(request.num_images for request in requests) > 1:
        raise UsageError(f"-o {out} names one picture, and more are asked for; give a folder")
    for path, suffix in ((film, ".gif"), (sheet, ".png")):
        if path is not None and path.suffix.lower() != suffix:
            raise UsageError(f"{path}: give a name that ends in {suffix}")
    beside = film.with_suffix(".png") if film is not None else None
    for target in filter(None, (out if single else None, film, beside, sheet)):
        if target.exists() and not force:
            raise UsageError(f"{target} exists; choose another name, or replace it with --force")
    _writable(out.parent if single else out)

    from ..formats.image import save_image
    from ..formats.sheet import contact_sheet
    from ..pipeline import Pipeline, Progress

    begun = time.perf_counter()
    pipeline = Pipeline.load(model, device=device)
    settled = [pipeline.settle(request) for request in requests]
    made: list[Picture] = []
    reel: list[Any] = []
    for request, event in _drawn(pipeline, settled, together, show):
        if isinstance(event, Progress):
            if film is not None and not made and event.first == 0:
                reel.append((event.sigma, event.state()[0], event.look()[0]))
            continue
        made.append(event)
        path = out if single else out / f"{slug(request.prompt)}-{event.seed}.png"
        path = path if force else free(path)
        save_image(path, event.image, event.recipe, replace=force)
        show.result(str(path), event="picture", path=str(path), **event.recipe)
    if film is not None:
        from ..film import reverse_film, save_film_and_sheet

        moments = reverse_film(settled[0].prompt, reel, pipeline.start(settled[0]))
        for path in save_film_and_sheet(film, moments, recipe=made[0].recipe, replace=force):
            show.result(str(path), event="film", path=str(path))
    if sheet is not None:
        labels = [str(picture.recipe["prompt"]) for picture in made]
        scale = max(1, 256 // max(picture.image.width for picture in made))
        images = [
            picture.image.resize((picture.image.width * scale, picture.image.height * scale))
            for picture in made
        ]
        save_image(sheet, contact_sheet(images, labels), {"sheet": [p.recipe for p in made]}, replace=force)
        show.result(str(sheet), event="sheet", path=str(sheet))
    show.note(f"{len(made)} picture{'s' * (len(made) != 1)} in {time.perf_counter() - begun:.1f} s")


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
                        description=f"{request.prompt[:40]}, {event.first + 1} of {request.num_images}",
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
