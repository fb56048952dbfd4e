"""Stage `features`: eyes that learn what makes a picture this picture, without any label.

Two crops of a picture in other colours are to be nearer to each other than to crops of the others in the batch:
-log softmax(cos / tau) (SimCLR: Chen et al. 2020, arXiv 2002.05709). What comes of it measures likeness in the training
of autoencoders, in place of nets that others trained on photographs that may not be theirs to give.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..diffusion.noise import generator
from ..errors import MezzotintError, UsageError
from ..formats.atomic import new_folder, read_json, write_file, write_json
from ..formats.tensors import build, read_weights, write_tensors
from ..nets.blocks import channels_last
from ..nets.critics import Eyes, EyesConfig
from .card import card_files
from .config import TrainConfig
from .loop import Loss
from .pictures import Pictures, stacked
from .vae import to_unit
from .world import WHOLE, Share, whole_only

TEMPERATURE = 0.2
SMALLEST = 0.3  # share of a picture's side that a crop has at least
COLOURS = 0.4  # how far brightness, contrast and saturation may go from 1
STEM = "model"


class Pairs(NamedTuple):
    """Two views of each picture, and which picture it is."""

    first: Tensor  # [B, 3, S, S] in about [-1, 1]
    second: Tensor
    picture: Tensor  # [B]


class FeaturesStage:
    """Trains `Eyes` on any pictures; the result is `features/`."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)
        self.net = channels_last(Eyes(EyesConfig.from_dict(config.net)).to(device))
        self.pictures = Pictures(config, step=self.net.multiple, needs="none")
        if len({self.pictures.buckets[i] for i in self.pictures.split.train}) > 1:
            raise UsageError("stage 'features' looks at squares; set dataset.aspect = 1.0")
        if len(self.pictures.split.train) < 2:
            raise UsageError(f"{config.data}: telling pictures apart takes two of them; add pictures")
        self.players: dict[str, nn.Module] = {"eyes": self.net}

    def batch(self, step: int, share: Share = WHOLE) -> Pairs:
        whole_only(share, "features")
        rows = self.pictures.rows(step)
        pictures = to_unit(stacked([self.pictures.see(row.picture, row.view) for row in rows]))
        views = []
        for number in range(2):
            draws = (generator("view", self.config.seed, row.slot, number) for row in rows)
            views.append(torch.stack([varied(x, draw) for x, draw in zip(pictures, draws, strict=True)]))
        first, second = views
        return Pairs(first, second, torch.tensor([row.picture for row in rows]))

    def losses(self, batch: Pairs, step: int) -> Iterator[Loss]:
        first, second = (self.net(x.to(self.device)) for x in (batch.first, batch.second))
        loss, found = told_apart(first, second, batch.picture.to(self.device))
        yield Loss("eyes", loss, {"found": found})

    def picture(self) -> Image.Image | None:
        return None

    def export(self, folder: Path) -> None:
        """Write the net, and what it was trained on."""
        with new_folder(folder, replace=True) as part:
            write_json(part / "config.json", self.net.config.to_dict())
            write_tensors(part / f"{STEM}.safetensors", self.net.state_dict())
            for name, content in card_files(self.config, self.pictures).items():
                write_file(part / name, content)


def read_eyes(folder: Path, device: torch.device) -> Eyes:
    """What the stage wrote, frozen. Raises MezzotintError for a folder that is something else."""
    if not (folder / "config.json").exists():
        raise MezzotintError(f"{folder} holds no features; give the folder that the stage 'features' wrote")
    config = EyesConfig.from_dict(read_json(folder / "config.json"))
    tensors, where = read_weights(folder, STEM)
    eyes = build(lambda: Eyes(config), tensors, where=where, device=device)
    return channels_last(eyes.requires_grad_(False))


def told_apart(first: Tensor, second: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of unit vectors [B, D] of two views, and how often the nearest of the others is the right one.

    Views of the same picture that stands twice in a batch are no counterexamples.
    """
    views, which = torch.cat([first, second]), torch.cat([picture, picture])
    likeness = views @ views.T / TEMPERATURE  # [2B, 2B]
    partner = torch.arange(len(views), device=views.device).roll(len(first))
    hidden = which[:, None] == which[None]
    hidden[torch.arange(len(views), device=views.device), partner] = False
    likeness = likeness.masked_fill(hidden, float("-inf"))
    return F.cross_entropy(likeness, partner), (likeness.argmax(1) == partner).float().mean().detach()


def varied(x: Tensor, draw: torch.Generator) -> Tensor:
    """A picture [3, S, S] cut, mirrored and in other colours: a function of the generator."""
    size = x.shape[-1]
    share, left, top, mirror, *colours = torch.rand(7, generator=draw).tolist()
    side = max(2, round(size * (SMALLEST + (1 - SMALLEST) * share)))
    row, column = round(top * (size - side)), round(left * (size - side))
    x = F.interpolate(
        x[None, :, row : row + side, column : column + side], (size, size), mode="bilinear", antialias=True
    )[0]
    x = x.flip(-1) if mirror < 0.5 else x
    brightness, contrast, saturation = (1 + COLOURS * (2 * c - 1) for c in colours)
    grey = x.mean(0, keepdim=True)
    x = grey + saturation * (x - grey)
    return (x.mean() + contrast * (x - x.mean()) + brightness - 1).clamp(-1, 1)
