"""Two evaluations a step: Euler's step with the estimate found further down.

A Runge-Kutta method of order 2 first walks to a level m < s, evaluates D there, and takes the step from s anew
with D + gain * (D_m - D) for D. Heun's rule looks at the end of the step, the others at its middle in log sigma;
they differ in what they hold constant over the step, eps (gain s / m) or x0 (gain 1).
(Karras et al. 2022, arXiv 2206.00364; Lu et al. 2022, arXiv 2206.00927 and 2211.01095.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from ..types import Cond, Denoise, Noise, Step
from .steps import UNCONDITIONAL, Method, ancestral, estimate, intervals, stir, toward


def heun_mean(denoise: Denoise, x: Tensor, d: Tensor, s: float, t: float, cond: Cond) -> Tensor:
    """The D with which Euler's step from s to t > 0 becomes Heun's: eps is the mean of both ends'.

    eps_t - eps_s = (d - d_t) / t, as the first walk is straight; half of it, times -s, joins d.
    """
    d_t = estimate(denoise, toward(x, d, s, t), t, cond)
    return d + s / (2 * t) * (d_t - d)


def heun(
    denoise: Denoise, x: Tensor, sigmas: Tensor, cond: Cond = UNCONDITIONAL, *, noise: Noise | None = None
) -> Iterator[Step]:
    """Heun's method (Karras et al. 2022, Algorithm 1). Two evaluations a step, one to level 0; order 2."""
    for i, s, t in intervals(sigmas):
        d = estimate(denoise, x, s, cond)
        x = toward(x, heun_mean(denoise, x, d, s, t, cond) if t > 0 else d, s, t)
        yield Step(i, t, x, d)


def dpm2(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond = UNCONDITIONAL,
    *,
    noise: Noise | None = None,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """DPM-Solver-2 (Lu et al. 2022, arXiv 2206.00927, Algorithm 1) in k-diffusion's form. Order 2.

    Two evaluations a step, one to level 0. eps at the middle serves for the whole step. With eta > 0 the walk
    goes on lower and noise makes up the level; `s_noise` scales it.
    """
    for i, s, t in intervals(sigmas):
        d = mean = estimate(denoise, x, s, cond)
        down, up = ancestral(s, t, eta)
        if down > 0:
            m = math.sqrt(s * down)
            mean = d + (s / m) * (estimate(denoise, toward(x, d, s, m), m, cond) - d)
        x = stir(toward(x, mean, s, down), s_noise * up, noise, i)
        yield Step(i, t, x, d)


def dpm2_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond = UNCONDITIONAL,
    *,
    noise: Noise | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """`dpm2` with ancestral noise. Two evaluations a step; its variance converges with order 2."""
    return dpm2(denoise, x, sigmas, cond, noise=noise, eta=eta, s_noise=s_noise)


def dpmpp_2s(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond = UNCONDITIONAL,
    *,
    noise: Noise | None = None,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """DPM-Solver++(2S), Lu et al. 2022 (arXiv 2211.01095, Algorithm 1 with r = 1/2). Order 2.

    Two evaluations a step, one to level 0. x0 at the middle serves for the whole step. With eta > 0 the walk
    goes on lower and noise makes up the level; `s_noise` scales it.
    """
    for i, s, t in intervals(sigmas):
        d = mean = estimate(denoise, x, s, cond)
        down, up = ancestral(s, t, eta)
        if down > 0:
            m = math.sqrt(s * down)
            mean = estimate(denoise, toward(x, d, s, m), m, cond)
        x = stir(toward(x, mean, s, down), s_noise * up, noise, i)
        yield Step(i, t, x, d)


def dpmpp_2s_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond = UNCONDITIONAL,
    *,
    noise: Noise | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """`dpmpp_2s` with ancestral noise. Two evaluations a step; its variance converges with order 2."""
    return dpmpp_2s(denoise, x, sigmas, cond, noise=noise, eta=eta, s_noise=s_noise)


def dpmpp_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond = UNCONDITIONAL,
    *,
    noise: Noise | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """`dpmpp_2s` for the stochastic equation (the method is k-diffusion's). Its variance converges with order 2.

    Two evaluations a step, one to level 0. The way to the middle is noisy too, and the noise of the whole step
    is that of one Brownian path in sigma: noise(2 i) drives its first part, noise(2 i + 1) the rest. (Independent
    noise for the two would leave order 1.) `eta` and `s_noise` as in `dpmpp_2s`.
    """
    for i, s, t in intervals(sigmas):
        d = mean = estimate(denoise, x, s, cond)
        first = 0.0  # share of the path's variance that belongs to the way to the middle
        if t > 0:
            m = math.sqrt(s * t)
            first = (s - m) / (s - t)
            down, up = ancestral(s, m, eta)
            mean = estimate(denoise, stir(toward(x, d, s, down), s_noise * up, noise, 2 * i), m, cond)
        down, up = ancestral(s, t, eta)
        x = toward(x, mean, s, down)
        x = stir(x, s_noise * up * math.sqrt(first), noise, 2 * i)
        x = stir(x, s_noise * up * math.sqrt(1 - first), noise, 2 * i + 1)
        yield Step(i, t, x, d)


METHODS = {
    "dpm2": Method(dpm2, order=2, evaluations=2),
    "dpm2_ancestral": Method(dpm2_ancestral, order=2, evaluations=2, stochastic=True),
    "dpmpp_2s": Method(dpmpp_2s, order=2, evaluations=2),
    "dpmpp_2s_ancestral": Method(dpmpp_2s_ancestral, order=2, evaluations=2, stochastic=True),
    "dpmpp_sde": Method(dpmpp_sde, order=2, evaluations=2, stochastic=True),
    "heun": Method(heun, order=2, evaluations=2),
}
