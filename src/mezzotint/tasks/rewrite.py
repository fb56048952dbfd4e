"""Rewrite: change what a picture shows to what another prompt says, and keep the rest.

It walks from the picture itself, by what the answers to both prompts differ by (FlowEdit, see `diffusion/edit.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..diffusion.edit import flow_edit
from .problem import Problem, fresh_noise, given_latents, guided, levels, told

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request import Settled


def rewrite(pipeline: Pipeline, request: Settled) -> Problem:
    """The problem of a settled request; needs `image`, `source_prompt` and `strength`."""
    assert request.image is not None
    assert request.strength is not None
    sigmas, noise = levels(pipeline, request, request.strength), fresh_noise(pipeline, request)
    x0 = given_latents(pipeline, request, request.image.image)
    before = request.model_copy(
        update={"prompt": request.source_prompt or "", "guidance_scale": request.source_guidance or 1.0}
    )
    denoise = flow_edit(
        guided(pipeline, request, sigmas),
        guided(pipeline, before, sigmas),
        told(pipeline, before),
        x0,
        sigmas,
        noise,
    )
    return Problem(denoise, x0.clone(), sigmas, told(pipeline, request), noise)
