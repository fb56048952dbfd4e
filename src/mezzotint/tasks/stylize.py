"""Stylize: a picture in the manner of another, its content kept by its own queries (see `nets/control.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..diffusion.noise import INITIAL
from ..nets.control import styled
from .beside import looking
from .problem import Problem, fresh_noise, given_latents, levels, noisy, told

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request import Settled


def stylize(pipeline: Pipeline, request: Settled) -> Problem:
    """The problem of a settled request; needs `image`, `style_image`, `strength` and both strengths of the look."""
    assert request.image is not None
    assert request.style_image is not None
    assert request.strength is not None
    sigmas, noise = levels(pipeline, request, request.strength), fresh_noise(pipeline, request)
    x0 = given_latents(pipeline, request, request.image.image)
    style = given_latents(pipeline, request, request.style_image.image)
    eps, shown = noise(INITIAL), told(pipeline, request)
    others = [(style, eps, shown), (x0, eps, shown)]
    content = request.content_strength or 0.0
    control = styled(request.style_strength or 0.0, content)
    denoise = looking(pipeline, request, sigmas, others[: 2 if content else 1], lambda _: control)
    return Problem(denoise, noisy(x0, float(sigmas[0]), eps), sigmas, shown, noise)
