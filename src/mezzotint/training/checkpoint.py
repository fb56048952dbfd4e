"""Everything a run needs to go on, in one folder that is there whole or not at all.

`step-00001000/state.safetensors` holds weights, averages and the optimiser's moments; `state.json` the step, the
precision, the configuration, and the SHA-256 of the other file. No generator is saved: batches, noise levels and
noise are functions of (seed, step), which is why a resumed run ends in the same bits. A checkpoint that is damaged
is put aside, and the one before it is taken. Where processes keep parts of the weights, each writes a file of its own
(`sharding.py`); any number of processes reads either kind.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import MezzotintError
from ..formats.atomic import clear_leftovers, new_folder, read_json, write_json
from ..formats.tensors import read_tensors, write_tensors
from . import sharding
from .world import ALONE, World

WEIGHTS, STATE = "state.safetensors", "state.json"
HASH, HASHES = "sha256", "sha256 of parts"
DAMAGED = "damaged-"


def save(folder: Path, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], *, keep: int) -> Path:
    """Write the checkpoint after `step` steps and remove all but the `keep` newest.

    Raises MezzotintError if the disk is full; the older checkpoints are then as they were.
    """
    path = folder / f"step-{step:08d}"
    with new_folder(path, replace=True) as part:
        write_tensors(part / WEIGHTS, tensors)
        write_json(part / STATE, facts | {"step": step, HASH: _hash(part / WEIGHTS)})
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def save_parts(
    folder: Path, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], *, keep: int, world: World
) -> None:
    """As `save` does, by all processes of a world in which each keeps parts of `tensors`."""
    path = folder / f"step-{step:08d}"
    with new_folder(path, replace=True) if world.writes else nullcontext(path) as mine:
        part = world.told(mine)
        sharding.write(part, tensors)
        if world.writes:
            hashes = {file.name: _hash(file) for file in sorted(part.glob(sharding.STORED))}
            write_json(part / STATE, facts | {"step": step, HASHES: hashes})
    if world.writes:
        for old in _all(folder)[:-keep]:
            shutil.rmtree(old)


def newest(folder: Path, world: World = ALONE) -> tuple[Path, dict[str, Any]] | None:
    """(path, facts) of the newest checkpoint in `folder` that is sound, or None if there is none at all.

    Damaged ones are renamed; `facts["damaged"]` lists what was wrong with them. Raises MezzotintError if all are.
    Every process of a world calls, and is given the same.
    """
    if world.writes and folder.is_dir():
        clear_leftovers(folder)
    damaged: list[str] = []
    for path in reversed(world.told(_all(folder))):
        try:
            fault, facts = "", _checked(path, world)
        except MezzotintError as error:
            fault, facts = str(error), {}
        if not (faults := list(filter(None, world.gathered(fault)))):
            return path, facts | ({"damaged": damaged} if damaged else {})
        damaged.append(faults[0])
        if world.writes:
            aside = path.with_name(DAMAGED + path.name)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
    if damaged:
        raise MezzotintError(
            f"{folder}: no checkpoint is sound ({damaged[0]}); restore one, or remove the folder to begin anew"
        )
    return None


def load_newest(folder: Path, world: World = ALONE) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(tensors, facts) of the checkpoint that `newest` finds; the whole of every tensor for every process."""
    found = newest(folder, world)
    return None if found is None else (load(found[0]), found[1])


def load(path: Path, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint: whole, or cut as those of `like` are (then every process must call)."""
    if like is not None:
        return sharding.read(path, like, alone=False)
    if (path / WEIGHTS).exists():
        return read_tensors(path / WEIGHTS)
    return sharding.read(path, {}, alone=True)


def _checked(path: Path, world: World) -> dict[str, Any]:
    """The facts of a checkpoint; each process looks at some of its files. MezzotintError if one is damaged."""
    facts = read_json(path / STATE)
    hashes = facts.get(HASHES) or {WEIGHTS: facts.get(HASH)}
    for name, digest in sorted(hashes.items())[world.rank :: world.size]:
        file = path / name
        if digest is None:  # of an older version
            read_tensors(file)
        elif not file.exists() or _hash(file) != digest:
            raise MezzotintError(f"{file} is damaged: its bytes are not those that were written")
    return facts


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
