"""Many pictures in one: a contact sheet with captions, and a film.

White ground, thin even margins, captions in Pillow's own font under each picture, wrapped to its width.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..errors import MezzotintError
from .atomic import new_file
from .image import flatten
from .recipe import GENERATED, SOURCE_TYPE

GROUND, INK = (255, 255, 255), (60, 60, 60)
LEAST_WIDTH = 96  # of a cell: a caption needs as much


def contact_sheet(
    images: Sequence[Image.Image],
    labels: Sequence[str] = (),
    columns: int | None = None,
    *,
    margin: int = 12,
    font_size: int = 12,
    lines: int = 3,
) -> Image.Image:
    """The pictures row by row on white, each with its label below in at most `lines` lines.

    Labels may be fewer than pictures, or none. Columns, if None, are as many as make the sheet nearly square.
    Raises MezzotintError if there are no pictures.
    """
    if not images:
        raise MezzotintError("a contact sheet needs at least one picture")
    columns = min(len(images), columns or math.ceil(math.sqrt(len(images))))
    width = max(LEAST_WIDTH, *(image.width for image in images))
    height = max(image.height for image in images)
    font = ImageFont.load_default(font_size)
    captions = [_wrapped(label, width, font, lines) for label in labels]
    line = round(font_size * 1.3)
    rows = [range(start, min(start + columns, len(images))) for start in range(0, len(images), columns)]
    caption = [max((len(captions[i]) for i in row if i < len(captions)), default=0) for row in rows]
    heights = [height + (margin // 2 + line * count if count else 0) for count in caption]
    size = (margin + columns * (width + margin), margin + sum(height + margin for height in heights))
    sheet = Image.new("RGB", size, GROUND)
    draw = ImageDraw.Draw(sheet)
    top = margin
    for row, row_height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = margin + column * (width + margin)
            image = images[i]
            sheet.paste(
                flatten(image), (left + (width - image.width) // 2, top + (height - image.height) // 2)
            )
            for n, text in enumerate(captions[i] if i < len(captions) else ()):
                at = (left + width / 2, top + height + margin // 2 + n * line)
                draw.text(at, text, INK, font, anchor="ma")
        top += row_height + margin
    return sheet


def save_film(
    path: Path | str,
    frames: Sequence[Image.Image],
    *,
    recipe: Mapping[str, Any] | None = None,
    seconds: float = 0.1,
    hold: float = 1.5,
    replace: bool = False,
) -> Path:
    """Write the frames as an endless GIF, `seconds` each, the last one for `hold`; returns its path.

    The recipe and the source type stand in its comment. Raises MezzotintError if `path` is no GIF's name or there
    are no frames, and as `atomic.new_file` does.
    """
    path = Path(path)
    if path.suffix.lower() != ".gif":
        raise MezzotintError(f"{path}: films are written as GIF; give a name that ends in .gif")
    if not frames:
        raise MezzotintError(f"{path}: a film needs at least one frame")
    first, *others = [flatten(frame).quantize(256, method=Image.Quantize.MEDIANCUT) for frame in frames]
    durations = [round(1000 * seconds)] * len(others) + [round(1000 * hold)]
    comment = json.dumps({"DigitalSourceType": SOURCE_TYPE + GENERATED, "mezzotint": dict(recipe or {})})
    with new_file(path, replace=replace) as part:
        first.save(
            part,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=durations,
            loop=0,
            optimize=False,
            comment=comment.encode(),
        )
    return path


def _wrapped(text: str, width: int, font: Any, lines: int) -> list[str]:
    """`text` in at most `lines` lines of at most `width` pixels; what does not fit ends in an ellipsis."""
    spelled = unicodedata.normalize("NFKD", text)  # the font has no accents: é would be a box
    text = "".join(letter for letter in spelled if not unicodedata.combining(letter))
    wrapped: list[str] = []
    for word in text.split():
        longer = f"{wrapped[-1]} {word}" if wrapped else word
        if wrapped and font.getlength(longer) <= width:
            wrapped[-1] = longer
        else:
            wrapped.append(word)
    kept = wrapped[:lines]
    if len(wrapped) > lines:
        kept[-1] += "…"
    return [_cropped(one, width, font) for one in kept]


def _cropped(text: str, width: int, font: Any) -> str:
    while font.getlength(text) > width and len(text) > 1:
        text = text.removesuffix("…")[:-1] + "…"
    return text
