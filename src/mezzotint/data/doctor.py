"""What is wrong with a folder of pictures, before a model is trained on it.

Every picture is decoded once. Exact copies have the same pixels (whatever their files); near ones have difference
hashes (signs of the differences of neighbours in a 9 x 8 grey thumbnail, 64 bits, Krawetz 2013) that differ in few
bits. A copy across the border between trained and held-out pictures makes a validation that flatters.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import MezzotintError
from ..formats.image import flatten, open_image
from .folder import EXIF_TURN, Record
from .shards import Access, DamagedData
from .sources import described, read_records

NEAR = 3  # bits of 64 in which near copies differ at most
SHOWN = 5  # examples of each finding
SEVERE = ("corrupt", "uncaptioned", "leaks")  # findings for which `data check` leaves with status 1
PLACEHOLDERS = frozenset(
    {"image", "picture", "photo", "untitled", "none", "null", "nan", "n/a", "todo", "test"}
)
MEANINGS = {
    "corrupt": "cannot be decoded",
    "uncaptioned": "have no caption",
    "leaks": "are held out, and the same or nearly the same is trained on",
    "copies": "are exact copies of others",
    "near copies": "are nearly the same as others",
    "tiny": "are smaller than the resolution",
    "odd captions": "have a caption that is a placeholder, a file name, markup or out of all length",
    "same caption": "share one caption with many others",
    "turned": "are turned by EXIF, which is heeded here, and not by every program",
    "extreme shapes": "are more than twice as wide as high, or the reverse: much of them is cut off",
    "transparent": "have transparency, which shows the background",
    "grey": "are without colour",
    "flat": "are of one colour throughout",
}


@dataclass(frozen=True)
class Examined:
    """What a look at one picture found."""

    number: int
    size: tuple[int, int] | None = None  # None: it cannot be decoded
    mode: str = ""
    pixels: str = ""  # a hash of them
    look: int = 0  # its difference hash
    finds: tuple[str, ...] = ()  # keys of `MEANINGS` that concern it alone
    detail: str = ""


@dataclass
class Report:
    """All findings: key of `MEANINGS` -> lines about pictures."""

    pictures: int
    captions: int
    layout: str
    sizes: dict[str, int] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    findings: dict[str, list[str]] = field(default_factory=dict)

    @property
    def severe(self) -> bool:
        """Whether training on this should wait."""
        return any(self.findings.get(kind) for kind in SEVERE)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        findings = {kind: {"count": len(lines), "which": lines} for kind, lines in self.findings.items()}
        return {
            "pictures": self.pictures,
            "captions": self.captions,
            "layout": self.layout,
            "sizes": self.sizes,
            "modes": self.modes,
            "findings": findings,
            "severe": self.severe,
        }

    def text(self) -> str:
        """For people."""
        sizes = ", ".join(f"{count} of {size}" for size, count in list(self.sizes.items())[:SHOWN])
        modes = ", ".join(f"{count} {mode}" for mode, count in self.modes.items())
        lines = [f"{self.pictures} pictures, {self.captions} captions, layout: {self.layout}"]
        lines += [f"sizes: {sizes}" + (" ..." if len(self.sizes) > SHOWN else ""), f"modes: {modes}"]
        for kind, meaning in MEANINGS.items():
            if found := self.findings.get(kind):
                lines.append(f"{'! ' if kind in SEVERE else '  '}{len(found)} {meaning} ({kind})")
                lines += [f"      {line}" for line in found[:SHOWN]]
                lines += [f"      and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        return "\n".join(lines if len(lines) > 3 else [*lines, "nothing is wrong with them"])


def examine(records: Sequence[Record], *, resolution: int = 0) -> Iterator[Examined]:
    """A look at each picture, in turn. `resolution`: the side below which they count as tiny."""
    for number, record in enumerate(records):
        try:
            data = record.read()
            image = open_image(data, name=record.name)
        except MezzotintError as error:
            yield Examined(number, finds=("corrupt",), detail=str(error))
            continue
        yield _examined(number, record, image, data, resolution)


def _examined(number: int, record: Record, image: Image.Image, data: bytes, resolution: int) -> Examined:
    picture = flatten(image)
    array = np.asarray(picture)
    finds = []
    if min(picture.size) < resolution:
        finds.append("tiny")
    if max(picture.size) > 2 * min(picture.size):
        finds.append("extreme shapes")
    if image.mode == "RGBA":
        finds.append("transparent")
    if (array == array[:1, :1]).all():
        finds.append("flat")
    elif (np.ptp(array.astype(int), axis=2) <= 2).all():
        finds.append("grey")
    if _turned(data):
        finds.append("turned")
    if any(odd_caption(caption, record) for caption in record.captions):
        finds.append("odd captions")
    digest = hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()
    return Examined(number, picture.size, image.mode, digest, difference_hash(picture), tuple(finds))


def report(
    records: Sequence[Record],
    looks: Sequence[Examined],
    held_out: Sequence[int] = (),
    *,
    layout: str = "",
    captions: bool = True,
    faults: Sequence[str] = (),
) -> Report:
    """What the looks say together. `captions`: whether every picture needs one. `held_out`: numbers of pictures.

    `faults`: what could not even be looked at.
    """
    findings: dict[str, list[str]] = defaultdict(list)
    findings["corrupt"] += faults
    for look in looks:
        for kind in look.finds:
            findings[kind].append(look.detail or records[look.number].name)
    if captions:
        findings["uncaptioned"] = [record.name for record in records if not record.captions]
    common = Counter(caption for record in records for caption in set(record.captions))
    many = max(10, len(records) // 10)
    if captions and find_classes(records) is None:
        findings["same caption"] = [
            f"{count} times: {text}" for text, count in common.most_common() if count > many
        ]
    seen = [look for look in looks if look.size is not None]
    out = set(held_out)
    for kind, pairs in (("copies", _copies(seen)), ("near copies", _near(seen))):
        for first, second in pairs:
            findings[kind].append(f"{records[second].name} is like {records[first].name}")
            if (first in out) != (second in out):
                held, trained = (first, second) if first in out else (second, first)
                findings["leaks"].append(f"{records[held].name} is like {records[trained].name}")
    sizes = Counter(f"{look.size[0]} x {look.size[1]}" for look in seen if look.size)
    return Report(
        len(records),
        sum(len(record.captions) for record in records),
        layout,
        dict(sizes.most_common()),
        dict(Counter(look.mode for look in seen).most_common()),
        {kind: findings[kind] for kind in MEANINGS if findings.get(kind)},
    )


def difference_hash(picture: Image.Image) -> int:
    """64 bits: whether a pixel of the 9 x 8 grey thumbnail is lighter than its left neighbour."""
    small = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(int)
    return int("".join("1" if bit else "0" for bit in (small[:, 1:] > small[:, :-1]).flatten()), 2)


def odd_caption(caption: str, record: Record) -> bool:
    """Whether a caption says nothing: a placeholder, the file's name, markup, one sign, a page of text."""
    text = caption.strip().lower()
    stem = Path(record.inside or str(record.extra.get("name", record.path))).stem.lower()
    named = (
        "class" not in record.extra
        and text in (stem, stem.replace("_", " "))
        and any(c.isdigit() for c in stem)
    )
    markup = "http://" in text or "https://" in text or ("<" in text and ">" in text)
    return text in PLACEHOLDERS or named or markup or len(text) < 2 or len(text.split()) > 200


def find_classes(records: Sequence[Record]) -> Mapping[str, int] | None:
    """How many pictures each class has, if they have classes."""
    if not all("class" in record.extra for record in records):
        return None
    return Counter(record.extra["class"] for record in records)


def check_folder(path: Path, layout: str = "auto") -> tuple[list[Record], str, list[str]]:
    """The records of a folder or of shards, the name of the layout, and what of the shards cannot be read."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", DamagedData)
        records = read_records(path, layout, Access(damaged="skip"))
    faults = [fault for w in said if isinstance(w.message, DamagedData) for fault in w.message.faults]
    return records, described(path, layout), faults


def _turned(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.getexif().get(EXIF_TURN, 1) != 1


def _copies(looks: Sequence[Examined]) -> Iterator[tuple[int, int]]:
    """(first, other) of pictures with the same pixels."""
    first: dict[str, int] = {}
    for look in looks:
        if first.setdefault(look.pixels, look.number) != look.number:
            yield first[look.pixels], look.number


def _near(looks: Sequence[Examined]) -> Iterator[tuple[int, int]]:
    """(first, other) of pictures that are no exact copies and whose hashes differ in at most `NEAR` bits.

    Of `NEAR` + 1 stretches of bits two such hashes have one in common, so that only pictures that share one are
    compared. Flat pictures, whose hashes all are 0, are left out.
    """
    width = 64 // (NEAR + 1)
    shared: dict[tuple[int, int], list[Examined]] = defaultdict(list)
    for look in looks:
        if "flat" in look.finds or look.look == 0:
            continue
        keys = [(part, look.look >> part * width & (1 << width) - 1) for part in range(NEAR + 1)]
        near = {other.number: other for key in keys for other in shared[key]}
        alike = [
            other
            for other in near.values()
            if (other.look ^ look.look).bit_count() <= NEAR and other.pixels != look.pixels
        ]
        if alike:
            yield min(other.number for other in alike), look.number
        for key in keys:
            shared[key].append(look)
