"""Any pictures as records: what lies where, and what is said of it.

Layouts of folders, found by looking: `metadata.jsonl` (Hugging Face's imagefolder), COCO's `captions_*.json` with
several captions a picture, pictures with a text file of the same name (each line a caption), a folder for each class,
and plain pictures. Nothing is decoded here. Records are sorted by their names, so that a copy of a folder is the same
data. Tar archives are read by `shards.py`, Hugging Face datasets by `table.py`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import MezzotintError, UsageError, unknown
from .folder import METADATA, Record, read_folder
from .shards import Access, are_shards, read_shards
from .table import chosen_columns, is_table, read_table

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
COCO = "captions_*.json"


def read_records(path: Path, layout: str = "auto", access: Access | None = None) -> list[Record]:
    """The pictures of a folder or of shards, by the named layout or the first that fits.

    A record of a class folder has its class in `extra["class"]` and, in words, as its caption; one of plain pictures
    has no caption. Raises UsageError for a folder or a layout that is not there, MezzotintError for one that holds
    no pictures or contradicts itself.
    """
    path = Path(path)
    if layout not in NAMES:
        raise unknown("layout of pictures", layout, NAMES)
    if layout == "shards" or (layout == "auto" and are_shards(path)):
        return read_shards(path, access)
    if layout == "table" or (layout == "auto" and is_table(path)):
        access = access or Access()
        return read_table(path, access.columns, access.index)
    if not path.is_dir():
        raise UsageError(f"{path} is no folder; name one that holds pictures")
    return LAYOUTS[find_layout(path) if layout == "auto" else layout](path)


def find_layout(path: Path) -> str:
    """The name of the layout that a folder has, or "shards" or "table"."""
    if are_shards(path):
        return "shards"
    if is_table(path):
        return "table"
    if (path / METADATA).exists():
        return "metadata"
    if _coco_files(path):
        return "coco"
    pictures = _pictures(path)
    if any(picture.with_suffix(".txt").exists() for picture in pictures):
        return "sidecar"
    inside = [picture.relative_to(path).parts for picture in pictures]
    return "classes" if inside and all(len(parts) > 1 for parts in inside) else "plain"


def described(path: Path, layout: str = "auto", access: Access | None = None) -> str:
    """The layout that `read_records` takes, and of a table its columns."""
    found = find_layout(path) if layout == "auto" else layout
    access = access or Access()
    if found != "table":
        return found
    return f"{found} ({chosen_columns(path, access.columns, access.index).text()})"


def sidecars(path: Path) -> list[Record]:
    """`cat.png` and `cat.txt`; a picture without the file, or with an empty one, has no caption."""
    records = []
    for picture in _some(path, _pictures(path)):
        text = picture.with_suffix(".txt")
        try:
            lines = text.read_text(encoding="utf-8").split("\n") if text.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise MezzotintError(f"{text} cannot be read ({error}); it must be UTF-8 text") from error
        records.append(Record(picture, tuple(line.strip() for line in lines if line.strip())))
    return records


def class_folders(path: Path) -> list[Record]:
    """`cat/0001.png`: the class is the folder's name, its caption the same in words."""
    records = []
    for picture in _some(path, _pictures(path)):
        parts = picture.relative_to(path).parts
        if len(parts) < 2:
            raise MezzotintError(
                f"{picture} lies in no class folder; move it into one, or name another layout"
            )
        records.append(Record(picture, (parts[0].replace("_", " "),), {"class": parts[0]}))
    return records


def plain_pictures(path: Path) -> list[Record]:
    """Pictures of which nothing is said."""
    return [Record(picture, ()) for picture in _some(path, _pictures(path))]


def coco(path: Path) -> list[Record]:
    """`captions_*.json` here or in `annotations/`; pictures lie here, or in a folder that is named like the split."""
    found: dict[Path, list[str]] = defaultdict(list)
    for file in _coco_files(path):
        content = _coco_content(file)
        split = file.stem.removeprefix("captions_")
        places = (path / split, path / "images" / split, path / "images", path)
        names = {entry["id"]: entry["file_name"] for entry in content["images"]}
        for entry in content["annotations"]:
            if entry["image_id"] not in names:
                raise MezzotintError(
                    f"{file}: a caption is of picture {entry['image_id']}, which is not listed"
                )
            caption = " ".join(str(entry["caption"]).split())
            if caption:
                found[_first_file(file, places, names[entry["image_id"]])].append(caption)
    return [Record(picture, tuple(found[picture])) for picture in _some(path, sorted(found))]


def _coco_files(path: Path) -> list[Path]:
    return sorted({*path.glob(COCO), *path.glob(f"annotations/{COCO}")})


def _coco_content(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        good = all({"id", "file_name"} <= entry.keys() for entry in content["images"])
        good &= all({"image_id", "caption"} <= entry.keys() for entry in content["annotations"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MezzotintError(f"{file} is no COCO caption file ({error!r})") from error
    if not good:
        raise MezzotintError(f"{file}: a picture lacks id or file_name, or a caption image_id or caption")
    return content


def _first_file(file: Path, places: Iterable[Path], name: str) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise MezzotintError(f"{file}: {name} lies outside of the folder; use a path below it")
    for place in places:
        if (place / name).is_file():
            return place / name
    looked = ", ".join(str(place) for place in places)
    raise MezzotintError(f"{file}: the picture {name} is missing; looked in {looked}")


def _pictures(path: Path) -> list[Path]:
    """Every picture below `path`, hidden files and folders left out."""
    files = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    visible = (file for file in files if not any(p.startswith(".") for p in file.relative_to(path).parts))
    return sorted(visible)


def _some(path: Path, pictures: list[Path]) -> list[Path]:
    if not pictures:
        raise MezzotintError(f"{path} holds no pictures; known are {', '.join(SUFFIXES)}")
    return pictures


LAYOUTS: dict[str, Callable[[Path], list[Record]]] = {
    "metadata": read_folder,
    "coco": coco,
    "sidecar": sidecars,
    "classes": class_folders,
    "plain": plain_pictures,
}
NAMES = ("auto", "shards", "table", *LAYOUTS)
