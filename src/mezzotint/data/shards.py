"""Pictures in tar archives, as the `webdataset` package writes them: `shard-{000..009}.tar`, here or at a URL.

Members that follow one another and share the name up to its first dot are one sample: a picture (`.jpg`, `.png`,
`.webp`, ...), `.txt` (each line a caption), `.json` (`caption`, `text` or `captions`; `class` or `label`), `.cls`.

A scan of the headers, once for each shard, makes an index of where each picture's bytes lie; from then on a shard is
read at any place like a folder. That, and not a pipeline of generators that stream (the `webdataset` package), is why a
batch here is a function of (seed, step): a run resumes without reading what it has seen, on any number of processes.
The order of training keeps reading near-sequential, see `training/order.py`; shards at a URL lie on a shelf of bounded
size while they are read, see `remote.py`.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import MezzotintError, UsageError
from ..formats.atomic import read_json, write_json
from .folder import UNREADABLE, Record, upright_size
from .remote import Opener, Shelf, address, plain

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm")
SUFFIX = ".tar"
VISIBLE = f"[!.]*{SUFFIX}"
PACKED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
READERS = 8  # shards that are scanned side by side
BLOCK = 512  # bytes, of the tar format
TEXTS = ("txt", "json", "cls")
LARGEST_TEXT = 1 << 24  # bytes of a .txt, .json or .cls


class DamagedData(UserWarning):
    """Some of the data cannot be read, and is left out because that was allowed; `faults` has a line for each."""

    def __init__(self, faults: Sequence[str]) -> None:
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        super().__init__(f"left out: {faults[0]}{more}")
        self.faults = tuple(faults)


@dataclass(frozen=True)
class Access:
    """How pictures may be read that are no files of a folder."""

    damaged: str = "stop"  # or "skip": what cannot be read is left out, and said
    index: Path | None = None  # a folder that keeps what scans found
    opener: Opener | None = None  # for shards at URLs; without it they are refused
    shelf: Path | None = None  # where those lie while they are read
    room: float = 10.0  # GiB on the shelf
    columns: Mapping[str, str] = field(default_factory=dict)  # of tables, see `table.py`


class Sample(NamedTuple):
    """One picture of a shard."""

    name: str
    begin: int  # of its bytes in the archive
    length: int
    width: int
    height: int
    captions: Sequence[str]
    label: str | None


@dataclass(frozen=True)
class Index:
    """What a scan found in one shard."""

    samples: Sequence[Sample]
    faults: Sequence[str]  # what is damaged, a line each


@dataclass(frozen=True)
class Span:
    """The bytes of a picture in a file that lies here."""

    path: Path
    begin: int
    length: int

    def __call__(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.begin)
            return file.read(self.length)


@dataclass(frozen=True)
class DistantSpan:
    """The bytes of a picture in a shard that is fetched when it is needed."""

    shelf: Shelf
    url: str
    begin: int
    length: int

    def __call__(self) -> bytes:
        with self.shelf.open(self.url) as file:
            file.seek(self.begin)
            return file.read(self.length)


def in_shard(record: Record) -> bool:
    """Whether a picture lies in a tar archive, which is best read in order."""
    return isinstance(record.source, Span | DistantSpan)


def are_shards(path: Path) -> bool:
    """Whether `path` names tar archives: by suffix, by a pattern of names, or as a folder of them."""
    if path.name.lower().endswith((SUFFIX, *PACKED)) or address(path) or str(path).startswith("pipe:"):
        return True
    return path.is_dir() and any(path.glob(VISIBLE))


def read_shards(path: Path, access: Access | None = None) -> list[Record]:
    """The pictures of all shards that `path` names, in the shards' order.

    `path`: an archive, a folder of them, or names with `{000..009}`, `{a,b}`, `*`; or a URL, if `access` has an opener.
    A sample without a picture is passed over. Raises UsageError for shards that are not there, MezzotintError for
    damaged ones (or warns once, see `Access.damaged`) and for those without any picture.
    """
    access = access or Access()
    shards = shard_names(path)
    if address(path) is None:
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(lambda shard: _indexed(Path(shard), access), shards))
        return _records(shards, found, lambda shard, s: Span(Path(shard), s.begin, s.length), access)
    if access.opener is None or access.shelf is None:
        raise UsageError(
            f"{plain(shards[0])} is not on this machine, and nothing is fetched without being asked; set "
            "dataset.download = true to allow it"
        )
    if len({plain(url) for url in shards}) < len(shards):  # under which their indexes are kept
        raise UsageError(f"{plain(shards[0])}: shards must differ in their addresses before the '?'")
    shelf = Shelf(access.shelf, access.opener, int(access.room * 2**30))
    found = [_indexed_there(url, shelf, access) for url in shards]
    return _records(shards, found, lambda url, s: DistantSpan(shelf, url, s.begin, s.length), access)


def shard_names(path: Path) -> list[str]:
    """The paths or URLs that a pattern stands for, in order; UsageError if one is missing or cannot be read so."""
    pattern = address(path) or str(path)
    if pattern.startswith("pipe:"):
        raise UsageError(
            "pipe: shards are read from files and URLs, no command is run; write the data to a file first"
        )
    if pattern.lower().partition("?")[0].endswith(PACKED):
        raise UsageError(
            f"{plain(pattern)} is compressed as a whole; unpack it to {SUFFIX}, to be read at any place"
        )
    if address(path):
        return expanded(pattern)
    if path.is_dir():
        if found := [str(shard) for shard in sorted(path.glob(VISIBLE))]:
            return found
        raise UsageError(
            f"{path} holds no shards (*{SUFFIX}); correct the path, or name another dataset.layout"
        )
    shards: list[str] = []
    for name in expanded(pattern):
        literal = Path(name).exists() or not re.search(r"[*?\[]", name)
        matching = [name] if literal else sorted(str(p) for p in Path(name).parent.glob(Path(name).name))
        missing = not matching or not Path(matching[0]).is_file()
        if missing:
            raise UsageError(f"{name} is missing; correct the path, or restore it")
        shards += matching
    return shards


def expanded(pattern: str) -> list[str]:
    """`a{0..2}b` and `a{0,1,2}b` are a0b, a1b, a2b; several braces multiply; `{000..010..5}` keeps its zeros."""
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if brace is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)(?:\.\.(\d+))?", brace[1])
    if numbers:
        first, last, step = int(numbers[1]), int(numbers[2]), int(numbers[3] or 1)
        if last < first or step == 0:
            raise UsageError(f"{pattern}: {brace[0]} is empty; write the lower number first")
        padded = any(len(text) > 1 and text[0] == "0" for text in (numbers[1], numbers[2]))
        width = max(len(numbers[1]), len(numbers[2])) if padded else 0
        parts = [f"{number:0{width}}" for number in range(first, last + 1, step)]
    elif "," in brace[1]:
        parts = brace[1].split(",")
    else:
        raise UsageError(f"{pattern}: {brace[0]} is neither a range {{000..009}} nor a list {{a,b}}")
    return [
        done for part in parts for done in expanded(pattern[: brace.start()] + part + pattern[brace.end() :])
    ]


def scan(file: io.BufferedIOBase | Any, name: str) -> Index:
    """Read the headers of a tar archive, its texts and the headers of its pictures; no picture is decoded."""
    samples: list[Sample] = []
    faults: list[str] = []
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            members = (member for member in tar if member.isfile() and not _hidden(member.name))
            for key, group in itertools.groupby(members, key=lambda member: sample_key(member.name)[0]):
                try:
                    samples += _sample(tar, list(group))
                except (*UNREADABLE, MezzotintError) as error:
                    faults.append(f"{name}: sample {key} cannot be read ({error})")
            file.seek(tar.offset)  # tarfile takes a header that makes no sense for the end
            if rest := file.read(BLOCK).strip(b"\0"):
                faults.append(
                    f"{name} is damaged {tar.offset} bytes in ({len(rest)} bytes that are no header)"
                )
    except tarfile.TarError as error:
        faults.append(f"{name} is cut short or no tar archive ({error})")
    return Index(samples, faults)


def sample_key(name: str) -> tuple[str, str]:
    """(key, extension) of a member: `a/b.c.jpg` is (`a/b`, `c.jpg`)."""
    path = PurePosixPath(name)
    stem, _, extension = path.name.partition(".")
    return str(path.with_name(stem)), extension.lower()


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in PurePosixPath(name).parts)


def _sample(tar: tarfile.TarFile, members: Sequence[tarfile.TarInfo]) -> Iterator[Sample]:
    """The one picture of a sample, and what is said of it; nothing if it has none."""
    by_extension = {sample_key(member.name)[1]: member for member in members}
    picture = next((m for ending, m in by_extension.items() if ending in PICTURES), None)
    if picture is None:
        return
    file = tar.extractfile(picture)
    assert file is not None  # a regular file
    width, height = upright_size(file)
    texts = {e: _text(tar, member) for e, member in by_extension.items() if e in TEXTS}
    captions, label = said_of(texts)
    yield Sample(picture.name, picture.offset_data, picture.size, width, height, captions, label)


def _text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = tar.extractfile(member)
    assert file is not None
    if member.size > LARGEST_TEXT:
        raise MezzotintError(f"{member.name} has {member.size} bytes")
    return file.read().decode("utf-8")


def said_of(texts: Mapping[str, str]) -> tuple[tuple[str, ...], str | None]:
    """(captions, class) of a sample's `txt`, `json` and `cls`; text goes before JSON."""
    content = json.loads(texts["json"]) if "json" in texts else {}
    content = content if isinstance(content, dict) else {}
    told: Any = next((content[k] for k in ("captions", "caption", "text") if content.get(k)), [])
    lines = told if isinstance(told, list) else [told]
    if texts.get("txt", "").strip():
        lines = texts["txt"].split("\n")
    label = texts["cls"] if "cls" in texts else content.get("class", content.get("label"))
    captions = tuple(" ".join(line.split()) for line in lines if isinstance(line, str) and line.strip())
    return captions, None if label is None else str(label).strip()


# --- indexes, kept ---


def _indexed(shard: Path, access: Access) -> Index:
    """The index of a shard that lies here, found again if neither its size nor its time changed."""
    try:
        facts = shard.stat()
        key = f"{shard.resolve()} {facts.st_size} {facts.st_mtime_ns}"
        if (kept := _kept(key, access)) is not None:
            return kept
        with shard.open("rb") as file:
            index = scan(file, str(shard))
    except OSError as error:
        raise MezzotintError(f"{shard} cannot be read ({error.strerror}); restore it") from error
    return _keep(key, index, access)


def _indexed_there(url: str, shelf: Shelf, access: Access) -> Index:
    key = plain(url)
    if (kept := _kept(key, access)) is not None:
        return kept
    with shelf.open(url) as file:
        return _keep(key, scan(file, key), access)


def _kept(key: str, access: Access) -> Index | None:
    if access.index is None or not _place(key, access.index).exists():
        return None
    content = read_json(_place(key, access.index))
    samples = [Sample._make(fields) for fields in content["samples"]]
    return Index(samples, content["faults"]) if content.get("shard") == key else None


def _keep(key: str, index: Index, access: Access) -> Index:
    if access.index is not None:
        content = {"shard": key, "faults": index.faults, "samples": index.samples}
        write_json(_place(key, access.index), content, replace=True)
    return index


def _place(key: str, folder: Path) -> Path:
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


# --- records ---


def _records(
    shards: Sequence[str],
    found: Sequence[Index],
    source: Callable[[str, Sample], Callable[[], bytes]],
    access: Access,
) -> list[Record]:
    faults = [fault for index in found for fault in index.faults]
    if faults and access.damaged == "stop":
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise MezzotintError(f'{faults[0]}{more}; replace what is damaged, or set dataset.damaged = "skip"')
    if faults:
        warnings.warn(DamagedData(faults), stacklevel=3)
    records = [
        Record(
            Path(plain(shard)),
            tuple(sample.captions),
            {} if sample.label is None else {"class": sample.label},
            inside=sample.name,
            source=source(shard, sample),
            size=(sample.width, sample.height),
        )
        for shard, index in zip(shards, found, strict=True)
        for sample in index.samples
    ]
    if not records:
        raise MezzotintError(
            f"{plain(shards[0])}: no pictures in {len(shards)} shards; known are {', '.join(PICTURES)}"
        )
    return records
