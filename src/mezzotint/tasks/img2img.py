"""Image to image: a picture sinks into noise as far as `strength` says, and is found again under the prompt.

x = x0 + sigma * eps at a level sigma where outlines are left and details are not, then down as ever (SDEdit, Meng et
al. 2021, arXiv 2108.01073). As many steps are taken as were asked for, whatever the strength.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..diffusion.noise import INITIAL
from .problem import Problem, fresh_noise, given_latents, guided, levels, noisy, told

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request import Settled


def img2img(pipeline: Pipeline, request: Settled) -> Problem:
    """The problem of a settled request; needs `image` and `strength`."""
    assert request.image is not None
    assert request.strength is not None
    sigmas = levels(pipeline, request, request.strength)
    noise = fresh_noise(pipeline, request)
    x0 = given_latents(pipeline, request, request.image.image)
    return Problem(
        guided(pipeline, request, sigmas),
        noisy(x0, float(sigmas[0]), noise(INITIAL)),
        sigmas,
        told(pipeline, request),
        noise,
    )
