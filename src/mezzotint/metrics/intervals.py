"""An error bar for every number: Wilson's interval for shares, the bootstrap for means and ratios.

Wilson (1927) inverts the normal test of a share: with z the normal quantile, p = k / n,
    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),
which stays inside [0, 1] and is honest at k = 0 and k = n. The bootstrap (Efron 1979) draws the sample anew, with
replacement, and reads the interval off the quantiles of what the statistic does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A measured value and the interval that covers the true one with the chance `level`, from n samples."""

    value: float
    low: float
    high: float
    n: int
    level: float = LEVEL

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def percent(self) -> str:
        """`81.3 % (76.5 to 85.3)`."""
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"

    def plain(self, digits: int = 2) -> str:
        """`28.91 (28.70 to 29.12)`."""
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def wilson(successes: int, n: int, *, level: float = LEVEL) -> Interval:
    """The share `successes / n` of independent trials. ValueError unless 0 <= successes <= n and n >= 1."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n} trials")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if successes == 0 else middle - reach  # exact there; rounding would leave a speck
    high = 1.0 if successes == n else middle + reach
    return Interval(share, low, high, n, level)


def share(hits: Sequence[bool], *, level: float = LEVEL) -> Interval:
    """Wilson's interval for the share of true values."""
    return wilson(sum(map(bool, hits)), len(hits), level=level)


def mean(
    values: Sequence[float] | np.ndarray, *, level: float = LEVEL, resamples: int = 4000, seed: int = 0
) -> Interval:
    """The mean of `values` with its percentile bootstrap interval. ValueError if there are none."""
    sample = np.asarray(values, dtype=np.float64)
    return ratio_of_means(sample, np.ones_like(sample), level=level, resamples=resamples, seed=seed)


def ratio_of_means(
    above: Sequence[float] | np.ndarray,
    below: Sequence[float] | np.ndarray,
    *,
    level: float = LEVEL,
    resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """mean(above) / mean(below) of paired samples, which are resampled together. ValueError if there are none."""
    a, b = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    n = len(a)
    if n < 1 or a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"two series of equal length are needed, not {a.shape} and {b.shape}")
    draws = np.random.default_rng(seed).integers(n, size=(resamples, n))
    ratios = a[draws].mean(1) / b[draws].mean(1)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(a.mean() / b.mean()), float(low), float(high), n, level)
