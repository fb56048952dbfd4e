"""The training loop: one for every stage, a generator of what happened at each step.

A stage brings its nets, a batch that is a pure function of (seed, step), and losses; the loop brings precision,
optimiser, schedule, clipping, averages, checkpoints. Killed at any moment and started again, it ends in the same
bits as a run that was left alone. A step that is not finite, or whose gradient is a spike beside the running median,
changes nothing; several of them in a row, and the run goes back to its last checkpoint and on with other data.
Progress bars, logs and pictures are the consumer's: see `watch.py`.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from ..errors import MezzotintError, UsageError
from . import checkpoint, sharding
from .config import Optim, TrainConfig
from .ema import EMA
from .optimisers import optimisers
from .posthoc import PowerEMA, forget_after, write_snapshot
from .world import ALONE, WHOLE, Share, World, check_shares

RECENT = 100  # steps whose gradients the median is taken of
FEW = 20  # of them before there is one
SNAPSHOTS = "snapshots"  # the folder of averages that others are rebuilt from
SHIFT = 1_000_003  # steps by which the data moves on when a run goes back


class Loss(NamedTuple):
    """What one player wants smaller, and its parts for the log."""

    player: str
    value: Tensor  # []
    parts: dict[str, Tensor] = {}  # noqa: RUF012 - never written to


class Stage(Protocol):
    """What the loop needs to know of a stage of training."""

    players: dict[str, nn.Module]  # nets that are trained, each with its own optimiser

    def batch(self, step: int, share: Share = WHOLE) -> Any:
        """The data of a share of a step, from (seed, step) alone; called in other threads, ahead of time."""

    def losses(self, batch: Any, step: int) -> Iterator[Loss]:
        """A loss for each player, in turn; a player is updated before the next loss is computed."""

    def picture(self) -> Image.Image | None:
        """What the nets do now, for the eyes."""

    def export(self, folder: Path) -> None:
        """Write what the stage is for, from the nets as they are."""


@dataclass(frozen=True)
class Stats:
    """One step, for whoever is listening."""

    step: int  # counted from 1: steps done
    loss: float
    parts: dict[str, float]
    lr: float
    grad_norm: float
    seconds: float  # of this step
    wait: float  # of them, spent waiting for data
    notes: tuple[str, ...] = ()  # what happened besides: a step skipped, a run gone back


def learning_rate(optim: Optim, step: int) -> float:
    """Of step number `step` (from 0): linear warm-up, constant, then 1 - sqrt down to 0 (Haegele et al. 2024)."""
    warm = min(1.0, (step + 1) / max(1, optim.warmup))
    fall = optim.decay * optim.steps
    into = max(0.0, step + 1 - (optim.steps - fall)) / fall if fall else 0.0
    return optim.lr * warm * (1 - math.sqrt(min(1.0, into)))


class Trainer:
    """The state of a run: nets, optimisers, averages, step. Iterate `steps()`."""

    def __init__(self, stage: Stage, config: TrainConfig, device: torch.device, world: World = ALONE) -> None:
        check_shares(config.optim.batch, config.optim.accumulate, world)
        if config.optim.accumulate > 1 and len(stage.players) > 1:
            raise UsageError("optim.accumulate: nets that are trained in turns take their batches whole")
        self.stage, self.config, self.device, self.world = stage, config, device, world
        self.step = 0
        self.sharded = config.run.sharding == "fsdp" and world.size > 1
        if self.sharded:
            for net in stage.players.values():
                sharding.shard(net, world, device)
        self.precision: str = config.run.precision
        self.emas = {name: EMA(net, config.optim.ema) for name, net in stage.players.items()}
        self.powers = {
            (name, length): PowerEMA(net, length)
            for name, net in stage.players.items()
            for length in config.optim.posthoc
        }
        self.optimisers = {name: optimisers(net, config.optim) for name, net in stage.players.items()}
        self.norms: dict[str, deque[float]] = {name: deque(maxlen=RECENT) for name in stage.players}
        self.skipped = 0  # steps in a row
        self.retreats = 0
        self.notes: list[str] = []  # for the next `Stats`
        self.why = ""  # the last step was skipped

    @property
    def folder(self) -> Path:
        return self.config.out / "checkpoints"

    def resume(self) -> bool:
        """Take up the newest checkpoint; False if there is none. MezzotintError if it is another run's."""
        found = checkpoint.newest(self.folder, self.world)
        if found is None:
            self._forget()
            return False
        path, facts = found
        before, now = _identity_of(facts["config"]), _identity(self.config)
        if before != now:
            changed = sorted(k for k in before | now if before.get(k) != now.get(k))
            raise MezzotintError(
                f"{self.folder} belongs to a run with another configuration (differs in: {', '.join(changed)}); "
                "restore it, or choose another 'out'"
            )
        nets = self.stage.players.values()
        like = {k: v for net in nets for k, v in net.state_dict().items()} if self.sharded else None
        tensors = checkpoint.load(path, like)
        self.notes += [f"{wrong}; going on from step {facts['step']}" for wrong in facts.get("damaged", [])]
        self.step, self.precision = facts["step"], facts["precision"]
        self.skipped, self.retreats = facts.get("skipped", 0), facts.get("retreats", 0)
        self._forget()
        for name, norms in self.norms.items():
            norms.clear()
            norms.extend(facts.get("norms", {}).get(name, []))
        for name, net in self.stage.players.items():
            net.load_state_dict(_part(tensors, f"net.{name}."))
            for key, value in _part(tensors, f"ema.{name}.").items():
                self.emas[name].average[key].copy_(value)
            _load_moments(self.optimisers[name], net, _part(tensors, f"optim.{name}."))
        for (name, length), power in self.powers.items():
            for key, value in _part(tensors, f"power-{length:g}.{name}.").items():
                power.average[key].copy_(value)
        return True

    def save(self) -> None:
        """Write a checkpoint of the state as it is."""
        tensors: dict[str, Tensor] = {}
        for name, net in self.stage.players.items():
            tensors |= {f"net.{name}.{k}": v for k, v in net.state_dict().items()}
            tensors |= {f"ema.{name}.{k}": v for k, v in self.emas[name].average.items()}
            tensors |= {f"optim.{name}.{k}": v for k, v in _moments(self.optimisers[name], net).items()}
        for (name, length), power in self.powers.items():
            tensors |= {f"power-{length:g}.{name}.{k}": v for k, v in power.average.items()}
        facts: dict[str, Any] = {"precision": self.precision, "config": _identity(self.config)}
        facts |= {"skipped": self.skipped, "retreats": self.retreats}
        facts |= {"norms": {name: list(norms) for name, norms in self.norms.items()}}
        keep = self.config.run.keep
        if self.sharded:
            checkpoint.save_parts(self.folder, self.step, tensors, facts, keep=keep, world=self.world)
        elif self.world.writes:
            cpu = {k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}
            checkpoint.save(self.folder, self.step, cpu, facts, keep=keep)
        self.world.wait()

    def steps(self) -> Iterator[Stats]:
        """Train to the configured number of steps, yielding after each.

        Raises MezzotintError if steps are still not finite after the run went back as often as it may.
        """
        if self.precision == "auto":
            self.precision = self._faster_precision()
        while self.step < self.config.optim.steps:  # once, and again whenever the run goes back
            with closing(self._batches()) as batches:
                while self.step < self.config.optim.steps and self.skipped < self.config.run.patience:
                    yield self._one(batches)
                    if self._snapshot_due():  # first: after a checkpoint nothing of it may be missing
                        self._snapshot()
                    due = self.step % self.config.run.checkpoint == 0 and not self.skipped
                    if due or self.step == self.config.optim.steps:
                        self.save()
            if self.skipped >= self.config.run.patience:
                self._retreat()

    def _snapshot_due(self) -> bool:
        at_end = self.step == self.config.optim.steps
        return at_end or self.step % self.config.run.snapshots == 0

    def _snapshot(self) -> None:
        """Store the averages that others are rebuilt from, each whole."""
        for (player, length), power in self.powers.items():
            average = sharding.gathered(power.average, self.world)
            if self.world.writes:
                write_snapshot(self.config.out / SNAPSHOTS, self.step, player, length, average)

    def _forget(self) -> None:
        """Remove the snapshots of steps that will be taken anew."""
        if self.world.writes:
            forget_after(self.config.out / SNAPSHOTS, self.step)

    def _batches(self) -> Generator[tuple[Any, float], None, None]:
        """From the present step on, our shares of each batch and the seconds that they were waited for."""
        accumulate, world = self.config.optim.accumulate, self.world
        shares = [Share(world.rank * accumulate + j, accumulate * world.size) for j in range(accumulate)]
        steps = range(self.step, self.config.optim.steps)
        todo = ((step + self.retreats * SHIFT, share) for step in steps for share in shares)
        with ThreadPoolExecutor(self.config.run.workers) as pool:
            coming = islice(todo, self.config.run.workers)
            ahead = deque(pool.submit(self.stage.batch, *one) for one in coming)
            while ahead:
                begun = time.perf_counter()
                batch = ahead.popleft().result()
                wait = time.perf_counter() - begun
                ahead.extend(pool.submit(self.stage.batch, *one) for one in islice(todo, 1))
                yield batch, wait

    def _one(self, batches: Iterator[tuple[Any, float]]) -> Stats:
        """One step: the gradient of the whole batch, every player's update, the averages."""
        begun = time.perf_counter()
        lr, accumulate = learning_rate(self.config.optim, self.step), self.config.optim.accumulate
        total = norm = wait = 0.0
        found: dict[str, list[float]] = {}  # a part of the loss may be missing in some of a batch's
        own: dict[str, float] = {}  # of each player
        skipped = False
        for part in range(accumulate):
            batch, waited = next(batches)
            wait += waited
            for player, value, player_parts in self._losses(batch):
                self._backward(player, value / accumulate if accumulate > 1 else value, first=part == 0)
                own[player] = own.get(player, 0.0) + float(value.detach()) / accumulate
                for name, of_part in player_parts.items():
                    found.setdefault(name, []).append(float(of_part.detach()))
                if part == accumulate - 1:
                    total += own[player]
                    broken = [name for name in player_parts if not math.isfinite(sum(found[name]))]
                    player_norm, updated = self._update(player, own[player], broken, lr)
                    norm, skipped = max(norm, player_norm), skipped or not updated
        for ema in (*self.emas.values(), *self.powers.values()):
            ema.update(self.step)
        self.step += 1
        self.skipped = self.skipped + 1 if skipped else 0
        notes, self.notes = tuple(self.notes), []
        parts = {name: sum(values) / len(values) for name, values in found.items()}
        return Stats(self.step, total, parts, lr, norm, time.perf_counter() - begun, wait, notes)

    def _retreat(self) -> None:
        """Back to the last checkpoint, and from there on with other data."""
        where = f"step {self.step}: {self.skipped} steps in a row were skipped"
        retreats = self.retreats + 1
        if retreats > self.config.run.retreats or not self.resume():
            raise MezzotintError(
                f"{where}, the last because {self.why}; nothing of them was kept. Lower optim.lr (now "
                f'{self.config.optim.lr:g}) or set run.precision = "float32", and start again: the run goes on from '
                f"its last checkpoint in {self.folder}, if there is one"
            )
        self.skipped, self.retreats = 0, retreats
        self.notes.append(f"{where} ({self.why}); back to step {self.step}, and on with other data")

    def _losses(self, batch: Any) -> Iterator[Loss]:
        losses = self.stage.losses(batch, self.step)
        while True:  # the nets run in the chosen precision, the updates between do not
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                loss = next(losses, None)
            if loss is None:
                return
            yield loss

    def _backward(self, player: str, loss: Tensor, *, first: bool) -> None:
        if first:
            for optimiser in self.optimisers[player]:
                optimiser.zero_grad()
        loss.backward()

    def _update(self, player: str, loss: float, broken: Sequence[str], lr: float) -> tuple[float, bool]:
        """One optimiser step; the norm of the gradient before clipping, and whether the step was taken."""
        net = self.stage.players[player]
        if not self.sharded:  # else they have been averaged and cut on the way back
            self.world.mean_([p.grad for p in net.parameters() if p.grad is not None])
        norm = float(sharding.whole(nn.utils.clip_grad_norm_(net.parameters(), self.config.optim.clip)))
        if why := self._fault(player, loss, broken, norm):
            self.why = why
            self.notes.append(f"step {self.step + 1} was skipped: {why}")
            for optimiser in self.optimisers[player]:
                optimiser.zero_grad()
            return norm, False
        self.norms[player].append(norm)
        for optimiser in self.optimisers[player]:
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.step()
        return norm, True

    def _fault(self, player: str, loss: float, broken: Sequence[str], norm: float) -> str:
        """Why a step must not be taken; empty if it may. `broken`: the parts of the loss that are not finite."""
        if not math.isfinite(norm) or (self.world.size == 1 and not math.isfinite(loss)):
            where = f" (of its parts, not finite: {', '.join(broken)})" if broken else ""
            return f"the loss of '{player}' is {loss:g}{where}, its gradient's norm {norm:g}"
        norms, limit = self.norms[player], self.config.optim.spike
        if limit and len(norms) >= FEW and norm > limit * median(norms):
            return (
                f"the gradient of '{player}' has norm {norm:.3g}, {norm / median(norms):.0f} times the median"
            )
        return ""

    def _faster_precision(self) -> str:
        """float32 or bfloat16: whichever takes less time for forward and backward on our first share of a batch."""
        accumulate, best = self.config.optim.accumulate, {}
        share = Share(self.world.rank * accumulate, accumulate * self.world.size)
        batch = self.stage.batch(self.step, share)  # a whole one may not fit into memory
        for precision in ("float32", "bfloat16"):
            self.precision = precision
            for _ in range(3):  # the first is for warming up
                begun = time.perf_counter()
                for _, value, _ in self._losses(batch):
                    value.backward()
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                seconds = torch.tensor([time.perf_counter() - begun], device=self.device)
                self.world.mean_([seconds])  # so that all processes choose alike
                best[precision] = float(seconds)
        for optimiser in chain.from_iterable(self.optimisers.values()):
            optimiser.zero_grad()
        return min(best, key=lambda precision: best[precision])


def pick_device(name: str) -> torch.device:
    """'auto': the GPU where there is one, else the processor."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _moments(owners: list[torch.optim.Optimizer], net: nn.Module) -> dict[str, Tensor]:
    """The optimisers' tensors by the name of the parameter that they are for."""
    return {
        f"{kind}.{name}": value
        for name, p in net.named_parameters()
        for optimiser in owners
        for kind, value in optimiser.state.get(p, {}).items()
    }


def _load_moments(owners: list[torch.optim.Optimizer], net: nn.Module, moments: dict[str, Tensor]) -> None:
    parameters = dict(net.named_parameters())
    for optimiser in owners:
        optimiser.state.clear()  # of nets that took their first step only after the checkpoint
    owner = {p: o for o in owners for group in o.param_groups for p in group["params"]}
    for key, value in moments.items():
        kind, _, name = key.partition(".")
        p = parameters[name]
        owner[p].state[p][kind] = value.clone() if kind == "step" else _like(value, p)


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy of `value` on the device and in the memory format of `parameter`: same kernels, same bits."""
    return torch.empty_like(parameter).copy_(value)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _identity(config: TrainConfig) -> dict[str, Any]:
    """What must not change in a run: all but where it stands, how long it is and how it is watched."""
    fields = config.model_dump(mode="json", exclude={"out", "run"})
    del fields["optim"]["steps"]
    return fields


def _identity_of(stored: dict[str, Any]) -> dict[str, Any]:
    """That of a checkpoint; keys that are younger than it have their defaults.

    Raises MezzotintError for keys that are not known here.
    """
    whole = stored | {"out": "", "optim": stored["optim"] | {"steps": 1}}
    try:
        return _identity(TrainConfig.model_validate(whole))
    except ValidationError as error:
        keys = ", ".join(".".join(map(str, wrong["loc"])) for wrong in error.errors())
        raise MezzotintError(
            f"the checkpoint was written by another version, with settings that are not known here ({keys}); go on "
            "with that version, or choose another 'out'"
        ) from error
