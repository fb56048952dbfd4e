"""Two nets that look at pictures so that another learns to make them: one for likeness, one for truth.

`Eyes`, residual blocks at halving resolutions, give features: two pictures are alike where these are, which forgives
what pixels do not (Zhang et al. 2018, arXiv 1801.03924; here without weights learned from people). `Critic` tells true
patches from made ones (Isola et al. 2017, arXiv 1611.07004). Both are trained here: `training/features.py`,
`training/autoencoder.py`. Groups are normalised, not batches, so that a picture is seen alike in any company.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import GroupNorm
from .config import check_divisible, parse, serialise
from .layers import Conv2d, Linear

SLOPE = 0.2  # of the leaky rectifier


@dataclass(frozen=True)
class EyesConfig:
    """Channels at each resolution, the finest first, and how long the vector of a whole picture is."""

    widths: tuple[int, ...] = (32, 64, 128, 256)
    norm_num_groups: int = 8
    features: int = 128

    def __post_init__(self) -> None:
        for width in self.widths:
            check_divisible("eyes config: widths", width, "norm_num_groups", self.norm_num_groups)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> EyesConfig:
        """From a `config.json`; raises `UsageError` for an unknown key."""
        return parse(cls, raw, what="eyes config", fixed={})

    def to_dict(self) -> dict[str, Any]:
        return serialise(self, fixed={})


class EyeBlock(nn.Module):
    """A residual block: [B, C, H, W] -> [B, D, H / stride, W / stride]."""

    def __init__(self, c_in: int, c_out: int, *, groups: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(c_in, c_out, 3, stride=stride, padding=1)
        self.norm1 = GroupNorm(groups, c_out)
        self.conv2 = Conv2d(c_out, c_out, 3, padding=1)
        self.norm2 = GroupNorm(groups, c_out)
        self.short = Conv2d(c_in, c_out, 1)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x)))))
        short = F.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return F.silu(h + self.short(short))


class Eyes(nn.Module):
    """Pictures [B, 3, H, W] in [-1, 1] -> a unit vector each, and the maps on the way."""

    def __init__(self, config: EyesConfig) -> None:
        super().__init__()
        self.config = config
        widths = (3, *config.widths)
        self.blocks = nn.ModuleList(
            EyeBlock(widths[i], widths[i + 1], groups=config.norm_num_groups, stride=2 if i else 1)
            for i in range(len(config.widths))
        )
        self.out = Linear(config.widths[-1], config.features)

    @property
    def multiple(self) -> int:
        """What the sides of a picture must be multiples of."""
        return 2 ** (len(self.blocks) - 1)

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """[B, C, H, W] of each resolution."""
        found = [pictures]
        for block in self.blocks:
            found.append(block(found[-1]))
        return found[1:]

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, features], of length 1."""
        return F.normalize(self.out(self.maps(pictures)[-1].mean((2, 3))).float(), dim=1)


def unlikeness(eyes: Eyes, made: Tensor, true: Tensor) -> Tensor:
    """Mean over resolutions and places of |f(made) - f(true)|^2, f of unit length: [] in [0, 4]."""
    total = made.new_zeros((), dtype=torch.float32)
    pairs = zip(eyes.maps(made), eyes.maps(true), strict=True)
    for a, b in pairs:
        difference = F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)
        total = total + difference.square().sum(1).mean()
    return total / len(eyes.blocks)


class Critic(nn.Module):
    """How true each patch looks: [B, 3, H, W] -> [B, 1, h, w]; a patch is some 2^(layers + 2) pixels wide."""

    def __init__(self, width: int = 64, layers: int = 3, groups: int = 8) -> None:
        super().__init__()
        widths = [min(width * 2**i, 8 * width) for i in range(layers)]
        self.stem = Conv2d(3, widths[0], 4, stride=2, padding=1)
        self.convs = nn.ModuleList(Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(GroupNorm(groups, b) for b in widths[1:])
        self.out = Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.stem(x), SLOPE)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = F.leaky_relu(norm(conv(h)), SLOPE)
        return self.out(h)
