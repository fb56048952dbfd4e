"""Pictures that are given: a path, a file's bytes or a Pillow image; read once, opened when they are looked at.

A recipe knows such a picture by its path and the SHA-256 of its bytes, so that whoever makes the result again works on
the same one, or hears that it is not there any more.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from .errors import MezzotintError, UsageError

if TYPE_CHECKING:
    from PIL import Image

LARGEST_FILE = 200_000_000  # bytes


@dataclass(frozen=True)
class Input:
    """A picture's file, in memory."""

    sha256: str
    path: str | None = field(default=None, compare=False)
    data: bytes = field(default=b"", repr=False, compare=False)

    @classmethod
    def of(cls, given: Any) -> Input:
        """From a path, bytes, a Pillow image, or what a recipe says: {"path": ..., "sha256": ...}.

        Raises MezzotintError for a file that is not there, or is not the one that the recipe means.
        """
        if isinstance(given, Input):
            return given
        if isinstance(given, Mapping):
            return _told(given)
        if isinstance(given, str | Path):
            data = _read(Path(given))
            return cls(hashlib.sha256(data).hexdigest(), str(given), data)
        data = bytes(given) if isinstance(given, bytes | bytearray | memoryview) else _encoded(given)
        return cls(hashlib.sha256(data).hexdigest(), None, data)

    def told(self) -> dict[str, Any]:
        """What a recipe says of it."""
        return {"path": self.path, "sha256": self.sha256}

    @property
    def name(self) -> str:
        return self.path or "the picture given"

    @cached_property
    def image(self) -> Image.Image:
        """RGB, or RGBA if it has transparency: upright, eight bits, the first frame. Raises as `open_image` does."""
        from .formats.image import open_image

        return open_image(self.data, name=self.name)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The recipe that it carries; raises MezzotintError if it carries none."""
        from .formats.image import read_recipe

        return read_recipe(self.data, name=self.name)


def _given(value: Any, info: ValidationInfo) -> Input:
    """`Input.of`; but text opens no file unless the context says so: it is a file's bytes in base64."""
    if (info.context or {}).get("files") or not isinstance(value, str | Mapping):
        return Input.of(value)
    try:
        return Input.of(base64.b64decode(str(value).rpartition("base64,")[2], validate=True))
    except ValueError as error:
        raise UsageError("a picture in a request is its file's bytes in base64, and this is not") from error


Given = Annotated[
    Input,
    PlainValidator(_given),
    PlainSerializer(Input.told),
    WithJsonSchema({"type": "string", "contentEncoding": "base64", "contentMediaType": "image/*"}),
]


def _told(recipe: Mapping[str, Any]) -> Input:
    path, expected = recipe.get("path"), recipe.get("sha256")
    if not path:
        raise MezzotintError("the recipe was made from a picture without a path; give that picture again")
    found = Input.of(str(path))
    if expected and found.sha256 != expected:
        raise MezzotintError(
            f"{path} is not the picture that the recipe means: its SHA-256 begins with {found.sha256[:10]}, "
            f"the recipe's with {str(expected)[:10]}"
        )
    return found


def _read(path: Path) -> bytes:
    path = path.expanduser()
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise MezzotintError(
                f"{path} has {size:,} bytes, more than {LARGEST_FILE:,} are not read; make it smaller first"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MezzotintError(f"{path}: there is no such file") from error
    except OSError as error:
        raise MezzotintError(f"{path} cannot be read ({(error.strerror or str(error)).lower()})") from error


def _encoded(given: Any) -> bytes:
    """A Pillow image as the bytes of a PNG."""
    from PIL import Image

    from .formats.image import upright

    if not isinstance(given, Image.Image):
        raise UsageError(
            f"a picture is a path, a file's bytes or a Pillow image, and not {type(given).__name__}"
        )
    file = io.BytesIO()
    upright(given).save(file, "PNG", compress_level=1)
    return file.getvalue()
