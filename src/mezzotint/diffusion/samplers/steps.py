"""The one step that every sampler takes, and the walk down the noise levels.

With x = x0 + sigma * eps the probability-flow equation is dx/dsigma = (x - D) / sigma, D = denoise(x, sigma)
(Karras et al. 2022, arXiv 2206.00364, eq. 1 and 3). Were D constant, its solution from level s to t would be

    x_t = D + (t / s) (x_s - D),

which is at home at t = 0 and at s = 10^4 alike. Samplers differ in the D that they put there (a value further
down, an average over the step) and in how much of the level t they make of fresh noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from ...errors import UsageError, unknown
from ..types import Cond, Denoise, Noise, Sampler

UNCONDITIONAL = Cond()


class Method(NamedTuple):
    """A sampler, and what is known of it."""

    sampler: Sampler
    order: (
        int  # measured order of convergence with default knobs: of x if deterministic, else of its variance
    )
    evaluations: int = 1  # calls of denoise per step
    stochastic: bool = False  # whether it draws noise by default


def intervals(sigmas: Tensor) -> list[tuple[int, float, float]]:
    """(i, s, t) for each of the N steps from s = sigmas[i] to t = sigmas[i + 1]; sigmas is [N + 1].

    Raises UsageError unless N >= 1 and the levels fall strictly from a finite one to no less than 0.
    """
    levels = sigmas.tolist()
    pairs = list(pairwise(levels))
    if not pairs or not math.isfinite(levels[0]) or levels[-1] < 0 or not all(s > t for s, t in pairs):
        raise UsageError(
            "a sampler needs at least two noise levels, falling strictly from a finite one to 0 or more; "
            f"got {[round(level, 4) for level in levels[:4]]}{'...' if len(levels) > 4 else ''}"
        )
    return [(i, s, t) for i, (s, t) in enumerate(pairs)]


def estimate(denoise: Denoise, x: Tensor, sigma: float, cond: Cond) -> Tensor:
    """D(x, sigma), the model's estimate of x0: one evaluation, with sigma told as [B]."""
    return denoise(x, x.new_full((len(x),), sigma), cond)


def toward(x: Tensor, d: Tensor, s: float, t: float) -> Tensor:
    """x carried from level s to level t along the straight line through d (at level 0)."""
    return d + (t / s) * (x - d)


def ancestral(s: float, t: float, eta: float) -> tuple[float, float]:
    """(down, up), down^2 + up^2 = t^2: walk from s to `down`, then add noise of standard deviation `up`.

    eta = 1 gives the posterior q(x_t | x_s, D), where down = t^2 / s; eta = 0 gives (t, 0).
    Song et al. 2021 (arXiv 2010.02502), eq. 16, divided by the signal's amplitude.
    """
    up = min(t, eta * t * math.sqrt(1 - (t / s) ** 2))
    return math.sqrt(t**2 - up**2), up


def stir(x: Tensor, amount: float, noise: Noise | None, i: int) -> Tensor:
    """x with noise(i) of standard deviation `amount` added; none is drawn when that is 0."""
    if amount == 0:
        return x
    if noise is None:
        raise UsageError("this sampler adds noise: give it noise=, a function from the step to noise like x")
    return x + amount * noise(i).to(x)


def one_of(kind: str, name: str, known: Iterable[str]) -> str:
    """`name` if it is known, else the error that says which are."""
    known = list(known)
    if name not in known:
        raise unknown(kind, name, known)
    return name
