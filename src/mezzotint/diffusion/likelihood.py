"""Exact log-likelihood by the probability-flow ODE (Song et al. 2021, section 4.3 and appendix D.2).

In u = log sigma the ODE that carries the density of one noise level into the next is dx/du = x - D(x, sigma),
and along it d log p / du = -div(x - D). Walking up from sigma_min to sigma_max, where p is as good as Gaussian,
    log p(x) = log p_max(x_max) + integral of (d - tr(dD/dx)) du.
It is exact up to the integrator's tolerance, that Gaussian, and the blur of sigma_min through which data is seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import MezzotintError
from .types import Cond, Denoise

Trace = Callable[[Tensor, Tensor], Tensor]  # (D [B, *S], the x [B, *S] it was computed from) -> tr(dD/dx) [B]
UNCONDITIONAL = Cond()


class Likelihood(NamedTuple):
    """What the ODE says of each row."""

    nats: Tensor  # [B] log p(x), natural logarithm, float64
    x_max: Tensor  # [B, *S] where x stands at sigma_max: its latent code
    evaluations: int  # calls of the denoiser


def exact_trace(denoised: Tensor, x: Tensor) -> Tensor:
    """tr(dD/dx) [B], one backward pass per dimension; rows must not influence each other."""
    flat = denoised.flatten(1)
    diagonal = [
        torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)[0].flatten(1)[:, i]
        for i in range(flat.shape[1])
    ]
    return torch.stack(diagonal).sum(0)


def hutchinson(probes: Tensor) -> Trace:
    """An unbiased estimate of the trace: the mean of v^T (dD/dx) v over probes v [K, B, *S], K backward passes.

    The entries of v have mean 0 and variance 1; signs (`rademacher`) give the least variance. The probes stay
    the same along the path, so that what is integrated is smooth (Grathwohl et al. 2019).
    """

    def trace(denoised: Tensor, x: Tensor) -> Tensor:
        products = [
            v * torch.autograd.grad((v * denoised).sum(), x, retain_graph=True)[0]
            for v in probes.to(denoised)
        ]
        return torch.stack(products).mean(0).flatten(1).sum(1)

    return trace


def rademacher(k: int, x: Tensor, draw: torch.Generator) -> Tensor:
    """k probes for a batch x [B, *S]: independent signs [k, B, *S]."""
    return torch.randint(0, 2, (k, *x.shape), generator=draw).to(x) * 2 - 1


def log_likelihood(
    denoise: Denoise,
    x: Tensor,
    cond: Cond = UNCONDITIONAL,
    *,
    sigma_min: float,
    sigma_max: float,
    trace: Trace = exact_trace,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Likelihood:
    """log p(x) for each row of x [B, *S], x being data seen through noise of sigma_min.

    At sigma_max p is taken for the isotropic Gaussian whose score and whose divergence of the score are the
    denoiser's own at x_max; for data of variance V this errs by about (spread of V over directions) / sigma_max^2.
    In float32 tolerances below 1e-5 have no meaning.
    Raises MezzotintError if the integrator's step vanishes, as it does for a denoiser that is not smooth.
    """
    shape, d = x.shape, x[0].numel()
    evaluations = 0

    def slope(u: float, state: Tensor) -> Tensor:
        """(x - D, d - tr(dD/dx)) [B, d + 1] at log sigma = u."""
        nonlocal evaluations
        evaluations += 1
        with torch.enable_grad():
            at = state[:, :d].to(x.dtype).reshape(shape).requires_grad_()
            denoised = denoise(at, at.new_full((len(at),), math.exp(u)), cond)
            shrink = trace(denoised, at)
        return torch.cat([(at - denoised).flatten(1), d - shrink.unsqueeze(1)], 1).detach().double()

    u_min, u_max = math.log(sigma_min), math.log(sigma_max)
    start = torch.cat(
        [x.flatten(1), x.new_zeros(len(x), 1)], 1
    ).double()  # [B, d + 1]: x, and the integral so far
    end = integrate(slope, start, u_min, u_max, rtol=rtol, atol=atol)
    last = slope(u_max, end)
    score = -last[:, :d] / sigma_max**2
    variance = sigma_max**2 * d / last[:, d]  # [B], as div score = -d / variance
    log_p_max = -0.5 * (variance * score.square().sum(1) + d * (2 * math.pi * variance).log())
    return Likelihood(log_p_max + end[:, d], end[:, :d].reshape(shape).to(x.dtype), evaluations)


def bits_per_dimension(nats: Tensor, d: int, *, bin_width: float = 2 / 255) -> Tensor:
    """-log2 of the probability per dimension, of data rounded to bins (8-bit pixels in [-1, 1]: 2/255 wide)."""
    return -(nats / d + math.log(bin_width)) / math.log(2)


# Dormand & Prince 1980: seven slopes, a fifth-order step, and what a fourth-order one would have done differently.
NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
DIFFERENCE = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def integrate(
    slope: Callable[[float, Tensor], Tensor], y: Tensor, start: float, end: float, *, rtol: float, atol: float
) -> Tensor:
    """y(end) of dy/du = slope(u, y) from y(start), rows [B, n], end > start; order 5 with error control.

    A step is taken when the worst row's root-mean-square error, in units of atol + rtol |y|, is below 1.
    Raises MezzotintError if that takes steps too small for u to tell apart.
    """
    u, step = start, (end - start) / 50
    first = slope(u, y)
    while u < end:
        step = min(step, end - u)
        slopes = [first]
        for node, row in zip(NODES[1:], STAGES[1:], strict=True):
            ahead = y + step * sum(a * k for a, k in zip(row, slopes, strict=True))
            slopes.append(slope(u + node * step, ahead))
        # The last row of STAGES is the step itself: `ahead` is its result, and its slope the next step's first.
        error = step * sum(e * k for e, k in zip(DIFFERENCE, slopes, strict=True))
        worst = float((error / (atol + rtol * ahead.abs())).square().mean(1).sqrt().max())
        if worst <= 1:
            u, y, first = (end if step == end - u else u + step), ahead, slopes[-1]
        step *= min(5.0, max(0.2, 0.9 * max(worst, 1e-10) ** -0.2)) if math.isfinite(worst) else 0.2
        if step < 1e-10 * (end - start):
            raise MezzotintError(
                f"likelihood: the denoiser is not smooth at sigma {math.exp(u):.3g}; loosen rtol"
            )
    return y
