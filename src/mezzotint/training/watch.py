"""Who listens to a training run: boards, sample grids, a line of progress.

`session(config)` builds the stage, resumes, and passes the loop's `Stats` on; what to do with them is the caller's.
"""

from __future__ import annotations

import ctypes
import json
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from PIL import Image

from ..formats.atomic import new_file, write_json
from .boards import boards
from .config import TrainConfig
from .history import LOG, LOOK, SCORE, read_history
from .loop import Stage, Stats, Trainer, pick_device
from .pictures import Pictures
from .report import write_report
from .score import Score
from .sharding import gathered
from .signs import Validation, remembered
from .world import ALONE, WHOLE, Share, World, joined


@runtime_checkable
class Prepared(Protocol):
    """A stage that computes things once, and keeps them on disk."""

    def prepare(self, share: Share = WHOLE) -> Iterator[tuple[int, int]]:
        """Compute a share of what is missing; yields (done, in all)."""

    def ready(self) -> None:
        """All shares are computed."""


@runtime_checkable
class Validated(Protocol):
    """A stage that can be asked how it does."""

    def validate(self) -> Validation:
        """The loss under fixed noise of the nets as they are."""

    def noisy(self) -> str:
        """What is wrong with the last samples, if anything."""


@runtime_checkable
class Scored(Protocol):
    """A stage whose samples can be compared with held-out pictures."""

    def scored(self, count: int) -> Score | None:
        """How near up to `count` samples are to them; None where there are too few."""


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
    if config.stage == "diffusion":
        from .diffusion import DiffusionStage

        return DiffusionStage(config, device)
    if config.stage == "lora":
        from .adapters import LoraStage

        return LoraStage(config, device)
    if config.stage == "embedding":
        from .words import EmbeddingStage

        return EmbeddingStage(config, device)
    if config.stage == "features":
        from .features import FeaturesStage

        return FeaturesStage(config, device)
    if config.stage == "autoencoder":
        from .autoencoder import AutoencoderStage

        return AutoencoderStage(config, device)
    if config.stage == "consistency":
        from .consistency import ConsistencyStage

        return ConsistencyStage(config, device)
    from .denoising import DenoisingStage

    return DenoisingStage(config, device)


def keep_freed_memory() -> None:
    """Ask glibc to hand freed memory to the next step, not to the system: a tenth of a step is page faults else."""
    mmap_max, trim_threshold, top_pad = -4, -1, -2  # of malloc.h
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 2**28)


class Session:
    """One run in this process: `prepare`, then `steps`. Only the world's first process writes."""

    def __init__(self, config: TrainConfig, world: World = ALONE) -> None:
        keep_freed_memory()
        self.config, self.world = config, world
        device = pick_device(config.run.device)
        self.stage = build_stage(config, device)
        self.trainer = Trainer(self.stage, config, device, world)

    def prepare(self) -> Iterator[tuple[int, int]]:
        """Compute what the stage keeps on disk; yields (done, in all) now and then."""
        if isinstance(self.stage, Prepared):
            self.world.wait()  # until all have seen what is missing: shares are shares of the same
            yield from self.stage.prepare(Share(self.world.rank, self.world.size))
            self.world.wait()
            self.stage.ready()

    def table(self) -> str | None:
        """The buckets of the pictures, as text, if the stage looks at any."""
        pictures = getattr(self.stage, "pictures", None)
        return pictures.table() if self.world.writes and isinstance(pictures, Pictures) else None

    def steps(self) -> Iterator[Progress]:
        """Train to the end, yielding after every step. Raises MezzotintError as the stage and the loop do."""
        self.trainer.resume()
        if not self.world.writes:
            for stats in self.trainer.steps():
                if self.trainer.sharded:  # nets in parts draw only together
                    self._looks(stats.step)
                yield self._progress(stats, stats.seconds)
        else:
            yield from self._watched()
        self._export()
        if self.world.writes:
            write_report(self.config.out)
        self.world.wait()

    def _watched(self) -> Iterator[Progress]:
        config, trainer, stage = self.config, self.trainer, self.stage
        write_json(config.out / "config.json", config.model_dump(mode="json"), replace=True)
        recent: deque[float] = deque(maxlen=100)
        memory = remembered(read_history(config.out).looks, trainer.step)
        with (
            boards(config, trainer.step) as shown,
            (config.out / LOG).open("a", encoding="utf-8") as log,
        ):
            for stats in trainer.steps():
                recent.append(stats.seconds)
                mean = sum(recent) / len(recent)
                notes = list(stats.notes)
                validation, picture, score = self._looks(stats.step)
                if validation is not None:
                    notes += filter(None, [memory.warn(stats.step, validation)])
                    log.write(json.dumps({"step": stats.step, LOOK: asdict(validation)}) + "\n")
                    shown.numbers(_numbers(validation), stats.step)
                if score is not None:
                    log.write(json.dumps({"step": stats.step, SCORE: asdict(score)}) + "\n")
                    numbers = {key: getattr(score, key) for key in ("value", "low", "high", "floor")}
                    shown.numbers({f"score/{key}": value for key, value in numbers.items()}, stats.step)
                if picture is not None:
                    with new_file(config.out / "pictures" / f"{stats.step:08d}.png", replace=True) as part:
                        picture.save(part)
                    shown.picture("samples", picture, stats.step)
                    notes += filter(None, [stage.noisy()] if isinstance(stage, Validated) else [])
                if stats.step % config.run.log == 0 or stats.step == config.optim.steps or notes:
                    log.write(json.dumps(asdict(stats) | {"notes": notes}) + "\n")
                    log.flush()
                    rates = {"lr": stats.lr, "grad_norm": stats.grad_norm, "loss": stats.loss}
                    rates |= {"images_per_second": config.optim.batch / mean}
                    shown.numbers(rates | stats.parts, stats.step)
                yield self._progress(replace(stats, notes=tuple(notes)), mean)

    def _looks(self, step: int) -> tuple[Validation | None, Image.Image | None, Score | None]:
        """What the averaged nets do after a step, where it is time to look."""
        run, stage = self.config.run, self.stage
        validation = picture = score = None
        if isinstance(stage, Validated) and step % run.validate_every == 0:
            with averaged(self.trainer):
                validation = stage.validate()
        if step % run.pictures == 0 or step == self.config.optim.steps:
            with averaged(self.trainer):
                if isinstance(stage, Scored) and run.score:
                    score = stage.scored(run.score)
                picture = stage.picture()
        return validation, picture, score

    def _export(self) -> None:
        """Write what was trained; what is in parts is put together for it, in a stage of its own."""
        folder, stage = self.config.out / self.config.stage, self.stage
        if not self.trainer.sharded and self.world.writes:
            with averaged(self.trainer):
                stage.export(folder)
        elif self.trainer.sharded:
            weights = {n: gathered(ema.average, self.world) for n, ema in self.trainer.emas.items()}
            if self.world.writes:
                stage = build_stage(self.config, torch.device("cpu"))
                for name, net in stage.players.items():
                    net.load_state_dict(weights[name])
                stage.export(folder)

    def _progress(self, stats: Stats, seconds: float) -> Progress:
        optim = self.config.optim
        left = seconds * (optim.steps - stats.step)
        return Progress(stats, optim.steps, optim.batch / seconds, left, self.trainer.precision)


@contextmanager
def session(config: TrainConfig) -> Iterator[Session]:
    """A run in this process, as one of several if torchrun started it."""
    with joined(pick_device(config.run.device)) as world:
        yield Session(config, world)


def run(config: TrainConfig) -> Iterator[Progress]:
    """Train to the end, yielding after every step; at the end `out/<stage>` holds what was trained.

    Writes `out/log.jsonl`, TensorBoard events in `out/tensorboard` (if the package is installed), sample grids
    in `out/pictures`, checkpoints in `out/checkpoints`, at the end `out/report.html`.
    Raises MezzotintError as the stage and the loop do.
    """
    with session(config) as here:
        for _ in here.prepare():
            pass
        yield from here.steps()


def averaged(trainer: Trainer) -> ExitStack:
    """A context in which every player has its averaged weights."""
    stack = ExitStack()
    for ema in trainer.emas.values():
        stack.enter_context(ema.applied())
    return stack


def _numbers(validation: Validation) -> dict[str, float]:
    levels = validation.held_out or validation.train
    by_level = {f"validation/sigma {sigma:.3g}": loss for sigma, loss in levels.items()}
    return {"validation/loss": validation.loss, "validation/gap": validation.gap, **by_level}
