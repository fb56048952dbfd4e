"""How it works, for the page: the forward process of the reader's own picture, and the reverse process of their words.

Forward: z_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps (Ho et al. 2020, eq. 4), at levels even in the time that the net
is told. Reverse: at each step the state, what the model believes the picture to be, and how much each part of it
looked at each word: the mean of the cross-attention over heads and layers (Tang et al. 2022, arXiv 2210.04885).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from PIL import Image

from ..diffusion.process import Process
from ..film import forward_film
from ..formats.image import flatten
from ..heat import Looked, lit, spelled, watched
from ..nets.blocks import Attentive
from ..pipeline import Pipeline, Progress
from ..request import Settled
from .http import base64_of

SIDE = 256  # pixels at most of a moment
QUALITY = 85  # of WebP


def forward(image: Image.Image, process: Process, *, frames: int) -> dict[str, Any]:
    """{"frames": [{"sigma": noise over signal, "picture": WebP in base64}, ...]}, from clean to the model's most."""
    small = flatten(image)
    small.thumbnail((SIDE, SIDE))
    film = forward_film(small, process, frames=frames)
    return {
        "frames": [{"sigma": film.levels[frame.at], "picture": _packed(frame.left)} for frame in film.frames]
    }


def reverse(pipeline: Pipeline, request: Settled) -> Iterator[dict[str, Any]]:
    """The moments of one picture: {"sigma", "state", "belief", "attention": one picture for each of `spelled`}."""
    looked = Looked(pipeline.shape(request)[1:])
    words = spelled(pipeline.wearing(request), request.prompt)
    if isinstance(pipeline.denoiser.net, Attentive):
        pipeline = watched(pipeline, looked)
    for event in pipeline.generate(request.model_copy(update={"num_images": 1})):
        if not isinstance(event, Progress):
            continue
        belief, maps = event.look()[0], looked.taken()
        attention = (
            [] if maps is None else [lit(belief, maps[..., list(at)].sum(-1)) for at in words.values()]
        )
        yield {
            "sigma": event.sigma,
            "state": _packed(event.state()[0]),
            "belief": _packed(belief),
            "attention": [_packed(one) for one in attention],
        }


def _packed(image: Image.Image) -> str:
    held = io.BytesIO()
    image.save(held, format="WEBP", quality=QUALITY)
    return base64_of(held.getvalue())
