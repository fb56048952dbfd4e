"""`mezzotint attention`: a picture, and which word of its prompt was heard where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..tasks import TASKS
from .options import Device, Force, Json, Model, Size, parsed_size, with_request
from .show import Show


@with_request(TASKS["text2img"])
def attention(
    prompt: Annotated[str, typer.Argument(help="What the picture shows, in plain words.")],
    asked: dict[str, Any],
    out: Annotated[Path, typer.Option("--out", "-o", help="The sheet of heat maps (.png).")] = Path(
        "attention.png"
    ),
    model: Model = "emoji",
    size: Size = "",
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Draw a picture, and beside it each word's heat map: bright where the word was heard."""
    if out.exists() and not force:
        raise UsageError(f"{out} exists; choose another name, or replace it with --force")

    from ..formats.image import save_image
    from ..formats.sheet import contact_sheet
    from ..heat import heat_maps
    from ..pipeline import Pipeline
    from ..request import Request

    request = Request.parse(asked | parsed_size(size) | {"prompt": prompt})
    picture, maps = heat_maps(Pipeline.load(model, device=device), request)
    scale = max(1, 192 // max(picture.image.size))
    images = [
        image.resize((image.width * scale, image.height * scale)) for image in (picture.image, *maps.values())
    ]
    sheet = contact_sheet(images, [prompt, *maps], columns=len(images))
    save_image(out, sheet, {"attention": picture.recipe}, replace=force)
    Show(as_json).result(str(out), event="attention", path=str(out), words=list(maps))
