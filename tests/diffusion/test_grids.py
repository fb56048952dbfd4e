"""Sigma grids: exactly n steps, strictly down, and the timesteps that diffusers would visit."""

from __future__ import annotations

import math

import diffusers
import numpy as np
import pytest
import scipy.stats
import torch

from mezzotint.diffusion.grids import GRIDS, beta_cdf, beta_quantile, exponential, flow, karras, sigma_grid
from mezzotint.diffusion.process import EDM, Flow, VarianceExploding, VariancePreserving
from mezzotint.errors import UsageError

STABLE_DIFFUSION = VariancePreserving()
PROCESSES = [STABLE_DIFFUSION, VariancePreserving("cosine"), VariancePreserving(zero_snr=True)]
SPACINGS = ["leading", "trailing", "linspace"]


def their(scheduler, **settings):
    return getattr(diffusers, scheduler)(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **settings
    )


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20, 27, 50, 100])
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(
    "process", [*PROCESSES, VarianceExploding(), EDM(), Flow(), Flow(shift=3.0)], ids=str
)
def test_a_grid_has_exactly_n_steps_and_falls(process, name, n):
    if name in (*SPACINGS, "distilled") and not isinstance(process, VariancePreserving):
        with pytest.raises(UsageError, match="no timesteps"):
            sigma_grid(name, process, n)
        return
    if (name == "distilled" and n > 50) or (name == "flow" and n > process.sigma_max):
        with pytest.raises(UsageError, match=r"do not fit|at most 50"):
            sigma_grid(name, process, n)
        return
    sigmas = sigma_grid(name, process, n)
    assert sigmas.shape == (n + 1,)
    assert sigmas.dtype == torch.float64
    assert (sigmas.diff() < 0).all()
    assert sigmas[-1] == 0
    assert sigmas[0] <= process.sigma_max * (1 + 1e-12)
    if name != "leading":
        assert sigmas[0] == pytest.approx(process.sigma_max, rel=1e-12)


@pytest.mark.parametrize("name", SPACINGS)
def test_every_number_of_steps_up_to_all_timesteps(name):
    for n in range(1, 1001):
        knobs = {"steps_offset": 1} if name == "leading" else {}
        t = STABLE_DIFFUSION.time(GRIDS[name](STABLE_DIFFUSION, n, **knobs)[:-1])
        assert len(t.unique()) == n
        assert torch.equal(t, t.round())
    assert sorted(t.tolist()) == list(range(1000))
    with pytest.raises(UsageError, match="1000 timesteps"):
        sigma_grid(name, STABLE_DIFFUSION, 1001)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("name", SPACINGS)
def test_the_timesteps_are_those_of_diffusers(name, offset):
    theirs = their("DDIMScheduler", timestep_spacing=name, steps_offset=offset)
    knobs = {"steps_offset": offset} if name == "leading" else {}
    for n in (*range(1 if name != "linspace" else 2, 129), 199, 250, 333, 500, 999):
        # (One linspace step starts at the clean end there.)
        theirs.set_timesteps(n)
        ours = STABLE_DIFFUSION.time(sigma_grid(name, STABLE_DIFFUSION, n, **knobs)[:-1])
        apart = (ours - theirs.timesteps[:n]).abs()  # theirs has n + 1 at times, the last being -1
        assert apart.max() == 0 or (
            name == "linspace" and n > 100 and apart.max() == 1
        )  # a tie, rounded otherwise


@pytest.mark.parametrize(
    ("name", "settings"),
    [("karras", {"use_karras_sigmas": True}), ("exponential", {"use_exponential_sigmas": True})],
)
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_karras_and_exponential_are_those_of_diffusers(name, settings, final):
    # Their own ends are those of the 10 linspace timesteps, which are the table's.
    theirs = their("EulerDiscreteScheduler", timestep_spacing="linspace", final_sigmas_type=final, **settings)
    theirs.set_timesteps(10)
    ours = sigma_grid(name, STABLE_DIFFUSION, 10)
    np.testing.assert_allclose(ours[:-1], theirs.sigmas[:-1], rtol=1e-4)


def test_beta_and_flow_are_those_of_diffusers():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    t = np.linspace(1, 1 / 20, 20)
    theirs.set_timesteps(sigmas=t)
    ours = Flow().time(flow(Flow(shift=3.0), 20))
    np.testing.assert_allclose(ours[1:], theirs.sigmas[1:], rtol=1e-6)
    assert ours[0] == pytest.approx(1, abs=2e-4)  # sigma_max stands for infinity
    torch.testing.assert_close(flow(Flow(), 20, shift=3.0), flow(Flow(shift=3.0), 20))

    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_beta_sigmas=True)
    theirs.set_timesteps(20)
    process = Flow(sigma_min=0.001 / 0.999, sigma_max=1e9)  # their t runs from 1 to 0.001
    np.testing.assert_allclose(
        process.time(sigma_grid("beta", process, 20))[:-1], theirs.sigmas[:-1], rtol=1e-5
    )


def test_karras_is_its_equation():
    sigmas = karras(EDM(), 5, rho=3.0, sigma_min=0.1, sigma_max=27.0)
    top, bottom = 27.0 ** (1 / 3), 0.1 ** (1 / 3)
    expected = [(top + i / 4 * (bottom - top)) ** 3 for i in range(5)] + [0]
    np.testing.assert_allclose(sigmas, expected, rtol=1e-12)
    assert exponential(EDM(), 3, sigma_min=0.01, sigma_max=1.0).tolist() == pytest.approx([1, 0.1, 0.01, 0])


def test_beta_spaces_times_not_sigmas():
    """The paper's quantiles are of time; diffusers applies them to sigma when it is not a flow. Half of the steps
    lie in the noisier half of the timesteps here; there, all but a few would have sigma > 1."""
    t = STABLE_DIFFUSION.time(sigma_grid("beta", STABLE_DIFFUSION, 21)[:-1])
    np.testing.assert_allclose(t / 999, scipy.stats.beta.ppf(np.linspace(1, 0, 21), 0.6, 0.6), atol=1e-5)


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 3.0), (2.0, 5.0), (1.0, 1.0), (7.0, 0.4)])
def test_beta_quantiles_are_those_of_scipy(a, b):
    p = torch.linspace(0, 1, 101, dtype=torch.float64)
    np.testing.assert_allclose(beta_cdf(p, a, b), scipy.stats.beta.cdf(p, a, b), atol=1e-13)
    np.testing.assert_allclose(beta_quantile(p, a, b), scipy.stats.beta.ppf(p, a, b), atol=1e-13)


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_may_end_above_zero(name):
    process = Flow() if name == "flow" else STABLE_DIFFUSION
    knobs = {"steps_offset": 1} if name == "leading" else {}
    if name in ("karras", "exponential", "beta"):
        knobs["sigma_min"] = 0.1
    sigmas = sigma_grid(name, process, 10, final=process.sigma_min, **knobs)
    if name == "linspace":  # it has arrived at sigma_min before: a step of no length is none
        assert sigmas[-1] == 0
    else:
        assert sigmas[-1] == process.sigma_min
    assert sigmas.shape == (11,)


def test_what_cannot_be_is_refused():
    with pytest.raises(UsageError, match="did you mean 'karras'"):
        sigma_grid("karas", EDM(), 10)
    with pytest.raises(UsageError, match="0 steps"):
        sigma_grid("karras", EDM(), 0)
    with pytest.raises(UsageError, match="do not fit"):
        sigma_grid("karras", EDM(), 10, sigma_min=5.0, sigma_max=5.0)
    assert math.isfinite(sigma_grid("karras", EDM(), 1)[0])
