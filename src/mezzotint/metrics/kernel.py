"""How far two sets of pictures are apart, without a trained judge: a kernel distance of random features, an interval.

Squared maximum mean discrepancy, unbiased (Gretton et al. 2012), with the cubic kernel of KID (Binkowski et al. 2018,
arXiv 1801.01401), k(x, y) = (x.y / d + 1)^3:
    mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean k(a_i, b_j),
about 0, and now and then below, for two sets of one kind. The features are a colour grid and what fixed random filters
say at three scales, standardised by the first set; they need no data to be trained on and favour nobody. The interval
is the jackknife's: each picture is left out once.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.noise import generator
from .intervals import LEVEL, Interval

SIDE = 32  # pixels that pictures are shrunk to
FILTERS, WIDTH = 64, 5
SCALES = (32, 16, 8)
FEWEST = 16  # pictures of a set, below which nothing is said


def features(pictures: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> [B, d]: mean colours on a 4 x 4 grid, and responses of filters on 2 x 2 at three scales."""
    x = pictures.float() / 127.5 - 1
    if x.shape[-2:] != (SIDE, SIDE):
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
    found = [F.adaptive_avg_pool2d(x, 4).flatten(1)]
    for scale in SCALES:
        smaller = F.adaptive_avg_pool2d(x, scale)
        answers = F.conv2d(F.pad(smaller, [WIDTH // 2] * 4, mode="replicate"), _filters())
        found.append(F.adaptive_avg_pool2d(answers.abs(), 2).flatten(1))
    return torch.cat(found, dim=1)


def kernel_distance(real: Tensor, made: Tensor, *, level: float = LEVEL) -> Interval:
    """The squared distance of two sets of feature rows, [n, d] and [m, d], with its interval.

    ValueError if either has less than three rows.
    """
    n, m = len(real), len(made)
    if min(n, m) < 3:
        raise ValueError(f"sets of {n} and {m} are too small for a distance")
    a, b = real.double(), made.double()
    mean, std = a.mean(0), a.std(0).clamp(min=1e-6)
    a, b = (a - mean) / std, (b - mean) / std
    aa, bb, ab = (_kernel(x, y) for x, y in ((a, a), (b, b), (a, b)))
    aa.fill_diagonal_(0)
    bb.fill_diagonal_(0)
    cross = ab.mean()
    inside_a, inside_b = aa.sum() / (n * (n - 1)), bb.sum() / (m * (m - 1))
    value = inside_a + inside_b - 2 * cross
    without_a = (aa.sum() - 2 * aa.sum(1)) / ((n - 1) * (n - 2)) + inside_b  # [n]
    without_a = without_a - 2 * (ab.sum() - ab.sum(1)) / ((n - 1) * m)
    without_b = (bb.sum() - 2 * bb.sum(1)) / ((m - 1) * (m - 2)) + inside_a  # [m]
    without_b = without_b - 2 * (ab.sum() - ab.sum(0)) / ((m - 1) * n)
    variance = (n - 1) * without_a.var(correction=0) + (m - 1) * without_b.var(correction=0)
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(float(variance))
    return Interval(float(value), float(value) - reach, float(value) + reach, min(n, m), level)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


@lru_cache(1)
def _filters() -> Tensor:
    """[FILTERS, 3, WIDTH, WIDTH], of mean 0 and norm 1; the same everywhere."""
    drawn = torch.randn(FILTERS, 3, WIDTH, WIDTH, generator=generator("features of pictures"))
    drawn -= drawn.mean((1, 2, 3), keepdim=True)
    return drawn / drawn.flatten(1).norm(dim=1)[:, None, None, None]
