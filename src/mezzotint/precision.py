"""Which numbers a model computes in: what its device does fast, measured where that is not known.

float32 is exact enough to hold pictures to the last bit, and what small models use. Large ones take what is at least
`WORTH` times as fast: on a processor bfloat16 where it has instructions for it, on a GPU float16. The other half of the
truth is that half precision may be a thousand times slower than float32, where a processor only emulates it.
"""

from __future__ import annotations

import time
import warnings
from functools import cache

import torch
import torch.nn.functional as F

from .errors import unknown

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL = 100_000_000  # parameters of a U-Net: up to here it is not worth losing exactness
WORTH = 1.5  # times as fast as float32
ENOUGH = 0.02  # seconds that one measurement may take, more or less


class SlowPrecision(UserWarning):
    """The precision that was asked for is slow on this device."""


def chosen(asked: str, device: torch.device, parameters: int) -> torch.dtype:
    """The type for a U-Net of so many parameters; `asked` is a name of `PRECISIONS`, which is obeyed, or "auto".

    Warns once of a choice that was measured to be slower than float32. Raises UsageError for an unknown name.
    """
    if asked != "auto":
        if asked not in PRECISIONS:
            raise unknown("precision", asked, ["auto", *PRECISIONS])
        if device.type == "cpu":
            _warn_if_slow(asked)
        return PRECISIONS[asked]
    if parameters <= SMALL:
        return torch.float32
    if device.type != "cpu":
        return torch.float16
    return torch.bfloat16 if rate(torch.bfloat16) >= WORTH * rate(torch.float32) else torch.float32


def name_of(dtype: torch.dtype) -> str:
    """The name of a type in `PRECISIONS`."""
    return next(name for name, other in PRECISIONS.items() if other == dtype)


@cache
def rate(dtype: torch.dtype) -> float:
    """Operations a second of convolutions and matrix products on this processor, in a short trial.

    The trial begins small, since what is emulated can be very slow.
    """
    fastest = 0.0
    for width in (16, 64, 256):
        x = torch.ones(2, width, 16, 16, dtype=dtype).to(memory_format=torch.channels_last)
        w = torch.ones(width, width, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        tokens, matrix = x.permute(0, 2, 3, 1).flatten(0, 2), w.permute(0, 2, 3, 1).flatten(1)
        operations = 2 * tokens.shape[0] * matrix.numel() * 2
        for _ in range(3):
            begun = time.perf_counter()
            with torch.inference_mode():
                F.conv2d(x, w, padding=1)
                tokens @ matrix
            took = time.perf_counter() - begun
            fastest = max(fastest, operations / took)
        if took > ENOUGH:
            break
    return fastest


@cache
def _warn_if_slow(name: str) -> None:
    rates = {other: rate(PRECISIONS[other]) for other in {name, "float32", "bfloat16"}}
    if rates[name] < rates["float32"]:
        best = max(rates, key=lambda other: rates[other])
        warnings.warn(
            f"{name} is {rates['float32'] / rates[name]:.1f} times slower than float32 on this processor (measured: "
            f"{rates[name] / 1e9:.3g} against {rates['float32'] / 1e9:.3g} billion operations a second); "
            f"{best} is the fastest here",
            SlowPrecision,
            stacklevel=3,
        )
