"""Pictures of which a part is known: from a denoiser of all pictures to samples of those that have that part.

What is known is a projection P and its value y = P x0: a region, or all that a blur leaves. Four ways to hold a
sampler to it, from the cheapest to the truest:

- `replaced`: P x becomes y + sigma eps before every estimate (Song et al. 2021, arXiv 2011.13456, appendix I.2).
  Biased: what is drawn anew is never asked whether it fits.
- `resampled`: the same, each step taken several times, with noise in between (RePaint, arXiv 2201.09865).
- `reconstructed`: D + (1 + sigma^2) J^T (y - P D), J = dD/dx, a step towards estimates that agree with y (Chung et al.
  2023, arXiv 2209.14687, with the weight of Song et al. 2023, PiGDM). One evaluation and one way back for each.
- `corrected`: between steps, Langevin dynamics at the same noise level, exact as inner steps and levels multiply:

      x <- T + a (x - T) + sigma sqrt(1 - a^2) n,   T = D where unknown, (1 + c) y - c P D where known,

  which leaves N(x0, sigma^2) unchanged for T = x0. Pushing the known part past y by what the estimate there misses
  gives the rest as much evidence as y itself would, not as the noisy y + sigma eps (LanPaint, arXiv 2502.03491;
  at c -> infinity it is exact for Gaussian data at every level, since then P D = y).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .denoiser import per_row
from .types import Cond, Denoise, Noise, Sampler, Step


class Known(NamedTuple):
    """What is known of x0."""

    value: Tensor  # [B, C, *S] y; 0 in what is not known
    part: Callable[[Tensor], Tensor]  # P, an orthogonal projection: [B, C, *S] -> [B, C, *S]

    def put(self, x: Tensor, value: Tensor) -> Tensor:
        """x with `value` in the known part."""
        return x + self.part(value - x)


def region(x0: Tensor, kept: Tensor) -> Known:
    """x0 [B, C, *S] is known where `kept` (0 or 1, anything that broadcasts) is 1."""
    return Known(x0 * kept, lambda x: x * kept)


def replaced(denoise: Denoise, known: Known, eps: Tensor) -> Denoise:
    """Sees y with noise eps [B, C, *S] (one for all levels) where it is known, and answers y there."""

    def held(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        x = known.put(x, known.value + per_row(sigma, x) * eps)
        return known.put(denoise(x, sigma, cond), known.value)

    return held


def reconstructed(denoise: Denoise, known: Known, *, weight: float = 1.0) -> Denoise:
    """Moves the estimate where its known part comes nearer to y; needs a denoiser that can be differentiated."""

    def drawn(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_()
            d = denoise(x, sigma.clone(), cond.map(torch.clone))
            missing = known.part(known.value.clone() - d.detach())
            (back,) = torch.autograd.grad(d, x, missing)
        return d.detach() + weight * (1 + per_row(sigma, x).detach() ** 2) * back

    return drawn


def resampled(sampler: Sampler, known: Known, *, times: int) -> Sampler:
    """`sampler` of a `replaced` denoiser, each step taken `times` times; exact in no limit but that of small steps."""

    def walk(
        denoise: Denoise, x: Tensor, sigmas: Tensor, cond: Cond, *, noise: Noise, **knobs: Any
    ) -> Iterator[Step]:
        for i, (s, t) in enumerate(pairwise(sigmas.tolist())):
            for j in range(times):
                own = _block(noise, i * times + j, 2)
                held = replaced(denoise, known, own(2).to(x))
                step = _once(sampler, held, x, sigmas[i : i + 2], cond, own, knobs)
                x = step.x if j == times - 1 else step.x + math.sqrt(s**2 - t**2) * own(3).to(x)
            yield Step(i, t, x, step.denoised)

    return walk


def corrected(
    sampler: Sampler, known: Known, *, times: int, keep: float = 0.8, push: float = 6.0, until: float = 0.0
) -> Sampler:
    """`sampler` with `times` steps of Langevin dynamics before each of its own.

    `keep`: a above, how much of x an inner step leaves; `push`: c above. Stable where push * (1 - keep) stays below
    1 + keep. At levels of `until` and below there are none: what is open there is less than that in size, and the
    sampler's own step settles it. A sampler that remembers earlier steps is used by single ones, in between which x
    has moved.
    """

    def walk(
        denoise: Denoise, x: Tensor, sigmas: Tensor, cond: Cond, *, noise: Noise, **knobs: Any
    ) -> Iterator[Step]:

        def answering(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
            return known.put(denoise(x, sigma, cond), known.value)

        fresh = math.sqrt(1 - keep**2)
        for i, (s, t) in enumerate(pairwise(sigmas.tolist())):
            own = _block(noise, i, times)
            for j in range(times if s > until else 0):
                d = denoise(x, x.new_full((len(x),), s), cond)
                target = d + (1 + push) * known.part(known.value - d)
                x = target + keep * (x - target) + s * fresh * own(2 + j).to(x)
            step = _once(sampler, answering, x, sigmas[i : i + 2], cond, own, knobs)
            x = step.x
            yield Step(i, t, x, step.denoised)

    return walk


def _once(
    sampler: Sampler,
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond,
    noise: Noise,
    knobs: dict[str, Any],
) -> Step:
    """One step of a sampler, between two levels."""
    step: Step = next(iter(sampler(denoise, x, sigmas, cond, noise=noise, **knobs)))
    return step


def _block(noise: Noise, block: int, more: int) -> Noise:
    """Noise that no other block draws: two for a sampler's own step (0 and 1), `more` for what stands around it."""
    return lambda k: noise(block * (more + 2) + k)
