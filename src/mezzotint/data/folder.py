"""A folder of captioned pictures: `metadata.jsonl`, one line a picture, as Hugging Face's imagefolder has it.

    {"file_name": "cat.png", "text": "a cat", ...}

`text` is a caption or a list of them; what else a line says is kept. Reading looks at the names alone: pictures
are opened when they are needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from ..errors import MezzotintError, UsageError

METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Record:
    """One picture: where it lies, what it shows (if that was said), and what else was said of it."""

    path: Path
    captions: tuple[str, ...]
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    span: tuple[int, int] | None = None  # of a picture inside of an archive: where its bytes begin, how many

    @property
    def text(self) -> str:
        """The first caption."""
        return self.captions[0]

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.path}: {self.extra['name']}" if self.span else str(self.path)

    def read(self) -> bytes:
        """The bytes of the picture's file; MezzotintError if they are not to be had."""
        try:
            with self.path.open("rb") as file:
                if self.span is None:
                    return file.read()
                file.seek(self.span[0])
                return file.read(self.span[1])
        except OSError as error:
            raise MezzotintError(f"{self.name} cannot be read ({error.strerror}); restore it") from error

    def open(self) -> Image.Image:
        """The decoded picture, in the mode that it is stored in; MezzotintError naming a damaged file."""
        try:
            with Image.open(self.path) as picture:
                picture.load()
                return picture
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise MezzotintError(
                f"{self.path} cannot be decoded ({error}); replace it or remove its line from {METADATA}"
            ) from error


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
