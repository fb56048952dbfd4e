"""Restyle: what the prompt says, drawn as another picture is drawn.

Two ways at once: attention is shared with the style picture (`nets/control.py`), which nets with much attention need no
more than; and estimates are brought to its colours and contrasts (`diffusion/style.py`), which any net does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..diffusion.noise import INITIAL
from ..diffusion.style import resembling
from ..nets.control import styled
from .beside import drowned, looking
from .problem import Problem, fresh_noise, given_latents, levels, prepared, pure_noise, told

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request import Settled

FINISHED = 0.3  # noise level below which statistics are left to the net


def restyle(pipeline: Pipeline, request: Settled) -> Problem:
    """The problem of a settled request; needs `style_image` and `style_strength`."""
    assert request.style_image is not None
    assert request.style_strength is not None
    sigmas, noise = levels(pipeline, request), fresh_noise(pipeline, request)
    style = given_latents(pipeline, request, request.style_image.image)
    shown = prepared(
        pipeline, told(pipeline, request.model_copy(update={"prompt": request.source_prompt or ""}))
    )
    control = styled(request.style_strength)
    other = drowned(style, noise(INITIAL), shown)
    denoise = looking(pipeline, request, sigmas, [other], lambda _: control)
    denoise = resembling(denoise, style, request.style_strength, until=FINISHED)
    return Problem(denoise, pure_noise(noise, float(sigmas[0])), sigmas, told(pipeline, request), noise)
