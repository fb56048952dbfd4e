"""Between pictures and what diffusion works on: pixels or latents, the same program.

A codec brings pictures [B, 3, H, W] in [-1, 1] to maps [B, C, h, w] of about zero mean and unit variance, and back:
z = (mean of q(z|x) - shift) * scale for an autoencoder (Rombach et al. 2022, arXiv 2112.10752), the picture itself
for a model of pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .nets import AutoencoderKL


class Codec(Protocol):
    """What a pipeline, an editing task and a trainer ask of it."""

    @property
    def factor(self) -> int:
        """How many times smaller maps are than pictures, in height and in width."""

    @property
    def channels(self) -> int:
        """C of the maps."""

    def encode(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, C, h, w]."""

    def decode(self, z: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, H, W] in about [-1, 1]."""


def tiled(decode: Callable[[Tensor], Tensor], z: Tensor, tile: int, factor: int) -> Tensor:
    """`decode` of z [B, C, h, w] in tiles of `tile` latents that overlap by a quarter, blended linearly there.

    A tile sees no more than itself (its normalisations too), so that the picture is nearly, not quite, the same.
    """
    step = tile - tile // 4
    picture = weights = None
    for top in _starts(z.shape[2], tile, step):
        for left in _starts(z.shape[3], tile, step):
            part = decode(z[:, :, top : top + tile, left : left + tile].contiguous())
            if picture is None or weights is None:
                size = z.shape[2] * factor, z.shape[3] * factor
                picture, weights = part.new_zeros(*part.shape[:2], *size), part.new_zeros(size)
            height, width = part.shape[2:]
            fade = _ramp(part, height, tile // 4 * factor)[:, None] * _ramp(part, width, tile // 4 * factor)
            place = (
                ...,
                slice(top * factor, top * factor + height),
                slice(left * factor, left * factor + width),
            )
            picture[place] += part * fade
            weights[place] += fade
    assert picture is not None
    assert weights is not None
    return picture / weights


def _starts(size: int, tile: int, step: int) -> list[int]:
    """Where tiles begin: every `step`, and the last one at the end."""
    return [*range(0, max(1, size - tile), step), max(0, size - tile)] if size > tile else [0]


def _ramp(like: Tensor, size: int, overlap: int) -> Tensor:
    """[size]: rises over `overlap`, stays, falls; never 0."""
    at = torch.arange(size, dtype=like.dtype, device=like.device) + 0.5
    return torch.minimum(at, size - at).clamp(max=overlap) / overlap


@dataclass(frozen=True)
class Latents:
    """An autoencoder's latents, brought to unit scale."""

    vae: AutoencoderKL
    # decode so many latents of a side at a time: less memory, and seams that are blended
    tile: int | None = field(default=None, kw_only=True)

    @property
    def factor(self) -> int:
        return self.vae.config.factor

    @property
    def channels(self) -> int:
        return self.vae.config.latent_channels

    def encode(self, image: Tensor) -> Tensor:
        """The mean of q(z|x), so that the same picture has the same latents."""
        mean, _ = self.vae.encode(image.to(self.vae.dtype))
        return (mean.to(image.dtype) - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor

    def decode(self, z: Tensor) -> Tensor:
        unscaled = z / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        if self.tile is None or max(z.shape[2:]) <= self.tile:
            return self._decode(unscaled)
        return tiled(self._decode, unscaled, self.tile, self.factor)

    def _decode(self, unscaled: Tensor) -> Tensor:
        return self.vae.decode(unscaled.to(self.vae.dtype)).to(unscaled.dtype)


@dataclass(frozen=True)
class Pixels:
    """No autoencoder: diffusion works on the pictures."""

    factor: int = 1
    channels: int = 3

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, z: Tensor) -> Tensor:
        return z
