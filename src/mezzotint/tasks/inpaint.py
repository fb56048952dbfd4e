"""Inpaint: draw a part of a picture anew, so that it fits the rest and the prompt.

Checkpoints made for it are told mask and masked picture in further channels (Rombach et al. 2022, section 4.5). Any
other model is held to the known part by one of the ways of `diffusion/posterior.py`. Pixels outside the mask stay the
picture's own (see `canvas.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.noise import INITIAL
from ..diffusion.posterior import corrected, reconstructed, region, replaced, resampled
from ..errors import UsageError, unknown
from .canvas import canvas_of
from .problem import Problem, fresh_noise, given_latents, guided, levels, noisy, pure_noise, told

if TYPE_CHECKING:
    from PIL import Image

    from ..pipeline import Pipeline
    from ..request import Settled

METHODS = ("langevin", "repaint", "guide", "replace")
SETTLED = 0.3  # noise level, of data of unit variance, below which no inner steps are taken


def inpaint(pipeline: Pipeline, request: Settled) -> Problem:
    """The problem of a settled request; needs `image`, and `mask` or transparency.

    `method` is one of `METHODS`; a checkpoint with channels for the mask knows its own way and takes none.
    """
    assert request.strength is not None
    canvas = canvas_of(request)
    seen, anew = canvas.seen((request.width, request.height))
    sigmas, noise = levels(pipeline, request, request.strength), fresh_noise(pipeline, request)
    x0 = given_latents(pipeline, request, seen)
    start = float(sigmas[0])
    x = pure_noise(noise, start) if request.strength == 1 else noisy(x0, start, noise(INITIAL))
    plain = Problem(guided(pipeline, request, sigmas), x, sigmas, told(pipeline, request), noise)
    # a model that was made for it is taken at its word, as other programs do
    finish = canvas.laid(request.feather or 0, level=not told_masks(pipeline))
    plain = plain._replace(finish=finish)
    if told_masks(pipeline):
        if request.method is not None:
            raise UsageError(
                f"'{pipeline.name}' was made for inpainting and takes no method (--method); leave it out"
            )
        return plain._replace(cond=plain.cond._replace(concat=beside(pipeline, request, seen, anew)))
    kept = 1 - F.max_pool2d(anew, pipeline.codec.factor).to(pipeline.device)  # [1, 1, h, w]
    known = region(x0, kept)
    method, times = request.method or METHODS[0], request.inner_steps or 0
    if method == "langevin":
        return plain._replace(within=lambda sampler: corrected(sampler, known, times=times, until=SETTLED))
    if method == "repaint":
        return plain._replace(within=lambda sampler: resampled(sampler, known, times=times + 1))
    if method == "guide":
        return plain._replace(denoise=reconstructed(plain.denoise, known))
    if method == "replace":
        return plain._replace(denoise=replaced(plain.denoise, known, noise(INITIAL)))
    raise unknown("method of inpainting", method, METHODS)


def told_masks(pipeline: Pipeline) -> bool:
    """Whether the net takes a mask and a masked picture beside the noisy one."""
    return pipeline.configs.unet.in_channels == 2 * pipeline.codec.channels + 1


def beside(pipeline: Pipeline, request: Settled, seen: Image.Image, anew: Tensor) -> Tensor:
    """`Cond.concat` of such a net: where it is drawn anew, and the picture with grey there, [B, 1 + C, h, w]."""
    from ..formats.image import to_tensor

    pixels = to_tensor(seen)[None] * (1 - anew)
    rest = pipeline.codec.encode(pixels.to(pipeline.device).contiguous(memory_format=torch.channels_last))
    mask = F.interpolate(anew, rest.shape[2:], mode="nearest").to(rest)
    return torch.cat([mask, rest], dim=1).expand(request.num_images, -1, -1, -1)
