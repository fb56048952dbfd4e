"""Everything a run needs to go on, in one folder that is there whole or not at all.

`step-00001000/state.safetensors` holds weights, averages and the optimiser's moments; `state.json` the step, the
precision and the configuration. No generator is saved: batches, noise levels and noise are functions of
(seed, step), which is why a resumed run ends in the same bits.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from ..formats.atomic import clear_leftovers, new_folder, read_json, write_json
from ..formats.tensors import read_tensors, write_tensors

WEIGHTS, STATE = "state.safetensors", "state.json"


def save(folder: Path, step: int, tensors: dict[str, Tensor], facts: dict[str, Any], *, keep: int) -> Path:
    """Write the checkpoint after `step` steps and remove all but the `keep` newest."""
    path = folder / f"step-{step:08d}"
    with new_folder(path, replace=True) as part:
        write_tensors(part / WEIGHTS, tensors)
        write_json(part / STATE, facts | {"step": step})
    for old in _all(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(tensors, facts) of the newest checkpoint in `folder`, or None if there is none."""
    if not folder.is_dir():
        return None
    clear_leftovers(folder)
    found = _all(folder)
    return (read_tensors(found[-1] / WEIGHTS), read_json(found[-1] / STATE)) if found else None


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
