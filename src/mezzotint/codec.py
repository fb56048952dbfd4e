"""Between pictures and what diffusion works on: pixels or latents, the same program.

A codec brings pictures [B, 3, H, W] in [-1, 1] to maps [B, C, h, w] of about zero mean and unit variance, and back:
z = (mean of q(z|x) - shift) * scale for an autoencoder (Rombach et al. 2022, arXiv 2112.10752), the picture itself
for a model of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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


@dataclass(frozen=True)
class Latents:
    """An autoencoder's latents, brought to unit scale."""

    vae: AutoencoderKL

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
        return self.vae.decode(unscaled.to(self.vae.dtype)).to(z.dtype)


@dataclass(frozen=True)
class Pixels:
    """No autoencoder: diffusion works on the pictures."""

    factor: int = 1
    channels: int = 3

    def encode(self, image: Tensor) -> Tensor:
        return image

    def decode(self, z: Tensor) -> Tensor:
        return z
