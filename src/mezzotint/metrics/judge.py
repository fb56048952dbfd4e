"""The judge: which emoji does a picture show?

A small residual network (He et al. 2016, arXiv 1512.03385) maps a picture to a point on the unit sphere, so that
pictures of one emoji lie together whatever their background, size and place (training: judge_training.py). A
generated picture is named by the nearest, in cosine, of all training pictures. The judge sees neither prompts nor
the generator; men, women and persons doing the same thing count as different emoji, equal pictures as one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..errors import MezzotintError
from ..formats.tensors import build, read_metadata, read_tensors, write_tensors

BATCH = 256
_KEY = "judge"  # of the configuration in the file's header


@dataclass(frozen=True)
class JudgeConfig:
    """Stages of residual blocks, each at half the resolution of the one before; `features` on the sphere."""

    side: int = 64
    widths: tuple[int, ...] = (32, 64, 128, 256)
    blocks: tuple[int, ...] = (1, 2, 2, 2)
    features: int = 256

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> JudgeConfig:
        fields = json.loads(text)
        widths, blocks = tuple(fields["widths"]), tuple(fields["blocks"])
        return cls(side=fields["side"], widths=widths, blocks=blocks, features=fields["features"])


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) of [B, C, ...], without torch's integer count of batches."""

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, self.training)


class Block(nn.Module):
    """Two 3 x 3 convolutions and a short cut: [B, C, H, W] -> [B, D, H / stride, W / stride]."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm1 = BatchNorm(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm2 = BatchNorm(out)
        self.short = nn.Conv2d(channels, out, 1, bias=False) if channels != out or stride > 1 else None
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        h = self.norm2(self.conv2(h))
        if self.short is not None:
            x = self.short(F.avg_pool2d(x, self.stride) if self.stride > 1 else x)
        return F.relu(x + h)


class JudgeNet(nn.Module):
    """Pictures [B, 3, side, side] in [-1, 1] -> unit vectors [B, features]."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        first = config.widths[0]
        self.config = config
        self.stem = nn.Conv2d(3, first, 3, 2, 1, bias=False)
        self.norm = BatchNorm(first)
        channels = (first, *config.widths)
        self.stages = nn.Sequential(
            *(
                Block(channels[i + (j > 0)], width, 2 if i and not j else 1)
                for i, (width, blocks) in enumerate(zip(config.widths, config.blocks, strict=True))
                for j in range(blocks)
            )
        )
        grid = config.side // 2 ** len(config.widths)
        self.out = nn.Linear(config.widths[-1] * grid * grid, config.features, bias=False)
        self.out_norm = BatchNorm(config.features)

    def forward(self, pictures: Tensor) -> Tensor:
        h = self.stages(F.relu(self.norm(self.stem(pictures))))  # [B, C, side/16, side/16]
        return F.normalize(self.out_norm(self.out(h.flatten(1)).float()), dim=1)


class Judge:
    """A trained net and the training pictures that it compares with."""

    def __init__(
        self, net: JudgeNet, glyphs: Sequence[Image.Image], about: Mapping[str, str] | None = None
    ) -> None:
        """`glyphs`: RGBA training pictures, one for each thing that a caption can name, in their order.

        `about` says how the judge was trained and how well it does.
        """
        self.net, self.about = net.eval(), dict(about or {})
        self.same = same_picture(glyphs)
        self.distinct = torch.unique(self.same)
        pictures = torch.stack([plain(glyphs[int(i)]) for i in self.distinct])
        self.gallery = self.embed(pictures)  # [distinct, features]

    @torch.no_grad()
    def embed(self, pictures: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32 unit vectors [B, features]."""
        parts = [
            self.net(to_net(part, self.net.config.side).contiguous(memory_format=torch.channels_last))
            for part in pictures.split(BATCH)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.net.config.features)

    def ranking(self, pictures: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, D]: indices of the D different training pictures, the nearest first."""
        return self.distinct[(self.embed(pictures) @ self.gallery.T).argsort(dim=1, descending=True)]

    def nearest(self, pictures: Tensor, k: int = 5) -> Tensor:
        """The k nearest training pictures of each: indices [B, k]."""
        return self.ranking(pictures)[:, :k]

    def found(self, pictures: Tensor, wanted: Sequence[Sequence[int]], k: int) -> list[bool]:
        """For each picture, whether any of the things `wanted` of it is among the k nearest."""
        return [
            bool(torch.isin(self.same[list(indices)], row).any())
            for indices, row in zip(wanted, self.nearest(pictures, k), strict=True)
        ]

    def save(self, path: Path, *, replace: bool = False) -> None:
        """Write the net to a safetensors file; its configuration and `about` go into the header."""
        header = dict(sorted({**self.about, _KEY: self.net.config.to_json()}.items()))
        write_tensors(path, self.net.state_dict(), metadata=header, replace=replace)

    @classmethod
    def load(cls, path: Path, glyphs: Sequence[Image.Image]) -> Judge:
        """The judge that `save` wrote. MezzotintError if the file is missing, damaged or something else."""
        header = read_metadata(path)
        if _KEY not in header:
            raise MezzotintError(f"{path} holds no judge; `make evaluate` trains one")
        config = JudgeConfig.from_json(header.pop(_KEY))
        net = build(lambda: JudgeNet(config), read_tensors(path), where=str(path))
        return cls(net, glyphs, {k: v for k, v in header.items() if k != "format"})


def same_picture(glyphs: Sequence[Image.Image]) -> Tensor:
    """[n]: for each picture the index of the first that equals it."""
    first: dict[bytes, int] = {}
    return torch.tensor([first.setdefault(glyph.tobytes(), i) for i, glyph in enumerate(glyphs)])


def plain(glyph: Image.Image, canvas: int = 128, side: float = 0.92) -> Tensor:
    """An RGBA glyph in the middle of a white canvas, as a caption that only names it has it: uint8 [3, h, w]."""
    picture, size = Image.new("RGB", (canvas, canvas), "white"), round(side * canvas)
    glyph = glyph.resize((size, size), Image.Resampling.LANCZOS)
    picture.paste(glyph, ((canvas - size) // 2,) * 2, glyph)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def to_net(pictures: Tensor, side: int) -> Tensor:
    """uint8 [B, 3, H, W] of any size -> float32 [B, 3, side, side] in [-1, 1]."""
    x = pictures.float() / 127.5 - 1
    if x.shape[-2:] != (side, side):
        x = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
    return x
