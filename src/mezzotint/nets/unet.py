"""The U-Net of latent diffusion: F(z, t, text), the same shape out as in.

A map goes down through resolutions, each with residual blocks and, at some, transformers that look at the
text, or attention among its own pixels; the way up meets the maps of the way down again (Ronneberger et al. 2015;
Rombach et al. 2022, arXiv 2112.10752; SDXL: Podell et al. 2023, arXiv 2307.01952). Attribute names and configuration
keys are those of diffusers' UNet2DConditionModel: its state dict loads with strict=True.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.types import Cond
from ..errors import UsageError, unknown
from .blocks import (
    Attention,
    Context,
    Control,
    Downsample,
    GroupNorm,
    MapAttention,
    ResnetBlock,
    SpatialTransformer,
    TextEmbedding,
    TimeEmbedding,
    Upsample,
    silu,
    sinusoid,
)
from .config import Fixed, check_divisible, parse, per_level, serialise
from .layers import Conv2d

CLASS_NAME = "UNet2DConditionModel"
# What a block looks at: the text too, its own map, or neither.
DOWN = {"CrossAttnDownBlock2D": "text", "AttnDownBlock2D": "map", "DownBlock2D": ""}
UP = {"CrossAttnUpBlock2D": "text", "AttnUpBlock2D": "map", "UpBlock2D": ""}
MID = {"UNetMidBlock2DCrossAttn": "text", "UNetMidBlock2D": ""}
TIME_TELLS = ("default", "scale_shift")  # the time is added to a block's map, or scales and shifts it

# What the format can say and we compute at these values alone; the first is the one written.
FIXED: Fixed = {
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "num_attention_heads": (None,),  # diffusers refuses it too: attention_head_dim holds the number of heads
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}

# How an average of weights was made, which diffusers' trainers leave beside the architecture (SDXL's inpainting model).
AVERAGE = frozenset(
    {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}
)


@dataclass(frozen=True)
class UNetConfig:
    """The keys of a diffusers `unet/config.json` that shape the net. A tuple has an entry per resolution.

    `attention_head_dim` is the *number of heads*: the name is the format's, and so is the mistake. (In the blocks
    `AttnDownBlock2D` and `AttnUpBlock2D` it is the channels of a head.) `num_class_embeds` classes may be told.
    `sample_size` (latent height and width) is a hint for pipelines, the net takes any size. Raises
    `UsageError` for unknown block types, lengths that disagree, channels that heads or groups do not divide.
    """

    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    cross_attention_dim: int | tuple[int, ...] = 1280
    use_linear_projection: bool = False
    upcast_attention: bool | None = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1.0
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    resnet_time_scale_shift: str = "default"
    addition_embed_type: str | None = None
    addition_embed_type_num_heads: int = 64
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    mid_block_type: str = "UNetMidBlock2DCrossAttn"
    num_class_embeds: int | None = None

    def __post_init__(self) -> None:
        levels = self.levels()
        for name in self.down_block_types:
            if name not in DOWN:
                raise unknown("block in U-Net config 'down_block_types'", name, DOWN)
        for name in self.up_block_types:
            if name not in UP:
                raise unknown("block in U-Net config 'up_block_types'", name, UP)
        if self.mid_block_type not in MID:
            raise unknown("block in U-Net config 'mid_block_type'", str(self.mid_block_type), MID)
        if not len(levels) == len(self.down_block_types) == len(self.up_block_types):
            raise UsageError(
                f"U-Net config: {len(self.down_block_types)} down_block_types, {len(self.up_block_types)} "
                f"up_block_types and {len(levels)} block_out_channels; there must be as many of each"
            )
        for level in levels:
            check_divisible(
                "U-Net config: block_out_channels", level.channels, "attention_head_dim", level.heads
            )
            check_divisible(
                "U-Net config: block_out_channels", level.channels, "norm_num_groups", self.norm_num_groups
            )
        if self.resnet_time_scale_shift not in TIME_TELLS:
            raise unknown(
                "U-Net config 'resnet_time_scale_shift'", str(self.resnet_time_scale_shift), TIME_TELLS
            )
        if self.addition_embed_type not in (None, "text", "text_time"):
            known = ["text", "text_time"]
            raise unknown("U-Net config 'addition_embed_type'", str(self.addition_embed_type), known)
        if self.addition_embed_type == "text":
            for level in levels:
                check_divisible(
                    "U-Net config: cross_attention_dim",
                    level.context_dim,
                    "addition_embed_type_num_heads",
                    self.addition_embed_type_num_heads,
                )
        if self.addition_embed_type == "text_time" and not (
            self.projection_class_embeddings_input_dim and self.addition_time_embed_dim
        ):
            raise UsageError(
                "U-Net config: addition_embed_type 'text_time' needs addition_time_embed_dim and "
                "projection_class_embeddings_input_dim"
            )

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> UNetConfig:
        """From a diffusers `unet/config.json`; raises `UsageError` for what we do not compute."""
        name = raw.get("_class_name", CLASS_NAME)
        if name != CLASS_NAME:
            raise unknown("U-Net class", str(name), [CLASS_NAME])
        return parse(cls, raw, what="U-Net config", fixed=FIXED, ignored=AVERAGE)

    def to_dict(self) -> dict[str, Any]:
        """The contents of a diffusers `unet/config.json`."""
        return {"_class_name": CLASS_NAME} | serialise(self, fixed=FIXED)

    @property
    def multiple(self) -> int:
        """What the sides of a map should be multiples of: then every resolution is half of the one before."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def first_width(self) -> int:
        """Channels per pixel of the map that it works on."""
        return self.block_out_channels[0]

    @property
    def takes_text(self) -> bool:
        """Whether any part of the net looks at a text."""
        looks = (
            *(DOWN[name] for name in self.down_block_types),
            *(UP[name] for name in self.up_block_types),
            MID[self.mid_block_type],
        )
        return "text" in looks or self.addition_embed_type == "text"

    def levels(self) -> tuple[Level, ...]:
        """The resolutions from the finest to the coarsest, with what each of them holds."""
        n = len(self.block_out_channels)
        if n == 0:
            raise UsageError("U-Net config: block_out_channels is empty")
        columns = (
            per_level(getattr(self, key), n, what=f"U-Net config: {key}")
            for key in (
                "block_out_channels",
                "layers_per_block",
                "transformer_layers_per_block",
                "attention_head_dim",
                "cross_attention_dim",
            )
        )
        return tuple(Level(*row) for row in zip(*columns, strict=True))


@dataclass(frozen=True)
class Level:
    """One resolution of a U-Net."""

    channels: int
    layers: int  # residual blocks on the way down; one more on the way up
    depth: int  # transformer blocks after a residual block
    heads: int
    context_dim: int


def text_time(pooled: Tensor, ids: Tensor, dim: int) -> Tensor:
    """What SDXL takes as `Cond.pooled`: text embedding [B, P], ids [B, n] (sizes, crops) -> [B, P + n * dim].

    `dim` is the config's `addition_time_embed_dim`; `ids` are numbers of pixels, embedded as time steps are.
    """
    waves = sinusoid(ids.flatten(), dim).unflatten(0, ids.shape).flatten(1)  # [B, n * dim]
    return torch.cat([pooled, waves.to(pooled.dtype)], dim=1)


class DownBlock(nn.Module):
    """The residual blocks of one resolution (and their attention), then half the size."""

    def __init__(self, config: UNetConfig, level: Level, c_in: int, *, looks: str, downsample: bool) -> None:
        super().__init__()
        c = level.channels
        self.resnets = nn.ModuleList(_resnet(config, c_in if i == 0 else c, c) for i in range(level.layers))
        self.attentions = nn.ModuleList(
            _attention(config, level, looks) for _ in range(level.layers if looks else 0)
        )
        self.downsamplers = nn.ModuleList(
            [Downsample(c, padding=config.downsample_padding)] if downsample else []
        )

    def forward(self, x: Tensor, time: Tensor, context: Context) -> list[Tensor]:
        """Every map on the way, for the way up; the last one goes on down."""
        maps = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.attentions:
                x = self.attentions[i](x, context)
            maps.append(x)
        for downsample in self.downsamplers:
            maps.append(downsample(x))
        return maps


class MidBlock(nn.Module):
    """The coarsest resolution: a residual block, and where it looks at the text a transformer and another."""

    def __init__(self, config: UNetConfig, level: Level) -> None:
        super().__init__()
        looks = MID[config.mid_block_type]
        self.resnets = nn.ModuleList(
            _resnet(config, level.channels, level.channels, scale=config.mid_block_scale_factor)
            for _ in range(2 if looks else 1)
        )
        self.attentions = nn.ModuleList([_attention(config, level, looks)] if looks else [])

    def forward(self, x: Tensor, time: Tensor, context: Context) -> Tensor:
        x = self.resnets[0](x, time)
        for attention, resnet in zip(self.attentions, self.resnets[1:], strict=True):
            x = resnet(attention(x, context), time)
        return x


class UpBlock(nn.Module):
    """The residual blocks of one resolution, each given a map of the way down too, then twice the size."""

    def __init__(
        self, config: UNetConfig, level: Level, c_in: int, skips: list[int], *, looks: str, upsample: bool
    ) -> None:
        super().__init__()
        c, n = level.channels, level.layers + 1
        self.resnets = nn.ModuleList(
            _resnet(config, (c_in if i == 0 else c) + skips.pop(), c) for i in range(n)
        )
        self.attentions = nn.ModuleList(_attention(config, level, looks) for _ in range(n if looks else 0))
        self.upsamplers = nn.ModuleList([Upsample(c)] if upsample else [])

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, context: Context) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), time)
            if self.attentions:
                x = self.attentions[i](x, context)
        for upsample in self.upsamplers:
            height, width = skips[-1].shape[2:]
            x = upsample(x, (height, width))
        return x


class UNet(nn.Module):
    """F(z, t, cond) of a denoiser; see `diffusion.types.Net`. Fastest in channels_last memory."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        levels = config.levels()
        first, last = levels[0], levels[-1]
        time_dim = 4 * first.channels

        self.conv_in = Conv2d(config.in_channels, first.channels, 3, padding=1)
        self.time_embedding = TimeEmbedding(first.channels, time_dim)
        self.add_embedding = _addition(config, time_dim)
        classes = config.num_class_embeds
        self.class_embedding = nn.Embedding(classes, time_dim) if classes else None

        self.down_blocks = nn.ModuleList()
        skips, c = [first.channels], first.channels  # channels of the maps that the way up will meet
        for level, name in zip(levels, config.down_block_types, strict=True):
            downsample = level is not last
            self.down_blocks.append(DownBlock(config, level, c, looks=DOWN[name], downsample=downsample))
            skips += [level.channels] * (level.layers + downsample)
            c = level.channels
        self.mid_block = MidBlock(config, last)
        self.up_blocks = nn.ModuleList()
        for level, name in zip(reversed(levels), config.up_block_types, strict=True):
            self.up_blocks.append(
                UpBlock(config, level, c, skips, looks=UP[name], upsample=level is not first)
            )
            c = level.channels

        self.conv_norm_out = GroupNorm(config.norm_num_groups, first.channels, config.norm_eps)
        self.conv_out = Conv2d(first.channels, config.out_channels, 3, padding=1)

        for number, attention in enumerate(m for m in self.modules() if isinstance(m, Attention)):
            attention.place = attention.place._replace(number=number)
        start = 0
        for attention in self._cross():
            attention.start = start
            start += 2 * attention.to_k.out_features

    def _cross(self) -> list[Attention]:
        """All attention to the text, in the order in which it runs."""
        return [module for module in self.modules() if isinstance(module, Attention) and module.place.cross]

    @torch.no_grad()
    def prepared(self, cond: Cond) -> Cond:
        """`cond` with what does not change while it is the same: keys and values of the text, what is told of it.

        Each row is made by itself, and rows that are views of one are made once, so that none depends on the others.
        """
        if cond.text is None:
            return cond
        same = all(field is None or field.stride(0) == 0 for field in (cond.text, cond.pooled, cond.mask))
        rows = len(cond.text)
        made = [self._made(cond, i) for i in range(1 if same else rows)]
        keys, told = (
            None if parts[0] is None else torch.cat(parts).expand(rows, *parts[0].shape[1:])
            for parts in zip(*made, strict=True)
        )
        return cond._replace(keys=keys, told=told)

    def _made(self, cond: Cond, i: int) -> tuple[Tensor | None, Tensor | None]:
        """(keys, told) of row i."""
        dtype = self.conv_in.weight.dtype
        cond = cond.map(
            lambda field: field[i : i + 1].to(dtype if field.is_floating_point() else field.dtype)
        )
        assert cond.text is not None
        cross = self._cross()
        pairs = [part for attention in cross for part in attention.keys_values(cond.text)]
        return (torch.cat(pairs, dim=-1) if pairs else None), self._beside(cond)

    def forward(self, z: Tensor, t: Tensor, cond: Cond = Cond(), *, control: Control | None = None) -> Tensor:
        """z [B, C, H, W], t [B] (or one number for all), cond.text [B, L, D] -> [B, C_out, H, W].

        `cond.mask` [B, L] hides text states, `cond.concat` [B, C', H, W] joins z, `cond.pooled` is what
        `text_time` makes. `control` stands in for every `blocks.attend`: `partial(unet, control=...)` is a net
        whose attention is seen or changed. It computes and answers in the type of its weights. Raises `UsageError`
        for a field that is missing or of no use to this net.
        """
        self.check(z, cond)
        dtype = self.conv_in.weight.dtype
        cond = cond.map(lambda field: field.to(dtype) if field.is_floating_point() else field)
        z = z.to(dtype)
        if cond.concat is not None:
            z = torch.cat([z, cond.concat], dim=1)
        mask = None if cond.mask is None else cond.mask.bool()[:, None, None, :]  # [B, 1, 1, L]
        context = Context(cond.text, mask, control, cond.keys)
        time = self._time(t.expand(z.shape[0]), cond, dtype)  # [B, time_dim]

        x = self.conv_in(z)
        skips = [x]
        for block in self.down_blocks:
            skips += block(skips[-1], time, context)
        x = self.mid_block(skips[-1], time, context)
        for block in self.up_blocks:
            x = block(x, skips, time, context)
        return self.conv_out(silu(self.conv_norm_out(x)))

    def _time(self, t: Tensor, cond: Cond, dtype: torch.dtype) -> Tensor:
        """What every residual block is told, through the SiLU that they all begin with."""
        config = self.config
        waves = sinusoid(
            t, config.block_out_channels[0], flip=config.flip_sin_to_cos, shift=config.freq_shift
        )
        time = self.time_embedding(waves.to(dtype))
        told = self._beside(cond) if cond.told is None else cond.told
        if told is not None:
            time = time + told
        if self.class_embedding is not None:
            time = time + self.class_embedding(cond.label).to(dtype)
        return silu(time)

    def _beside(self, cond: Cond) -> Tensor | None:
        """What is told beside the time, of text or sizes: [B, time_dim]."""
        if self.add_embedding is None:
            return None
        return self.add_embedding(*((cond.pooled,) if self._takes_pooled else (cond.text, cond.mask)))

    @property
    def _takes_pooled(self) -> bool:
        return self.config.addition_embed_type == "text_time"

    def check(self, z: Tensor, cond: Cond) -> None:
        """Raises UsageError for a field that is missing or of no use to this net."""
        joined = 0 if cond.concat is None else cond.concat.shape[1]
        if z.shape[1] + joined != self.config.in_channels:
            raise UsageError(
                f"this U-Net takes {self.config.in_channels} channels and was given {z.shape[1]} + {joined} "
                "(latents + cond.concat); inpainting models need mask and masked picture, plain ones neither"
            )
        if (cond.text is not None) != self.config.takes_text:
            raise UsageError(
                "this U-Net looks at a text and was given none; set cond.text"
                if self.config.takes_text
                else "this U-Net looks at no text; leave cond.text empty"
            )
        if (cond.pooled is not None) != self._takes_pooled:
            verb = "needs a" if self._takes_pooled else "takes no"
            raise UsageError(f"this U-Net {verb} pooled vector; see cond.pooled and text_time")
        if (cond.label is not None) != (self.class_embedding is not None):
            raise UsageError(
                "this U-Net knows no class labels; leave cond.label empty"
                if self.class_embedding is None
                else "this U-Net is told a class and was given none; set cond.label"
            )


def _resnet(config: UNetConfig, c_in: int, c_out: int, *, scale: float = 1.0) -> ResnetBlock:
    time_dim = 4 * config.block_out_channels[0]
    return ResnetBlock(
        c_in,
        c_out,
        groups=config.norm_num_groups,
        eps=config.norm_eps,
        time_dim=time_dim,
        time_scales=config.resnet_time_scale_shift == "scale_shift",
        scale=scale,
    )


def _addition(config: UNetConfig, time_dim: int) -> nn.Module | None:
    """What is told beside the time: nothing, the text as one vector, or `Cond.pooled`."""
    if config.addition_embed_type == "text":
        context_dim, heads = config.levels()[0].context_dim, config.addition_embed_type_num_heads
        return TextEmbedding(context_dim, time_dim, heads)
    width = config.projection_class_embeddings_input_dim
    return TimeEmbedding(width, time_dim) if width and config.addition_embed_type else None


def _attention(config: UNetConfig, level: Level, looks: str) -> nn.Module:
    if looks == "map":
        heads = level.channels // level.heads
        return MapAttention(level.channels, heads, groups=config.norm_num_groups, eps=config.norm_eps)
    return SpatialTransformer(
        level.channels,
        level.heads,
        depth=level.depth,
        context_dim=level.context_dim,
        groups=config.norm_num_groups,
        linear=config.use_linear_projection,
        upcast=bool(config.upcast_attention),
    )
