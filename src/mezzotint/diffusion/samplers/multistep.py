"""One evaluation a step and a memory: Euler's step with an average of what was seen.

A polynomial through past values, averaged over the step (quadrature.py), stands in for D. What is interpolated,
on which axis and under which weight is all that these methods differ in:

    DPM-Solver++, UniPC   x0   log sigma   exponential   (arXiv 2211.01095, 2302.04867)
    DEIS                  eps  log sigma   exponential   (arXiv 2204.13902)
    LMS                   eps  sigma       none          (Adams and Bashforth, for the steps at hand)
    iPNDM, PNDM           eps  step index  none          (Adams and Bashforth, fixed; arXiv 2202.09778)

A method of order k needs k values and has one when it starts. `startup="ramp"` begins with lower orders, as the
released programs do, and leaves an error of order 2 behind. `startup="corrected"` takes the first steps again
as one, once the polynomial has a value at their end: order 3 at no cost, order k for k - 3 more evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..prediction import PREDICTIONS
from ..types import Cond, Denoise, Noise, Step
from .quadrature import at_middle, averages
from .steps import UNCONDITIONAL, Method, estimate, intervals, one_of, stir, toward
from .twostage import heun_mean

FEW = 15  # steps; with fewer, lower_order_final lets the last ones be of order 2 and 1
STARTUPS = ("ramp", "corrected")


class Seen(NamedTuple):
    """An evaluation that is remembered."""

    sigma: float
    x: Tensor
    d: Tensor

    @property
    def eps(self) -> Tensor:
        return (self.x - self.d) / self.sigma


# Both are told of the evaluations with the one at the step's start first, and of the step's end.
Weights = Callable[[Sequence[float], float], list[float]]  # (their levels, t) -> the weight of each
Mean = Callable[[Sequence[Seen], float], Tensor]  # (they, t) -> the D for Euler's step
First = Callable[[Tensor, Tensor, float, float], Tensor]  # (x, its D, s, t) -> the D for Euler's step


def mean_x0(weights: Weights) -> Mean:
    """x0 is interpolated: D = sum_j w_j D_j."""

    def mean(seen: Sequence[Seen], t: float) -> Tensor:
        start, w = seen[0], weights([p.sigma for p in seen], t)
        return sum((w_j * (p.d - start.d) for w_j, p in zip(w[1:], seen[1:], strict=True)), start.d)

    return mean


def mean_eps(weights: Weights) -> Mean:
    """eps is interpolated: D = x - sigma sum_j w_j eps_j."""

    def mean(seen: Sequence[Seen], t: float) -> Tensor:
        start, w = seen[0], weights([p.sigma for p in seen], t)
        gains = [-start.sigma * w_j for w_j in w]
        return sum((g * (p.eps - start.eps) for g, p in zip(gains[1:], seen[1:], strict=True)), start.d)

    return mean


def mean_answer(prediction: str, weights: Weights) -> Mean:
    """What the net answers is interpolated: F of `prediction`, D = c_skip x + c_out sum_j w_j F_j at the step's start.

    The answers of other levels are taken as if they had been given at this one: right to the first order alone,
    unless F is eps.
    """
    scalars = PREDICTIONS[one_of("prediction", prediction, PREDICTIONS)]

    def mean(seen: Sequence[Seen], t: float) -> Tensor:
        answers = []
        for point in seen:
            c_skip, c_out = map(float, scalars(torch.tensor(point.sigma, dtype=torch.float64)))
            answers.append((point.d - c_skip * point.x) / c_out)
        c_skip, c_out = map(float, scalars(torch.tensor(seen[0].sigma, dtype=torch.float64)))
        w = weights([point.sigma for point in seen], t)
        return c_skip * seen[0].x + c_out * sum(
            (w_j * f for w_j, f in zip(w[1:], answers[1:], strict=True)), w[0] * answers[0]
        )

    return mean


def log_axis(levels: Sequence[float], t: float) -> tuple[list[float], float]:
    """The levels on the axis of log sigma, where the step from levels[0] to t is [0, 1]; its length h."""
    h = math.log(levels[0] / t)
    return [math.log(levels[0] / level) / h for level in levels], h


def exponential(rate: float, curvature: float = 1.0) -> Weights:
    """Interpolation in log sigma, integrated exactly against sigma^-rate."""

    def weights(levels: Sequence[float], t: float) -> list[float]:
        if t == 0:  # the axis has no end to extrapolate to: order 1
            return [1.0] + [0.0] * (len(levels) - 1)
        nodes, h = log_axis(levels, t)
        return averages(nodes, rate * h, curvature)

    return weights


def midpoint(rate: float, curvature: float = 1.0) -> Weights:
    """The same, but a straight line through two values is read off at the step's middle instead."""
    exact = exponential(rate, curvature)

    def weights(levels: Sequence[float], t: float) -> list[float]:
        return at_middle(log_axis(levels, t)[0]) if len(levels) == 2 and t > 0 else exact(levels, t)

    return weights


def polynomial(levels: Sequence[float], t: float) -> list[float]:
    """Interpolation in sigma."""
    return averages([(level - levels[0]) / (t - levels[0]) for level in levels])


def adams_bashforth(levels: Sequence[float], t: float) -> list[float]:
    """Interpolation in the step's index, as if all were equally long: (55, -59, 37, -9) / 24, and shorter."""
    return averages([-float(k) for k in range(len(levels))])


def trapezoid(levels: Sequence[float], t: float) -> list[float]:
    """The mean of both ends of a step."""
    return [0.5, 0.5]


SOLVERS = {"midpoint": midpoint, "heun": exponential}


def walk(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond,
    mean: Mean,
    order: int,
    *,
    startup: str = "ramp",
    begin: First | None = None,
    lower_order_final: bool = False,
    noise: Noise | None = None,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Iterator[Step]:
    """The multistep method that puts the `mean` of the last `order` evaluations for D.

    `begin` stands in for Heun's D in the first step of `startup="heun"`. eta > 0 solves the stochastic equation: the
    walk goes on to t (t / s)^eta, and noise makes up the level t.
    """
    steps = intervals(sigmas)
    seen: list[Seen] = []  # newest first
    for i, s, t in steps:
        d = estimate(denoise, x, s, cond)
        if startup == "corrected" and 0 < i <= order - 2:
            first = seen[-1]  # go again from there to here, through all that is known by now
            x = toward(first.x, mean([first, Seen(s, x, d), *seen[:-1]], s), first.sigma, s)
            if i < order - 2:
                d = estimate(denoise, x, s, cond)
        seen = [Seen(s, x, d), *seen[: order - 1]]
        if startup == "heun" and i == 0 and t > 0 and len(steps) > 1:
            d_mean = begin(x, d, s, t) if begin else heun_mean(denoise, x, d, s, t, cond)
        else:
            d_mean = mean(seen[: len(steps) - i] if lower_order_final and len(steps) < FEW else seen, t)
        down = t * (t / s) ** eta
        x = stir(toward(x, d_mean, s, down), s_noise * math.sqrt(t**2 - down**2), noise, i)
        yield Step(i, t, x, d)


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond = UNCONDITIONAL,
    *,
    noise: Noise | None = None,
    solver: str = "midpoint",
    lower_order_final: bool = True,
) -> Iterator[Step]:
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095, Algorithm 2). One evaluation a step; order 2.

    `solver`: "midpoint" (the paper's) takes the line through the last two estimates at the middle of the step,
    "heun" integrates it exactly and errs more on most targets. `lower_order_final`: with fewer than 15 steps, the
    last is Euler's (a step to level 0 always is). Raises UsageError for another `solver`.
    """
    rule = SOLVERS[one_of("solver", solver, SOLVERS)](1.0)
    return walk(denoise, x, sigmas, cond, mean_x0(rule), 2, lower_order_final=lower_order_final)


def dpmpp_3m(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond = UNCONDITIONAL,
    *,
    noise: Noise | None = None,
    solver: str = "midpoint",
    startup: str = "corrected",
    curvature: float = 1.0,
    lower_order_final: bool = True,
) -> Iterator[Step]:
    """DPM-Solver++(3M) with exact coefficients (arXiv 2211.01095). One evaluation a step; order 3.

    Released programs give the second difference half its weight (their D2 is f'' h^2 / 2, their phi_3 goes with
    f'' h^2) and are of order 2: `curvature=0.5, startup="ramp"` repeats them. With "ramp" alone the order is 2
    too, because of the first step. `solver` is for steps from two values, as in `dpmpp_2m`; `lower_order_final`:
    with fewer than 15 steps the last two are of orders 2 and 1. Raises UsageError for unknown choices.
    """
    rule = SOLVERS[one_of("solver", solver, SOLVERS)](1.0, curvature)
    one_of("startup", startup, STARTUPS)
    return walk(
        denoise, x, sigmas, cond, mean_x0(rule), 3, startup=startup, lower_order_final=lower_order_final
    )


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond = UNCONDITIONAL,
    *,
    noise: Noise | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver: str = "midpoint",
    lower_order_final: bool = True,
) -> Iterator[Step]:
    """SDE-DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095). One evaluation a step.

    The variance converges with order 2. `eta` scales the stochastic equation's noise: at 0 this is `dpmpp_2m`, at
    1 a step from one value is `ddpm`'s. `s_noise` scales what is drawn; the others are `dpmpp_2m`'s knobs.
    """
    rule = SOLVERS[one_of("solver", solver, SOLVERS)](1 + eta)
    return walk(
        denoise,
        x,
        sigmas,
        cond,
        mean_x0(rule),
        2,
        lower_order_final=lower_order_final,
        noise=noise,
        eta=eta,
        s_noise=s_noise,
    )


def dpmpp_3m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond = UNCONDITIONAL,
    *,
    noise: Noise | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver: str = "midpoint",
    curvature: float = 1.0,
    lower_order_final: bool = True,
) -> Iterator[Step]:
    """SDE-DPM-Solver++(3M) with exact coefficients (the method is k-diffusion's). One evaluation a step.

    The variance converges with order 2 all the same: no polynomial follows the noise. `curvature=0.5` with
    `solver="heun"` repeats k-diffusion's coefficients (see `dpmpp_3m`); the others are `dpmpp_2m_sde`'s knobs.
    """
    rule = SOLVERS[one_of("solver", solver, SOLVERS)](1 + eta, curvature)
    return walk(
        denoise,
        x,
        sigmas,
        cond,
        mean_x0(rule),
        3,
        lower_order_final=lower_order_final,
        noise=noise,
        eta=eta,
        s_noise=s_noise,
    )


def deis(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond = UNCONDITIONAL,
    *,
    noise: Noise | None = None,
    order: int = 3,
    startup: str = "corrected",
    lower_order_final: bool = True,
) -> Iterator[Step]:
    """DEIS of the log-rho kind (Zhang & Chen 2022, arXiv 2204.13902). One evaluation a step; order 3.

    In general of order `order`, up to 4, which evaluates once more at the second step; startup="ramp" leaves 2.
    A step to level 0 is Euler's; `lower_order_final` as in `dpmpp_3m`. Raises UsageError for another `startup`.
    """
    one_of("startup", startup, STARTUPS)
    mean = mean_eps(exponential(-1.0))
    return walk(denoise, x, sigmas, cond, mean, order, startup=startup, lower_order_final=lower_order_final)


def lms(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond = UNCONDITIONAL,
    *,
    noise: Noise | None = None,
    order: int = 4,
    startup: str = "ramp",
) -> Iterator[Step]:
    """Adams and Bashforth with coefficients for the steps at hand. One evaluation a step; order 2.

    With startup="corrected" of order `order`, up to 4, which evaluates once more at the second step. The step
    to level 0 is of full order like the others. Raises UsageError for another `startup`.
    """
    one_of("startup", startup, STARTUPS)
    return walk(denoise, x, sigmas, cond, mean_eps(polynomial), order, startup=startup)


def ipndm(
    denoise: Denoise, x: Tensor, sigmas: Tensor, cond: Cond = UNCONDITIONAL, *, noise: Noise | None = None
) -> Iterator[Step]:
    """iPNDM (Zhang & Chen 2022, arXiv 2204.13902). One evaluation a step; order 2.

    Adams-Bashforth coefficients, which are of order 4 where steps are equally long in sigma, and they never are.
    `lms` and `deis` have the coefficients for the steps at hand, in sigma and in log sigma.
    """
    return walk(denoise, x, sigmas, cond, mean_eps(adams_bashforth), 4)


def pndm(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond = UNCONDITIONAL,
    *,
    noise: Noise | None = None,
    averaged: str = "epsilon",
) -> Iterator[Step]:
    """PLMS: PNDM without its Runge-Kutta steps (Liu et al. 2022, arXiv 2202.09778). Order 2.

    What Stable Diffusion 1 ships with. The first of N steps is Heun's, which makes N + 1 evaluations; the others
    are `ipndm`'s. (diffusers counts that step's two evaluations as two of N + 1 steps.)

    The method averages eps. diffusers averages what the net answers, whatever that is, which with
    `averaged="v_prediction"` is of order 1: there to repeat its pictures. Raises UsageError for an unknown prediction.
    """
    if averaged == "epsilon":
        return walk(denoise, x, sigmas, cond, mean_eps(adams_bashforth), 4, startup="heun")
    ends = mean_answer(averaged, trapezoid)

    def first(x: Tensor, d: Tensor, s: float, t: float) -> Tensor:
        ahead = toward(x, d, s, t)
        return ends([Seen(s, x, d), Seen(t, ahead, estimate(denoise, ahead, t, cond))], t)

    return walk(
        denoise, x, sigmas, cond, mean_answer(averaged, adams_bashforth), 4, startup="heun", begin=first
    )


def unipc(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    cond: Cond = UNCONDITIONAL,
    *,
    noise: Noise | None = None,
    order: int = 2,
    lower_order_final: bool = True,
    disable_corrector: Collection[int] = (),
) -> Iterator[Step]:
    """UniPC-`order` with B(h) = e^h - 1, "bh2" (Zhao et al. 2023, arXiv 2302.04867). One evaluation a step.

    The predictor (UniP) is DPM-Solver++'s; once the next evaluation is there, the step is taken again through it
    too (UniC), at no cost, but for the steps in `disable_corrector`. Order 2, and 3 with lower_order_final=False:
    the last two steps are of orders 2 and 1 otherwise, and the last one cannot be taken again. (On the way to
    level 0, where the last step is Euler's in any case, that matters little.) `order` 3 gains no order: start-up.
    """
    mean = mean_x0(midpoint(1.0))
    steps = intervals(sigmas)
    seen: list[Seen] = []  # newest first, from the one that the last step used
    for i, s, t in steps:
        d = estimate(denoise, x, s, cond)
        if seen and i - 1 not in disable_corrector:
            last, *older = seen
            x = toward(last.x, mean([last, Seen(s, x, d), *older], s), last.sigma, s)
        seen = [Seen(s, x, d), *seen][: min(order, len(steps) - i) if lower_order_final else order]
        x = toward(x, mean(seen, t), s, t)
        yield Step(i, t, x, d)


METHODS = {
    "deis": Method(deis, order=3),
    "dpmpp_2m": Method(dpmpp_2m, order=2),
    "dpmpp_2m_sde": Method(dpmpp_2m_sde, order=2, stochastic=True),
    "dpmpp_3m": Method(dpmpp_3m, order=3),
    "dpmpp_3m_sde": Method(dpmpp_3m_sde, order=2, stochastic=True),
    "ipndm": Method(ipndm, order=2),
    "lms": Method(lms, order=2),
    "pndm": Method(pndm, order=2),
    "unipc": Method(unipc, order=2),
}
