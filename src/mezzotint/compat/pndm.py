"""diffusers' PNDM where it begins half way, in image to image and inpainting: the same pictures, mistake and all.

Its first step is Heun's, for which its list of timesteps has the second one twice: t0 t1 t1 t2 t3 ... Image to image
cuts the beginning of the list off, and the double with it: t3 t4 t5 ... The scheduler still takes its second
evaluation for the second half of Heun's step, which ends at t4, and then walks on as if it were at t5: from there on
the net is shown more noise than it is told of. Ours (`SAMPLERS["pndm"]`) begins with Heun's step wherever it begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..diffusion.grids import sigma_grid
from ..diffusion.noise import INITIAL
from ..diffusion.prediction import PREDICTIONS
from ..diffusion.samplers.multistep import adams_bashforth
from ..diffusion.samplers.steps import UNCONDITIONAL, estimate, toward
from ..diffusion.types import Cond, Denoise, Noise, Sampler, Step
from ..formats.scheduler import Plan
from ..tasks.problem import Problem, itself


def midway(plan: Plan, steps: int) -> Callable[[Problem], Problem]:
    """What PNDM makes of a problem that begins within `steps`."""
    levels = sigma_grid(plan.grid, plan.process, steps, **plan.grid_knobs).tolist()
    averaged = plan.prediction if isinstance(plan.prediction, str) else "epsilon"
    return lambda problem: begun_midway(problem, levels, averaged)


def begun_midway(problem: Problem, levels: Sequence[float], averaged: str) -> Problem:
    """`problem`, which takes the last steps of all `levels` [N + 1], as diffusers' pipelines have PNDM solve it.

    A problem that is solved in a way of our own, as inpainting with a model that was not made for it, stays as it is.
    """
    if problem.within is not itself:
        return problem
    taken = len(problem.sigmas) - 1
    told = [0, 1, *range(1, len(levels) - 1)][
        len(levels) - 1 - taken :
    ]  # places among the levels, as it lists them
    start = levels[told[0]]
    x = problem.x + (start - float(problem.sigmas[0])) * problem.noise(INITIAL).to(problem.x)
    return problem._replace(x=x, within=lambda _: plms(levels, told, averaged))


def plms(levels: Sequence[float], told: Sequence[int], averaged: str = "epsilon") -> Sampler:
    """A sampler that walks as diffusers' PNDMScheduler does, told of these places among all `levels`, one by one.

    `averaged`: what the net predicts; a sampler's own levels are not heard.
    """
    scalars = PREDICTIONS[averaged]

    def c(place: int) -> tuple[float, float]:
        c_skip, c_out = scalars(torch.tensor(levels[place], dtype=torch.float64))
        return float(c_skip), float(c_out)

    def amplitude(place: int) -> float:
        return 1 / math.hypot(1, levels[place])

    def sampler(
        denoise: Denoise,
        x: Tensor,
        sigmas: Tensor,
        cond: Cond = UNCONDITIONAL,
        *,
        noise: Noise | None = None,
        averaged: str = averaged,
    ) -> Iterator[Step]:
        z = x * amplitude(told[0])  # what the scheduler holds, of which it does not know the level
        first = z
        answers: list[Tensor] = []  # newest first
        for count, at in enumerate(told):
            x = z / amplitude(at)
            d = estimate(denoise, x, levels[at], cond)
            c_skip, c_out = c(at)
            answer = (d - c_skip * x) / c_out
            if count == 1:  # taken for the end of the first step, which is gone again
                z, begin, end, mean = first, at - 1, at, (answer + answers[0]) / 2
            else:
                answers = [answer, *answers[:3]]
                weights = adams_bashforth([levels[at]] * len(answers), 0.0)
                begin, end = at, at + 1
                mean = sum(
                    (w * f for w, f in zip(weights[1:], answers[1:], strict=True)), weights[0] * answer
                )
            c_skip, c_out = c(begin)
            x = z / amplitude(begin)
            x = toward(x, c_skip * x + c_out * mean, levels[begin], levels[end])
            z = x * amplitude(end)
            if count:
                yield Step(count - 1, levels[end], x, d)

    return sampler
