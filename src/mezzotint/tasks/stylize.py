"""Stylize: a picture in the manner of another, its content kept by its own way back to noise.

Both pictures are inverted exactly (`diffusion/inversion.py`). The result starts from the content's noise with the
statistics of the style's, looks with the content's queries at the style's keys and values as they are at each level
(StyleID, Chung et al. 2023, arXiv 2312.09008; see `nets/control.py`), and is brought to the style's colours on the way.
What is left of the content's noise to choose is the seed's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..diffusion.between import slerp
from ..diffusion.noise import INITIAL
from ..diffusion.style import resembling, transported
from ..nets.control import styled
from .beside import climbed, looking
from .problem import Problem, fresh_noise, given_latents, guided, levels, prepared, told
from .restyle import FINISHED

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request import Settled

FRESH = 0.3  # how far the seed's noise turns the picture's own where nothing holds the content


def stylize(pipeline: Pipeline, request: Settled) -> Problem:
    """The problem of a settled request; needs `image`, `style_image`, `strength` and both strengths of the look."""
    assert request.image is not None
    assert request.style_image is not None
    assert request.strength is not None
    style, content = request.style_strength or 0.0, request.content_strength or 0.0
    sigmas, noise = levels(pipeline, request, request.strength), fresh_noise(pipeline, request)
    plain = guided(pipeline, request.model_copy(update={"guidance_scale": 1.0}), sigmas)
    shown, manner = (
        prepared(pipeline, told(pipeline, request.model_copy(update={"prompt": text})))
        for text in (request.prompt, request.source_prompt or "")
    )
    own, other = (
        given_latents(pipeline, request, each.image) for each in (request.image, request.style_image)
    )
    model, kept = climbed(plain, other, sigmas, manner), climbed(plain, own, sigmas, shown)
    top = float(sigmas[0])
    start = _stirred(own, kept.at(top), top, noise(INITIAL), FRESH * (1 - content))
    start = start.lerp(transported(start, model.at(top)), style)
    control = styled(style, content)
    denoise = looking(pipeline, request, sigmas, [model, kept] if content else [model], lambda _: control)
    return Problem(
        resembling(denoise, other, style, until=FINISHED),
        start.contiguous(memory_format=torch.channels_last),
        sigmas,
        shown,
        noise,
    )


def _stirred(x0: Tensor, x: Tensor, sigma: float, eps: Tensor, share: float) -> Tensor:
    """x = x0 + sigma n with n turned by a `share` towards the noise eps [B, C, *S]: so seeds differ."""
    own = (x - x0) / sigma
    return x0 + sigma * slerp(own.flatten(1), eps.flatten(1), share).reshape(x.shape)
