"""The training loop: one for every stage, a generator of what happened at each step.

A stage brings its nets, a batch that is a pure function of (seed, step), and losses; the loop brings precision,
optimiser, schedule, clipping, averages, checkpoints. Killed at any moment and started again, it ends in the same
bits as a run that was left alone. Progress bars, logs and pictures are the consumer's: see `watch.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import MezzotintError
from . import checkpoint
from .config import Optim, TrainConfig
from .ema import EMA
from .optimisers import optimisers


class Loss(NamedTuple):
    """What one player wants smaller, and its parts for the log."""

    player: str
    value: Tensor  # []
    parts: dict[str, Tensor] = {}  # noqa: RUF012 - never written to


class Stage(Protocol):
    """What the loop needs to know of a stage of training."""

    players: dict[str, nn.Module]  # nets that are trained, each with its own optimiser

    def batch(self, step: int) -> Any:
        """The data of a step, from (seed, step) alone; called in another thread, one step ahead."""

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


def learning_rate(optim: Optim, step: int) -> float:
    """Of step number `step` (from 0): linear warm-up, constant, then 1 - sqrt down to 0 (Haegele et al. 2024)."""
    warm = min(1.0, (step + 1) / max(1, optim.warmup))
    fall = optim.decay * optim.steps
    into = max(0.0, step + 1 - (optim.steps - fall)) / fall if fall else 0.0
    return optim.lr * warm * (1 - math.sqrt(min(1.0, into)))


class Trainer:
    """The state of a run: nets, optimisers, averages, step. Iterate `steps()`."""

    def __init__(self, stage: Stage, config: TrainConfig, device: torch.device) -> None:
        self.stage, self.config, self.device = stage, config, device
        self.step = 0
        self.precision: str = config.run.precision
        self.emas = {name: EMA(net, config.optim.ema) for name, net in stage.players.items()}
        self.optimisers = {name: optimisers(net, config.optim) for name, net in stage.players.items()}

    @property
    def folder(self) -> Path:
        return self.config.out / "checkpoints"

    def resume(self) -> bool:
        """Take up the newest checkpoint; False if there is none. MezzotintError if it is another run's."""
        found = checkpoint.load_newest(self.folder)
        if found is None:
            return False
        tensors, facts = found
        before, now = _identity_of(facts["config"]), _identity(self.config)
        if before != now:
            changed = sorted(k for k in before | now if before.get(k) != now.get(k))
            raise MezzotintError(
                f"{self.folder} belongs to a run with another configuration (differs in: {', '.join(changed)}); "
                "restore it, or choose another 'out'"
            )
        self.step, self.precision = facts["step"], facts["precision"]
        for name, net in self.stage.players.items():
            net.load_state_dict(_part(tensors, f"net.{name}."))
            for key, value in _part(tensors, f"ema.{name}.").items():
                self.emas[name].average[key].copy_(value)
            _load_moments(self.optimisers[name], net, _part(tensors, f"optim.{name}."))
        return True

    def save(self) -> Path:
        """Write a checkpoint of the state as it is."""
        tensors: dict[str, Tensor] = {}
        for name, net in self.stage.players.items():
            tensors |= {f"net.{name}.{k}": v for k, v in net.state_dict().items()}
            tensors |= {f"ema.{name}.{k}": v for k, v in self.emas[name].average.items()}
            tensors |= {f"optim.{name}.{k}": v for k, v in _moments(self.optimisers[name], net).items()}
        facts = {"precision": self.precision, "config": _identity(self.config)}
        cpu = {k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}
        return checkpoint.save(self.folder, self.step, cpu, facts, keep=self.config.run.keep)

    def steps(self) -> Iterator[Stats]:
        """Train to the configured number of steps, yielding after each. MezzotintError on a non-finite loss."""
        if self.precision == "auto":
            self.precision = self._faster_precision()
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self.stage.batch, self.step)
            while self.step < self.config.optim.steps:
                begun = time.perf_counter()
                batch = coming.result()
                wait = time.perf_counter() - begun
                if self.step + 1 < self.config.optim.steps:
                    coming = ahead.submit(self.stage.batch, self.step + 1)
                lr = learning_rate(self.config.optim, self.step)
                total, norm = 0.0, 0.0
                parts: dict[str, float] = {}
                for player, value, player_parts in self._losses(batch):
                    norm = max(norm, self._update(player, value, lr))
                    total += float(value.detach())
                    parts |= {k: float(v.detach()) for k, v in player_parts.items()}
                for ema in self.emas.values():
                    ema.update(self.step)
                self.step += 1
                yield Stats(self.step, total, parts, lr, norm, time.perf_counter() - begun, wait)
                if self.step % self.config.run.checkpoint == 0 or self.step == self.config.optim.steps:
                    self.save()

    def _losses(self, batch: Any) -> Iterator[Loss]:
        losses = self.stage.losses(batch, self.step)
        while True:  # the nets run in the chosen precision, the updates between do not
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                loss = next(losses, None)
            if loss is None:
                return
            yield loss

    def _update(self, player: str, loss: Tensor, lr: float) -> float:
        """One optimiser step; the norm of the gradient before clipping."""
        net = self.stage.players[player]
        net.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(net.parameters(), self.config.optim.clip))
        if not (math.isfinite(norm) and math.isfinite(float(loss.detach()))):
            raise MezzotintError(
                f"step {self.step + 1}: the loss of '{player}' is {float(loss.detach())}, its gradient's norm {norm}; "
                f"nothing of this step was kept. Lower optim.lr (now {self.config.optim.lr:g}) or set run.precision = "
                f'"float32", and start again: the run goes on from its last checkpoint in {self.folder}'
            )
        for optimiser in self.optimisers[player]:
            for group in optimiser.param_groups:
                group["lr"] = lr
            optimiser.step()
        return norm

    def _faster_precision(self) -> str:
        """float32 or bfloat16: whichever takes less time for forward and backward on the first batch."""
        batch, best = self.stage.batch(self.step), {}
        for precision in ("float32", "bfloat16"):
            self.precision = precision
            for _ in range(3):  # the first is for warming up
                begun = time.perf_counter()
                for _, value, _ in self._losses(batch):
                    value.backward()
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                best[precision] = time.perf_counter() - begun
        for net in self.stage.players.values():
            net.zero_grad(set_to_none=True)
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
    """That of a checkpoint; keys that are younger than it have their defaults."""
    whole = stored | {"out": "", "optim": stored["optim"] | {"steps": 1}}
    return _identity(TrainConfig.model_validate(whole))
