"""The autoencoder of latent diffusion: a picture becomes a small map that is nearly Gaussian, and back.

q(z | x) = N(mean(x), exp(logvar(x))), trained with a light KL term (Kingma & Welling 2013, arXiv 1312.6114;
Rombach et al. 2022, arXiv 2112.10752). Diffusion works on (z - shift_factor) * scaling_factor, which has unit
variance; `encode` and `decode` here are before that scaling. Attribute names and configuration keys are those
of diffusers' AutoencoderKL; files older than 2023 name the attention otherwise: a dialect, for `formats`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError, unknown
from .blocks import Downsample, GroupNorm, MapAttention, ResnetBlock, Upsample, silu
from .config import Fixed, check_divisible, parse, serialise
from .layers import Conv2d

CLASS_NAME = "AutoencoderKL"
EPS = 1e-6  # of every group normalisation; the format has no key for it

FIXED: Fixed = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
}


@dataclass(frozen=True)
class VAEConfig:
    """The keys of a diffusers `vae/config.json`. A tuple has an entry per resolution, the finest first.

    Latents are 2^(levels - 1) times smaller than pictures. `scaling_factor`, `shift_factor`: see the top of
    the file. `force_upcast`: the net overflows float16. Raises `UsageError` for what does not fit together.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, ...] = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        for key, name in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            blocks = getattr(self, key)
            for block in blocks:
                if block != name:
                    raise unknown(f"block in VAE config '{key}'", block, [name])
            if len(blocks) != len(self.block_out_channels) or not blocks:
                raise UsageError(
                    f"VAE config: {len(blocks)} {key} and {len(self.block_out_channels)} block_out_channels; "
                    "there must be as many of each, and at least one"
                )
        for c in self.block_out_channels:
            check_divisible("VAE config: block_out_channels", c, "norm_num_groups", self.norm_num_groups)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> VAEConfig:
        """From a diffusers `vae/config.json`; raises `UsageError` for what we do not compute."""
        name = raw.get("_class_name", CLASS_NAME)
        if name != CLASS_NAME:
            raise unknown("VAE class", str(name), [CLASS_NAME])
        return parse(cls, raw, what="VAE config", fixed=FIXED)

    def to_dict(self) -> dict[str, Any]:
        """The contents of a diffusers `vae/config.json`."""
        return {"_class_name": CLASS_NAME} | serialise(self, fixed=FIXED)

    @property
    def factor(self) -> int:
        """How many times smaller latents are than pictures, in height and in width."""
        return 2 ** (len(self.block_out_channels) - 1)


class MidBlock(nn.Module):
    """The coarsest resolution: residual block, attention (where the config has it), residual block."""

    def __init__(self, channels: int, *, groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels, channels, groups=groups, eps=EPS) for _ in range(2)
        )
        self.attentions = nn.ModuleList([MapAttention(channels, groups=groups, eps=EPS)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class DownBlock(nn.Module):
    """The residual blocks of one resolution, then half the size."""

    def __init__(self, c_in: int, c_out: int, *, layers: int, groups: int, downsample: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(c_in if i == 0 else c_out, c_out, groups=groups, eps=EPS) for i in range(layers)
        )
        self.downsamplers = nn.ModuleList([Downsample(c_out, padding=0)] if downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.downsamplers):
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """The residual blocks of one resolution, then twice the size."""

    def __init__(self, c_in: int, c_out: int, *, layers: int, groups: int, upsample: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(c_in if i == 0 else c_out, c_out, groups=groups, eps=EPS) for i in range(layers)
        )
        self.upsamplers = nn.ModuleList([Upsample(c_out)] if upsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.resnets, *self.upsamplers):
            x = layer(x)
        return x


class Encoder(nn.Module):
    """[B, 3, H, W] -> [B, 2 * latent_channels, H / factor, W / factor]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                widths[max(i - 1, 0)],
                width,
                layers=config.layers_per_block,
                groups=groups,
                downsample=i < len(widths) - 1,
            )
            for i, width in enumerate(widths)
        )
        self.mid_block = MidBlock(widths[-1], groups=groups, attention=config.mid_block_add_attention)
        self.conv_norm_out = GroupNorm(groups, widths[-1], EPS)
        self.conv_out = Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """[B, latent_channels, h, w] -> [B, 3, h * factor, w * factor]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups=groups, attention=config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                widths[max(i - 1, 0)],
                width,
                layers=config.layers_per_block + 1,
                groups=groups,
                upsample=i < len(widths) - 1,
            )
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = GroupNorm(groups, widths[-1], EPS)
        self.conv_out = Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """Picture <-> latent; both ways a function, the sampling of z is the caller's."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        c = config.latent_channels
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = Conv2d(2 * c, 2 * c, 1) if config.use_quant_conv else None
        self.post_quant_conv = Conv2d(c, c, 1) if config.use_post_quant_conv else None

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of what it takes."""
        return self.decoder.conv_in.weight.dtype

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, H, W] in [-1, 1] -> (mean, logvar), both [B, C, H / factor, W / factor].

        logvar is kept in [-30, 20]. Raises `UsageError` where `config.factor` does not divide the size.
        """
        height, width = image.shape[2:]
        if height % self.config.factor or width % self.config.factor:
            raise UsageError(
                f"a picture of {width} x {height} does not fit this VAE: "
                f"width and height must be multiples of {self.config.factor}"
            )
        moments = self.encoder(image)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, z: Tensor) -> Tensor:
        """Latents [B, C, h, w], unscaled -> pictures [B, 3, h * factor, w * factor] in about [-1, 1]."""
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self.decoder(z)
