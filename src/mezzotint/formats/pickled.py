"""Weights out of pickled files (.ckpt, .bin, .pt), where a user allows it: for converting, never for drawing.

torch's reader with `weights_only=True` builds tensors and containers and refuses every other object, so that no code
of the file runs. Two more are let through: one name as an empty class, since the released checkpoints of Stable
Diffusion 1 mention it beside their weights, and torch's own dictionary of parameters, in which old embeddings are.
"""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import ParameterDict

from ..errors import MezzotintError

NESTED = ("state_dict", "model", "module", "string_to_param")  # where training programs put the weights
MENTIONED = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"


class _Mentioned:
    """Stands for a class that is named in a file and means nothing to us."""


def read_pickled(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a pickled file, by name; mapped from the disk where its form allows it.

    Raises MezzotintError if it is damaged, or holds more than weights.
    """
    path = Path(path)
    try:
        with (
            torch.serialization.safe_globals([(_Mentioned, MENTIONED), ParameterDict]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # about how old the file is
            content: Any = _loaded(path)
    except FileNotFoundError as error:
        raise MezzotintError(
            f"{path} is missing; the checkpoint is incomplete, fetch or copy it again"
        ) from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it wants to run {found[1]}" if found else "it is no file of weights"
        raise MezzotintError(f"{path} holds more than weights, and stays closed: {reason}") from error
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
    ) as error:
        reason = " ".join(str(error).split())[:120]
        raise MezzotintError(f"{path} is damaged or cut short ({reason}); fetch or copy it again") from error
    while isinstance(content, dict) and (
        inner := next((content[k] for k in NESTED if _weights(content.get(k))), None)
    ):
        content = dict(inner.items())
    tensors = (
        {k: t.detach() for k, t in content.items() if isinstance(t, Tensor)}
        if isinstance(content, dict)
        else {}
    )
    if not tensors:
        raise MezzotintError(
            f"{path} holds no weights that we can find; convert it with the program that wrote it"
        )
    return tensors


def _loaded(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # a file older than torch 1.6


def _weights(content: Any) -> bool:
    return isinstance(content, dict | ParameterDict) and any(
        isinstance(value, Tensor | dict) for value in content.values()
    )
