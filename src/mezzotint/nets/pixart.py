"""A transformer on patches that reads texts: DiT with cross-attention (PixArt-alpha: Chen et al. 2023, 2310.00426).

As `dit.py`, but time is told to all blocks at once, (a, b, g) = table of the block + W silu(time) (adaLN-single, a
quarter fewer weights), and between self-attention and feed-forward each token looks at the text. Attribute names and
configuration keys are those of diffusers' PixArtTransformer2DModel, without the sizes of its largest checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion.types import Cond
from ..errors import UsageError
from .blocks import Attention, TimeEmbedding, sinusoid
from .config import Fixed, check_divisible, parse, serialise
from .dit import EPS, UNUSED, WAVES, FeedForward, Patched, PatchEmbed, check_map, modulated, to_picture
from .dit import FIXED as DIT_FIXED
from .layers import Linear

CLASS_NAME = "PixArtTransformer2DModel"
TOLD_SIZES = 128  # the sample_size at which nets are told sizes, unless they say that they are not
FIXED: Fixed = {
    **DIT_FIXED,
    "attention_type": ("default",),
    "norm_type": ("ada_norm_single",),
    "use_additional_conditions": (False, None),
}


@dataclass(frozen=True)
class PixArtConfig(Patched):
    """The keys of a diffusers `transformer/config.json` that shape the net; see `DiTConfig`.

    `caption_channels` is the width of the text's states, which two layers bring to `cross_attention_dim`, the width of
    the net.
    """

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = 8
    num_layers: int = 28
    sample_size: int = 128
    patch_size: int = 2
    cross_attention_dim: int = 1152
    caption_channels: int = 4096
    interpolation_scale: int | None = None  # positions are divided by it; larger for larger maps if not given
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_divisible("DiT config: the width (heads x channels)", self.width, "four waves", 4)
        check_divisible("DiT config: sample_size", self.sample_size, "patch_size", self.patch_size)
        if self.cross_attention_dim != self.width:
            raise UsageError(
                f"DiT config: cross_attention_dim {self.cross_attention_dim} is not the width {self.width}"
            )

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> PixArtConfig:
        """From a diffusers `transformer/config.json`; raises `UsageError` for what we do not compute."""
        ignored = UNUSED | {"num_embeds_ada_norm"}
        found = parse(cls, raw, what="DiT config", fixed=FIXED, ignored=ignored)
        if raw.get("use_additional_conditions") is None and found.sample_size == TOLD_SIZES:
            raise UsageError("DiT config: nets of sample_size 128 are told sizes too, which is not supported")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The contents of a diffusers `transformer/config.json`."""
        return {"_class_name": CLASS_NAME} | serialise(self, fixed=FIXED)

    @property
    def takes_text(self) -> bool:
        return True

    @property
    def num_class_embeds(self) -> None:
        """It is told no class."""


class TextProjection(nn.Module):
    """States of a text in the width of the net: [B, L, dim_in] -> [B, L, D]."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = Linear(dim_in, dim)
        self.linear_2 = Linear(dim, dim)

    def forward(self, text: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))


class Time(nn.Module):
    """t as a vector."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.timestep_embedder = TimeEmbedding(WAVES, dim)


class AdaSingle(nn.Module):
    """What all blocks are told: waves [B, 256] -> [B, 6 D], and the vector [B, D] that it comes from."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.emb = Time(dim)
        self.linear = Linear(dim, 6 * dim)

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        time = self.emb.timestep_embedder(waves)
        return self.linear(F.silu(time)), time


class Block(nn.Module):
    """Self-attention, a look at the text, feed-forward."""

    def __init__(self, config: PixArtConfig) -> None:
        super().__init__()
        dim = config.width
        self.scale_shift_table = nn.Parameter(torch.randn(6, dim) / dim**0.5)
        self.attn1 = Attention(dim, config.num_attention_heads, bias=True)
        self.attn2 = Attention(dim, config.num_attention_heads, context_dim=dim, bias=True)
        self.ff = FeedForward(dim)
        self.eps = config.norm_eps
        nn.init.zeros_(self.attn2.to_out[0].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.attn2.to_out[0].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, told: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, N, D], told [B, 6 D], text [B, L, D], mask [B, 1, 1, L] -> [B, N, D]."""
        parts = self.scale_shift_table + told.unflatten(1, (6, -1))  # [B, 6, D]
        shift, scale, gate, ff_shift, ff_scale, ff_gate = parts.chunk(6, dim=1)
        x = x + gate * self.attn1(modulated(F.layer_norm(x, x.shape[-1:], eps=self.eps), scale, shift))
        x = x + self.attn2(x, text, mask)
        return x + ff_gate * self.ff(
            modulated(F.layer_norm(x, x.shape[-1:], eps=self.eps), ff_scale, ff_shift)
        )


class PixArt(nn.Module):
    """F(z, t, cond) of a denoiser; see `diffusion.types.Net`."""

    def __init__(self, config: PixArtConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.width, config.patch_size
        stretch = config.interpolation_scale or max(config.sample_size // 64, 1)
        self.pos_embed = PatchEmbed(config.in_channels, dim, patch, config.sample_size // patch / stretch)
        self.adaln_single = AdaSingle(dim)
        self.caption_projection = TextProjection(config.caption_channels, dim)
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.scale_shift_table = nn.Parameter(torch.randn(2, dim) / dim**0.5)
        self.proj_out = Linear(dim, patch * patch * (config.out_channels or config.in_channels))
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, z: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
        """z [B, C, H, W], t [B] (or one number for all), cond.text [B, L, D] -> [B, C_out, H, W].

        `cond.mask` [B, L] hides text states. It computes and answers in the type of its weights. Raises `UsageError`
        for a map that cannot be cut into patches, and for what is missing or cannot be told to this net.
        """
        check_map(z, self.config.in_channels, self.config.patch_size)
        if cond.text is None or cond.pooled is not None or cond.label is not None or cond.concat is not None:
            raise UsageError("this DiT looks at a text and at nothing else; set cond.text alone")
        dtype = self.proj_out.weight.dtype
        mask = None if cond.mask is None else cond.mask.bool()[:, None, None, :]  # [B, 1, 1, L]
        told, time = self.adaln_single(sinusoid(t.expand(len(z)), WAVES).to(dtype))
        text = self.caption_projection(cond.text.to(dtype))
        x = self.pos_embed(z.to(dtype))
        for block in self.transformer_blocks:
            x = block(x, told, text, mask)
        shift, scale = (self.scale_shift_table + time[:, None]).chunk(2, dim=1)  # [B, 1, D] each
        x = self.proj_out(modulated(F.layer_norm(x, x.shape[-1:], eps=EPS), scale, shift))
        return to_picture(x, z.shape[2], z.shape[3], self.config.patch_size)
