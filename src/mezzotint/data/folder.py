"""A folder of captioned pictures: `metadata.jsonl`, one line a picture, as Hugging Face's imagefolder has it.

    {"file_name": "cat.png", "text": "a cat", ...}

`text` is a caption or a list of them; what else a line says is kept. Reading looks at the names alone: pictures
are opened when they are needed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from PIL import Image

from ..errors import MezzotintError, UsageError

METADATA = "metadata.jsonl"
EXIF_TURN = 0x0112
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
)  # what Pillow says of a damaged file


@dataclass(frozen=True)
class Record:
    """One picture: where it lies, what it shows (if that was said), and what else was said of it."""

    path: Path
    captions: tuple[str, ...]
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    inside: str = ""  # its name inside of `path`, where that is an archive or a table
    source: Callable[[], bytes] | None = field(default=None, compare=False)  # of one inside: its bytes
    size: tuple[int, int] | None = field(default=None, compare=False)  # (width, height), if it was looked at

    @property
    def text(self) -> str:
        """The first caption."""
        return self.captions[0]

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.path}: {self.inside}" if self.inside else str(self.path)

    def read(self) -> bytes:
        """The bytes of the picture's file; MezzotintError if they are not to be had."""
        try:
            return self.path.read_bytes() if self.source is None else self.source()
        except OSError as error:
            raise MezzotintError(f"{self.name} cannot be read ({error.strerror}); restore it") from error

    def open(self) -> Image.Image:
        """The decoded picture, in the mode that it is stored in; MezzotintError naming a damaged file."""
        try:
            with Image.open(self.path) as picture:
                picture.load()
                return picture
        except UNREADABLE as error:
            raise MezzotintError(
                f"{self.path} cannot be decoded ({error}); replace it or remove its line from {METADATA}"
            ) from error


def picture_size(record: Record) -> tuple[int, int]:
    """Width and height of the upright picture, from its header; MezzotintError naming one that is damaged."""
    if record.size is not None:
        return record.size
    try:
        return upright_size(record.path if record.source is None else io.BytesIO(record.read()))
    except UNREADABLE as error:
        raise MezzotintError(f"{record.name} cannot be decoded ({error}); replace or remove it") from error


def upright_size(file: Path | IO[bytes]) -> tuple[int, int]:
    """Width and height as it is looked at, turned as EXIF says; raises one of `UNREADABLE`."""
    with Image.open(file) as picture:
        told = picture.format != "PNG" or "exif" in picture.info  # to look for it, a PNG would be decoded
        turned = told and picture.getexif().get(EXIF_TURN, 1) in (5, 6, 7, 8)
        return picture.size[::-1] if turned else picture.size


def read_folder(folder: Path | str) -> list[Record]:
    """The records of `folder/metadata.jsonl`, in its order; pictures are checked to be there, not opened.

    Raises UsageError if the folder or its metadata is missing, MezzotintError with the number of the line that
    is no JSON object, names no picture or a missing one, or has no caption.
    """
    metadata = Path(folder) / METADATA
    if not Path(folder).is_dir():
        raise UsageError(f"{folder} is no folder; name one that holds pictures and {METADATA}")
    try:
        text = metadata.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(
            f"{metadata} is missing; write one line for each picture: "
            '{"file_name": "cat.png", "text": "a cat"}'
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise MezzotintError(f"{metadata} cannot be read ({error}); it must be UTF-8 text") from error
    # Not splitlines(): JSON may hold line separators of Unicode as they are.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    records = [_record(metadata, number, line) for number, line in lines]
    if not records:
        raise MezzotintError(f"{metadata} is empty; it needs one line for each picture")
    return records


def _record(metadata: Path, number: int, line: str) -> Record:
    where = f"{metadata}, line {number}"
    try:
        content = json.loads(line)
    except ValueError as error:
        raise MezzotintError(f"{where} is not valid JSON ({error}); correct or remove it") from error
    if not isinstance(content, dict):
        raise MezzotintError(f'{where} is no JSON object; expected {{"file_name": ..., "text": ...}}')
    extra = {key: value for key, value in content.items() if key not in ("file_name", "text")}
    return Record(_picture(metadata, where, content), _captions(where, content), extra)


def _picture(metadata: Path, where: str, content: Mapping[str, Any]) -> Path:
    name = content.get("file_name")
    if not isinstance(name, str) or not name:
        raise MezzotintError(f"{where} has no file_name; name the picture that it describes")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise MezzotintError(f"{where}: {name} lies outside of the folder; use a path below it")
    path = metadata.parent / name
    if not path.is_file():
        raise MezzotintError(f"{where}: the picture {name} is missing; restore it or remove the line")
    return path


def _captions(where: str, content: Mapping[str, Any]) -> tuple[str, ...]:
    text = content.get("text")
    texts = text if isinstance(text, list) else [text]
    captions = tuple(caption.strip() for caption in texts if isinstance(caption, str) and caption.strip())
    if not captions or len(captions) < len(texts):
        raise MezzotintError(f"{where} has no caption; `text` must be a caption or a list of them")
    return captions
