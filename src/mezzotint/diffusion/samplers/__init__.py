"""Samplers: from noise to a picture, down a list of noise levels.

    for step in SAMPLERS["dpmpp_2m"](denoise, x, sigmas, cond, noise=noise):
        ...  # step.i, step.sigma, step.x, step.denoised

A sampler is a generator in the coordinate x = x0 + sigma * eps: x [B, C, *S] at level sigmas[0], sigmas [N + 1]
falling strictly, usually to 0, and N steps come out. It keeps the dtype of x, works out its coefficients in
float64 and has no state but its own frame: whoever stops listening leaves nothing behind. Autograd is the
caller's to switch off. noise(i) is the noise of step i (in `dpmpp_sde`: 2 i and 2 i + 1).

onestep.py: Euler's step and noise. twostage.py: two evaluations a step. multistep.py: one, and a memory.
A new sampler is a function and a row of METHODS in one of them; steps.py is what they share.
"""

from __future__ import annotations

from ..types import Sampler
from . import multistep, onestep, twostage
from .steps import Method

METHODS: dict[str, Method] = dict(
    sorted({**onestep.METHODS, **twostage.METHODS, **multistep.METHODS}.items())
)
SAMPLERS: dict[str, Sampler] = {name: method.sampler for name, method in METHODS.items()}

__all__ = ["METHODS", "SAMPLERS", "Method"]
