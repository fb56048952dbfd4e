"""`mezzotint film`: how a picture drowns in noise, and how one is found in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..tasks import TASKS
from .options import Device, Force, Json, LoraDir, Model, Size, parsed_size, with_request
from .show import Show

LARGEST = 512  # side in pixels of a picture in a film


@with_request(TASKS["text2img"])
def film(
    what: Annotated[str, typer.Argument(metavar="PICTURE|PROMPT", help="A picture's file, or words.")],
    asked: dict[str, Any],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The film (.gif); a sheet (.png) is put beside it.")
    ] = Path("film.gif"),
    model: Model = "emoji",
    size: Size = "",
    frames: Annotated[
        int, typer.Option(min=2, max=500, help="Of a picture's film; a prompt's has one a step.")
    ] = 40,
    lora_dir: LoraDir = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Film the forward process of a picture, or the reverse process of a prompt, with the schedule drawn below."""
    from ..film import save_film_and_sheet

    show = Show(as_json)
    if out.suffix.lower() != ".gif":
        raise UsageError(f"{out}: films are written as GIF; give a name that ends in .gif")
    for path in (out, out.with_suffix(".png")):
        if path.exists() and not force:
            raise UsageError(f"{path} exists; choose another name, or replace it with --force")
    if Path(what).is_file():
        made, recipe = _forward(Path(what), model, frames, asked.get("seed", 0))
    else:
        made, recipe = _reverse(what, asked | parsed_size(size), model, device, lora_dir or [], show)
    for path in save_film_and_sheet(out, made, recipe=recipe, replace=force):
        show.result(str(path), event="film", path=str(path))


def _forward(picture: Path, model: str, frames: int, seed: int) -> tuple[Any, dict[str, Any]]:
    """Only the model's noise schedule is needed."""
    from ..catalog import find_model, model_name
    from ..film import forward_film
    from ..formats.image import flatten, open_image
    from ..formats.native import is_native, read_plan
    from ..formats.opened import configs_at

    image = flatten(open_image(picture))
    image.thumbnail((LARGEST, LARGEST))
    folder = find_model(model)
    plan = read_plan(folder) if is_native(folder) else configs_at(folder).plan
    recipe = {
        "film": "forward",
        "picture": picture.name,
        "model": model_name(folder),
        "seed": seed,
        "frames": frames,
    }
    return forward_film(image, plan.process, frames=frames, seed=seed), recipe


def _reverse(
    prompt: str, asked: dict[str, Any], model: str, device: str, extras: list[Path], show: Show
) -> tuple[Any, dict[str, Any]]:
    from ..film import reverse_film
    from ..pipeline import Pipeline, Progress
    from ..request import Request

    pipeline = Pipeline.load(model, device=device, extras=extras)
    request = pipeline.settle(Request.parse(asked | {"prompt": prompt, "num_images": 1}))
    events = (event for event in pipeline.generate(request) if isinstance(event, Progress))
    steps = show.each(events, request.num_inference_steps, "film", unit="step")
    moments, start = [], 0.0
    for event in steps:
        start = event.start
        moments.append((event.sigma, event.state()[0], event.look()[0]))
    return reverse_film(prompt, moments, start), pipeline.recipe(request) | {"film": "reverse"}
