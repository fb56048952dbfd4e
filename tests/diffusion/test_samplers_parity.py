"""The same pictures as diffusers' schedulers: same denoiser, same levels, same noise, float64, to 1e-5.

Each scheduler is stepped by hand with the mixture oracle as its net, on the levels it laid out itself; ours runs on
those levels. Where ours differs on purpose, the test shows whose result is nearer to the closed form.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch
from test_samplers_stochastic import variance_error
from torch import Tensor

from mezzotint.diffusion.samplers import SAMPLERS
from mezzotint.diffusion.types import Sampler, Step
from oracle import Gaussian, Mixture, gaussian, mixture

TARGET = mixture(4)
SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EPS = torch.randn(64, 3, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def scheduler(name: str, n: int, **config: Any) -> Any:
    """A scheduler with Stable Diffusion's betas and n steps laid out, its tables in float64."""
    made = getattr(diffusers, name).from_config({**SD15, **config})
    made.alphas_cumprod = made.alphas_cumprod.double()
    if hasattr(made, "final_alpha_cumprod"):
        made.final_alpha_cumprod = made.final_alpha_cumprod.double()
    made.set_timesteps(n)
    for table in ("sigmas", "sigmas_interpol", "sigmas_up", "sigmas_down"):
        if isinstance(getattr(made, table, None), Tensor):
            setattr(made, table, getattr(made, table).double())
    return made


def eps_of(x: Tensor, sigma: Tensor | float, target: Gaussian | Mixture = TARGET) -> Tensor:
    return (x - target.denoise(x, sigma)) / sigma


def feed_noise(monkeypatch: pytest.MonkeyPatch, made: Any) -> None:
    """The scheduler's k-th draw is EPS[k]."""
    draws = iter(EPS)
    module = importlib.import_module(type(made).__module__)
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(draws), raising=False)


def ours(sampler: Sampler, sigmas: Tensor, x: Tensor) -> list[Step]:
    return list(sampler(TARGET.denoise, x, sigmas, noise=lambda i: EPS[i]))


# Schedulers in x = x0 + sigma eps (k-diffusion's lineage).


def walk_sigmas(made: Any, x: Tensor) -> Tensor:
    two_stage = hasattr(made, "state_in_first_order")
    for k, t in enumerate(made.timesteps):
        made.scale_model_input(x, t)  # sets its step index
        sigma = made.sigmas[k]
        if two_stage and not made.state_in_first_order and hasattr(made, "sigmas_interpol"):
            sigma = made.sigmas_interpol[k - 1 if hasattr(made, "sigmas_up") else k]
        x = made.step(eps_of(x, sigma), t, x).prev_sample
    return x


VE = [
    ("EulerDiscreteScheduler", "euler"),
    ("EulerDiscreteScheduler", "ddim"),
    ("EulerAncestralDiscreteScheduler", "euler_ancestral"),
    ("HeunDiscreteScheduler", "heun"),
    ("KDPM2DiscreteScheduler", "dpm2"),
    ("KDPM2AncestralDiscreteScheduler", "dpm2_ancestral"),
    ("LMSDiscreteScheduler", "lms"),
]


@pytest.mark.parametrize("n", [2, 7, 20])
@pytest.mark.parametrize(("name", "sampler"), VE)
def test_schedulers_in_sigma(monkeypatch: pytest.MonkeyPatch, name: str, sampler: str, n: int) -> None:
    made = scheduler(name, n, timestep_spacing="trailing")
    feed_noise(monkeypatch, made)
    x = made.sigmas[0] * EPS[-1]
    levels = made.sigmas.unique_consecutive()
    assert len(levels) == n + 1
    theirs = walk_sigmas(made, x)
    torch.testing.assert_close(ours(SAMPLERS[sampler], levels, x)[-1].x, theirs, atol=1e-5, rtol=0)


def test_dpmpp_sde(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its Brownian path comes from torchsde; here from the draws that ours makes, and torchsde need not be there.
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    n = 20
    made = module.DPMSolverSDEScheduler(**SD15, timestep_spacing="trailing")
    made.set_timesteps(n)
    made.sigmas = made.sigmas.double()
    levels = made.sigmas.unique_consecutive()
    path = iter(range(2 * n))

    def brownian(s: Tensor, t: Tensor) -> Tensor:
        """The path's increment from s to t over its standard deviation; asked for the middle, then for the end."""
        k = next(path)
        if k % 2 == 0:
            return EPS[k]
        m = (s * t).sqrt()
        return ((s - m).sqrt() * EPS[k - 1] + (m - t).sqrt() * EPS[k]) / (s - t).sqrt()

    made.noise_sampler = brownian
    start = x = levels[0] * EPS[-1]
    for t in made.timesteps:
        made.scale_model_input(x, t)
        sigma = made.sigmas[made.step_index]
        if not made.state_in_first_order:
            sigma = (made.sigmas[made.step_index - 1] * sigma).sqrt()
        x = made.step(eps_of(x, sigma), t, x).prev_sample
    torch.testing.assert_close(ours(SAMPLERS["dpmpp_sde"], levels, start)[-1].x, x, atol=1e-5, rtol=0)


# Schedulers in z = x / sqrt(1 + sigma^2), by timestep.


def sigma_at(abar: Tensor) -> Tensor:
    return ((1 - abar) / abar).sqrt()


def levels_by_timestep(made: Any, timesteps: Tensor, final: Tensor) -> Tensor:
    return torch.cat([sigma_at(made.alphas_cumprod[timesteps]), sigma_at(final).reshape(1)])


def walk_timesteps(made: Any, x: Tensor, **knobs: Any) -> Tensor:
    z = x * made.alphas_cumprod[made.timesteps[0]].sqrt()
    for t in made.timesteps:
        abar = made.alphas_cumprod[t]
        z = made.step(eps_of(z / abar.sqrt(), sigma_at(abar)), t, z, **knobs).prev_sample
    return z


@pytest.mark.parametrize("alpha_one", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim(monkeypatch: pytest.MonkeyPatch, eta: float, alpha_one: bool) -> None:
    made = scheduler("DDIMScheduler", 20, clip_sample=False, steps_offset=1, set_alpha_to_one=alpha_one)
    feed_noise(monkeypatch, made)
    levels = levels_by_timestep(made, made.timesteps, made.final_alpha_cumprod)
    x = levels[0] * EPS[-1]
    z = walk_timesteps(made, x, eta=eta)
    mine = ours(partial(SAMPLERS["ddim"], eta=eta), levels, x)[-1].x
    torch.testing.assert_close(mine / (1 + levels[-1] ** 2).sqrt(), z, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n", [10, 50])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(monkeypatch: pytest.MonkeyPatch, variance: str, n: int) -> None:
    made = scheduler("DDPMScheduler", n, clip_sample=False, variance_type=f"fixed_{variance}")
    feed_noise(monkeypatch, made)
    levels = levels_by_timestep(made, made.timesteps, made.one.double())
    x = levels[0] * EPS[-1]
    mine = ours(partial(SAMPLERS["ddpm"], variance=variance), levels, x)[-1].x
    torch.testing.assert_close(mine, walk_timesteps(made, x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 10, 50])
def test_pndm(n: int) -> None:
    made = scheduler("PNDMScheduler", n, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    assert len(made.timesteps) == (n + 1 if n > 1 else 1)  # the second timestep stands there twice
    levels = levels_by_timestep(made, made.timesteps.unique().flip(0), made.final_alpha_cumprod)
    x = levels[0] * EPS[-1]
    mine = ours(SAMPLERS["pndm"], levels, x)
    assert len(mine) == n
    torch.testing.assert_close(
        mine[-1].x / (1 + levels[-1] ** 2).sqrt(), walk_timesteps(made, x), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("n", [1, 2, 3, 4, 10])
def test_pndm_of_v_averages_what_the_net_answers(n: int) -> None:
    knobs = {"skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False}
    made = scheduler("PNDMScheduler", n, prediction_type="v_prediction", **knobs)
    levels = levels_by_timestep(made, made.timesteps.unique().flip(0), made.final_alpha_cumprod)
    x = levels[0] * EPS[-1]
    z = x / (1 + levels[0] ** 2).sqrt()
    for t in made.timesteps:
        a, s = made.alphas_cumprod[t].sqrt(), (1 - made.alphas_cumprod[t]).sqrt()
        v = a * eps_of(z / a, s / a) - s * TARGET.denoise(z / a, s / a)
        z = made.step(v, t, z).prev_sample
    mine = ours(partial(SAMPLERS["pndm"], averaged="v_prediction"), levels, x)
    assert len(mine) == n
    torch.testing.assert_close(mine[-1].x / (1 + levels[-1] ** 2).sqrt(), z, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n", [1, 4, 8])
def test_lcm(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    made = scheduler("LCMScheduler", n)
    feed_noise(monkeypatch, made)
    levels = levels_by_timestep(made, made.timesteps, torch.ones(1).double())
    x = levels[0] * EPS[-1]
    torch.testing.assert_close(
        ours(SAMPLERS["lcm"], levels, x)[-1].x, walk_timesteps(made, x), atol=1e-5, rtol=0
    )


def test_ipndm() -> None:
    # Its own schedule starts at sigma = infinity; the solver is the same on levels that do not.
    n = 20
    levels = torch.linspace(math.log(15), math.log(0.03), n + 1, dtype=torch.float64).exp()
    made = diffusers.IPNDMScheduler()
    made.set_timesteps(n)
    made.alphas = (1 + levels**2).rsqrt()
    made.betas = levels * made.alphas  # what it calls betas is the noise's amplitude
    x = levels[0] * EPS[-1]
    z = x * made.alphas[0]
    for k, t in enumerate(made.timesteps):
        a, b = made.alphas[k], made.betas[k]
        eps = eps_of(z / a, levels[k])
        z = made.step(eps * a - (z - b * eps) / a * b, t, z).prev_sample  # its net predicts v
    torch.testing.assert_close(
        ours(SAMPLERS["ipndm"], levels, x)[-1].x, z / made.alphas[-1], atol=1e-5, rtol=0
    )


# Schedulers in z, by sigma: the exponential multistep family.


def walk_multistep(
    made: Any, x: Tensor, noise: Callable[[int], Tensor] | None = None, target: Gaussian | Mixture = TARGET
) -> Tensor:
    z = x / (1 + made.sigmas[0] ** 2).sqrt()
    for k, t in enumerate(made.timesteps):
        sigma = made.sigmas[k]
        extra = {"variance_noise": noise(k)} if noise else {}
        z = made.step(eps_of(z * (1 + sigma**2).sqrt(), sigma, target), t, z, **extra).prev_sample
    return z * (1 + made.sigmas[-1] ** 2).sqrt()


DPM, UNIPC, DEIS = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"
HALVED = {"curvature": 0.5}
MULTISTEP: list[tuple[str, dict, str, dict]] = [
    (DPM, {}, "dpmpp_2m", {}),
    (DPM, {"solver_type": "heun"}, "dpmpp_2m", {"solver": "heun"}),
    (DPM, {"lower_order_final": False}, "dpmpp_2m", {"lower_order_final": False}),
    (DPM, {"solver_order": 3}, "dpmpp_3m", {"startup": "ramp", **HALVED}),
    (DPM, {"solver_order": 3, "solver_type": "heun"}, "dpmpp_3m", {"solver": "heun", "startup": "ramp", **HALVED}),
    (DPM, {"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde", {}),
    (DPM, {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, "dpmpp_2m_sde", {"solver": "heun"}),
    (DPM, {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}, "ddpm", {}),
    (UNIPC, {}, "unipc", {}),
    (UNIPC, {"solver_order": 1}, "unipc", {"order": 1}),
    (UNIPC, {"solver_order": 3}, "unipc", {"order": 3}),
    (UNIPC, {"disable_corrector": [0, 1]}, "unipc", {"disable_corrector": (0, 1)}),
]  # fmt: skip


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("n", [1, 2, 8, 20])
@pytest.mark.parametrize(("name", "config", "sampler", "knobs"), MULTISTEP)
def test_multistep(name: str, config: dict, sampler: str, knobs: dict, n: int, final: str) -> None:
    stochastic = config.get("algorithm_type") is not None
    made = scheduler(name, n, **config, timestep_spacing="leading", steps_offset=1, final_sigmas_type=final)
    x = made.sigmas[0] * EPS[-1]
    theirs = walk_multistep(made, x, EPS.__getitem__ if stochastic else None)
    mine = ours(partial(SAMPLERS[sampler], **knobs), made.sigmas, x)[-1].x
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n", [2, 8, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order: int, n: int) -> None:
    made = scheduler(DEIS, n, solver_order=order, timestep_spacing="leading", steps_offset=1)
    x = made.sigmas[0] * EPS[-1]
    theirs = walk_multistep(made, x)
    mine = ours(partial(SAMPLERS["deis"], order=order, startup="ramp"), made.sigmas, x)[-1].x
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


# Where ours differs on purpose.


def test_exact_third_order_is_nearer_than_the_released_one() -> None:
    # dpmpp_3m against DPMSolverMultistep(solver_order=3), deis against DEISMultistep(solver_order=3), as matched above.
    target = gaussian(4)
    for sampler, released in (("dpmpp_3m", {"startup": "ramp", **HALVED}), ("deis", {"startup": "ramp"})):
        for n in (20, 40, 80):
            sigmas = torch.linspace(math.log(14.6), math.log(0.03), n + 1, dtype=torch.float64).exp()
            x = sigmas[0] * EPS[-1]
            exact = target.flow(x, sigmas[0], sigmas[-1])
            *_, mine = SAMPLERS[sampler](target.denoise, x, sigmas)
            *_, theirs = SAMPLERS[sampler](target.denoise, x, sigmas, **released)
            assert 2 * (mine.x - exact).norm() < (theirs.x - exact).norm(), (sampler, n)


def test_third_order_sde_keeps_the_variance_better() -> None:
    # The scheduler's third-order stochastic update has -1/2 where the integral has +1/2 (and half of what is due):
    # a step as short as you like adds minus the second difference. Its variance converges with order 1, ours with 2.
    data = 0.5
    target = Gaussian(torch.zeros(1).double(), torch.full((1, 1), data).double())
    theirs, mine = [], []
    for n in (40, 80):
        made = scheduler(
            DPM, n, solver_order=3, algorithm_type="sde-dpmsolver++", use_exponential_sigmas=True
        )
        made.sigmas = made.sigmas[:-1]  # ends at sigma_min, without the step to 0
        made.timesteps = made.timesteps[:-1]
        made.config.final_sigmas_type = "sigma_min"  # the last step is like the others
        x = torch.zeros(
            n, 1, dtype=torch.float64
        )  # the first x and n - 1 draws, as in test_samplers_stochastic
        x[0] = (data + made.sigmas[0] ** 2).sqrt()
        unit = torch.eye(n, dtype=torch.float64)[:, 1:, None]
        last = walk_multistep(made, x, lambda k, unit=unit: unit[:, k], target)
        theirs.append(last.square().sum().item() / (data + made.sigmas[-1].item() ** 2) - 1)
        mine.append(variance_error(SAMPLERS["dpmpp_3m_sde"], made.sigmas, data))
    assert theirs[0] / theirs[1] < 2.5
    assert mine[0] / mine[1] > 3.5
    assert abs(mine[1]) < abs(theirs[1]) / 20
