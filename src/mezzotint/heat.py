"""Which word went where: cross-attention as heat maps over the picture.

At each step every part of the picture looks at every word; the mean of that over heads and layers, and here over the
steps too, is where a word was heard (Tang et al. 2022, arXiv 2210.04885).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .diffusion.types import Net
from .errors import UsageError
from .formats.image import to_image, to_tensor
from .nets.blocks import Attentive, Place, attend
from .pipeline import Picture, Pipeline
from .prompt import conjuncts
from .request import Request
from .text import TextEncoder, pieces, places

DIM = 0.12  # how much is left of what a word was not looked up for


def heat_maps(pipeline: Pipeline, request: Request) -> tuple[Picture, dict[str, Image.Image]]:
    """The first picture of a request, and for each word of its prompt the same picture, lit where it was heard.

    Raises UsageError for a model that looks at no words, and for a prompt that is not plain or too long.
    """
    settled = pipeline.settle(request.model_copy(update={"num_images": 1}))
    words = spelled(pipeline.wearing(settled), settled.prompt)
    if not words or not isinstance(pipeline.denoiser.net, Attentive):
        raise UsageError(
            "heat maps need a model that looks at words, and a plain prompt that fits its text encoder once"
        )
    looked = Looked(pipeline.shape(settled)[1:])
    *_, picture = watched(pipeline, looked).generate(settled)
    assert isinstance(picture, Picture)
    maps = looked.taken()
    assert maps is not None
    return picture, {word: lit(picture.image, maps[..., list(at)].sum(-1)) for word, at in words.items()}


def watched(pipeline: Pipeline, looked: Looked) -> Pipeline:
    """`pipeline`, whose net shows its attention to `looked`, whatever it wears."""

    def seen(net: Any) -> Net:
        return partial(net, control=looked)

    denoiser = replace(pipeline.denoiser, net=seen(pipeline.denoiser.net))
    return replace(pipeline, denoiser=denoiser, share=lambda net: seen(pipeline.share(net)))


def spelled(pipeline: Pipeline, prompt: str) -> dict[str, tuple[int, ...]]:
    """The words of a plain prompt and at which of the text encoder's positions each stands; none of a long one."""
    if not isinstance(pipeline.encoder, TextEncoder) or len(conjuncts(prompt)) > 1:
        return {}
    tokenizer, chunks = pipeline.encoder.tokenizer, pipeline.encoder.chunks(prompt)
    learnt = places({word: len(vectors[0]) for word, vectors in pipeline.encoder.learnt.items()}, 0)
    found: dict[str, tuple[int, ...]] = {}
    at = 1  # behind the begin
    for word in prompt.split():
        count = sum(map(len, pieces(tokenizer, word, learnt)))
        found[word] = (*found.get(word, ()), *range(at, at + count))
        at += count
    return found if len(chunks) == 1 and at == 1 + len(chunks[0]) else {}


class Looked:
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
        """[H, W, L], a mean since it was last taken: float32, on the processor, where pictures are."""
        maps, self._maps = self._maps, []
        return torch.stack(maps).float().mean(0).permute(1, 2, 0).cpu() if maps else None


def lit(image: Image.Image, share: Tensor) -> Image.Image:
    """The picture, dark where `share` [h, w] is small."""
    span = share.max() - share.min()
    light = (share - share.min()) / span if span > 0 else torch.ones_like(share)
    wide = F.interpolate(light[None, None], (image.height, image.width), mode="bicubic", align_corners=False)[
        0
    ]
    unit = (to_tensor(image) + 1) / 2 * (DIM + (1 - DIM) * wide.clamp(0, 1))
    return to_image(unit * 2 - 1)
