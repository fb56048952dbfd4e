"""The parts that the U-Net and the autoencoder are made of.

Residual blocks x + F(x) with group normalisation, the time added between the convolutions (Ho et al. 2020,
arXiv 2006.11239); transformer blocks of self-attention, cross-attention to the text and a gated feed-forward
layer (Rombach et al. 2022, arXiv 2112.10752); sinusoidal time features (Vaswani et al. 2017). Attribute names
are those of diffusers. Maps are best in channels_last memory: map -> tokens and back are then views.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion.types import Cond
from .layers import Conv2d, Linear, gated

M = TypeVar("M", bound=nn.Module)


def channels_last(net: M) -> M:
    """`net` with its convolutions' weights in the memory format that they run fastest in."""
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def sinusoid(t: Tensor, dim: int, *, flip: bool = True, shift: float = 0.0) -> Tensor:
    """Features of a number: cos and sin of t * 10000^(-k / (dim/2 - shift)); [B] -> [B, dim], float32.

    `flip` puts the cosines first. An odd `dim` ends in a zero.
    """
    half = dim // 2
    k = torch.arange(half, device=t.device, dtype=torch.float32)
    angle = t.float()[:, None] * torch.exp(-math.log(10_000) * k / (half - shift))  # [B, half]
    waves = [angle.cos(), angle.sin()] if flip else [angle.sin(), angle.cos()]
    return F.pad(torch.cat(waves, dim=1), (0, dim % 2))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v in `heads` heads: [B, N, C], [B, M, C], [B, M, C] -> [B, N, C].

    `mask` (True: look there) is anything that broadcasts to [B, heads, N, M].
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # [B, heads, N or M, d]
    if torch.is_grad_enabled() and q.is_cpu and q.dtype == torch.bfloat16 and mask is None:
        # torch's fused kernel takes four times as long backward here as the products that it stands for
        h = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1) @ v
    else:
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return h.transpose(1, 2).flatten(2)


class Place(NamedTuple):
    """Which attention of a U-Net it is."""

    number: int  # in the order in which they run
    cross: bool  # looks at the text, not at the map itself


# Stands in for `attend`, as control(place, q, k, v, heads, mask): how editing sees and changes who looks at what.
Control = Callable[[Place, Tensor, Tensor, Tensor, int, Tensor | None], Tensor]


@runtime_checkable
class Attentive(Protocol):
    """A net whose attention can be seen and changed: a U-Net, or what has it computed elsewhere."""

    def __call__(self, z: Tensor, t: Tensor, cond: Cond, *, control: Control | None = None) -> Tensor: ...

    def prepared(self, cond: Cond) -> Cond: ...


class Context(NamedTuple):
    """What the transformers of one evaluation are given beside their map."""

    text: Tensor | None  # [B, L, D]
    mask: Tensor | None = None  # [B, 1, 1, L] True where a text state counts
    control: Control | None = None
    keys: Tensor | None = (
        None  # [B, L, K] keys and values of all attention to the text, if they are made already
    )


def to_tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, HW, C]; of a channels_last map, a view."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, height: int, width: int) -> Tensor:
    """[B, HW, C] -> [B, C, H, W], a channels_last view."""
    return x.transpose(1, 2).unflatten(2, (height, width))


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), in the memory of x where nothing is learnt: x is the caller's own."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class GroupNorm(nn.GroupNorm):
    """Zero mean and unit variance within each group of channels (Wu & He 2018), then a scale and a shift.

    torch's CPU kernel for bfloat16 in channels_last memory is slow where a group has fewer than 16 channels (two to
    five times slower than this, ten times slower than with 16): such groups are normalised in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cpu or x.dtype != torch.bfloat16 or self.num_channels >= 16 * self.num_groups:
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)


class TimeEmbedding(nn.Module):
    """Two linear layers: sinusoidal features [B, dim_in] -> the vector [B, dim] that every block is told."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = Linear(dim_in, dim)
        self.linear_2 = Linear(dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(features)))


class AttentionPooling(nn.Module):
    """A sequence as one vector: its mean (and a learned offset) looks at the sequence and at itself."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(1, dim) / math.sqrt(dim))
        self.q_proj = Linear(dim, dim)
        self.k_proj = Linear(dim, dim)
        self.v_proj = Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, L, dim] -> [B, dim]; `mask` [B, L] is True where x counts."""
        if mask is None:
            mean, look = x.mean(dim=1, keepdim=True), None
        else:
            counts = mask[..., None].to(x.dtype)
            mean = (x * counts).sum(dim=1, keepdim=True) / counts.sum(dim=1, keepdim=True)
            look = F.pad(mask.bool(), (1, 0), value=True)[:, None, None, :]  # [B, 1, 1, 1 + L]
        mean = mean + self.positional_embedding.to(x.dtype)
        seen = torch.cat([mean, x], dim=1)
        return attend(self.q_proj(mean), self.k_proj(seen), self.v_proj(seen), self.heads, look)[:, 0]


class TextEmbedding(nn.Module):
    """The text as one vector that every block is told beside the time (IF's `addition_embed_type` "text")."""

    def __init__(self, dim_in: int, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim_in)
        self.pool = AttentionPooling(dim_in, heads)
        self.proj = Linear(dim_in, dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, text: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, L, dim_in] -> [B, dim]; `mask` [B, L] is True where the text counts."""
        return self.norm2(self.proj(self.pool(self.norm1(text), mask)))


class ResnetBlock(nn.Module):
    """shortcut(x) + conv(silu(norm(conv(silu(norm(x))) + W silu(time)))), over `scale`.

    With `time_scales` it is a * norm(conv(...)) + b, (a - 1, b) = W silu(time) (Dhariwal & Nichol 2021, sec. 3).
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        groups: int,
        eps: float,
        time_dim: int | None = None,
        time_scales: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, c_in, eps)
        self.conv1 = Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = Linear(time_dim, c_out * (1 + time_scales)) if time_dim else None
        self.norm2 = GroupNorm(groups, c_out, eps)
        self.conv2 = Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = Conv2d(c_in, c_out, 1) if c_in != c_out else None
        self.time_scales, self.scale = time_scales, scale

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """[B, c_in, H, W] -> [B, c_out, H, W]; `time` [B, time_dim] has been through its SiLU already."""
        h = self.conv1(silu(self.norm1(x)))
        if self.time_emb_proj is None:
            h = self.norm2(h)
        elif self.time_scales:
            a, b = self.time_emb_proj(time)[:, :, None, None].chunk(2, dim=1)
            h = self.norm2(h) * (1 + a) + b
        else:
            h = self.norm2(h + self.time_emb_proj(time)[:, :, None, None])
        h = self.conv2(silu(h))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return x + h if self.scale == 1 else (x + h) / self.scale


class Downsample(nn.Module):
    """Half the height and width by a convolution of stride 2.

    `padding` 0 is what it is in the checkpoints: a row and a column of zeros, at the bottom and the right.
    """

    def __init__(self, channels: int, *, padding: int = 1) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.conv.padding[0] else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbours, then a convolution: no checkerboard (Odena et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """To twice the size, or to `size` (height, width) where the way down met an odd number."""
        height, width = size or (2 * x.shape[2], 2 * x.shape[3])
        return self.conv(F.interpolate(x, (height, width), mode="nearest"))


class Attention(nn.Module):
    """Tokens look at each other, or at a context: keys and values come from there."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        context_dim: int | None = None,
        upcast: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.place = Place(0, cross=context_dim is not None)  # a U-Net numbers its own
        self.start = 0  # where its keys stand among those of all; the values follow
        context_dim = context_dim or dim
        self.heads, self.upcast = heads, upcast
        self.to_q = Linear(dim, dim, bias=bias)
        self.to_k = Linear(context_dim, dim, bias=bias)
        self.to_v = Linear(context_dim, dim, bias=bias)
        self.to_out = nn.ModuleList([Linear(dim, dim)])

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Of a context [B, M, context_dim], what queries meet: two [B, M, dim]; constant while it is."""
        return self.to_k(context), self.to_v(context)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        control: Control | None = None,
        keys: Tensor | None = None,
    ) -> Tensor:
        """[B, N, dim] -> [B, N, dim]; `mask` as in `attend`, in whose place `control` stands if there is one.

        `keys` [B, M, K] holds what `keys_values` makes of the context, of this attention and others.
        """
        q = self.to_q(x)
        if keys is None:
            k, v = self.keys_values(x if context is None else context)
        else:
            k, v = keys.narrow(-1, self.start, 2 * q.shape[-1]).chunk(2, dim=-1)
        look = attend if control is None else partial(control, self.place)
        if self.upcast:  # q k^T of some models overflows float16
            return self.to_out[0](look(q.float(), k.float(), v.float(), self.heads, mask).to(q.dtype))
        return self.to_out[0](look(q, k, v, self.heads, mask))


class MapAttention(nn.Module):
    """Self-attention between the pixels of a map, added to it."""

    def __init__(self, channels: int, heads: int = 1, *, groups: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.group_norm = GroupNorm(groups, channels, eps)
        self.to_q = Linear(channels, channels)
        self.to_k = Linear(channels, channels)
        self.to_v = Linear(channels, channels)
        self.to_out = nn.ModuleList([Linear(channels, channels)])

    def forward(self, x: Tensor, context: object = None) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]; a transformer's context is passed over."""
        h = to_tokens(self.group_norm(x))  # [B, HW, C]
        h = attend(self.to_q(h), self.to_k(h), self.to_v(h), self.heads)
        return x + to_map(self.to_out[0](h), x.shape[2], x.shape[3])


class GEGLU(nn.Module):
    """a * gelu(b), (a, b) = W x (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        return gated(self.proj, x)


class FeedForward(nn.Module):
    """Each token by itself, four times as wide in between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # the middle entry is where the checkpoints' numbering has its dropout
        self.net = nn.ModuleList([GEGLU(dim, 4 * dim), nn.Identity(), Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; each normalised before and added after."""

    def __init__(self, dim: int, heads: int, *, context_dim: int, upcast: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads, upcast=upcast)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, heads, context_dim=context_dim, upcast=upcast)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = x + self.attn1(self.norm1(x), control=context.control)
        x = x + self.attn2(self.norm2(x), context.text, context.mask, context.control, context.keys)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks on the pixels of a map taken as tokens, added to the map."""

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        depth: int,
        context_dim: int,
        groups: int,
        linear: bool,
        upcast: bool,
    ) -> None:
        super().__init__()

        def projection() -> nn.Module:
            return Linear(channels, channels) if linear else Conv2d(channels, channels, 1)

        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = projection()
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads, context_dim=context_dim, upcast=upcast) for _ in range(depth)
        )
        self.proj_out = projection()
        self.linear = linear

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        height, width = x.shape[2:]
        h = self.norm(x)
        h = self.proj_in(to_tokens(h)) if self.linear else to_tokens(self.proj_in(h))  # [B, HW, C]
        for block in self.transformer_blocks:
            h = block(h, context)
        h = (
            to_map(self.proj_out(h), height, width)
            if self.linear
            else self.proj_out(to_map(h, height, width))
        )
        return x + h
