"""Averages chosen after the run: the closed forms of their profiles, brute force, and a run that was stopped."""

import hashlib
import math

import numpy as np
import pytest
import torch
from line import CPU, Line, config, same, train
from scipy import integrate
from test_denoising import NET, places  # noqa: F401 - a fixture
from test_denoising import config as model_config
from torch import nn

from mezzotint.cli import run as command
from mezzotint.errors import UsageError
from mezzotint.pipeline import Pipeline
from mezzotint.training import checkpoint
from mezzotint.training.loop import SNAPSHOTS, Trainer
from mezzotint.training.posthoc import (
    LONGEST,
    PowerEMA,
    gamma_of,
    inner,
    length_of,
    mixture,
    profile,
    read_snapshots,
    rebuild,
)
from mezzotint.training.watch import run

PAIR = (0.05, 0.1)


def test_lengths_and_exponents():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)  # the paper's pair
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)
    assert gamma_of(LONGEST) == pytest.approx(0, abs=1e-6)
    for length in (0.01, 0.03, 0.2, 0.28):
        gamma, s = gamma_of(length), length**-2
        assert length_of(gamma) == pytest.approx(length, rel=1e-9)
        assert max(np.roots([1, 7, 16 - s, 12 - s]).real) == pytest.approx(gamma, rel=1e-9)
        weights = profile(100_000, gamma)
        at = torch.arange(1, 100_001) / 100_000
        mean = float((weights * at).sum())
        assert math.sqrt(float((weights * (at - mean) ** 2).sum())) == pytest.approx(length, rel=1e-3)
    for wrong in (0, -0.1, 0.3):
        with pytest.raises(UsageError, match="is none; choose above 0"):
            gamma_of(wrong)


def test_inner_products_are_integrals():
    def power(t, gamma):
        return lambda tau: (gamma + 1) * tau**gamma / t ** (gamma + 1) if tau <= t else 0.0

    for t, gamma, u, delta in (
        (1, 0, 1, 0),
        (2, 3, 5, 1),
        (5, 1, 2, 3),
        (4, 6.94, 4, 16.97),
        (3, 16.97, 4, 0.5),
    ):
        p, q = power(t, gamma), power(u, delta)
        expected, _ = integrate.quad(lambda tau, p=p, q=q: p(tau) * q(tau), 0, min(t, u))
        found = inner(*(torch.tensor(float(x), dtype=torch.float64) for x in (t, gamma, u, delta)))
        assert float(found) == pytest.approx(expected, rel=1e-9)
    huge = inner(*(torch.tensor(x, dtype=torch.float64) for x in (1e6, gamma_of(0.005), 1e6, 1.0)))
    assert torch.isfinite(huge)  # powers of the number of steps alone would not be


def walk(net, steps):
    """A random walk of the weights [steps, n], set into the net one after the other."""
    draw = torch.Generator().manual_seed(3)
    path = torch.randn(steps, sum(p.numel() for p in net.parameters()), generator=draw).cumsum(0)
    for row in path:
        nn.utils.vector_to_parameters(row, net.parameters())
        yield row


def test_what_is_kept_in_the_run_is_the_profile():
    net = nn.Linear(3, 2)
    averages = [PowerEMA(net, length) for length in (*PAIR, LONGEST)]
    rows = []
    for step, row in enumerate(walk(net, 300)):
        rows.append(row)
        for average in averages:
            average.update(step)
    for average in averages:
        expected = profile(300, average.gamma) @ torch.stack(rows).double()
        found = torch.cat([average.average[name].flatten() for name in ("weight", "bias")])
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_what_was_stored_is_found_again_and_the_rest_is_the_distance():
    stored = [(200 * (i + 1), length) for i in range(24) for length in PAIR]
    for number, (step, length) in enumerate(stored):
        if step in (200, 2400, 4800):
            mixed = mixture(stored[: number + 1], step, length)
            assert mixed.rest < 1e-3
            assert mixed.shares[-1] == pytest.approx(1, abs=1e-2)
    profiles = torch.stack([nn.functional.pad(profile(t, gamma_of(s)), (0, 4800 - t)) for t, s in stored])
    for length in (0.03, 0.04, 0.075, 0.15, 0.2):
        mixed = mixture(stored, 4800, length)
        wanted = profile(4800, gamma_of(length))
        distance = torch.tensor(mixed.shares, dtype=torch.float64) @ profiles - wanted
        assert float(distance.norm() / wanted.norm()) == pytest.approx(mixed.rest, abs=2e-3)
        assert mixed.rest < 0.025
        assert sum(mixed.shares) == pytest.approx(1, abs=2e-3)
    assert mixture(stored, 4800, 0.01).rest > 0.2  # too short for snapshots so far apart, and it says so


def runs(out, stop=None, **changes):
    """The weights after each step of a run, and its trainer; stopped after some steps, or to the end."""
    settings = config(
        out, steps=240, optim={"posthoc": PAIR}, run={"snapshots": 10, "checkpoint": 20} | changes
    )
    trainer, seen = Trainer(Line(), settings, CPU), {}
    trainer.resume()
    for stats in trainer.steps():
        seen[stats.step] = trainer.stage.net.weight.detach().clone()
        if stats.step == stop:
            break
    return seen


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_rebuilt_after_a_run_as_brute_force_has_it(tmp_path):
    seen = runs(tmp_path)
    snapshots = read_snapshots(tmp_path / SNAPSHOTS)
    assert {(s.step, s.length, s.player) for s in snapshots} == {
        (step, length, "line") for step in range(10, 241, 10) for length in PAIR
    }
    path = torch.stack([seen[step] for step in range(1, 241)]).double()
    for length, step, error in (
        (0.1, 240, 1e-6),
        (0.05, 120, 1e-6),
        (0.075, 240, 1e-3),
        (0.15, 240, 1e-3),
        (0.2, 180, 5e-3),
    ):
        weights, mixed = rebuild(snapshots, length, step)
        expected = torch.tensordot(profile(step, gamma_of(length)), path[:step], dims=1)
        far = (path[0] - path[-1]).norm()
        assert float((weights["weight"] - expected).norm() / far) < error + 3e-5, (length, step)
        assert mixed.rest < 0.03


def test_stopped_anywhere_it_is_the_same_run(tmp_path):
    runs(tmp_path / "whole")
    for stop in (10, 20, 27, 40, 131):
        runs(tmp_path / "stopped", stop)
    runs(tmp_path / "stopped", stop=None)
    assert digests(tmp_path / "whole" / SNAPSHOTS) == digests(tmp_path / "stopped" / SNAPSHOTS)
    states = [checkpoint.load_newest(tmp_path / name / "checkpoints")[0] for name in ("whole", "stopped")]
    assert same(*states)
    assert any(key.startswith("power-0.05.line.") for key in states[0])


def test_a_run_that_goes_back_forgets_what_it_stored(tmp_path):
    settings = config(tmp_path, optim={"posthoc": PAIR}, run={"snapshots": 1, "checkpoint": 6})
    newest = {}
    for number, stats in enumerate(Trainer(Line(broken=[7, 8, 9]), settings, CPU).steps()):
        newest[number, stats.step] = max((s.step for s in read_snapshots(tmp_path / SNAPSHOTS)), default=0)
    assert newest[9, 10] == 9  # while it was skipping
    assert newest[10, 7] == 6  # after it went back


def test_without_the_option_nothing_changes(tmp_path):
    _, state = train(tmp_path)
    assert not (tmp_path / SNAPSHOTS).exists()
    assert {key.partition(".")[0] for key in state} == {"net", "ema", "optim"}


def test_a_model_of_another_length(places, tmp_path, capsys):  # noqa: F811
    optim = {"steps": 12, "posthoc": PAIR}
    settings = model_config(
        tmp_path, places / "classes", {"condition": "class"}, net=NET, optim=optim, run={"snapshots": 2}
    )
    for _ in run(settings):
        pass
    assert (
        command(
            ["train", "ema", str(tmp_path), "--length", "0.1", "--length", "0.15", "-o", str(tmp_path / "x")]
        )
        == 0
    )
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'x'}\n"
    assert "length 0.1, loss" in said.err
    assert "power-function average of relative length 0.1" in (tmp_path / "x" / "README.md").read_text()
    assert Pipeline.load(tmp_path / "x", device="cpu")("red", seed=1)[0].size == (16, 16)
    assert command(["train", "ema", str(tmp_path), "--step", "8"]) == 0
    assert Pipeline.load(tmp_path / "model-ema", device="cpu").encoder.classes == ("blue", "green", "red")
    assert command(["train", "ema", str(tmp_path), "--length", "0.5"]) == 2
    assert "relative length 0.5 is none" in capsys.readouterr().err
    assert command(["train", "ema", str(tmp_path), "--step", "1"]) == 2
    assert "the first snapshot" in capsys.readouterr().err
    for path in (tmp_path / SNAPSHOTS).iterdir():
        path.unlink()
    assert command(["train", "ema", str(tmp_path)]) == 2
    assert "kept no snapshots; set optim.posthoc" in capsys.readouterr().err
