"""Where numbers and pictures of a run are shown: TensorBoard by default, Weights & Biases where it is asked for.

All of them are told the same by one object; a package that is not there is left out, unless it was asked for by name.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from ..errors import UsageError
from .config import TrainConfig


class Board(Protocol):
    """One of them."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers by name, as they are after `step` steps."""

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Show a picture."""

    def close(self) -> None:
        """Nothing more will come."""


class TensorBoard:
    """Events in a folder; what a run that goes on writes again takes the place of what was there."""

    def __init__(self, folder: Path, begin: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=begin + 1 if begin else None)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        self.writer.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of a project of Weights & Biases; one that goes on is the same run. `WANDB_MODE=offline` sends nothing."""

    def __init__(self, project: str, config: TrainConfig) -> None:
        try:
            self.wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise UsageError(
                f"run.wandb needs the package 'wandb' ({error}); pip install 'mezzotint[wandb]', or leave the key out"
            ) from error
        name = str(config.out.resolve())
        self.run = self.wandb.init(
            project=project,
            name=config.out.name,
            id=hashlib.sha256(name.encode()).hexdigest()[:16],
            resume="allow",
            dir=str(config.out),
            config=config.model_dump(mode="json", exclude={"out", "data"}),
        )
        self.run.define_metric("*", step_metric="step")  # its own count only grows; ours goes back with a run

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self.run.log({**values, "step": step})

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        self.run.log({name: self.wandb.Image(picture), "step": step})

    def close(self) -> None:
        self.run.finish()


class Boards:
    """Several as one."""

    def __init__(self, boards: list[Board]) -> None:
        self.all = boards

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for board in self.all:
            board.numbers(values, step)

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        for board in self.all:
            board.picture(name, picture, step)


@contextmanager
def boards(config: TrainConfig, begin: int) -> Iterator[Boards]:
    """Those of a run that goes on after `begin` steps. UsageError if one was asked for that is not installed."""
    found: list[Board] = []
    try:
        with suppress(ImportError):
            found.append(TensorBoard(config.out / "tensorboard", begin))
        if config.run.wandb:
            found.append(WandB(config.run.wandb, config))
        yield Boards(found)
    finally:
        for board in found:
            board.close()
