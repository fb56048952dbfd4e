"""One evaluation a step and no memory: Euler's step, and how much fresh noise follows it.

    x_t = toward(x_s, D, s, down) + up * noise,    down^2 + up^2 = t^2

is DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12) in the coordinate x = x0 + sigma * eps. At eta = 0 it is
Euler's method for the probability-flow equation, at eta = 1 ancestral sampling (Ho et al. 2020, arXiv
2006.11239). Step i draws noise(i), and the step to level 0 draws none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from ..types import Cond, Denoise, Noise, Step
from .steps import UNCONDITIONAL, Method, ancestral, estimate, intervals, one_of, stir, toward


def ddim(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond = UNCONDITIONAL,
    *,
    noise: Noise | None = None,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16). One evaluation a step; order 1.

    `eta` mixes in noise, from none (0) to that of ancestral sampling (1), and the variance then converges with
    order 1; `s_noise` scales what is drawn.
    """
    for i, s, t in intervals(sigmas):
        d = estimate(denoise, x, s, cond)
        down, up = ancestral(s, t, eta)
        x = stir(toward(x, d, s, down), s_noise * up, noise, i)
        yield Step(i, t, x, d)


def euler(
    denoise: Denoise, x: Tensor, sigmas: Tensor, cond: Cond = UNCONDITIONAL, *, noise: Noise | None = None
) -> Iterator[Step]:
    """Euler's method for the probability-flow equation. One evaluation a step; order 1.

    In this coordinate it is DDIM without noise, and it is Euler's method of flow matching too.
    """
    return ddim(denoise, x, sigmas, cond)


def euler_ancestral(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond = UNCONDITIONAL,
    *,
    noise: Noise | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """Euler's method with ancestral noise. One evaluation a step; its variance converges with order 1.

    Known by this name since k-diffusion; in this coordinate it is DDIM with eta = 1.
    """
    return ddim(denoise, x, sigmas, cond, noise=noise, eta=eta, s_noise=s_noise)


def ddpm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond = UNCONDITIONAL,
    *,
    noise: Noise | None = None,
    variance: str = "small",
) -> Iterator[Step]:
    """Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, Algorithm 2). One evaluation a step.

    On the T levels of the noise schedule this is the original; on fewer it is "respaced" (Nichol & Dhariwal
    2021, arXiv 2102.09672, section 4), beta being the one that joins two levels. `variance` is one of the two in
    section 3.2 of Ho et al., each exact for one kind of data at any number of steps: "small", the posterior's, for
    a single point; "large", the chain's beta, for N(0, 1), and meant for variance-preserving processes. In between
    the variance of x converges with order 1. Raises UsageError for another `variance`.
    """
    one_of("variance", variance, ("small", "large"))
    for i, s, t in intervals(sigmas):
        d = estimate(denoise, x, s, cond)
        down, up = ancestral(s, t, 1.0)  # eq. 7: mean and variance of q(x_t | x_s, x0 = D)
        if variance == "large" and t > 0:
            up = math.sqrt((s**2 - t**2) * (1 + t**2) / (1 + s**2))  # beta = 1 - abar_s / abar_t, over abar_t
        x = stir(toward(x, d, s, down), up, noise, i)
        yield Step(i, t, x, d)


def lcm(
    denoise: Denoise, x: Tensor, sigmas: Tensor, cond: Cond = UNCONDITIONAL, *, noise: Noise | None = None
) -> Iterator[Step]:
    """Multistep latent consistency sampling (Luo et al. 2023, arXiv 2310.04378). One evaluation a step.

    Jump to the estimate, noise it afresh to the next level: for consistency-distilled models, whose estimate is
    the end of the trajectory. (Their boundary scalings c_skip and c_out are left out: they are within 1e-5 of 0
    and 1 at every level that is sampled.) With a plain denoiser variance is lost however many the steps: order 0.
    """
    for i, s, t in intervals(sigmas):
        d = estimate(denoise, x, s, cond)
        x = stir(d, t, noise, i)
        yield Step(i, t, x, d)


METHODS = {
    "ddim": Method(ddim, order=1),
    "ddpm": Method(ddpm, order=1, stochastic=True),
    "euler": Method(euler, order=1),
    "euler_ancestral": Method(euler_ancestral, order=1, stochastic=True),
    "lcm": Method(lcm, order=0, stochastic=True),
}
