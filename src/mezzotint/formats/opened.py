"""A checkpoint in whatever form it comes, a diffusers folder or a single file: opened, and brought into the other."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import UsageError
from .checkpoint import Configs, Parts
from .folder import folder_parts, read_configs, write_folder
from .single import single_parts, write_single
from .tensors import PICKLED


def read_parts(
    path: Path | str,
    *,
    variant: str | None = None,
    prediction: str | None = None,
    allow_pickle: bool = False,
) -> Parts:
    """What lies at `path`, its tensors still on the disk.

    `variant` picks a folder's weights ("fp16"), `prediction` outranks what a single file says of itself. Raises
    MezzotintError naming the file and the remedy if it is damaged, incomplete or none of the kinds that are known; if
    it is pickled and that is not allowed.
    """
    path = Path(path)
    if path.is_dir() or not path.exists():
        return folder_parts(path, variant=variant, allow_pickle=allow_pickle)
    return single_parts(path, prediction=prediction, allow_pickle=allow_pickle)


def write_parts(
    path: Path | str, parts: Parts, *, dtype: torch.dtype | None = None, replace: bool = False
) -> None:
    """Write a checkpoint as a single file if `path` ends in .safetensors, else as a diffusers folder.

    Weights as `dtype`, as they are if None: then no tensor changes its bytes. Raises as `write_folder` does.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        write_single(path, parts, dtype=dtype, replace=replace)
    elif path.suffix in PICKLED:
        raise UsageError(f"{path}: pickled files are not written; give a name in .safetensors, or a folder's")
    else:
        write_folder(path, parts, dtype=dtype, replace=replace)


def configs_at(path: Path | str) -> Configs:
    """The configurations alone, without a look at the weights of a folder. Raises as `read_parts` does."""
    path = Path(path)
    return single_parts(path).configs if path.is_file() else read_configs(path)
