"""How near samples are to pictures that the model has never seen, while it is trained.

The kernel distance of random features (`metrics/kernel.py`) with its interval, beside what the same number of pictures
that are trained on have: the floor, and, once the samples are below it, a reason to look for copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..metrics.kernel import features, kernel_distance

KIND = "kernel distance of random features"


@dataclass(frozen=True)
class Score:
    """The squared distance of n samples to held-out pictures, with the bounds of its interval."""

    value: float
    low: float
    high: float
    n: int
    floor: float  # of pictures that are trained on
    kind: str = KIND


def score(held_out: Sequence[np.ndarray], made: Sequence[np.ndarray], trained: Sequence[np.ndarray]) -> Score:
    """Of pictures uint8 [H, W, 3] of any sizes; each is seen by the square in its middle."""
    real = looked_at(held_out)
    found = kernel_distance(real, looked_at(made))
    floor = kernel_distance(real, looked_at(trained)).value
    return Score(found.value, found.low, found.high, found.n, floor)


def looked_at(pictures: Sequence[np.ndarray]) -> Tensor:
    """Feature rows [n, d] of pictures."""
    return torch.cat([features(_square(picture)) for picture in pictures])


def _square(picture: np.ndarray) -> Tensor:
    """[H, W, 3] -> [1, 3, S, S], the middle."""
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    middle = picture[top : top + side, left : left + side]
    return torch.from_numpy(np.ascontiguousarray(middle)).permute(2, 0, 1)[None]
