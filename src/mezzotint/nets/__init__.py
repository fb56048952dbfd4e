"""Architectures, in torch alone.

Each net is built as `Net(config)` from a frozen dataclass that reads and writes the `config.json` of the
project whose checkpoints it loads with strict=True.
"""

from .clip_text import CLIPTextConfig, CLIPTextModel, TextStates
from .unet import UNet, UNetConfig, text_time
from .vae import AutoencoderKL, VAEConfig

__all__ = [
    "AutoencoderKL",
    "CLIPTextConfig",
    "CLIPTextModel",
    "TextStates",
    "UNet",
    "UNetConfig",
    "VAEConfig",
    "text_time",
]
