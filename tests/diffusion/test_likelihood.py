"""Log-likelihood: the closed form within 1e-3 nats per dimension, and an estimator without bias."""

from __future__ import annotations

import math

import pytest
import torch

import oracle
from mezzotint.diffusion.denoiser import Denoiser
from mezzotint.diffusion.likelihood import (
    bits_per_dimension,
    exact_trace,
    hutchinson,
    integrate,
    log_likelihood,
    rademacher,
)
from mezzotint.diffusion.process import VariancePreserving
from mezzotint.errors import MezzotintError

EDM_RANGE = {"sigma_min": 0.002, "sigma_max": 80.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", [oracle.gaussian, oracle.mixture])
@pytest.mark.parametrize("d", [2, 3, 5, 8])
def test_the_ode_meets_the_closed_form(kind, d):
    target = kind(d)
    x = target.sample(24, generator())
    nats = log_likelihood(target.denoise, x, **EDM_RANGE).nats
    assert ((nats - target.log_prob(x)).abs() / d).max() < 1e-3


def test_unlikely_points_are_as_unlikely_as_they_are():
    target = oracle.mixture(3)
    x = 3 * torch.randn(16, 3, generator=generator(), dtype=torch.float64)
    # Fifteen deviations out even at sigma_max, where p has to be the more Gaussian.
    nats = log_likelihood(target.denoise, x, sigma_min=0.002, sigma_max=1000.0).nats
    blurred = target.log_prob(x, 0.002)
    assert ((nats - blurred).abs() / 3).max() < 1e-3
    assert target.log_prob(x).min() < -60


def test_float32_and_any_shape():
    target = oracle.mixture(4)
    x = target.sample(16, generator()).reshape(16, 1, 2, 2)
    found = log_likelihood(target.denoise, x.float(), **EDM_RANGE)
    assert ((found.nats - target.log_prob(x)).abs() / 4).max() < 1e-3
    assert found.x_max.shape == x.shape
    assert found.x_max.dtype == torch.float32
    assert found.evaluations < 250


def test_a_net_on_a_table_of_timesteps():
    """With the whole path denoiser, process and prediction; at 14.6, its sigma_max, p is not quite Gaussian."""
    target, process = oracle.mixture(2), VariancePreserving()
    denoise = Denoiser(oracle.net(target, process, "v_prediction"), process, "v_prediction")
    x = target.sample(12, generator())
    x = x + process.sigma_min * torch.randn(x.shape, generator=generator(1), dtype=torch.float64)
    ends = {"sigma_min": process.sigma_min, "sigma_max": process.sigma_max}
    error = log_likelihood(denoise, x, **ends).nats - target.log_prob(x, process.sigma_min)
    assert error.abs().max() / 2 < 1e-2
    assert abs(error.mean()) / 2 < 1e-3


def test_the_latent_is_the_exact_flow_of_a_gaussian():
    target = oracle.gaussian(4)
    x = target.sample(8, generator())
    found = log_likelihood(target.denoise, x, rtol=1e-8, atol=1e-8, **EDM_RANGE)
    torch.testing.assert_close(found.x_max, target.flow(x, 0.002, 80.0), rtol=1e-6, atol=1e-6)


def test_the_trace_is_that_of_the_jacobian():
    target = oracle.mixture(5)
    x = target.sample(6, generator()).requires_grad_()
    exact = exact_trace(target.denoise(x, 0.7), x)
    for i in range(6):
        jacobian = torch.autograd.functional.jacobian(lambda row: target.denoise(row[None], 0.7)[0], x[i])
        torch.testing.assert_close(exact[i], jacobian.trace())


def test_hutchinson_has_no_bias_and_the_error_it_should_have():
    target, n = oracle.mixture(6), 4000
    x = target.sample(1, generator()).expand(n, 6).clone().requires_grad_()
    denoised = target.denoise(x, 0.7)
    exact = exact_trace(denoised, x)[0]
    estimates = hutchinson(rademacher(1, x, generator(1)))(denoised, x)
    jacobian = torch.autograd.functional.jacobian(
        lambda row: target.denoise(row[None], 0.7)[0], x[0].detach()
    )
    off = jacobian - jacobian.diag().diag()
    assert estimates.var() == pytest.approx(float(2 * (((off + off.T) / 2) ** 2).sum()), rel=0.15)
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / math.sqrt(n)
    fewer = hutchinson(rademacher(16, x, generator(2)))(denoised, x)
    assert fewer.var() == pytest.approx(float(estimates.var()) / 16, rel=0.15)


def test_the_estimated_likelihood_has_no_bias():
    target, n = oracle.mixture(6), 400
    x = target.sample(1, generator()).expand(n, 6)
    trace = hutchinson(rademacher(1, x, generator(1)))
    nats = log_likelihood(target.denoise, x, trace=trace, rtol=1e-4, atol=1e-4, **EDM_RANGE).nats
    error = nats.mean() - target.log_prob(x)[0]
    assert nats.std() > 1e-2  # an estimate it is
    assert abs(error) < 4 * nats.std() / math.sqrt(n) + 6e-3
    quiet = hutchinson(rademacher(32, x[:50], generator(2)))
    more = log_likelihood(target.denoise, x[:50], trace=quiet, rtol=1e-4, atol=1e-4, **EDM_RANGE).nats
    assert more.std() < nats.std() / 4


def test_bits_per_dimension():
    """Noise uniform over the 8-bit range has density 1/2 per dimension, and takes log2(255) bits to write."""
    nats = torch.tensor([-12 * math.log(2.0)])
    assert bits_per_dimension(nats, 12).item() == pytest.approx(math.log2(255), rel=1e-6)
    assert bits_per_dimension(torch.tensor([0.0]), 3, bin_width=0.25).item() == pytest.approx(2)


def test_the_integrator_is_of_fifth_order_where_it_says():
    """Error per unit of tolerance stays bounded, and work grows as the fifth root of precision."""
    calls = []

    def slope(u, y):
        calls.append(u)
        return -y + math.cos(3 * u)

    def exact(u):  # from y(0) = 1
        return 0.9 * math.exp(-u) + (math.cos(3 * u) + 3 * math.sin(3 * u)) / 10

    y, counts = torch.ones(1, 1, dtype=torch.float64), []
    for tolerance in (1e-4, 1e-9):
        calls.clear()
        got = integrate(slope, y, 0.0, 20.0, rtol=tolerance, atol=tolerance)
        assert abs(got.item() - exact(20.0)) < 5 * tolerance
        counts.append(len(calls))
    assert 5 < counts[1] / counts[0] < 16  # 10^(5/5) = 10 times the work for 10^5 times the precision
    assert max(calls) <= 20.0


def test_a_denoiser_that_breaks_is_reported():
    def broken(x, sigma, cond):
        return x * float("nan")

    with pytest.raises(MezzotintError, match=r"not smooth at sigma 0\.002"):
        log_likelihood(broken, torch.ones(1, 2), **EDM_RANGE)
