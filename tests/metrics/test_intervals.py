"""Intervals against scipy's, and against what they promise: to cover the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from mezzotint.metrics.intervals import Interval, mean, ratio_of_means, share, wilson


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (1, 3), (240, 300), (299, 300)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_is_that_of_scipy(k: int, n: int, level: float) -> None:
    ours, theirs = wilson(k, n, level=level), binomtest(k, n).proportion_ci(level, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.value == k / n
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_shares_are_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="trials"):
        wilson(k, n)


def test_share_counts_hits() -> None:
    assert share([True, False, True, True]) == wilson(3, 4)


def test_bootstrap_of_a_mean_approaches_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3, 2, 2000)
    interval = mean(values, resamples=2000)
    error = values.std() / np.sqrt(len(values))
    assert interval.value == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.15 * error
    )
    assert mean(values, resamples=2000) == interval  # a function of its arguments


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    intervals = [mean(rng.exponential(size=60), resamples=400, level=0.9, seed=i) for i in range(400)]
    covered = sum(i.low <= 1 <= i.high for i in intervals) / 400
    assert 0.83 < covered < 0.95


def test_pairs_are_resampled_together() -> None:
    below = np.random.default_rng(3).uniform(1, 9, 200)
    exact = ratio_of_means(2 * below, below, resamples=200)
    assert (exact.low, exact.value, exact.high) == pytest.approx((2, 2, 2))
    with pytest.raises(ValueError, match="equal length"):
        ratio_of_means([1, 2], [1])
    with pytest.raises(ValueError, match="equal length"):
        mean([])


def test_intervals_read_well() -> None:
    interval = Interval(0.8125, 0.7654, 0.8532, 300)
    assert interval.percent() == "81.2 % (76.5 to 85.3)"
    assert Interval(28.914, 28.7, 29.12, 9).plain() == "28.91 (28.70 to 29.12)"
    assert interval.to_dict()["n"] == 300
