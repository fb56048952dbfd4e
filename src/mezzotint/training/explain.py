"""What a run will do, told before it does it: data, model, steps, memory, disk, time, and what looks wrong.

Numbers are counted, and times measured: a few real steps are taken by a throwaway copy that lives in a temporary
folder, on the run's own data, nets and precision. Nothing is written to where the run will write.
"""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..codec import Latents
from ..data.remote import shown
from ..data.sources import described
from ..data.views import Bucket
from ..memory import free
from .config import Prior, TrainConfig
from .denoising import DenoisingStage
from .loop import Stage, Trainer, pick_device
from .pictures import Pictures, access
from .watch import build_stage, keep_freed_memory

STEPS = 4  # that are measured; the first of them warms up
CUT, SMALL = 0.2, 0.5  # shares of a picture, of the pictures, that may be cut off or enlarged without a word
OFTEN = 200  # times that a picture may be seen by a model from nothing without a word


@dataclass(frozen=True)
class Data:
    path: str
    layout: str
    pictures: int  # trained on
    held_out: int
    captions: int
    uncaptioned: int
    classes: tuple[str, ...]
    drawn: int  # pictures that the model draws first, of the prior
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True)
class Nets:
    stage: str
    begins: str  # what weights it begins with
    parameters: int  # of all nets in memory
    trained: int  # of them
    condition: str
    device: str
    precision: str


@dataclass(frozen=True)
class Steps:
    steps: int
    done: int  # that a run in `out` has behind it
    batch: int
    parts: int  # that a batch is computed in
    epochs: float  # times that each picture is seen


@dataclass(frozen=True)
class Bytes:
    """Of memory and of disk."""

    state: int  # weights that are trained, gradients, moments, averages
    peak: int  # measured, of the process or on the GPU
    memory_free: int | None
    latents: int
    texts: int
    checkpoints: int
    disk_free: int


@dataclass(frozen=True)
class Times:
    """Seconds."""

    step: float = 0.0
    waiting: float = 0.0  # of it, for data
    preparing: float = 0.0  # of the whole run: latents and texts, some of which may be cached already
    training: float = 0.0  # of the steps that are left


@dataclass(frozen=True)
class Explanation:
    """All of it; `data` is None for a stage that makes its own."""

    data: Data | None
    nets: Nets
    steps: Steps
    bytes: Bytes
    times: Times
    out: str
    warnings: tuple[str, ...] = ()


def explain(config: TrainConfig) -> Explanation:
    """Build the run that `config` describes, take a few steps of it, and throw it away.

    Raises MezzotintError as the run would.
    """
    keep_freed_memory()
    with (
        tempfile.TemporaryDirectory(prefix="mezzotint-") as folder,
        warnings.catch_warnings(record=True) as said,
    ):
        warnings.simplefilter("always", UserWarning)
        copy, device = _throwaway(config, Path(folder)), pick_device(config.run.device)
        stage = build_stage(copy, device)
        trainer = Trainer(stage, copy, device)
        preparing = _prepared(stage) if isinstance(stage, DenoisingStage) else Times()
        stats = list(islice(trainer.steps(), STEPS))[1:]
        taken, wait = median(s.seconds for s in stats), median(s.wait for s in stats)
        taken *= 2 if config.prior.prompt else 1  # as many pictures again, of the prior
        data = _data(config, copy, stage)
        steps = _steps(config, data)
        told = Explanation(
            data,
            _nets(config, stage, trainer),
            steps,
            _bytes(config, stage, trainer),
            replace(preparing, step=taken, waiting=wait, training=taken * max(0, steps.steps - steps.done)),
            str(config.out),
        )
        doubts = [*(str(w.message) for w in said), *_doubts(config, told, stage)]
    return replace(told, warnings=tuple(dict.fromkeys(doubts)))


def _throwaway(config: TrainConfig, out: Path) -> TrainConfig:
    """The same run in another place, without what takes long before the first step."""
    run = config.run.model_copy(update={"checkpoint": config.optim.steps + STEPS + 1})
    optim = config.optim.model_copy(update={"steps": config.optim.steps + STEPS + 1})
    changes: dict[str, Any] = {"out": out, "run": run, "optim": optim, "prior": Prior()}
    if config.diffusion is not None:  # one batch of scenes is enough
        changes["diffusion"] = config.diffusion.model_copy(
            update={"pool": config.optim.batch, "reuse": STEPS + 1}
        )
    return config.model_copy(update=changes)


def _prepared(stage: DenoisingStage) -> Times:
    """Compute what the measured steps need; how long all of it would take."""
    latents = texts = 0
    begun = time.perf_counter()
    for step in range(STEPS + stage.config.run.workers):
        more = stage.prepare_step(step)
        latents, texts = latents + more[0], texts + more[1]
    seconds = time.perf_counter() - begun
    views, captions = _cached(stage)  # texts take little beside pictures, and count with them
    done, whole = (latents, views) if views else (texts, captions)
    return Times(preparing=seconds * whole / done if done else 0.0)


def _cached(stage: DenoisingStage) -> tuple[int, int]:
    """How many latents and texts the whole run keeps."""
    pictures = stage.pictures
    views = len(pictures.records) * pictures.variants if stage.cached else 0
    if stage.model.teller is None or stage.hears_anew:
        return views, 0
    return views, len({caption for record in pictures.records for caption in record.captions} | {""})


def _steps(config: TrainConfig, data: Data | None) -> Steps:
    optim = config.optim
    epochs = optim.steps * optim.batch / max(1, data.pictures) if data is not None else 0.0
    return Steps(optim.steps, _done(config), optim.batch, optim.accumulate, epochs)


def _bytes(config: TrainConfig, stage: Stage, trainer: Trainer) -> Bytes:
    latents = texts = 0
    if isinstance(stage, DenoisingStage):
        views, captions = _cached(stage)
        latents, texts = views * stage.store.largest(), captions * stage.texts.largest()
    gradients = sum(p.nbytes for net in stage.players.values() for p in net.parameters() if p.requires_grad)
    checkpoint = sum(tensor.nbytes for tensor in _tensors(trainer))
    return Bytes(
        checkpoint + gradients,
        _peak(trainer.device),
        free(trainer.device),
        latents,
        texts,
        checkpoint * (config.run.keep + 1),  # the newest is written before the oldest goes
        shutil.disk_usage(_standing(config.out)).free,
    )


def _data(config: TrainConfig, copy: TrainConfig, stage: Stage) -> Data | None:
    pictures = getattr(stage, "pictures", None)
    if not isinstance(pictures, Pictures):
        return None
    own = pictures.records[: pictures.own]
    return Data(
        shown(config.data),
        described(config.data, config.dataset.layout, access(copy)),
        len(pictures.split.train),
        len(pictures.split.held_out),
        sum(len(record.captions) for record in own),
        sum(not record.captions for record in own),
        pictures.classes,
        config.prior.pictures if config.prior.prompt else 0,
        tuple(pictures.rows_of_buckets()),
    )


def _nets(config: TrainConfig, stage: Stage, trainer: Trainer) -> Nets:
    model = getattr(stage, "model", None)
    section = getattr(config, "vae" if config.stage == "autoencoder" else config.stage, None)
    start = config.model.start or getattr(section, "start", None)
    return Nets(
        config.stage,
        str(start) if start else "random weights",
        sum(p.numel() for net in _all_nets(stage) for p in net.parameters()),
        sum(p.numel() for net in stage.players.values() for p in net.parameters() if p.requires_grad),
        getattr(model, "condition", "none"),
        str(trainer.device),
        trainer.precision,
    )


def _all_nets(stage: Stage) -> list[nn.Module]:
    """Every net of a stage, each once."""
    model = getattr(stage, "model", None)
    codec, teller = getattr(model, "codec", None), getattr(model, "teller", None)
    found = [
        *stage.players.values(),
        *(vars(model).values() if model is not None else ()),
        *vars(stage).values(),
    ]
    found += [codec.vae] if isinstance(codec, Latents) else []
    found += [net for net, _ in teller.encoders] if teller is not None else []
    return list(dict.fromkeys(net for net in found if isinstance(net, nn.Module)))


def _tensors(trainer: Trainer) -> Iterator[Tensor]:
    """What a checkpoint holds."""
    for net in trainer.stage.players.values():
        yield from net.state_dict().values()
    for average in (*trainer.emas.values(), *trainer.powers.values()):
        yield from average.average.values()
    for optimisers in trainer.optimisers.values():
        for optimiser in optimisers:
            yield from (
                t for state in optimiser.state.values() for t in state.values() if isinstance(t, Tensor)
            )


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _done(config: TrainConfig) -> int:
    """The step of the newest checkpoint in `out`."""
    steps = [int(p.name.rpartition("-")[2]) for p in (config.out / "checkpoints").glob("step-*")]
    return max(steps, default=0)


def _standing(path: Path) -> Path:
    """The nearest folder that is there."""
    path = path.resolve()
    return path if path.exists() else _standing(path.parent)


def _doubts(config: TrainConfig, told: Explanation, stage: Stage) -> Iterator[str]:
    """What may not be meant, a line each."""
    if told.data is not None:
        yield from _doubts_of_data(config, told, told.data)
    if isinstance(stage, DenoisingStage) and stage.model.teller is not None:
        captions = sorted({caption for record in stage.pictures.records for caption in record.captions})
        tokenizers = [tokenizer for _, tokenizer in stage.model.teller.encoders]
        if cut := [caption for caption in captions if any(t.encode(caption).cut for t in tokenizers)]:
            yield f"{len(cut)} of {len(captions)} captions are longer than the text encoder hears; the first: {cut[0]}"
    disk = told.bytes.latents + told.bytes.texts + told.bytes.checkpoints
    if disk > told.bytes.disk_free:
        yield f"the disk has {told.bytes.disk_free / 2**30:.1f} GiB free, and {disk / 2**30:.1f} GiB are needed"
    if told.times.waiting > 0.1 * told.times.step:
        share = told.times.waiting / told.times.step
        yield f"{share:.0%} of a step is waiting for data; raise run.workers (now {config.run.workers})"
    if told.steps.done >= told.steps.steps:
        yield f"the run in {config.out} is at its end; raise optim.steps to go on, or choose another out"


def _doubts_of_data(config: TrainConfig, told: Explanation, data: Data) -> Iterator[str]:
    small = [bucket for bucket in data.buckets if bucket.pictures < config.optim.batch]
    if small and len(data.buckets) > 1:
        sizes = ", ".join(f"{b.size[0]} x {b.size[1]} ({b.pictures})" for b in small[:3])
        yield (
            f"{len(small)} of {len(data.buckets)} buckets are smaller than a batch and are repeated to fill one: "
            f"{sizes}; lower dataset.aspect or optim.batch"
        )
    cut = sum(bucket.cut_off * bucket.pictures for bucket in data.buckets) / max(1, data.pictures)
    if cut > CUT:
        yield f"{cut:.0%} of the pictures' area is cut off; raise dataset.aspect (now {config.dataset.aspect:g})"
    enlarged = sum(bucket.enlarged for bucket in data.buckets)
    if enlarged > SMALL * data.pictures:
        yield f"{enlarged} of {data.pictures} pictures are smaller than what is trained on, and are enlarged"
    if not data.held_out and config.dataset.held_out:
        yield "no picture is held out: there are too few; memorising will not be noticed"
    if config.stage == "model" and not config.model.start and told.steps.epochs > OFTEN:
        yield f"each picture is seen {told.steps.epochs:.0f} times: the model may learn them by heart"
    if data.uncaptioned and told.nets.condition == "text":
        yield f"{data.uncaptioned} pictures have no caption"
