"""Pictures in a Hugging Face dataset: a folder written by `save_to_disk`, or one of parquet files. Nothing is fetched.

Columns are picked by their type, and by name among equals: pictures are of type `Image` (or bytes, or a struct with
them), captions are text or lists of text, classes are of type `ClassLabel`. The `datasets` package (an extra) maps rows
into memory where they lie; parquet, which cannot be read at any row, is first written into the cache as Arrow.
"""

from __future__ import annotations

import atexit
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import MezzotintError, UsageError, unknown
from .folder import Record

CAPTIONS = ("text", "caption", "captions", "prompt", "description", "sentences", "title", "alt_text")
ROLES = ("image", "caption", "class")
PARQUET = "**/*.parquet"
SPLIT = re.compile(r"(?P<split>.+?)(-\d+-of-\d+)?\.parquet")  # as the Hub names files


class Columns(NamedTuple):
    """Which column says what; "" for none."""

    image: str
    caption: str = ""
    label: str = ""

    def text(self) -> str:
        """For people."""
        parts = zip(("pictures", "captions", "classes"), self, strict=True)
        return ", ".join(f"{what}: column '{name}'" if name else f"no {what}" for what, name in parts)


@dataclass(frozen=True)
class Cell:
    """The bytes of a row's picture."""

    table: Any  # datasets.Dataset, whose pictures are not decoded
    column: str
    row: int
    folder: Path  # to which paths inside of the table are relative

    def __call__(self) -> bytes:
        value = self.table[self.row][self.column]
        if isinstance(value, bytes):
            return value
        if isinstance(value, Mapping) and value.get("bytes"):
            return bytes(value["bytes"])
        path = value.get("path") if isinstance(value, Mapping) else value
        if not path:
            raise MezzotintError(
                f"{self.folder}, row {self.row}: column '{self.column}' is empty; fill or remove it"
            )
        return (self.folder / str(path)).read_bytes()


def is_table(path: Path) -> bool:
    """Whether a folder is a saved dataset, or holds parquet files."""
    if not path.is_dir():
        return path.suffix == ".parquet" and path.is_file()
    saved = any((path / name).exists() for name in ("state.json", "dataset_dict.json"))
    return saved or next(path.glob(PARQUET), None) is not None


def read_table(path: Path, columns: Mapping[str, str], cache: Path | None = None) -> list[Record]:
    """A record for each row; `columns` may name those of `ROLES`, `cache` is where parquet is unpacked to.

    Raises UsageError if the extra is missing, for a split or column that is not there, or if none can be chosen.
    """
    table, chosen = _opened(path, columns, cache)
    if not len(table):
        raise MezzotintError(f"{path} has no rows; fill it, or name another folder")
    plain = table.select_columns([name for name in (chosen.caption, chosen.label) if name])
    captions = _texts(plain[chosen.caption]) if chosen.caption else iter([()] * len(table))
    labels = _labels(table, chosen.label) if chosen.label else iter([None] * len(table))
    place = path.parent if path.is_file() else path
    return [
        Record(
            path,
            said,
            {} if label is None else {"class": label},
            inside=f"row {row}",
            source=Cell(table, chosen.image, row, place),
        )
        for row, (said, label) in enumerate(zip(captions, labels, strict=True))
    ]


def chosen_columns(path: Path, columns: Mapping[str, str], cache: Path | None = None) -> Columns:
    """The columns that `read_table` reads."""
    return _opened(path, columns, cache)[1]


def _opened(path: Path, columns: Mapping[str, str], cache: Path | None) -> tuple[Any, Columns]:
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            f"{path} is a Hugging Face dataset, which needs an extra: pip install 'mezzotint[datasets]'"
        ) from error
    if wrong := sorted(set(columns) - set(ROLES)):
        raise unknown("key of dataset.columns", wrong[0], ROLES)
    try:
        if path.is_dir() and not next(path.glob(PARQUET), None):
            table: Any = datasets.load_from_disk(str(path))
        else:
            files = [str(file) for file in _files(path)]
            table = datasets.Dataset.from_parquet(files, cache_dir=str(cache or _till_the_end()))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise MezzotintError(
            f"{path} cannot be read ({' '.join(str(error).split())}); copy it again"
        ) from error
    if isinstance(table, datasets.DatasetDict):
        table = table[_split(path, list(table))]
    chosen = _chosen(path, table.features, columns)
    if isinstance(table.features[chosen.image], datasets.Image):
        table = table.cast_column(chosen.image, datasets.Image(decode=False))
    return table, chosen


def _till_the_end() -> str:
    """A folder that goes when the process does."""
    folder = tempfile.TemporaryDirectory(prefix="mezzotint-")
    atexit.register(folder.cleanup)
    return folder.name


def _files(path: Path) -> list[Path]:
    """The parquet files of the split that is trained on."""
    if path.is_file():
        return [path]
    splits: dict[str, list[Path]] = {}
    for file in sorted(path.glob(PARQUET)):
        name = SPLIT.fullmatch(file.name)
        splits.setdefault(name["split"] if name else file.name, []).append(file)
    if not splits:
        raise UsageError(f"{path} is no saved dataset, and holds no parquet files; correct the path")
    named = any("train" in split for split in splits) or len(splits) == 1
    return (
        splits[_split(path, list(splits))] if named else [file for files in splits.values() for file in files]
    )


def _split(path: Path, splits: Sequence[str]) -> str:
    if "train" in splits or len(splits) == 1:
        return "train" if "train" in splits else splits[0]
    raise UsageError(
        f"{path} has the parts {', '.join(splits)}, none of them 'train'; name one: {path / splits[0]}"
    )


def _chosen(path: Path, features: Mapping[str, Any], given: Mapping[str, str]) -> Columns:
    """The columns that are given, else the first of the right type; captions by name among several."""
    import datasets

    for name in given.values():
        if name not in features:
            raise unknown(f"column of {path.name}", name, features)
    kinds: dict[str, list[str]] = {role: [] for role in ROLES}
    for name, feature in features.items():
        if isinstance(feature, datasets.ClassLabel):
            kinds["class"].append(name)
        elif _holds_pictures(feature):
            kinds["image"].append(name)
        elif _is_text(feature) or _is_text(getattr(feature, "feature", None)):
            kinds["caption"].append(name)
    images = sorted(kinds["image"], key=lambda name: not isinstance(features[name], datasets.Image))
    if not images and "image" not in given:
        told = ", ".join(f"{name} ({getattr(kind, 'dtype', kind)})" for name, kind in features.items())
        raise UsageError(f"{path}: no column holds pictures ({told}); name one in dataset.columns.image")
    captions = [name for name in CAPTIONS if name in kinds["caption"]] or kinds["caption"]
    first = {"image": images, "caption": captions, "class": kinds["class"]}
    return Columns(*(given.get(role) or next(iter(first[role]), "") for role in ROLES))


def _holds_pictures(feature: Any) -> bool:
    import datasets

    if isinstance(feature, Mapping):
        return {"bytes", "path"} <= feature.keys()
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", "") in ("binary", "large_binary")


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", "") in ("string", "large_string")


def _texts(column: Any) -> Iterator[tuple[str, ...]]:
    """The captions of each row; empty ones are none."""
    for value in column:
        texts = value if isinstance(value, list) else [value]
        yield tuple(" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip())


def _labels(table: Any, column: str) -> Iterator[str | None]:
    """The class of each row by its name, or what stands there as text."""
    names = getattr(table.features[column], "names", None)
    for value in table[column]:
        missing = value is None or (names and value < 0)
        yield None if missing else names[value] if names else str(value)
