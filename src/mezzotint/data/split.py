"""Which pictures are never trained on: a function of their names alone.

A picture is held out if the hash of its file's and its folder's name says so: the same ones, whatever else is in the
folder, wherever it lies, and however often a run is started.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from .folder import Record


@dataclass(frozen=True)
class Split:
    """Numbers of the pictures that are trained on, and of those that are not."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]


def split(records: Sequence[Record], share: float) -> Split:
    """Hold out about `share` of the pictures; none if it would be all."""
    held = tuple(i for i, record in enumerate(records) if _draw(record) < share)
    if len(held) == len(records):
        held = ()
    out = set(held)
    return Split(tuple(i for i in range(len(records)) if i not in out), held)


def _draw(record: Record) -> float:
    """A number in [0, 1) for a picture."""
    path = PurePosixPath(record.path)
    key = f"{path.name}/{record.inside}" if record.inside else f"{path.parent.name}/{path.name}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6]) / 2**48
