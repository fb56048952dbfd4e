"""`mezzotint replay`: the same pixels again, from the recipe inside a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import MezzotintError, UsageError
from .options import Device, Force, Json, LoraDir
from .show import Show


def replay(
    picture: Annotated[Path, typer.Argument(help="A PNG that mezzotint made.")],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Where the picture's model lies; the one it names if not given."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write the picture made again (.png).")
    ] = None,
    lora_dir: LoraDir = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a picture again from the recipe inside it, and say whether the pixels are identical (status 1 if not)."""
    import numpy as np

    from ..formats.image import open_image, read_recipe, save_image

    show = Show(as_json)
    there = open_image(picture)
    recipe = read_recipe(picture)
    if not {"task", "model", "model_hash"} <= recipe.keys():
        raise MezzotintError(
            f"{picture}: its recipe is another program's and not complete enough to make it again"
        )

    from ..pipeline import Picture
    from ..request import Request

    pipeline = _same_model(picture, recipe, model, device, lora_dir or [])
    events = pipeline.generate(Request.of_recipe(recipe))
    steps = show.each(events, int(recipe["num_inference_steps"]) + 1, "replay", unit="step")
    again = next(event for event in steps if isinstance(event, Picture))
    if out is not None:
        save_image(out, again.image, again.recipe, replace=force)
    if again.image.size != there.size:
        raise MezzotintError(
            f"{picture} was resized after it was made: {there.size} instead of {again.image.size}"
        )
    apart = abs(np.asarray(again.image).astype(int) - np.asarray(there.convert("RGB")).astype(int))
    differs = {
        key: (recipe.get(key), again.recipe[key])
        for key in ("version", "torch", "device", "precision", "engine")
    }
    known = ", ".join(f"{key} {a} then, {b} now" for key, (a, b) in differs.items() if a != b)
    if apart.any():
        show.event(event="replay", path=str(picture), identical=False, largest_difference=int(apart.max()))
        raise MezzotintError(
            f"{picture} came out differently: {(apart > 0).mean():.1%} of the values, by at most {apart.max()} of 255"
            f" ({known or 'it was changed after it was made, or this processor computes otherwise'})"
        )
    show.result(
        f"{picture}: identical, all {apart.size} values", event="replay", path=str(picture), identical=True
    )


def _same_model(
    picture: Path, recipe: dict[str, Any], model: str | None, device: str, extras: list[Path]
) -> Any:
    """The pipeline that drew the picture; MezzotintError if it is not to be found."""
    from ..pipeline import Pipeline

    known = f"{picture} was made with the model '{recipe['model']}' ({str(recipe['model_hash'])[:10]})"
    try:
        pipeline = Pipeline.load(
            model or str(recipe["model"]),
            device=device,
            precision=str(recipe.get("precision", "auto")),
            engine=str(recipe.get("engine", "torch")),
            extras=extras,
        )
    except UsageError as error:
        if model is not None:
            raise
        raise MezzotintError(f"{known}, which is not here; give its folder with -m") from error
    if pipeline.fingerprint != recipe["model_hash"]:
        raise MezzotintError(
            f"{known}; {pipeline.folder} is another one ({pipeline.fingerprint[:10]}); give the right folder with -m"
        )
    return pipeline
