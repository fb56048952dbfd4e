"""A checkpoint in whatever form it comes: a diffusers folder or a single file."""

from __future__ import annotations

from pathlib import Path

from .checkpoint import Configs, Parts
from .folder import folder_parts, read_configs
from .single import single_parts


def read_parts(path: Path | str, *, variant: str | None = None, prediction: str | None = None) -> Parts:
    """What lies at `path`, its tensors still on the disk.

    `variant` picks a folder's weights ("fp16"), `prediction` outranks what a single file says of itself. Raises
    MezzotintError naming the file and the remedy if it is damaged, incomplete or none of the kinds that are known.
    """
    path = Path(path)
    if path.is_dir() or not path.exists():
        return folder_parts(path, variant=variant)
    return single_parts(path, prediction=prediction)


def configs_at(path: Path | str) -> Configs:
    """The configurations alone, without a look at the weights of a folder. Raises as `read_parts` does."""
    path = Path(path)
    return single_parts(path).configs if path.is_file() else read_configs(path)
