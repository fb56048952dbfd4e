"""The textbook view: the Markov chain of DDPM in its own coordinate z_t (Ho et al. 2020, section 2).

    q(z_t | x0)      = N(sqrt(abar_t) x0, 1 - abar_t)                      eq. 4
    q(z_t | z_s)     = N(sqrt(a) z_s, 1 - a), a = abar_t / abar_s          eq. 2, where s = t - 1
    q(z_s | z_t, x0) = N(c_x0 x0 + c_z z_t, beta_tilde)                    eqs. 6 and 7

Samplers need none of it, since z_t = x / sqrt(1 + sigma^2). It is here to be read, and held against them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .process import VariancePreserving

CLEAN = -1  # the step before step 0: the picture itself, abar = 1


class Normal(NamedTuple):
    """N(mean_scale * what is given, std^2)."""

    mean_scale: Tensor
    std: Tensor


class Posterior(NamedTuple):
    """q(z_s | z_t, x0) = N(c_x0 * x0 + c_z * z_t, variance), with the two variances in use."""

    c_x0: Tensor
    c_z: Tensor
    beta_tilde: Tensor  # the variance, exact for one known x0 ("fixed small")
    beta: Tensor  # the forward step's, exact for the reverse step when x0 ~ N(0, 1) ("fixed large")


def _abar(process: VariancePreserving, t: int | Tensor) -> Tensor:
    """alphas_cumprod at t, like t, float64; 1 at `CLEAN`."""
    table = torch.cat([process.alphas_cumprod, torch.ones(1, dtype=torch.float64)])
    return table[torch.as_tensor(t)]  # -1, which is CLEAN, is the last entry


def marginal(process: VariancePreserving, t: int | Tensor) -> Normal:
    """q(z_t | x0), eq. 4: what t steps of noise have made of x0."""
    abar = _abar(process, t)
    return Normal(abar.sqrt(), (1 - abar).sqrt())


def transition(process: VariancePreserving, t: int | Tensor, s: int | Tensor) -> Normal:
    """q(z_t | z_s) for s < t; one step of the chain, eq. 2, when s = t - 1."""
    a = _abar(process, t) / _abar(process, s)
    return Normal(a.sqrt(), (1 - a).sqrt())


def posterior(process: VariancePreserving, t: int | Tensor, s: int | Tensor) -> Posterior:
    """q(z_s | z_t, x0) for s < t; one step back when s = t - 1, which is `CLEAN` for t = 0."""
    abar_t, abar_s = _abar(process, t), _abar(process, s)
    a = abar_t / abar_s
    beta = 1 - a
    return Posterior(
        c_x0=abar_s.sqrt() * beta / (1 - abar_t),
        c_z=a.sqrt() * (1 - abar_s) / (1 - abar_t),
        beta_tilde=beta * (1 - abar_s) / (1 - abar_t),
        beta=beta,
    )
