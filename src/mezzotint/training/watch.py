"""Who listens to a training run: TensorBoard, sample grids, a line of progress.

`run(config)` builds the stage, resumes, and passes the loop's `Stats` on; what to do with them is the caller's.
"""

from __future__ import annotations

import ctypes
import json
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..formats.atomic import write_json
from .config import TrainConfig
from .loop import Stage, Stats, Trainer, pick_device


@dataclass(frozen=True)
class Progress:
    """Where a run stands; rates are means over the last hundred steps."""

    stats: Stats
    steps: int
    images_per_second: float
    seconds_left: float
    precision: str


def build_stage(config: TrainConfig, device: torch.device) -> Stage:
    """The stage that the configuration names."""
    if config.stage == "vae":
        from .vae import VAEStage

        return VAEStage(config, device)
    if config.stage == "text":
        from .text import TextStage

        return TextStage(config, device)
    from .diffusion import DiffusionStage

    return DiffusionStage(config, device)


def keep_freed_memory() -> None:
    """Ask glibc to hand freed memory to the next step, not to the system: a tenth of a step is page faults else."""
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # of malloc.h
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 2**28)


def run(config: TrainConfig) -> Iterator[Progress]:
    """Train to the end, yielding after every step; at the end `out/<stage>` holds what was trained.

    Writes `out/log.jsonl`, TensorBoard events in `out/tensorboard` (if the package is installed), sample grids
    in `out/pictures`, checkpoints in `out/checkpoints`. Raises MezzotintError as the stage and the loop do.
    """
    keep_freed_memory()
    device = pick_device(config.run.device)
    stage = build_stage(config, device)
    trainer = Trainer(stage, config, device)
    trainer.resume()
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / "config.json", config.model_dump(mode="json"), replace=True)
    recent: deque[float] = deque(maxlen=100)
    writer = _tensorboard(config.out / "tensorboard")
    with (config.out / "log.jsonl").open("a", encoding="utf-8") as log:
        for stats in trainer.steps():
            recent.append(stats.seconds)
            mean = sum(recent) / len(recent)
            left = mean * (config.optim.steps - stats.step)
            if stats.step % config.run.log == 0:
                log.write(json.dumps(asdict(stats)) + "\n")
                log.flush()
                _write_scalars(writer, stats, config.optim.batch / mean)
            if stats.step % config.run.pictures == 0:
                _write_picture(trainer, config.out / "pictures" / f"{stats.step:08d}.png", writer)
            yield Progress(stats, config.optim.steps, config.optim.batch / mean, left, trainer.precision)
    with averaged(trainer):
        stage.export(config.out / config.stage)


def averaged(trainer: Trainer) -> ExitStack:
    """A context in which every player has its averaged weights."""
    stack = ExitStack()
    for ema in trainer.emas.values():
        stack.enter_context(ema.applied())
    return stack


def _write_picture(trainer: Trainer, path: Path, writer: Any) -> None:
    with averaged(trainer):
        picture = trainer.stage.picture()
    if picture is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    if writer is not None:
        writer.add_image("samples", np.asarray(picture), trainer.step, dataformats="HWC")


def _tensorboard(folder: Path) -> Any:
    """A writer of TensorBoard events, or None where the package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def _write_scalars(writer: Any, stats: Stats, images_per_second: float) -> None:
    if writer is None:
        return
    values = {
        "loss": stats.loss,
        "lr": stats.lr,
        "grad_norm": stats.grad_norm,
        "images_per_second": images_per_second,
    }
    for name, value in (values | stats.parts).items():
        writer.add_scalar(name, value, stats.step)
    writer.flush()
