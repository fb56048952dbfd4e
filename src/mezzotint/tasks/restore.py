"""Restore: a picture from what is left of it, the damage being known: smaller, grey, blurred, or with holes.

What is left is y = A x0 with a linear A, and its pseudo-inverse brings y back as a picture: so a projection P = A+ A
is known, and the ways of `diffusion/posterior.py` hold for it as for a region. Models of pixels are held to it
directly. A model of latents is held to it in its estimates (DDNM, Wang et al. 2022, arXiv 2212.00490): the estimate is
decoded, corrected and encoded again, each time less what the autoencoder itself loses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..codec import Pixels
from ..diffusion.noise import INITIAL
from ..diffusion.posterior import Known, corrected, replaced
from ..diffusion.types import Cond, Denoise
from ..errors import UsageError, unknown
from ..formats.image import flatten, resized, to_tensor
from .canvas import canvas_of
from .problem import Problem, finite, fresh_noise, guided, levels, pure_noise, told

if TYPE_CHECKING:
    from ..codec import Codec
    from ..pipeline import Pipeline
    from ..request import Settled

METHODS = ("ddnm", "langevin")
Part = Callable[[Tensor], Tensor]  # P: [B, C, H, W] -> the same, what the damage leaves
LEFT = 1e-2  # a frequency that a blur leaves less of than this counts as lost


def restore(pipeline: Pipeline, request: Settled) -> Problem:
    """The problem of a settled request; needs `image` as it is now, and `damage`.

    Raises UsageError for a damage that is unknown or that the picture cannot have.
    """
    assert request.image is not None
    assert request.damage is not None
    method = request.method or METHODS[0]
    if method not in METHODS:
        raise unknown("method of restoring", method, METHODS)
    left, part = _damaged(request)
    left = left.to(pipeline.device).expand(request.num_images, -1, -1, -1)
    sigmas, noise = levels(pipeline, request), fresh_noise(pipeline, request)
    plain = Problem(
        guided(pipeline, request, sigmas),
        pure_noise(noise, float(sigmas[0])),
        sigmas,
        told(pipeline, request),
        noise,
    )
    known = Known(left, part)
    if not isinstance(pipeline.codec, Pixels):
        if method == "langevin":
            raise UsageError(
                f"'{pipeline.name}' draws latents, in which damage is not linear; use --method ddnm"
            )
        return plain._replace(denoise=through(pipeline.codec, plain.denoise, known))
    if method == "langevin":
        return plain._replace(
            within=lambda sampler: corrected(sampler, known, times=request.inner_steps or 0)
        )
    return plain._replace(denoise=replaced(plain.denoise, known, noise(INITIAL)))


def through(codec: Codec, denoise: Denoise, known: Known) -> Denoise:
    """Estimates of latents that agree with what is known of the pixels."""

    def agreeing(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        d = denoise(x, sigma, cond)
        each = [_agreeing(codec, d[i : i + 1], known.value[i : i + 1], known.part) for i in range(len(d))]
        return torch.cat(each)

    return agreeing


def _agreeing(codec: Codec, d: Tensor, value: Tensor, part: Part) -> Tensor:
    pixels = codec.decode(d.clone())
    return d + codec.encode(pixels + part(value - pixels)) - codec.encode(pixels)


def _damaged(request: Settled) -> tuple[Tensor, Part]:
    """What is left, as a picture [1, 3, H, W] in the range of P, and P."""
    assert request.image is not None
    kind, _, amount = (request.damage or "").partition(":")
    image, size = request.image.image, (request.width, request.height)
    pixels = to_tensor(resized(flatten(image), size))[None]
    if kind == "grey":
        return grey(pixels), grey
    if kind == "mask":
        seen, anew = canvas_of(request).seen(size)
        kept = 1 - anew
        return to_tensor(seen)[None] * kept, lambda x: x * kept.to(x)
    if kind not in DAMAGES:
        raise unknown("damage", kind, ("grey", "mask", *(f"{name}:NUMBER" for name in DAMAGES)))
    try:
        part = DAMAGES[kind](finite(amount), size)
    except ValueError as error:
        raise UsageError(f"damage {kind} needs a number, for instance {kind}:4; got '{amount}'") from error
    if kind == "smaller":  # whether it was given small or large
        count = int(float(amount))
        small = flatten(image).resize((size[0] // count, size[1] // count), Image.Resampling.BOX)
        pixels = F.interpolate(to_tensor(small)[None], scale_factor=count, mode="nearest")
    return part(pixels), part


def grey(x: Tensor) -> Tensor:
    """The mean of the three colours."""
    return x.mean(1, keepdim=True).expand_as(x)


def smaller(factor: float, size: tuple[int, int]) -> Part:
    """The means of squares of `factor` pixels."""
    whole = int(factor)
    if whole != factor or whole < 2 or any(side % whole for side in size):
        raise UsageError(
            f"damage smaller:{factor:g} needs a whole number that divides {size[0]} x {size[1]}, the size to work at "
            "(--size)"
        )
    return lambda x: F.interpolate(F.avg_pool2d(x, whole), scale_factor=whole, mode="nearest")


def blurred(radius: float, size: tuple[int, int]) -> Part:
    """The frequencies that a Gaussian blur of `radius` pixels leaves `LEFT` of; opposite edges meet."""
    if radius <= 0:
        raise UsageError(f"damage blur:{radius:g} needs a radius above 0")
    width, height = size
    square = torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.rfftfreq(width) ** 2  # [H, W / 2 + 1]
    left = torch.exp(-2 * (torch.pi * radius) ** 2 * square) > LEFT
    return lambda x: torch.fft.irfft2(torch.fft.rfft2(x.float()) * left.to(x.device), s=(height, width)).to(x)


DAMAGES: dict[str, Callable[[float, tuple[int, int]], Part]] = {"smaller": smaller, "blur": blurred}
