"""Orders of convergence, measured: the Gaussian oracle's probability-flow equation has a closed-form solution.

The levels run from 3 to 0.1, about the data's own standard deviations (0.3 to 2). Far above and below, x is nearly
noise or nearly data and every method nearly exact: from 80 to 0.002 the first step of a "ramp" is off by so little
that its order 2 shows only at thousands of steps. Slopes are fitted over 40 to 640 steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from mezzotint.diffusion.samplers import METHODS, SAMPLERS
from mezzotint.diffusion.samplers.quadrature import averages, lagrange, moments
from mezzotint.diffusion.types import Sampler
from mezzotint.errors import UsageError
from oracle import gaussian, mixture

STEPS = [40, 80, 160, 320, 640]
HIGH, LOW = 3.0, 0.1


def log_grid(n: int, high: float = HIGH, low: float = LOW) -> Tensor:
    return torch.linspace(math.log(high), math.log(low), n + 1, dtype=torch.float64).exp()


def rho_grid(n: int, high: float = HIGH, low: float = LOW) -> Tensor:
    return torch.linspace(high ** (1 / 7), low ** (1 / 7), n + 1, dtype=torch.float64) ** 7


GRIDS = {"log": log_grid, "rho7": rho_grid}
DETERMINISTIC = {name: m for name, m in METHODS.items() if not m.stochastic}


def slope(steps: list[int], errors: list[float]) -> float:
    """Minus the slope of log error over log steps, by least squares."""
    u = torch.tensor(steps, dtype=torch.float64).log()
    v = torch.tensor(errors, dtype=torch.float64).log()
    return -((u - u.mean()) * (v - v.mean())).sum().item() / ((u - u.mean()) ** 2).sum().item()


def error(sampler: Sampler, sigmas: Tensor) -> float:
    target = gaussian(3)
    g = torch.Generator().manual_seed(1)
    x = HIGH * torch.randn(8, 3, generator=g, dtype=torch.float64)
    *_, last = sampler(target.denoise, x, sigmas)
    return (last.x - target.flow(x, HIGH, LOW)).norm().item()


def order(sampler: Sampler, grid: Callable[[int], Tensor]) -> float:
    return slope(STEPS, [error(sampler, grid(n)) for n in STEPS])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_is_the_documented_one(name: str, grid: str) -> None:
    assert order(SAMPLERS[name], GRIDS[grid]) == pytest.approx(METHODS[name].order, abs=0.12)


@pytest.mark.parametrize("name", METHODS)
def test_docstring_states_the_order_of_the_table(name: str) -> None:
    assert re.search(rf"[Oo]rder {METHODS[name].order}\b", SAMPLERS[name].__doc__ or "")


# What the docstrings say of knobs.
KNOBS: list[tuple[str, dict, int]] = [
    ("ddim", {"eta": 0.0}, 1),
    ("dpmpp_2m", {"solver": "heun"}, 2),
    ("dpmpp_3m", {"solver": "heun"}, 3),
    ("dpmpp_3m", {"startup": "ramp"}, 2),
    ("dpmpp_3m", {"startup": "ramp", "curvature": 0.5}, 2),
    ("dpmpp_3m", {"curvature": 0.5}, 2),  # the halved coefficient alone costs the order
    ("deis", {"order": 2}, 2),
    ("deis", {"startup": "ramp"}, 2),
    ("deis", {"order": 4}, 4),
    ("lms", {"order": 3, "startup": "corrected"}, 3),
    ("lms", {"startup": "corrected"}, 4),
    ("pndm", {"averaged": "v_prediction"}, 1),  # as diffusers has it of nets that predict v
    ("unipc", {"lower_order_final": False}, 3),
    ("unipc", {"order": 3, "lower_order_final": False}, 3),
    ("unipc", {"disable_corrector": range(1000)}, 2),
]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("name", "knobs", "expected"), KNOBS)
def test_order_with_knobs(name: str, knobs: dict, expected: int, grid: str) -> None:
    assert order(partial(SAMPLERS[name], **knobs), GRIDS[grid]) == pytest.approx(expected, abs=0.2)


def calls(sampler: Sampler, sigmas: Tensor) -> tuple[int, int]:
    """(evaluations, steps yielded)."""
    count = 0
    target = gaussian(2)

    def denoise(x: Tensor, sigma: Tensor, cond: object) -> Tensor:
        nonlocal count
        count += 1
        return target.denoise(x, sigma)

    x = torch.ones(2, 2, dtype=torch.float64)
    yielded = list(sampler(denoise, x, sigmas, noise=lambda i: torch.zeros_like(x)))
    assert [step.i for step in yielded] == list(range(len(yielded)))
    assert [step.sigma for step in yielded] == sigmas[1:].tolist()
    return count, len(yielded)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("name", METHODS)
def test_exactly_the_steps_asked_for(name: str, n: int) -> None:
    per_step = METHODS[name].evaluations
    extra = 1 if name == "pndm" and n > 1 else 0  # its first step is Heun's
    assert calls(SAMPLERS[name], log_grid(n)) == (per_step * n + extra, n)
    to_zero = torch.cat([log_grid(n - 1) if n > 1 else torch.ones(1), torch.zeros(1)]).double()
    assert calls(SAMPLERS[name], to_zero) == (per_step * (n - 1) + 1 + extra, n)


def test_order_four_costs_one_evaluation_more() -> None:
    for name in ("deis", "lms"):
        assert calls(partial(SAMPLERS[name], order=4, startup="corrected"), log_grid(20)) == (21, 20)


@pytest.mark.parametrize("name", METHODS)
def test_the_last_step_to_level_zero_is_finite_and_dtype_is_kept(name: str) -> None:
    target = mixture(4)
    sigmas = torch.tensor([1e4, 40.0, 9.0, 3.0, 1.0, 0.3, 0.0], dtype=torch.float64)
    eps = [torch.randn(3, 4, generator=torch.Generator().manual_seed(i)).double() for i in range(13)]
    runs = {}
    for dtype in (torch.float32, torch.float64):
        x = (1e4 * eps[-1]).to(dtype)
        steps = list(SAMPLERS[name](target.denoise, x, sigmas, noise=lambda i: eps[i]))
        assert all(step.x.dtype == dtype and step.denoised.dtype == dtype for step in steps)
        runs[dtype] = steps[-1].x.double()
    # float32 has 6e-8 * 1e4 to lose at the first level and shall not lose more than that below.
    assert (runs[torch.float32] - runs[torch.float64]).abs().max() < 3e-3


@pytest.mark.parametrize("name", METHODS)
def test_a_row_does_not_see_the_others_and_x_is_not_written_to(name: str) -> None:
    target = mixture(4)
    g = torch.Generator().manual_seed(0)
    eps = torch.randn(20, 3, 4, generator=g, dtype=torch.float64)
    x = 3 * eps[-1]
    kept = x.clone()
    *_, batch = SAMPLERS[name](target.denoise, x, rho_grid(8), noise=lambda i: eps[i])
    assert torch.equal(x, kept)
    for row in range(3):
        *_, alone = SAMPLERS[name](target.denoise, x[[row]], rho_grid(8), noise=lambda i, r=row: eps[i, [r]])
        torch.testing.assert_close(alone.x, batch.x[[row]], rtol=1e-12, atol=1e-12)


def test_an_interrupted_sampler_leaves_nothing_behind() -> None:
    import gc
    import weakref

    seen: list[weakref.ref] = []

    def denoise(x: Tensor, sigma: Tensor, cond: object) -> Tensor:
        out = gaussian(2).denoise(x, sigma)
        seen.append(weakref.ref(out))
        return out

    for name in METHODS:
        x = torch.ones(2, 2, dtype=torch.float64)
        steps = SAMPLERS[name](denoise, x, log_grid(8), noise=lambda i, x=x: torch.zeros_like(x))
        for _ in range(4):
            step = next(steps)
        assert any(ref() is not None for ref in seen)
        steps.close()
        del step, steps
        gc.collect()
        assert all(ref() is None for ref in seen), name


@pytest.mark.parametrize(
    "sigmas", [[1.0], [1.0, 1.0], [1.0, 2.0], [1.0, -1.0], [math.inf, 1.0], [math.nan, 1.0]]
)
def test_impossible_levels_are_refused(sigmas: list[float]) -> None:
    for sampler in SAMPLERS.values():
        with pytest.raises(UsageError, match="noise levels"):
            next(sampler(gaussian(2).denoise, torch.ones(1, 2), torch.tensor(sigmas)))


@pytest.mark.parametrize(
    ("name", "knob"),
    [("dpmpp_2m", "solver"), ("dpmpp_3m", "startup"), ("ddpm", "variance"), ("lms", "startup")],
)
def test_unknown_choices_are_refused_by_name(name: str, knob: str) -> None:
    with pytest.raises(UsageError, match=f"unknown {knob} 'midpont'"):
        list(SAMPLERS[name](gaussian(2).denoise, torch.ones(1, 2), log_grid(3), **{knob: "midpont"}))


def test_adams_and_bashforth() -> None:
    for count, expected in [(2, [3 / 2, -1 / 2]), (3, [23 / 12, -16 / 12, 5 / 12])]:
        assert averages([-k for k in range(count)]) == pytest.approx(expected)
    assert averages([0, -1, -2, -3]) == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24])
    assert averages([0, 1]) == pytest.approx([1 / 2, 1 / 2])  # the trapezoid
    assert averages([0, 1, -1]) == pytest.approx([8 / 12, 5 / 12, -1 / 12])  # Adams and Moulton


@pytest.mark.parametrize("decay", [-9.0, -1.0, -0.999, -1e-5, 0.0, 1e-9, 0.3, 0.999, 1.0, 4.0, 30.0])
def test_averages_are_the_integrals(decay: float) -> None:
    nodes = [0.0, -0.7, -1.1, -2.5]
    y = torch.linspace(0, 1, 20001, dtype=torch.float64)
    weight = (-decay * (1 - y)).exp()
    for j, w in enumerate(averages(nodes, decay)):
        values = sum(a * y**k for k, a in enumerate(lagrange(nodes, j)))
        assert w == pytest.approx(
            (torch.trapezoid(weight * values, y) / torch.trapezoid(weight, y)).item(), rel=1e-5
        )
    assert sum(averages(nodes, decay)) == pytest.approx(1, rel=1e-12)


def test_moments_meet_where_the_formula_changes() -> None:
    for sign in (1, -1):
        assert moments(5, sign * (1 - 1e-12)) == pytest.approx(moments(5, sign * (1 + 1e-12)), rel=1e-11)
