"""From a picture back to the noise that it would be drawn from.

Along the probability-flow equation dx/dsigma = e(x, sigma) = (x - D) / sigma, DDIM inversion takes Euler's step upwards
with the slope of its start, which is not the slope that the way down had there: it never quite returns. Steps that use
the slope in the middle of two return exactly, at one evaluation each (BDIA, Zhang et al. 2023, arXiv 2307.10829):

    x[i+1] = x[i] + (s[i+1] - s[i]) e[i] + g (x[i-1] - x[i] - (s[i-1] - s[i]) e[i]),

solved for x[i-1]: all it needs are x[i], x[i+1] and e[i], which both ways share. g = 1 is the midpoint rule; below 1 it
damps the wobble between odd and even steps, and rounding grows by 1 / g a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from .samplers.steps import estimate, intervals, toward
from .types import Cond, Denoise, Sampler, Step

MEMORY = 0.95  # g above


class Start(NamedTuple):
    """Where a picture comes from: the states at the first two noise levels."""

    x: Tensor  # at sigmas[0]
    second: Tensor  # at sigmas[1]


def invert_bdia(denoise: Denoise, x0: Tensor, sigmas: Tensor, cond: Cond, *, memory: float = MEMORY) -> Start:
    """The start from which `bdia` comes to x0 [B, C, *S], to rounding, on the same levels sigmas [N + 1], N >= 2."""
    *_, second, x = climb(denoise, x0, sigmas, cond, memory=memory)
    return Start(x, second)


def climb(
    denoise: Denoise, x0: Tensor, sigmas: Tensor, cond: Cond, *, memory: float = MEMORY
) -> Iterator[Tensor]:
    """The states of that way back, from x0 itself up to sigmas[0]: N + 1 of them."""
    levels = sigmas.tolist()
    after = x0
    x = x0 + (x0 - estimate(denoise, x0, levels[-2], cond)) * (1 - levels[-1] / levels[-2])
    yield from (after, x)
    for i in range(len(levels) - 2, 0, -1):
        high, here, low = levels[i - 1], levels[i], levels[i + 1]
        slope = (x - estimate(denoise, x, here, cond)) / here
        before = x + (high - here) * slope + (after - x - (low - here) * slope) / memory
        after, x = x, before
        yield x


def bdia(second: Tensor, *, memory: float = MEMORY) -> Sampler:
    """The sampler that goes down from a `Start`; deterministic, one evaluation a step."""

    def walk(denoise: Denoise, x: Tensor, sigmas: Tensor, cond: Cond, **_: Any) -> Iterator[Step]:
        levels = sigmas.tolist()
        yield Step(0, levels[1], second, second)
        before, x = x, second
        for i in range(1, len(levels) - 1):
            high, here, low = levels[i - 1], levels[i], levels[i + 1]
            d = estimate(denoise, x, here, cond)
            slope = (x - d) / here
            after = x + (low - here) * slope + memory * (before - x - (high - here) * slope)
            before, x = x, after
            yield Step(i, low, x, d)

    return walk


def invert_ddim(denoise: Denoise, x0: Tensor, sigmas: Tensor, cond: Cond) -> Tensor:
    """About where Euler's steps down would have had to start (Song et al. 2021); at 0 with the next level's slope."""
    x = x0
    for _, s, t in reversed(intervals(sigmas)):
        at = t if t > 0 else s
        d = estimate(denoise, x, at, cond)
        x = toward(x, d, t, s) if t > 0 else x + (x - d)
    return x
