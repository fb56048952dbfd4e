"""Stochastic samplers keep the variance: computed, not estimated.

Where the denoiser is linear (Gaussian data) x is a linear map of the first x and of each step's noise, all independent.
One run on a batch of basis vectors reads off that map, and the variance of the result is the sum of squares: no
Monte Carlo, so that an error of one part in 10^12 shows. The exact one is S + sigma^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from test_samplers_order import GRIDS, slope
from torch import Tensor

from mezzotint.diffusion.samplers import METHODS, SAMPLERS
from mezzotint.diffusion.samplers.onestep import ddim, ddpm, euler, euler_ancestral
from mezzotint.diffusion.types import Sampler
from mezzotint.errors import UsageError
from oracle import Gaussian, gaussian

STEPS = [40, 80, 160, 320]
STOCHASTIC = {name: m for name, m in METHODS.items() if m.stochastic}


def final_variance(sampler: Sampler, sigmas: Tensor, data: float) -> float:
    """The exact variance of the last x of data N(0, data), started at the exact variance."""
    draws = 2 * (len(sigmas) - 1)  # a sampler may draw twice a step
    rows = 1 + draws  # the first x, then every noise
    target = Gaussian(torch.zeros(1).double(), torch.full((1, 1), data).double())
    x = torch.zeros(rows, 1, dtype=torch.float64)
    x[0] = math.sqrt(data + sigmas[0] ** 2)

    def noise(i: int) -> Tensor:
        unit = torch.zeros_like(x)
        unit[1 + i] = 1
        return unit

    *_, last = sampler(target.denoise, x, sigmas, noise=noise)
    return last.x.square().sum().item()


def variance_error(sampler: Sampler, sigmas: Tensor, data: float = 0.5) -> float:
    return final_variance(sampler, sigmas, data) / (data + sigmas[-1].item() ** 2) - 1


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_variance_converges_with_the_documented_order(name: str, grid: str) -> None:
    errors = [abs(variance_error(SAMPLERS[name], GRIDS[grid](n))) for n in STEPS]
    assert slope(STEPS, errors) == pytest.approx(STOCHASTIC[name].order, abs=0.15)
    assert errors[-1] < {0: 0.8, 1: 0.02, 2: 2e-4}[STOCHASTIC[name].order]


@pytest.mark.parametrize(
    ("name", "knobs", "expected"),
    [
        ("ddim", {"eta": 1.0}, 1),
        ("ddim", {"eta": 0.5}, 1),
        ("ddpm", {"variance": "large"}, 1),
        ("dpm2", {"eta": 0.5}, 2),
        ("dpmpp_2s", {"eta": 0.5}, 2),
        ("dpmpp_2m_sde", {"solver": "heun"}, 2),
        ("dpmpp_2m_sde", {"eta": 0.5}, 2),
        ("dpmpp_3m_sde", {"solver": "heun", "curvature": 0.5}, 2),
    ],
)
def test_variance_order_with_knobs(name: str, knobs: dict, expected: int) -> None:
    sampler = partial(SAMPLERS[name], **knobs)
    errors = [abs(variance_error(sampler, GRIDS["log"](n))) for n in STEPS]
    assert slope(STEPS, errors) == pytest.approx(expected, abs=0.15)


def schedule(n: int, total: int = 1000) -> Tensor:
    """Sigmas of a linear noise schedule of `total` steps, respaced to n and closed with 0."""
    abar = (1 - torch.linspace(1e-4, 0.02, total, dtype=torch.float64)).cumprod(0)
    t = torch.linspace(total - 1, 0, n).round().long()
    return torch.cat([((1 - abar) / abar).sqrt()[t], torch.zeros(1).double()])


@pytest.mark.parametrize("n", [5, 50, 1000])
def test_ddpm_large_is_exact_for_unit_variance_at_any_number_of_steps(n: int) -> None:
    # beta is the variance of q(x_t | x_s) when data ~ N(0, 1): Ho et al. 2020, section 3.2. The step to 0 draws none.
    sigmas = schedule(n)[:-1]
    assert abs(variance_error(partial(ddpm, variance="large"), sigmas, 1.0)) < 1e-12


@pytest.mark.parametrize("n", [5, 50, 1000])
def test_ddpm_small_is_exact_for_a_single_point_at_any_number_of_steps(n: int) -> None:
    sigmas = schedule(n)[:-1]
    assert abs(variance_error(ddpm, sigmas, 0.0)) < 1e-12


def test_the_original_ddpm_with_all_steps() -> None:
    # The variance is within 3 %, too small by the one and too large by the other, and half as far off as with 500.
    for variance, sign in (("small", -1), ("large", 1)):
        sampler = partial(ddpm, variance=variance)
        full, half = variance_error(sampler, schedule(1000)), variance_error(sampler, schedule(500))
        assert 0 < sign * full < 0.03
        assert full / half == pytest.approx(0.5, abs=0.05)


def run(sampler: Sampler, sigmas: Tensor) -> Tensor:
    eps = torch.randn(2 * len(sigmas), 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    *_, last = sampler(gaussian(3).denoise, eps[-1] * sigmas[0], sigmas, noise=lambda i: eps[i])
    return last.x


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (partial(ddim, eta=1.0), ddpm),
        (partial(ddim, eta=1.0), euler_ancestral),
        (ddim, euler),
        (partial(SAMPLERS["dpmpp_2m_sde"], eta=0.0), SAMPLERS["dpmpp_2m"]),
        (partial(SAMPLERS["dpmpp_3m_sde"], eta=0.0), partial(SAMPLERS["dpmpp_3m"], startup="ramp")),
        (partial(SAMPLERS["dpm2_ancestral"], eta=0.0), SAMPLERS["dpm2"]),
        (partial(SAMPLERS["dpmpp_2s_ancestral"], eta=0.0), SAMPLERS["dpmpp_2s"]),
        (partial(SAMPLERS["dpmpp_sde"], eta=0.0), SAMPLERS["dpmpp_2s"]),
    ],
)
def test_names_that_meet(one: Callable, other: Callable) -> None:
    for sigmas in (schedule(20), GRIDS["rho7"](9)):
        torch.testing.assert_close(run(one, sigmas), run(other, sigmas), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_noise_is_drawn_by_step_and_not_for_the_step_to_zero(name: str) -> None:
    asked = []

    def noise(i: int) -> Tensor:
        asked.append(i)
        return torch.ones(2, 3)

    n = 6
    list(SAMPLERS[name](gaussian(3).denoise, torch.ones(2, 3), schedule(n), noise=noise))
    if not METHODS[name].stochastic:
        assert asked == []
    elif name == "dpmpp_sde":
        assert set(asked) == set(range(2 * (n - 1)))
    else:
        assert asked == list(range(n - 1))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_sampler_that_adds_noise_says_so_when_it_has_none(name: str) -> None:
    with pytest.raises(UsageError, match="noise="):
        list(SAMPLERS[name](gaussian(3).denoise, torch.ones(2, 3), schedule(5)))


@pytest.mark.parametrize("name", [n for n in STOCHASTIC if n not in ("ddpm", "lcm")])
def test_s_noise_scales_what_is_drawn(name: str) -> None:
    sigmas = GRIDS["log"](20)
    silent = partial(SAMPLERS[name], s_noise=0.0)
    assert variance_error(silent, sigmas) < -0.3 < variance_error(SAMPLERS[name], sigmas)
