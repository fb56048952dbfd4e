"""Precision: what is asked for is obeyed, what is slow is said once, and the pictures hardly change."""

import warnings

import numpy as np
import pytest
import torch

from mezzotint import Pipeline
from mezzotint import precision as module
from mezzotint.errors import UsageError
from mezzotint.precision import SMALL, SlowPrecision, chosen, rate
from tiny import write_tiny

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def rates(monkeypatch):
    """What the processor is said to do in a second."""
    told = {torch.float32: 100.0, torch.bfloat16: 800.0, torch.float16: 1.0}
    monkeypatch.setattr(module, "rate", told.__getitem__)
    module._warn_if_slow.cache_clear()
    yield told
    module._warn_if_slow.cache_clear()


def test_large_models_take_what_is_fast_and_small_ones_what_is_exact(rates):
    assert chosen("auto", CPU, SMALL) == torch.float32
    assert chosen("auto", CPU, SMALL + 1) == torch.bfloat16
    assert chosen("auto", GPU, SMALL + 1) == torch.float16
    rates[torch.bfloat16] = 120.0
    assert chosen("auto", CPU, SMALL + 1) == torch.float32


def test_a_slow_choice_is_obeyed_and_said_once_with_the_measured_reason(rates):
    with pytest.warns(SlowPrecision, match="100.0 times slower than float32.*bfloat16 is the fastest"):
        assert chosen("float16", CPU, 1) == torch.float16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen("float16", CPU, 1) == torch.float16
        assert chosen("bfloat16", CPU, 1) == torch.bfloat16


def test_an_unknown_one_is_refused():
    with pytest.raises(UsageError, match="bfloat16"):
        chosen("bf16", CPU, 1)


def test_the_trial_is_short_and_finds_a_rate():
    assert rate(torch.float32) > 1e8


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.filterwarnings("ignore::mezzotint.precision.SlowPrecision")
def test_pictures_in_half_precision_are_those_of_float32(tmp_path, precision):
    folder = write_tiny(tmp_path / "model")
    exact, fast = (
        Pipeline.load(folder, device="cpu"),
        Pipeline.load(folder, device="cpu", precision=precision),
    )
    assert (exact.precision, exact.exact) == ("float32", True)
    assert (fast.precision, fast.exact) == (precision, False)
    assert fast.denoiser.net.conv_in.weight.dtype == getattr(torch, precision)
    ours, theirs = (np.asarray(p("a red apple", seed=3)[0]).astype(float) for p in (fast, exact))
    error = np.square(ours - theirs).mean()
    assert error > 0
    assert 10 * np.log10(255**2 / error) > 35
