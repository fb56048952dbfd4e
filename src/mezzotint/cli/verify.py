"""`mezzotint verify`: whether a machine made a picture, as far as the picture can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import MezzotintError
from .options import Json
from .show import Show


def verify(
    picture: Annotated[Path, typer.Argument(help="A picture's file.")],
    trust: Annotated[
        Path | None, typer.Option(help="Certificates (PEM) of those whose signatures you believe.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say where a picture comes from: label, recipe, content credentials, invisible mark, and how sure that is."""
    from ..origin import origin

    told = origin(_read(picture), name=str(picture), trusted=_read(trust) if trust else b"")
    mark, recipe, signed = told["mark"], told["recipe"], told["credentials"]
    sure = f"by chance in one of {1 / max(mark['chance'], 1e-300):.0e} pictures"
    lines = [
        f"label    {told['label'] or 'none'}",
        f"recipe   {', '.join(f'{key} {recipe[key]}' for key in ('version', 'model', 'seed') if key in recipe)}"
        if recipe
        else "recipe   none",
        f"mark     found, {sure}, at {mark['scale']:g} times its size"
        if mark["found"]
        else "mark     not found",
        f"signed   {signed['state']}, by {signed['signer'] or 'nobody named'}" if signed else "signed   no",
        told["says"],
    ]
    Show(as_json).result("\n".join(lines), event="origin", path=str(picture), **told)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MezzotintError(f"{path} cannot be read ({(error.strerror or str(error)).lower()})") from error
