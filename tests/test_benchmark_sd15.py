"""The benchmark of a full-size model adds up rightly, and (slow) runs in small."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def sd15():
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmark_sd15", BENCHMARKS / "sd15.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for their module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]
    sys.path.remove(str(BENCHMARKS))


def test_a_row_holds_medians_shares_and_differences(sd15, tmp_path):
    def measured(side, seconds, answer):
        folder = tmp_path / f"{side}-{seconds}"
        folder.mkdir()
        for name in ("step", "decode"):
            np.save(folder / f"{name}-64.npy", answer)
        return sd15.Measured(side, 7.0, {64: seconds}, {64: 0.5}, 2**31, str(folder))

    truth = np.linspace(-1, 1, 101)
    runs = [measured(sd15.BASE, 4.0, truth), measured("mezzotint float32", 2.0, truth + 0.01)]
    runs += [measured("mezzotint float32", 3.0, truth), measured("mezzotint float32", 9.0, truth)]
    text = sd15.table(runs, [64], {64: 0.25})
    assert "| mezzotint float32 | 3 | 0.75 | 0.5 | 7.0 | 2.00 | 1.7e-02 | 46 | 46 |" in text
    assert f"| {sd15.BASE} | 4 | 1.00 | 0.5 | 7.0 | 2.00 | 0.0e+00 | inf | inf |" in text
    assert "0.25 s at 64" in text


def test_a_side_that_was_not_asked_for_a_size_leaves_its_cells_empty(sd15, tmp_path):
    for name in ("step", "decode"):
        np.save(tmp_path / f"{name}-64.npy", np.zeros(3))
    runs = [sd15.Measured(sd15.COMPILED, 9.0, {64: 2.0}, {64: 0.5}, 2**31, str(tmp_path))]
    text = sd15.table(runs, [64, 32], {64: 0.25})
    assert f"| {sd15.COMPILED} | 2 |  | 0.5 |  |  |  | 9.0 | 2.00 |" in text


@pytest.mark.slow
def test_it_runs_in_small():
    command = [sys.executable, str(BENCHMARKS / "sd15.py"), "--small", "--sizes", "32", "--steps", "1"]
    done = subprocess.run([*command, "--threads", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| mezzotint float32")]
    assert len(rows) == 1
    assert float(rows[0].split("|")[7]) < 1e-4  # the largest difference from diffusers in float32
