"""Restyle: what the prompt says, drawn as another picture is drawn (shared attention, see `nets/control.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..diffusion.noise import INITIAL
from ..nets.control import styled
from .beside import looking
from .problem import Problem, fresh_noise, given_latents, levels, pure_noise, told

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request import Settled


def restyle(pipeline: Pipeline, request: Settled) -> Problem:
    """The problem of a settled request; needs `style_image` and `style_strength`."""
    assert request.style_image is not None
    assert request.style_strength is not None
    sigmas, noise = levels(pipeline, request), fresh_noise(pipeline, request)
    style = given_latents(pipeline, request, request.style_image.image)
    shown = told(pipeline, request.model_copy(update={"prompt": request.source_prompt or ""}))
    control = styled(request.style_strength)
    denoise = looking(pipeline, request, sigmas, [(style, noise(INITIAL), shown)], lambda _: control)
    return Problem(denoise, pure_noise(noise, float(sigmas[0])), sigmas, told(pipeline, request), noise)
