"""Invert: a picture back to its noise, and down again, under the same prompt or under another one.

With `bdia` the way back is exact to rounding, so the picture returns (as the autoencoder has it) and another prompt
starts from noise that holds its composition; `ddim` is there to compare. See `diffusion/inversion.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..diffusion.inversion import bdia, invert_bdia, invert_ddim
from ..diffusion.samplers import SAMPLERS
from ..errors import UsageError, unknown
from .problem import Problem, fresh_noise, given_latents, guided, levels, prepared, told

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request import Settled

METHODS = ("bdia", "ddim")


def invert(pipeline: Pipeline, request: Settled) -> Problem:
    """The problem of a settled request; needs `image` and `strength`.

    The prompt says what the picture shows, `prompt_to` what it will.
    """
    assert request.image is not None
    assert request.strength is not None
    method = request.method or METHODS[0]
    if method not in METHODS:
        raise unknown("method of inversion", method, METHODS)
    sigmas = levels(pipeline, request, request.strength)
    if len(sigmas) < 3:
        raise UsageError("inversion needs at least 2 steps (--steps)")
    x0 = given_latents(pipeline, request, request.image.image)
    denoise = guided(pipeline, request, sigmas)
    cond = prepared(pipeline, told(pipeline, request))
    down, heard = denoise, cond
    if request.prompt_to is not None:
        other = request.model_copy(update={"prompt": request.prompt_to})
        down, heard = guided(pipeline, other, sigmas), told(pipeline, other)
    noise = fresh_noise(pipeline, request)
    if method == "ddim":
        x = invert_ddim(denoise, x0, sigmas, cond)
        return Problem(down, x, sigmas, heard, noise, within=lambda _: SAMPLERS["ddim"])
    start = invert_bdia(denoise, x0, sigmas, cond)
    return Problem(down, start.x, sigmas, heard, noise, within=lambda _: bdia(start.second))
