"""What a picture says of where it comes from: label, recipe, credentials, mark, and how far each can be trusted.

A label (XMP, IPTC's DigitalSourceType) and a recipe are words in the file: true if nobody meddled, gone when a program
saves the picture anew. Credentials (C2PA) are words that were signed: unchanged since, and as good as the signer. The
mark is in the pixels and mostly survives what the others do not; what chance finds is told with it.
"""

from __future__ import annotations

from typing import Any

from .errors import MezzotintError
from .formats.credentials import read_credentials
from .formats.image import flatten, open_image, read_recipe, read_source
from .mark import LEAST, SURE, find


def origin(
    data: bytes, *, max_pixels: int | None = None, name: str = "the picture", trusted: bytes = b""
) -> dict[str, Any]:
    """{"label": IPTC's word or None, "recipe": or None, "credentials": as `read_credentials` has it, "mark": {"found",
    "z", "chance", "scale"}, "says": a sentence or two}.

    `trusted`: certificates (PEM) of those whose signatures are believed. Raises MezzotintError for a file that
    is no picture.
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
    credentials = read_credentials(data, trusted=trusted)
    told = {"label": label, "recipe": recipe, "credentials": credentials, "mark": mark}
    said = [_sentence(label, recipe, found.sure, min(image.size) < LEAST), _signed(credentials)]
    return told | {"says": "; ".join(filter(None, said))}


def _signed(credentials: dict[str, Any] | None) -> str:
    if credentials is None:
        return ""
    who, what = credentials["signer"] or "somebody", credentials["generator"] or "nobody named"
    if credentials["state"] == "trusted":
        return f"it is as it was when {who}, whom you trust, signed that {what} made it"
    if credentials["state"] == "valid":
        return f"it is as it was when {who}, for whom nobody known vouches, signed that {what} made it"
    if credentials["state"] == "unread":
        return f"its content credentials were not read: {credentials['why'][0]}"
    return f"its content credentials do not hold: {', '.join(credentials['why']) or 'they are damaged'}"


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
