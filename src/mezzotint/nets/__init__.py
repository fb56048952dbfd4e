"""Architectures, in torch alone.

Each net is built as `Net(config)` from a frozen dataclass that reads and writes the `config.json` of the
project whose checkpoints it loads with strict=True.
"""

from .clip_text import CLIPTextConfig, CLIPTextModel, TextStates
from .dit import DiT, DiTConfig
from .pixart import PixArt, PixArtConfig
from .unet import UNet, UNetConfig, text_time
from .vae import AutoencoderKL, VAEConfig

Backbone = UNet | DiT | PixArt  # a net that learns to take noise off
BackboneConfig = UNetConfig | DiTConfig | PixArtConfig

__all__ = [
    "AutoencoderKL",
    "Backbone",
    "BackboneConfig",
    "CLIPTextConfig",
    "CLIPTextModel",
    "DiT",
    "DiTConfig",
    "PixArt",
    "PixArtConfig",
    "TextStates",
    "UNet",
    "UNetConfig",
    "VAEConfig",
    "text_time",
]
