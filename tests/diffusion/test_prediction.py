"""Every prediction in every process is the same denoiser, and its target is the textbook's."""

from __future__ import annotations

import functools
import math

import pytest
import torch

import oracle
from mezzotint.diffusion.denoiser import Denoiser
from mezzotint.diffusion.prediction import PREDICTIONS, edm, named
from mezzotint.diffusion.process import EDM, Flow, VarianceExploding, VariancePreserving
from mezzotint.errors import UsageError

PROCESSES = {
    "vp": VariancePreserving(),
    "vp-cosine": VariancePreserving("cosine"),
    "ve": VarianceExploding(),
    "edm": EDM(),
    "flow": Flow(),
}


def levels(process, n):
    """n noise levels that a net can be told exactly: whole timesteps where there are any; at most 100."""
    top = min(process.sigma_max, 100.0)
    if isinstance(process, VariancePreserving):
        last = int(process.time(torch.tensor(top)))
        return process.sigma(torch.linspace(0, last, n, dtype=torch.float64).round())
    return torch.linspace(math.log(process.sigma_min), math.log(top), n, dtype=torch.float64).exp()


@pytest.mark.parametrize("target", [oracle.gaussian(4), oracle.mixture(4)], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_a_perfect_net_is_the_perfect_denoiser(process, prediction, target):
    n = 64
    sigma = levels(process, n)
    draw = torch.Generator().manual_seed(0)
    x = target.sample(n, draw) + sigma[:, None] * torch.randn(n, 4, generator=draw, dtype=torch.float64)
    x = x.reshape(n, 1, 2, 2)
    denoise = Denoiser(oracle.net(target, process, prediction), process, prediction)
    torch.testing.assert_close(denoise(x, sigma), target.denoise(x, sigma), rtol=0, atol=1e-12)
    score = target.score(x, sigma)
    unit = sigma.reshape(-1, 1, 1, 1)  # sigma * score is -eps, of order 1
    torch.testing.assert_close(unit * denoise.score(x, sigma), unit * score, rtol=0, atol=1e-8)


@pytest.mark.parametrize("prediction", oracle.ANSWERS)
def test_the_one_line_target_is_the_textbook_target(prediction):
    draw = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 1000, generator=draw, dtype=torch.float64)
    sigma = (3 * torch.randn(1000, generator=draw, dtype=torch.float64)).exp().clamp(1e-3, 1e4)
    c_skip, c_out = PREDICTIONS[prediction](sigma)
    target = (x0 - c_skip * (x0 + sigma * eps)) / c_out
    answer = oracle.ANSWERS[prediction](x0, eps, sigma)
    assert ((target - answer) / answer.abs().clamp(min=1)).abs().max() < 1e-11


def test_edm_gives_input_and_target_unit_variance():
    """Karras et al. 2022, appendix B.6: what the preconditioning is derived from."""
    for sigma_data in (0.5, 1.3):
        sigma = torch.logspace(-3, 3, 50, dtype=torch.float64)
        c_skip, c_out = edm(sigma, sigma_data)
        variance = ((1 - c_skip) ** 2 * sigma_data**2 + c_skip**2 * sigma**2) / c_out**2
        torch.testing.assert_close(variance, torch.ones_like(variance))
        seen = EDM(sigma_data=sigma_data).scale(sigma) ** 2 * (sigma_data**2 + sigma**2)
        torch.testing.assert_close(seen, torch.ones_like(seen))


def test_v_is_edm_with_unit_data_and_the_opposite_sign():
    sigma = torch.logspace(-3, 3, 50, dtype=torch.float64)
    for v, e in zip(PREDICTIONS["v_prediction"](sigma), edm(sigma, 1.0), strict=True):
        torch.testing.assert_close(v.abs(), e)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_without_noise_the_picture_is_known(prediction):
    """At sigma = 0, x is x0 and c_out = 0, but for a net that predicts x0 itself."""
    c_skip, c_out = PREDICTIONS[prediction](torch.zeros(1))
    assert (c_skip.item(), c_out.item()) == ((0, 1) if prediction == "sample" else (1, 0))


def test_names():
    half = functools.partial(edm, sigma_data=1.0)
    assert named(half) is half
    assert named("flow") is PREDICTIONS["flow"]
    with pytest.raises(UsageError, match="did you mean 'epsilon'"):
        named("epsilom")
