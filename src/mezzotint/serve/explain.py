"""How it works, for the page: the forward process of the reader's own picture, and the reverse process of their words.

Forward: z_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps (Ho et al. 2020, eq. 4), at levels even in the time that the net
is told. Reverse: at each step the state, what the model believes the picture to be, and how much each part of it
looked at each word: the mean of the cross-attention over heads and layers (Tang et al. 2022, arXiv 2210.04885).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..diffusion.process import Process
from ..film import forward_film
from ..formats.image import flatten, to_image, to_tensor
from ..nets.blocks import Place, attend
from ..pipeline import Pipeline, Progress
from ..request import Settled
from ..text import TextEncoder
from .http import base64_of

SIDE = 256  # pixels at most of a moment
DIM = 0.12  # how much is left of what a word was not looked up for
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
    looked = _Looked(pipeline.shape(request)[1:])
    net: Any = pipeline.denoiser.net
    if isinstance(pipeline.encoder, TextEncoder):  # a U-Net that looks at words, and lets itself be watched
        net = partial(net, control=looked)
    watched = replace(pipeline, denoiser=replace(pipeline.denoiser, net=net))
    words = spelled(pipeline, request.prompt)
    for event in watched.generate(request.model_copy(update={"num_images": 1})):
        if not isinstance(event, Progress):
            continue
        belief, maps = event.look()[0], looked.taken()
        attention = (
            [] if maps is None else [_lit(belief, maps[..., list(at)].sum(-1)) for at in words.values()]
        )
        yield {
            "sigma": event.sigma,
            "state": _packed(event.state()[0]),
            "belief": _packed(belief),
            "attention": [_packed(one) for one in attention],
        }


def spelled(pipeline: Pipeline, prompt: str) -> dict[str, tuple[int, ...]]:
    """The words of a plain prompt and at which of the text encoder's positions each stands; none of a long one."""
    if not isinstance(pipeline.encoder, TextEncoder):
        return {}
    tokenizer, chunks = pipeline.encoder.tokenizer, pipeline.encoder.chunks(prompt)
    found: dict[str, tuple[int, ...]] = {}
    at = 1  # behind the begin
    for word in prompt.split():
        count = len(tokenizer.tokens(word))
        found[word] = (*found.get(word, ()), *range(at, at + count))
        at += count
    return found if len(chunks) == 1 and at == 1 + len(chunks[0]) else {}


class _Looked:
    """Stands in for attention and remembers, of the last row (the prompt's, beside what guidance flees), who looked."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self._maps: list[Tensor] = []

    def __call__(
        self, place: Place, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None
    ) -> Tensor:
        if place.cross:
            ours, theirs = (
                x[-1].unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k)
            )  # [heads, N or L, d]
            share = (ours @ theirs.transpose(1, 2) / math.sqrt(ours.shape[-1])).softmax(-1).mean(0)  # [N, L]
            height = round(math.sqrt(len(share) * self.size[0] / self.size[1]))
            grid = share.T.unflatten(1, (height, -1))[None]  # [1, L, h, w]
            self._maps.append(F.interpolate(grid, self.size, mode="bilinear", align_corners=False)[0])
        return attend(q, k, v, heads, mask)

    def taken(self) -> Tensor | None:
        """[H, W, L], a mean since it was last taken."""
        maps, self._maps = self._maps, []
        return torch.stack(maps).mean(0).permute(1, 2, 0) if maps else None


def _lit(image: Image.Image, share: Tensor) -> Image.Image:
    """The picture, dark where `share` [h, w] is small."""
    span = share.max() - share.min()
    light = (share - share.min()) / span if span > 0 else torch.ones_like(share)
    wide = F.interpolate(light[None, None], (image.height, image.width), mode="bicubic", align_corners=False)[
        0
    ]
    unit = (to_tensor(image) + 1) / 2 * (DIM + (1 - DIM) * wide.clamp(0, 1))
    return to_image(unit * 2 - 1)


def _packed(image: Image.Image) -> str:
    held = io.BytesIO()
    image.save(held, format="WEBP", quality=QUALITY)
    return base64_of(held.getvalue())
