"""What a picture says of where it comes from: its label, its recipe, its mark, and how far each can be trusted.

A label (XMP, IPTC's DigitalSourceType) and a recipe are words in the file: true if nobody meddled, gone when a program
saves the picture anew. The mark is in the pixels and mostly survives that; what chance finds is told with it.
"""

from __future__ import annotations

from typing import Any

from .errors import MezzotintError
from .formats.image import flatten, open_image, read_recipe, read_source
from .mark import LEAST, SURE, find


def origin(data: bytes, *, max_pixels: int | None = None, name: str = "the picture") -> dict[str, Any]:
    """{"label": IPTC's word or None, "recipe": or None, "mark": {"found", "z", "chance", "scale"}, "says": a sentence}.

    Raises MezzotintError for a file that is no picture.
    """
    bounds = {} if max_pixels is None else {"max_pixels": max_pixels}
    image = flatten(open_image(data, name=name, **bounds))
    label = read_source(data, name=name)
    try:
        recipe = read_recipe(data, name=name)
    except MezzotintError:
        recipe = None
    found = find(image)
    mark = {
        "found": found.sure,
        "z": round(found.z, 2),
        "chance": found.chance,
        "scale": round(found.scale, 3),
    }
    told = {"label": label, "recipe": recipe, "mark": mark}
    return told | {"says": _sentence(label, recipe, found.sure, min(image.size) < LEAST)}


def _sentence(label: str | None, recipe: dict[str, Any] | None, marked: bool, small: bool) -> str:
    if marked:
        return (
            "mezzotint made this picture or a large part of it: the mark is in its pixels, where chance puts it "
            f"less than once in {1 / SURE:,.0f} pictures"
        )
    if recipe and str(recipe.get("version", "")).startswith("mezzotint"):
        return "the file says that mezzotint made it; the pixels carry no mark, so that the file's word is all there is"
    if label:
        return f"the file says how it came about ({label}); whether by mezzotint it does not say"
    return "nothing says that mezzotint made it" + ("; it is too small for a mark" if small else "")
