"""Everything a run needs to go on, in one folder that is there whole or not at all.

`step-00001000/state.safetensors` holds weights, averages and the optimiser's moments; `state.json` the step, the
precision, the configuration, and the SHA-256 of the other file. No generator is saved: batches, noise levels and
noise are functions of (seed, step), which is why a resumed run ends in the same bits. A checkpoint that is damaged
is put aside, and the one before it is taken.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import MezzotintError
from ..formats.atomic import clear_leftovers, new_folder, read_json, write_json
from ..formats.tensors import read_tensors, write_tensors

WEIGHTS, STATE = "state.safetensors", "state.json"
HASH = "sha256"
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


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(tensors, facts) of the newest checkpoint in `folder` that is sound, or None if there is none at all.

    Damaged ones are renamed; `facts["damaged"]` lists what was wrong with them. Raises MezzotintError if all are.
    """
    if not folder.is_dir():
        return None
    clear_leftovers(folder)
    damaged: list[str] = []
    for path in reversed(_all(folder)):
        try:
            return _read(path) if not damaged else _with(_read(path), damaged)
        except MezzotintError as error:
            damaged.append(str(error))
            aside = path.with_name(DAMAGED + path.name)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
    if damaged:
        raise MezzotintError(
            f"{folder}: no checkpoint is sound ({damaged[0]}); restore one, or remove the folder to begin anew"
        )
    return None


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    facts = read_json(path / STATE)
    tensors = read_tensors(path / WEIGHTS)
    if HASH in facts and _hash(path / WEIGHTS) != facts[HASH]:
        raise MezzotintError(f"{path / WEIGHTS} is damaged: its bytes are not those that were written")
    return tensors, facts


def _with(found: tuple[dict[str, Tensor], dict[str, Any]], damaged: list[str]) -> tuple[dict, dict]:
    return found[0], found[1] | {"damaged": damaged}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
