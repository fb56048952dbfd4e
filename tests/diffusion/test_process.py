"""Forward processes: the same tables as diffusers', exact inverses, and a chain that meets its closed form."""

from __future__ import annotations

import math

import diffusers
import numpy as np
import pytest
import torch

from mezzotint.diffusion import chain
from mezzotint.diffusion.process import EDM, Flow, VarianceExploding, VariancePreserving
from mezzotint.diffusion.schedules import LEAST_SIGNAL
from mezzotint.errors import UsageError

SCHEDULES = ["linear", "scaled_linear", "cosine", "sigmoid"]
PROCESSES = [
    VariancePreserving(),
    VariancePreserving("cosine"),
    VariancePreserving(zero_snr=True),
    VarianceExploding(),
    EDM(),
    Flow(),
]


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def levels(process, n=97):
    """Noise levels over the whole range of a process, none of them special."""
    return torch.linspace(
        math.log(process.sigma_min), math.log(process.sigma_max), n, dtype=torch.float64
    ).exp()


# -- noise schedules, against diffusers


@pytest.mark.parametrize("steps", [1000, 50])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_are_those_of_diffusers(schedule, steps):
    theirs = diffusers.DDPMScheduler(
        num_train_timesteps=steps,
        beta_start=0.001,
        beta_end=0.02,
        beta_schedule="squaredcos_cap_v2" if schedule == "cosine" else schedule,
    )
    ours = VariancePreserving(schedule, 0.001, 0.02, steps)
    # They keep float32; their product of a thousand factors is right to 1e-4 at the noisy end.
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=2e-4, atol=0)


def test_zero_snr_is_that_of_diffusers():
    theirs = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    )
    ours = VariancePreserving(zero_snr=True)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=1e-3, atol=1e-8)
    assert ours.alphas_cumprod[-1] == theirs.alphas_cumprod[-1] == LEAST_SIGNAL
    assert ours.sigma_max == pytest.approx(4096, rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_zero_snr_leaves_sigma_rising(schedule):
    process = VariancePreserving(schedule, 0.001, 0.02, zero_snr=True)
    assert (process.log_sigmas.diff() > 0).all()
    assert process.alphas_cumprod[-1] <= LEAST_SIGNAL


def test_zero_snr_keeps_the_first_step():
    plain, rescaled = VariancePreserving(), VariancePreserving(zero_snr=True)
    assert rescaled.sigma_min == pytest.approx(plain.sigma_min, rel=1e-12)
    assert (rescaled.alphas_cumprod.diff() < 0).all()


def test_trained_betas_take_the_place_of_the_schedule():
    betas = tuple(torch.linspace(1e-4, 0.5, 7, dtype=torch.float64).tolist())
    process = VariancePreserving(steps=7, trained_betas=betas)
    expected = np.cumprod([1 - beta for beta in betas])
    np.testing.assert_allclose(process.alphas_cumprod.numpy(), expected, rtol=1e-14)
    assert hash(process) == hash(VariancePreserving(steps=7, trained_betas=betas))


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"trained_betas": (0.1, 0.2)}, "needs 1000 betas"),
        ({"beta_end": 1.5}, "between 0 and 1"),
        ({"beta_start": 0.0}, "between 0 and 1"),
        ({"steps": 1}, "needs 2 betas"),
    ],
)
def test_impossible_schedules_are_refused(knobs, words):
    with pytest.raises(UsageError, match=words):
        VariancePreserving(**knobs)


# -- scale, time and sigma


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_sigma_undoes_time(process):
    sigma = levels(process)
    t = process.time(sigma)
    assert (t.diff() > 0).all()
    off_table = (t - t.round()).abs() > 0 if isinstance(process, VariancePreserving) else t > -math.inf
    torch.testing.assert_close(process.sigma(t)[off_table], sigma[off_table], rtol=1e-11, atol=0)
    torch.testing.assert_close(
        process.sigma(t), sigma, rtol=1e-3, atol=0
    )  # snapping moves sigma by so little


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_timestep_is_told_as_a_whole_number(schedule, dtype):
    process = VariancePreserving(schedule)
    t = torch.arange(1000)
    sigma = process.sigma(t)
    torch.testing.assert_close(
        sigma, ((1 - process.alphas_cumprod) / process.alphas_cumprod).sqrt(), rtol=1e-12, atol=0
    )
    assert torch.equal(process.time(sigma.to(dtype)), t.to(dtype))


def test_time_between_timesteps_is_that_of_diffusers():
    process = VariancePreserving()
    theirs = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    log_sigmas = np.log(((1 - theirs.alphas_cumprod) / theirs.alphas_cumprod).sqrt().numpy())
    sigma = levels(process)
    expected = [theirs._sigma_to_t(s, log_sigmas) for s in sigma.numpy()]
    np.testing.assert_allclose(process.time(sigma).numpy(), expected, atol=2e-3)


def test_times_outside_the_table_are_its_ends():
    process = VariancePreserving()
    assert process.time(f64(0.0, 1e-9, 1e9)).tolist() == [0, 0, 999]
    assert process.sigma(f64(-1.0, 5000.0)).tolist() == pytest.approx([process.sigma_min, process.sigma_max])


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_results_keep_dtype_and_shape(process):
    for dtype in (torch.float32, torch.float64):
        sigma = torch.full((2, 3), 0.7, dtype=dtype)
        for method in (process.scale, process.time, process.sigma, process.quantile):
            assert method(sigma).dtype == dtype
            assert method(sigma).shape == sigma.shape
        assert process.time(torch.zeros(1, dtype=dtype)).isfinite().all()
    assert process.sigma(torch.tensor([0])).dtype == torch.float64
    assert process.scale(0.7).dtype == torch.float64


def test_what_the_net_sees_has_its_textbook_variance():
    sigma = f64(0.01, 0.5, 3.0, 100.0)
    a = VariancePreserving().scale(sigma)
    torch.testing.assert_close(a**2 + (a * sigma) ** 2, torch.ones(4, dtype=torch.float64))  # on the circle
    b = Flow().scale(sigma)
    torch.testing.assert_close(b + b * sigma, torch.ones(4, dtype=torch.float64))  # on the line
    torch.testing.assert_close(b * sigma, Flow().time(sigma))  # the noise's amplitude is t
    assert torch.equal(VarianceExploding().scale(sigma), torch.ones(4, dtype=torch.float64))
    c = EDM(sigma_data=0.3).scale(sigma)
    torch.testing.assert_close(c**2 * (0.3**2 + sigma**2), torch.ones(4, dtype=torch.float64))


def test_scale_is_the_signal_amplitude_of_the_table():
    process = VariancePreserving()
    a = process.scale(process.sigma(torch.arange(1000)))
    torch.testing.assert_close(a, process.alphas_cumprod.sqrt(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("process", [*PROCESSES, Flow(shift=3.0)], ids=str)
def test_quantiles_rise_and_stay_in_range(process):
    sigma = process.quantile(torch.linspace(0, 1 - 1e-9, 4001, dtype=torch.float64))
    assert (sigma.diff() >= 0).all()
    assert sigma[0] >= process.sigma_min * (1 - 1e-12)
    assert sigma[-1] <= process.sigma_max * (1 + 1e-12)
    if isinstance(process, VariancePreserving):
        assert len(sigma.unique()) == process.steps
    if isinstance(process, Flow):  # t uniform, then t -> shift t / (1 + (shift - 1) t)
        u = f64(0.2, 0.5, 0.9)
        shifted = process.shift * u / (1 + (process.shift - 1) * u)
        torch.testing.assert_close(process.time(process.quantile(u)), shifted)


# -- the textbook chain


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_walking_the_chain_meets_the_closed_form(schedule):
    """z_t = sqrt(alpha_t) z_{t-1} + sqrt(beta_t) eps: mean and variance, carried step by step."""
    process = VariancePreserving(schedule)
    mean, variance = f64(1.0), f64(0.0)
    for t in range(process.steps):
        step = chain.transition(process, t, t - 1)
        mean, variance = step.mean_scale * mean, step.mean_scale**2 * variance + step.std**2
        closed = chain.marginal(process, t)
        torch.testing.assert_close(mean[0], closed.mean_scale, rtol=1e-10, atol=0)
        torch.testing.assert_close(variance[0], closed.std**2, rtol=1e-10, atol=0)


def test_walking_the_chain_meets_the_closed_form_by_monte_carlo():
    process, n, x0 = VariancePreserving(steps=50, beta_start=0.01, beta_end=0.2), 100_000, 2.5
    draw = torch.Generator().manual_seed(0)
    z = torch.full((n,), x0, dtype=torch.float64)
    for t in range(process.steps):
        step = chain.transition(process, t, t - 1)
        z = step.mean_scale * z + step.std * torch.randn(n, generator=draw, dtype=torch.float64)
        if t in (5, 20, 49):
            mean_scale, std = chain.marginal(process, t)
            assert abs(z.mean() - mean_scale * x0) < 4 * std / n**0.5
            assert abs(z.std() / std - 1) < 4 / (2 * n) ** 0.5


def test_the_first_transition_starts_from_the_picture():
    process = VariancePreserving()
    assert chain.transition(process, 0, chain.CLEAN) == chain.marginal(process, 0)


@pytest.mark.parametrize(("t", "s"), [(1, 0), (500, 499), (999, 998), (999, 400), (60, 20)])
def test_the_posterior_is_bayes_rule(t, s):
    """q(z_s | z_t, x0) q(z_t | x0) = q(z_t | z_s) q(z_s | x0), at any values."""
    process = VariancePreserving()
    draw = torch.Generator().manual_seed(1)
    x0, z_s, z_t = torch.randn(3, 20, generator=draw, dtype=torch.float64)

    def log_normal(z, mean, std):
        return torch.distributions.Normal(mean, std).log_prob(z)

    back, forward = chain.posterior(process, t, s), chain.transition(process, t, s)
    at_t, at_s = chain.marginal(process, t), chain.marginal(process, s)
    left = log_normal(z_s, back.c_x0 * x0 + back.c_z * z_t, back.beta_tilde.sqrt())
    left = left + log_normal(z_t, at_t.mean_scale * x0, at_t.std)
    right = log_normal(z_t, forward.mean_scale * z_s, forward.std) + log_normal(
        z_s, at_s.mean_scale * x0, at_s.std
    )
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back.beta, forward.std**2)


def test_the_posterior_is_that_of_diffusers():
    theirs = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    process = VariancePreserving()
    for t in (1, 10, 500, 999):
        ours = chain.posterior(process, t, t - 1)
        assert float(ours.beta_tilde) == pytest.approx(float(theirs._get_variance(t)), rel=1e-3)
        assert float(ours.beta) == pytest.approx(float(theirs.betas[t]), rel=1e-3)


def test_the_step_to_the_picture_is_certain():
    assert torch.stack(chain.posterior(VariancePreserving(), 0, chain.CLEAN)[:3]).tolist() == pytest.approx(
        [1, 0, 0]
    )


def test_the_posterior_in_the_one_coordinate_is_an_ancestral_step():
    """x_s = x0 + (s/t)^2 (x_t - x0) + s sqrt(1 - (s/t)^2) eps: what samplers do is what the textbook says."""
    process = VariancePreserving()
    t, s = torch.tensor([999, 500, 30]), torch.tensor([998, 100, 29])
    back = chain.posterior(process, t, s)
    sigma_t, sigma_s = process.sigma(t), process.sigma(s)
    a_t, a_s = process.scale(sigma_t), process.scale(sigma_s)
    ratio = (sigma_s / sigma_t) ** 2
    torch.testing.assert_close(back.c_x0 / a_s, 1 - ratio, rtol=1e-9, atol=0)
    torch.testing.assert_close(back.c_z * a_t / a_s, ratio, rtol=1e-9, atol=0)
    torch.testing.assert_close(back.beta_tilde.sqrt() / a_s, sigma_s * (1 - ratio).sqrt(), rtol=1e-9, atol=0)


def test_each_posterior_variance_is_exact_for_its_extreme():
    """The reverse step's variance for x0 ~ N(0, 1) is beta; for x0 known it is beta-tilde (Ho et al., section 3.2)."""
    process, t = VariancePreserving(), 700
    at_s, forward = chain.marginal(process, t - 1), chain.transition(process, t, t - 1)
    for data_variance, name in ((1.0, "beta"), (0.0, "beta_tilde")):
        variance_s = at_s.mean_scale**2 * data_variance + at_s.std**2
        reverse = 1 / (1 / variance_s + forward.mean_scale**2 / forward.std**2)
        torch.testing.assert_close(reverse, getattr(chain.posterior(process, t, t - 1), name))
