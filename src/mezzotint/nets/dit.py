"""A transformer on patches of a map: F(z, t, class) (DiT: Peebles and Xie 2022, arXiv 2212.09748).

A map is cut into squares, each a token; blocks of self-attention and feed-forward are told time and class by
adaLN-Zero, x + g F((1 + a) norm(x) + b), (a, b, g) = W silu(time + class), W zero at first, so that a net begins as the
identity. Attribute names and configuration keys are those of diffusers' DiTTransformer2DModel; as there, each block
has an embedding of time and class of its own. `pixart.py` is its sister that reads texts.
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
from .layers import Conv2d, Linear

CLASS_NAME = "DiTTransformer2DModel"
WAVES = 256  # features of a time
EPS = 1e-6

# What the formats can say and we compute at these values alone; the first is the one written.
FIXED: Fixed = {
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "dropout": (0.0,),
    "norm_elementwise_affine": (False,),
    "norm_type": ("ada_norm_zero",),
    "upcast_attention": (False,),
}
UNUSED = frozenset({"norm_num_groups"})  # keys without a meaning for any of these nets


class Patched:
    """What the configurations of all transformers on patches say of themselves."""

    num_attention_heads: int
    attention_head_dim: int
    patch_size: int

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def multiple(self) -> int:
        """What the sides of a map must be multiples of."""
        return self.patch_size

    @property
    def first_width(self) -> int:
        """Channels per pixel of the map that it works on."""
        return -(-self.width // self.patch_size**2)


@dataclass(frozen=True)
class DiTConfig(Patched):
    """The keys of a diffusers `transformer/config.json` that shape the net.

    `attention_head_dim` is the channels of a head. `num_embeds_ada_norm` classes may be told, and one more stands for
    any. `sample_size` is the side of the maps that positions are counted on; others are stretched to it. Raises
    `UsageError` for a width that positions do not fit.
    """

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: int | None = None  # as many as go in
    num_layers: int = 28
    sample_size: int = 32
    patch_size: int = 2
    num_embeds_ada_norm: int = 1000
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_divisible("DiT config: the width (heads x channels)", self.width, "four waves", 4)
        check_divisible("DiT config: sample_size", self.sample_size, "patch_size", self.patch_size)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> DiTConfig:
        """From a diffusers `transformer/config.json`; raises `UsageError` for what we do not compute."""
        return parse(cls, raw, what="DiT config", fixed=FIXED, ignored=UNUSED)

    def to_dict(self) -> dict[str, Any]:
        """The contents of a diffusers `transformer/config.json`."""
        return {"_class_name": CLASS_NAME} | serialise(self, fixed=FIXED)

    @property
    def takes_text(self) -> bool:
        return False

    @property
    def num_class_embeds(self) -> int:
        """Classes and "any"."""
        return self.num_embeds_ada_norm + 1


def positions(height: int, width: int, dim: int, base: float) -> Tensor:
    """Where the tokens stand, as waves of column and row: [height * width, dim], float32.

    Whatever their number, they are counted from 0 up to `base`, the side of the maps that the net was made for.
    """
    rows, columns = (torch.arange(n) * (base / n) for n in (height, width))
    across, down = (sinusoid(at, dim // 2, flip=False) for at in (columns, rows))  # [n, dim / 2]
    return torch.cat([across.repeat(height, 1), down.repeat_interleave(width, 0)], dim=1)


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x [B, N, D] by what a block is told, [B, D] or [B, 1, D] each."""
    scale, shift = (each.reshape(len(x), 1, -1) for each in (scale, shift))
    return x * (1 + scale) + shift


class PatchEmbed(nn.Module):
    """A map as tokens: [B, C, H, W] -> [B, N, D], each with its place."""

    def __init__(self, channels: int, dim: int, patch: int, base: float) -> None:
        super().__init__()
        self.proj = Conv2d(channels, dim, patch, stride=patch)
        self.base = base

    def forward(self, z: Tensor) -> Tensor:
        x = self.proj(z)
        places = positions(x.shape[2], x.shape[3], x.shape[1], self.base).to(x)
        return x.flatten(2).transpose(1, 2) + places


def to_picture(x: Tensor, height: int, width: int, patch: int) -> Tensor:
    """Tokens [B, N, patch * patch * C] of a map of height x width pixels -> [B, C, height, width]."""
    x = x.unflatten(1, (height // patch, width // patch)).unflatten(-1, (patch, patch, -1))
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, height, width)


class GELU(nn.Module):
    """gelu(W x), by its tanh approximation."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(dim, inner)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Each token by itself, four times as wide in between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # the middle entry is where the checkpoints' numbering has its dropout
        self.net = nn.ModuleList([GELU(dim, 4 * dim), nn.Identity(), Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class ClassEmbedding(nn.Module):
    """A vector for each class."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes, dim)
        nn.init.normal_(self.embedding_table.weight, std=0.02)


class TimeAndClass(nn.Module):
    """(t [B], class [B]) -> [B, D]."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.timestep_embedder = TimeEmbedding(WAVES, dim)
        self.class_embedder = ClassEmbedding(classes, dim)

    def forward(self, waves: Tensor, label: Tensor) -> Tensor:
        return self.timestep_embedder(waves) + self.class_embedder.embedding_table(label)


class AdaNorm(nn.Module):
    """What a block is told: [B, D] -> shift, scale, gate of its attention, then of its feed-forward."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.emb = TimeAndClass(classes, dim)
        self.linear = Linear(dim, 6 * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, waves: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(self.emb(waves, label))).chunk(6, dim=1)


class Block(nn.Module):
    """Self-attention and feed-forward, each between norm and gate."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.width
        self.norm1 = AdaNorm(config.num_class_embeds, dim)
        self.attn1 = Attention(dim, config.num_attention_heads, bias=True)
        self.ff = FeedForward(dim)
        self.eps = config.norm_eps

    def forward(self, x: Tensor, waves: Tensor, label: Tensor) -> Tensor:
        shift, scale, gate, ff_shift, ff_scale, ff_gate = self.norm1(waves, label)
        h = modulated(F.layer_norm(x, x.shape[-1:], eps=EPS), scale, shift)
        x = x + gate[:, None] * self.attn1(h)
        h = modulated(F.layer_norm(x, x.shape[-1:], eps=self.eps), ff_scale, ff_shift)
        return x + ff_gate[:, None] * self.ff(h)


class DiT(nn.Module):
    """F(z, t, cond) of a denoiser; see `diffusion.types.Net`."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.width, config.patch_size
        self.pos_embed = PatchEmbed(config.in_channels, dim, patch, config.sample_size // patch)
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.proj_out_1 = Linear(dim, 2 * dim)
        self.proj_out_2 = Linear(dim, patch * patch * (config.out_channels or config.in_channels))
        for layer in (self.proj_out_1, self.proj_out_2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor, t: Tensor, cond: Cond = Cond()) -> Tensor:
        """z [B, C, H, W], t [B] (or one number for all), cond.label [B] (none: any) -> [B, C_out, H, W].

        It computes and answers in the type of its weights. Raises `UsageError` for a map that cannot be cut into
        patches, and for what this net cannot be told.
        """
        check_map(z, self.config.in_channels, self.config.patch_size)
        if cond.text is not None or cond.pooled is not None or cond.concat is not None:
            raise UsageError("this DiT is told a class or nothing; leave cond.text, pooled and concat empty")
        dtype = self.proj_out_1.weight.dtype
        label = cond.label
        if label is None:
            label = torch.full((len(z),), self.config.num_embeds_ada_norm, device=z.device)
        waves = sinusoid(t.expand(len(z)), WAVES, shift=1).to(dtype)
        x = self.pos_embed(z.to(dtype))
        for block in self.transformer_blocks:
            x = block(x, waves, label)
        first = self.transformer_blocks[0]  # whose embedding is the last layer's too
        assert isinstance(first, Block)
        told = first.norm1.emb(waves, label)
        shift, scale = self.proj_out_1(F.silu(told)).chunk(2, dim=1)
        x = self.proj_out_2(modulated(F.layer_norm(x, x.shape[-1:], eps=EPS), scale, shift))
        return to_picture(x, z.shape[2], z.shape[3], self.config.patch_size)


def check_map(z: Tensor, channels: int, patch: int) -> None:
    """Raises UsageError for a map of other channels, or one that cannot be cut into patches."""
    if z.shape[1] != channels:
        raise UsageError(f"this DiT takes {channels} channels and was given {z.shape[1]}")
    if z.shape[2] % patch or z.shape[3] % patch:
        raise UsageError(
            f"this DiT cuts maps into squares of {patch}, which {z.shape[2]} x {z.shape[3]} is no multiple of; ask for "
            "another height and width"
        )
