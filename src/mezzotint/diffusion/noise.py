"""Randomness as a function, never a state.

The noise of an image is a function of (its seed, the step) and of nothing else: not of the batch it is drawn in,
nor of the device, nor of what was drawn before. Training draws from the same function with (run seed, step),
which is why a resumed run needs no saved generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .types import Noise

Draws = Callable[[Sequence[int], Sequence[int], torch.device | str], Noise]  # (seeds, shape, device) -> noise
INITIAL = -1  # the step index under which an image's first noise is drawn


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose whole sequence is a function of `key` (integers of any size, strings)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big") >> 1)


def image_noise(seed: int, step: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise [*shape] (float32, CPU) of one image at one step; `INITIAL` for the first x."""
    return torch.randn(*shape, generator=generator("image", seed, step))


def batch_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Noise:
    """`Noise` for a batch: row i of `noise(step)` is `image_noise(seeds[i], step, shape)`."""
    return lambda step: torch.stack([image_noise(seed, step, shape) for seed in seeds]).to(device)
