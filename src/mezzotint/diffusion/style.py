"""The statistics of another picture: colours and contrasts that an estimate is brought towards.

Over its places, a map has a mean m and a covariance S between channels; the linear map that turns them into another's
(n, T) and moves as little as can be is, between Gaussians (Olkin & Pukelsheim 1982),

    x -> n + A (x - m),   A = S^-1/2 (S^1/2 T S^1/2)^1/2 S^-1/2.

With variances alone it is adaptive instance normalisation (Huang & Belongie 2017, arXiv 1703.06868). The estimates of
a denoiser are so mapped while the noise is high enough for the net to make a picture of the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .denoiser import per_row
from .types import Cond, Denoise

FLOOR = 1e-3  # variance that is added to both: flat maps have none


def resembling(denoise: Denoise, style: Tensor, strength: float, *, until: float = 0.0) -> Denoise:
    """Estimates drawn by `strength` in [0, 1] to the statistics of `style` [B, C, *S], at levels above `until`."""
    if strength == 0:
        return denoise

    def drawn(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        d = denoise(x, sigma, cond)
        near = d.lerp(transported(d, style), strength)
        return torch.where(per_row(sigma, x) > until, near, d)

    return drawn


def transported(x: Tensor, other: Tensor) -> Tensor:
    """x [B, C, *S] with the mean and the covariance over places that `other` [B, C, *S'] has; like x.

    Each picture by itself: products of batches round otherwise.
    """
    return torch.cat([_transported(*each) for each in zip(x.split(1), other.split(1), strict=True)])


def _transported(x: Tensor, other: Tensor) -> Tensor:
    (_, s, centred), (n, t, _) = (_statistics(each) for each in (x, other))
    root, back = _power(s, 0.5), _power(s, -0.5)
    change = back @ _power(root @ t @ root, 0.5) @ back  # [1, C, C]
    return (n + change @ centred).reshape(x.shape).to(x)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [B, C, 1], covariance [B, C, C] and what is left, [B, C, places], in float64."""
    flat = x.flatten(2).double()
    mean = flat.mean(2, keepdim=True)
    centred = flat - mean
    covariance = centred @ centred.mT / flat.shape[2]
    return mean, covariance + FLOOR * torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device), centred


def _power(matrix: Tensor, power: float) -> Tensor:
    """Of symmetric matrices [B, C, C] with positive eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=1e-12)[:, None] ** power) @ vectors.mT
