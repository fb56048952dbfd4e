"""The comparison of trainers: its distance is that of Gaussians, its table divides by the faster of the others."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "trainers.py"


@pytest.fixture(scope="module")
def trainers():
    spec = importlib.util.spec_from_file_location("benchmark_trainers", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for their module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_distance_is_that_of_gaussians(trainers):
    x = np.random.default_rng(0).normal(size=(4000, 3))
    x = (x - x.mean(0)) @ np.linalg.inv(
        np.linalg.cholesky(np.cov(x, rowvar=False))
    ).T  # moments exactly 0 and 1
    assert trainers.frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert trainers.frechet(x, np.add(x, [1, 2, 0])) == pytest.approx(5)
    assert trainers.frechet(x, x * [3, 1, 0.5]) == pytest.approx(4 + 0.25)  # sum of (s_a - s_b)^2


def test_the_table_compares_with_the_faster_of_the_others(trainers):
    def run(side, rate, peak=2**20):
        return trainers.Measured(side, rate, wait=0.01, checkpoint=0.005, peak=peak, parameters=1)

    rows = [run("mezzotint", 12), run("accelerate", 10), run("mezzotint", 14, 2**21), run("other", 8)]
    lines = trainers.speed_table(rows).splitlines()[2:]
    assert lines[0] == "| mezzotint | 13.0 (12.0 - 14.0) | 1.30 | 1.0% | 0.50% | 2 MiB |"
    assert [line.split("|")[3].strip() for line in lines[1:]] == ["1.00", "0.80"]
