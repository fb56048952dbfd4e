"""Training the judge: name the emoji whatever is done to its picture.

Cosine classification with a margin (CosFace, Wang et al. 2018, arXiv 1801.09414): with unit vectors f of the picture
and w_c of the classes, the logits are s * (f . w_c - m [c is right]). Every picture is new: a glyph turned,
stretched, bent, at any place and size on any colour, perhaps with a piece of another beside it; then recoloured,
blurred, noised, compressed: what generators and crops do to pictures. A batch is a function of (seed, step).
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..diffusion.noise import generator
from ..errors import MezzotintError
from .intervals import share
from .judge import BATCH, Judge, JudgeConfig, JudgeNet, same_picture

TRAIN, HELD_OUT = "judge", "judge held out"  # names of the two streams of pictures


@dataclass(frozen=True)
class JudgeTraining:
    """How long and how hard; the defaults take about eight minutes on two cores."""

    steps: int = 1000
    batch: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.02
    warmup: int = 100
    scale: float = 20.0
    margin: float = 0.1
    net: JudgeConfig = field(default_factory=JudgeConfig)
    held_out: int = 2048


class JudgeStep(NamedTuple):
    """What training says after each step; accuracy is that on the step's own, new pictures."""

    step: int
    loss: float
    accuracy: float


def train_judge(
    glyphs: Sequence[Image.Image], out: Path, config: JudgeTraining, *, seed: int = 0, bf16: bool = True
) -> Iterator[JudgeStep]:
    """Train on RGBA glyphs (one for each thing) and write the judge to `out`; yields after every step.

    At the end it is tested on pictures of the held-out stream, and what comes of it stands in the file's header
    (`Judge.load(out, glyphs).about`). Raises MezzotintError if the loss stops being finite, or as writing does.
    """
    start = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the first weights; nothing else draws from the global generator
        net = JudgeNet(config.net)
    same = same_picture(glyphs)
    distinct, labels = torch.unique(same, return_inverse=True)
    classes = nn.Parameter(torch.randn(len(distinct), config.net.features, generator=generator(TRAIN, seed)))
    augment = Augment(glyphs, config.net.side)
    groups: list[dict[str, Any]] = [
        {"params": list(net.parameters()), "weight_decay": config.weight_decay},
        {"params": [classes], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=config.lr)
    net.train()
    for step in range(config.steps):
        for group in optimiser.param_groups:
            group["lr"] = config.lr * rate(step, config)
        indices, pictures = augment.batch(config.batch, TRAIN, seed, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            features = net(pictures)
        cosines = features @ F.normalize(classes, dim=1).T  # [B, classes]
        target = labels[indices]
        logits = config.scale * (cosines - config.margin * F.one_hot(target, len(distinct)))
        loss = F.cross_entropy(logits, target)
        if not math.isfinite(float(loss.detach())):
            raise MezzotintError(f"the judge's loss is not finite at step {step}; lower its learning rate")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        hits = (cosines.detach().argmax(1) == target).float().mean()
        yield JudgeStep(step + 1, float(loss.detach()), float(hits))
    judge = Judge(net, glyphs)
    judge.about |= held_out_accuracy(judge, glyphs, config.held_out, seed=seed) | {
        "training": f"{config.steps} steps of {config.batch} pictures, seed {seed}",
        "seconds": f"{time.monotonic() - start:.0f}",
    }
    judge.save(out, replace=True)


def rate(step: int, config: JudgeTraining) -> float:
    """Share of the learning rate: linear warm-up, then half a cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def held_out_accuracy(judge: Judge, glyphs: Sequence[Image.Image], n: int, *, seed: int) -> dict[str, str]:
    """How often the right emoji is the nearest, or among the five nearest, on n pictures of the held-out stream."""
    augment = Augment(glyphs, judge.net.config.side)
    hits: dict[int, list[bool]] = {1: [], 5: []}
    for step in range(math.ceil(n / BATCH)):
        indices, pictures = augment.batch(min(BATCH, n - step * BATCH), HELD_OUT, seed, step)
        shown = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        for k, found in hits.items():
            found += judge.found(shown, [[int(i)] for i in indices], k)
    return {f"top {k} on {n} held-out pictures": share(found).percent() for k, found in hits.items()}


class Augment:
    """Draws batches of disturbed pictures of `glyphs`."""

    def __init__(self, glyphs: Sequence[Image.Image], side: int) -> None:
        self.side, self.n = side, len(glyphs)
        # Colours times alpha, [n, 4, s, s] in 0..255, at two sizes, so that shrinking never skips pixels.
        self.levels = [torch.stack([premultiplied(g, s) for g in glyphs]) for s in (side, side // 2)]

    def batch(self, size: int, *key: int | str) -> tuple[Tensor, Tensor]:
        """Indices of the glyphs [B] and pictures float32 [B, 3, side, side] in about [-1, 1]; a function of key."""
        draw = generator(*key)
        indices = torch.randint(self.n, (size,), generator=draw)
        x = background(size, draw)[:, :, None, None].expand(-1, -1, self.side, self.side)
        beside = torch.randperm(size, generator=draw)[: -(-size // 4)]
        others = torch.randint(self.n, (len(beside),), generator=draw)
        scale, shift = placement(size, draw)
        x = x.clone()
        x[beside] = self.paint(x[beside], others, *intrusion(scale[beside], draw), draw)
        x = self.paint(x, indices, scale, shift, draw)
        x = recolour(x, draw)
        x = soften(x, draw)
        x = x + 0.2 * uniform(size, draw).square()[:, None, None, None] * torch.randn(x.shape, generator=draw)
        some = torch.randperm(size, generator=draw)[: -(-size // 5)]
        x[some] = compressed(x[some], draw)
        return indices, x.contiguous(memory_format=torch.channels_last)

    def paint(
        self, x: Tensor, indices: Tensor, scale: Tensor, shift: Tensor, draw: torch.Generator
    ) -> Tensor:
        """`glyphs[indices]` over x [B, 3, S, S], `scale` [B] wide, about `shift` [B, 2] (both: 1 = half canvas)."""
        size, side = len(x), self.side
        turn = 0.25 * torch.randn(size, generator=draw).clamp(-2, 2) * 0.6
        stretch = torch.exp(0.08 * torch.randn(size, 2, generator=draw).clamp(-2, 2))
        cos, sin = turn.cos(), turn.sin()
        inverse = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
        inverse = inverse / (scale[:, None] * stretch)[:, :, None]  # [B, 2, 2]
        theta = torch.cat([inverse, -(inverse @ shift[:, :, None])], 2)
        grid = F.affine_grid(theta, [size, 4, side, side], align_corners=False)  # [B, S, S, 2]
        bend = 0.04 * uniform(size, draw)[:, None, None, None] * torch.randn(size, 2, 4, 4, generator=draw)
        bend = F.interpolate(bend, (side, side), mode="bicubic", align_corners=False)
        grid = grid + bend.permute(0, 2, 3, 1)
        painted = torch.empty(size, 4, side, side)
        for level, chosen in zip(self.levels, (scale >= 0.6, scale < 0.6), strict=True):
            glyphs = level[indices[chosen]].float() / 255
            painted[chosen] = F.grid_sample(glyphs, grid[chosen], mode="bilinear", align_corners=False)
        colour, alpha = painted.split([3, 1], 1)
        return x * (1 - alpha) + 2 * colour - alpha  # colours from 0..alpha to -alpha..alpha


def placement(size: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scales [B] from 0.35 to 1.05 and centres [B, 2] that leave at most a sixteenth of the glyph outside."""
    scale = 0.35 + 0.7 * uniform(size, draw).sqrt()
    room = (1 - scale).clamp(min=0) + 0.12 * scale
    return scale, room[:, None] * (2 * torch.rand(size, 2, generator=draw) - 1)


def intrusion(scale: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scale and centre of a neighbour of like size, of which only a piece is on the canvas, at one of the sides."""
    size = len(scale)
    along = 1 + scale * (0.3 + 0.7 * uniform(size, draw))
    shift = torch.stack([along, 0.5 * torch.randn(size, generator=draw)], 1)
    shift = torch.where(torch.rand(size, 1, generator=draw) < 0.5, shift, shift.flip(1))
    return scale, shift * torch.randint(2, (size, 1), generator=draw).mul(2).sub(1)


def background(size: int, draw: torch.Generator) -> Tensor:
    """Colours [B, 3] in [-1, 1]: white for three in ten, grey for two, else any."""
    colour = 2 * torch.rand(size, 3, generator=draw) - 1
    kind = uniform(size, draw)[:, None]
    return torch.where(kind < 0.3, torch.ones(()), torch.where(kind < 0.5, colour[:, :1], colour))


def recolour(x: Tensor, draw: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation and the balance of the channels, each off by a little."""
    size = len(x)
    shape = (size, 1, 1, 1)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (0.6 + 0.7 * torch.rand(shape, generator=draw))
    x = x * (0.75 + 0.35 * torch.rand(shape, generator=draw))
    tint = 0.08 * torch.randn(size, 3, 1, 1, generator=draw)
    return (x + 0.12 * torch.randn(shape, generator=draw) + tint).clamp(-1, 1)


def soften(x: Tensor, draw: torch.Generator) -> Tensor:
    """Half of the pictures blurred, some lightly, some to a third of the resolution."""
    size, side = len(x), x.shape[-1]
    light = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    strong = F.interpolate(F.avg_pool2d(x, 3, ceil_mode=True), (side, side), mode="bilinear")
    kind, much = uniform(size, draw)[:, None, None, None], uniform(size, draw)[:, None, None, None]
    blurred = torch.where(kind < 0.15, strong, light)
    return torch.where(kind < 0.5, x.lerp(blurred, much), x)


def compressed(x: Tensor, draw: torch.Generator) -> Tensor:
    """Through JPEG at qualities from 15 to 75: [B, 3, S, S] in [-1, 1]."""
    qualities = torch.randint(15, 76, (len(x),), generator=draw)
    arrays = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    through = []
    for array, quality in zip(arrays, qualities, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "JPEG", quality=int(quality))
        with Image.open(buffer) as picture:
            through.append(np.asarray(picture.convert("RGB")))
    return torch.from_numpy(np.stack(through)).permute(0, 3, 1, 2).float() / 127.5 - 1


def premultiplied(glyph: Image.Image, side: int) -> Tensor:
    """An RGBA glyph as uint8 [4, side, side], its colours times its alpha."""
    small = np.asarray(glyph.resize((side, side), Image.Resampling.LANCZOS), dtype=np.float32)
    colour = small[..., :3] * small[..., 3:] / 255
    return torch.from_numpy(np.concatenate([colour, small[..., 3:]], -1).round().astype(np.uint8)).permute(
        2, 0, 1
    )


def uniform(size: int, draw: torch.Generator) -> Tensor:
    return torch.rand(size, generator=draw)
