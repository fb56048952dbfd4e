"""The denoiser: precision at both ends, losses that are the error they say, weights right for every prediction."""

from __future__ import annotations

import pytest
import torch

import oracle
from mezzotint.diffusion.denoiser import Denoiser, per_row
from mezzotint.diffusion.loss import LEVELS, WEIGHTS, Uncertainty, logit_normal, lognormal, min_snr, uniform
from mezzotint.diffusion.prediction import PREDICTIONS
from mezzotint.diffusion.process import EDM, Flow, VarianceExploding, VariancePreserving
from mezzotint.diffusion.types import Cond
from mezzotint.errors import UsageError


def double(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_net_is_told_scale_time_and_condition():
    process = VariancePreserving()
    told = []

    def net(z, t, cond):
        told.append((z, t, cond))
        return z

    cond = Cond(text=torch.ones(2, 3, 4))
    sigma = process.sigma(torch.tensor([999, 10])).float()
    x = torch.randn(2, 3, 8, 8)
    Denoiser(net, process, "epsilon")(x, sigma, cond)
    ((z, t, given),) = told
    assert t.tolist() == [999.0, 10.0]
    assert given is cond
    torch.testing.assert_close(z, x / (1 + sigma**2).sqrt().reshape(2, 1, 1, 1))


@pytest.mark.parametrize("sigma", [2.0, torch.tensor(2.0), torch.tensor([2.0]), torch.full((5,), 2.0)])
def test_one_noise_level_does_for_all_rows(sigma):
    target = oracle.mixture(4)
    process = EDM()
    denoise = Denoiser(oracle.net(target, process, "edm"), process, "edm")
    x = double(5, 1, 2, 2)
    torch.testing.assert_close(denoise(x, sigma), target.denoise(x, 2.0), rtol=0, atol=1e-12)


def test_an_unknown_prediction_is_refused_at_once():
    with pytest.raises(UsageError, match="did you mean 'v_prediction'"):
        Denoiser(lambda z, t, c: z, Flow(), "v-prediction")


def test_x_keeps_its_precision_when_the_net_does_not():
    """A half-precision answer costs what half precision costs: the skip path stays exact."""
    target, process = oracle.gaussian(4), EDM()
    net = oracle.net(target, process, "edm")

    def half(z, t, cond):
        return net(z.double(), t.double(), cond).bfloat16()

    x = double(64, 4).float() * 0.1
    got = Denoiser(half, process, "edm")(x, 0.01)
    assert got.dtype == torch.float32
    assert (got - target.denoise(x, 0.01)).abs().max() < 0.01 * 2**-8 * 10  # c_out times the rounding of F
    assert Denoiser(lambda z, t, c: half(z, t, c).double(), process, "edm")(x, 0.01).dtype == torch.float32


@pytest.mark.parametrize("prediction", ["v_prediction", "sample", "flow", "edm"])
@pytest.mark.parametrize("process", [VariancePreserving(zero_snr=True), Flow()], ids=["zero-snr", "flow"])
def test_float32_holds_where_no_signal_is_left(process, prediction):
    """At sigma = 4096 or 10^4 these predictions still tell the picture; eps cannot (x - sigma F cancels)."""
    target, n = oracle.mixture(4), 256
    sigma = process.sigma_max
    x = (sigma * double(n, 4)).float()
    exact = oracle.net(target, process, prediction)

    def net(z, t, cond):
        return exact(z.double(), process.time(torch.full((n,), sigma, dtype=torch.float64)), cond).float()

    denoised = Denoiser(net, process, prediction)(x, sigma)
    assert (denoised - target.denoise(x.double(), sigma)).abs().max() < 2e-3


@pytest.mark.parametrize("process", [VariancePreserving(), VarianceExploding(), EDM(), Flow()], ids=str)
@pytest.mark.parametrize("prediction", set(PREDICTIONS) - {"sample"})
def test_without_noise_x_comes_back(process, prediction):
    x = double(3, 2).float()
    assert torch.equal(Denoiser(lambda z, t, c: torch.tanh(z + t[:, None]), process, prediction)(x, 0.0), x)


# -- loss


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_the_error_of_the_picture_over_c_out(prediction):
    process = VariancePreserving()
    denoise = Denoiser(lambda z, t, c: torch.sin(z) + t.reshape(-1, 1, 1, 1) / 1000, process, prediction)
    x0, eps = double(2, 8, 3, 4, 4).unbind()
    sigma = process.sigma(torch.tensor([0, 5, 100, 300, 500, 700, 900, 999]))
    error = (denoise(x0 + per_row(sigma, x0) * eps, sigma) - x0).square().flatten(1).mean(1)
    c_out = PREDICTIONS[prediction](sigma)[1]
    torch.testing.assert_close(denoise.loss(x0, eps, sigma), error / c_out**2, rtol=1e-7, atol=0)
    weighted = denoise.loss(x0, eps, sigma, weight=min_snr)
    torch.testing.assert_close(weighted, error * (sigma**-2).clamp(max=5), rtol=1e-7, atol=0)


def test_the_perfect_denoiser_has_the_least_loss():
    target, process = oracle.mixture(2), EDM()
    net = oracle.net(target, process, "edm")
    x0, eps = target.sample(4000, torch.Generator().manual_seed(0)), double(4000, 2)
    sigma = lognormal(process, 4000, torch.Generator().manual_seed(1))

    def loss(net):
        return float(Denoiser(net, process, "edm").loss(x0, eps, sigma).mean())

    best = loss(net)
    for worse in (lambda z, t, c: net(z, t, c) + 0.1, lambda z, t, c: 0.9 * net(z, t, c)):
        assert loss(worse) > best


@pytest.mark.parametrize(
    ("prediction", "textbook"),
    [
        ("epsilon", lambda snr: snr.clamp(max=5) / snr),
        ("v_prediction", lambda snr: snr.clamp(max=5) / (snr + 1)),
        ("sample", lambda snr: snr.clamp(max=5)),
    ],
)
def test_min_snr_is_that_of_its_paper_for_every_prediction(prediction, textbook):
    """Hang et al. 2023, section 3.4; the factors that diffusers' training scripts use."""
    sigma = torch.logspace(-2, 2, 100, dtype=torch.float64)
    c_out = PREDICTIONS[prediction](sigma)[1]
    torch.testing.assert_close(min_snr(sigma, c_out), textbook(sigma**-2))


def test_edm_weights_the_edm_net_evenly():
    sigma = torch.logspace(-2, 2, 100, dtype=torch.float64)
    even = WEIGHTS["edm"](sigma, PREDICTIONS["edm"](sigma)[1])
    torch.testing.assert_close(even, torch.ones_like(sigma))


def test_uncertainty_learns_the_size_of_the_loss():
    """exp(u) becomes the expected loss at each sigma, and the net's gradient is divided by it."""
    module = Uncertainty()
    draw = torch.Generator().manual_seed(0)
    sigma = lognormal(EDM(), 1024, draw).float()
    assert torch.equal(module(sigma, sigma), sigma)  # nothing learned, nothing changed
    expected = 0.1 + sigma / (1 + sigma)
    loss = expected * torch.rand(1024, generator=draw) * 2
    optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(120):
        optimiser.zero_grad()
        module(loss, sigma).mean().backward()
        optimiser.step()
    assert (module.log_variance(sigma) - expected.log()).abs().mean() < 0.1
    assert torch.equal(Uncertainty().frequency, module.frequency)  # the same on every machine, every resume


# -- noise levels to train at


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize(
    "process", [VariancePreserving(), VarianceExploding(), EDM(), Flow(shift=3.0)], ids=str
)
def test_levels_are_a_function_of_the_generator_and_stay_in_range(process, name):
    def draw(seed):
        return LEVELS[name](process, 5000, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(7), draw(7))
    assert not torch.equal(draw(7), draw(8))
    assert draw(7).min() >= process.sigma_min * (1 - 1e-12)
    assert draw(7).max() <= process.sigma_max * (1 + 1e-12)


def test_levels_have_the_distribution_they_name():
    n, draw = 200_000, torch.Generator().manual_seed(0)
    t = VariancePreserving().time(uniform(VariancePreserving(), n, draw))
    counts = torch.bincount(t.long(), minlength=1000).double()
    assert torch.equal(t, t.round())
    assert ((counts - n / 1000) ** 2 / (n / 1000)).sum() < 1000 + 5 * 2000**0.5  # chi-squared, 999 degrees
    log_sigma = lognormal(VarianceExploding(1e-9, 1e9), n, draw, mean=-0.4, std=1.0).log()
    assert abs(log_sigma.mean() + 0.4) < 4 / n**0.5
    assert abs(log_sigma.std() - 1) < 4 / (2 * n) ** 0.5
    t = Flow().time(logit_normal(Flow(shift=3.0, sigma_min=1e-9), n, draw))
    unshifted = t / (3 - 2 * t)  # undo t -> 3 t / (1 + 2 t)
    assert abs(unshifted.logit().mean()) < 4 / n**0.5
    assert (
        abs(uniform(VarianceExploding(), n, draw).log().std() * 12**0.5 - torch.tensor(40000.0).log()) < 0.05
    )
