"""The benchmarks add up their runs rightly, and (slow) run."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def train():
    spec = importlib.util.spec_from_file_location("benchmark_train", BENCHMARKS / "train.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for their module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def measured(train, side, seconds, *, loss=1.0, norm=2.0, peak=2**20):
    return train.Measured(
        side, "float32", seconds, processor=seconds, wait=0.001, loss=loss, grad_norm=norm, peak=peak
    )


def test_rows_hold_the_median_the_extremes_and_the_largest_peak(train):
    runs = [
        measured(train, "mezzotint", 2.0),
        measured(train, "diffusers", 4.0),
        measured(train, "mezzotint", 1.0, peak=3 * 2**20),
        measured(train, "mezzotint", 8.0),
    ]
    ours, theirs = train.summary(runs, batch=16)
    assert (ours.images_per_second, ours.slowest, ours.fastest) == (8.0, 2.0, 16.0)
    assert ours.peak == 3 * 2**20
    assert theirs.images_per_second == 4.0
    assert "| mezzotint | 8.0 (2.0 - 16.0) | 2.00 |" in train.table([ours, theirs])


def test_a_difference_in_loss_or_gradient_is_found(train):
    def apart(**changed):
        runs = [measured(train, "mezzotint", 1.0, **changed), measured(train, "diffusers", 1.0)]
        return train.disagreement(train.summary(runs, batch=1), "float32")

    assert apart() == 0
    assert apart(loss=1.01) == pytest.approx(0.01)
    assert apart(norm=1.9) == pytest.approx(0.05)


def test_starting_the_training_benchmark_imports_nothing_heavy():
    """The peak memory of a child process counts that of its parent before it."""
    code = (
        f"import runpy, sys; runpy.run_path({str(BENCHMARKS / 'train.py')!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_our_first_training_step_is_that_of_the_plain_script():
    command = [sys.executable, str(BENCHMARKS / "train.py"), "--json", "--precision", "float32"]
    command += ["--steps", "1", "--rounds", "1", "--batch", "2", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["disagreement"]["float32"] < 1e-4
    assert [row["side"] for row in found["rows"]] == ["mezzotint", "diffusers"]
    assert all(row["images_per_second"] > 0 and row["peak"] > 2**26 for row in found["rows"])
