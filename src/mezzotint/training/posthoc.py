"""Averages of any length, chosen after the run (Karras et al. 2024, arXiv 2312.02696, section 3 and appendix C).

The average over a run of t steps with weights that grow as tau^gamma has the relative length
sigma_rel = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)), the deviation of its profile over t. A run keeps two of
them, theta <- theta + (1 - (1 - 1/t)^(gamma + 1)) (w - theta), and stores both now and then. What another length would
have kept is the combination of all that was stored whose profile is nearest in least squares: A x = b, with the
profiles' inner products <p_i, p_j> in A and <p_i, p> in b.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import MezzotintError, UsageError
from ..formats.tensors import read_metadata, read_tensors, write_tensors
from .ema import EMA

LONGEST = 1 / math.sqrt(12)  # of the uniform average, gamma = 0
CUT = 1e-6  # singular values of A, as a share of the largest, that are taken for rounding
_ABOUT = "average"  # of a snapshot, in its file's header


def gamma_of(length: float) -> float:
    """The exponent of a relative length: the root of gamma^3 + 7 gamma^2 + (16 - s) gamma + 12 - s, s = length^-2.

    UsageError unless 0 < length <= 1 / sqrt(12).
    """
    if not 0 < length <= LONGEST + 1e-9:
        raise UsageError(
            f"an average of relative length {length:g} is none; choose above 0 and up to {LONGEST:.4f}"
        )
    low, high = 0.0, 2 / length  # length_of falls, and lies below 1 / gamma
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if length_of(middle) > length else (low, middle)
    return (low + high) / 2


def length_of(gamma: float) -> float:
    """The relative length of the profile tau^gamma."""
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def profile(steps: int, gamma: float) -> Tensor:
    """The weights [steps] that the average after `steps` steps gives to those after step 1, 2, ...; they sum to 1."""
    edges = (torch.arange(steps + 1, dtype=torch.float64) / steps) ** (gamma + 1)
    return edges.diff()


def inner(t: Tensor, gamma: Tensor, u: Tensor, delta: Tensor) -> Tensor:
    """<p, q> of the profiles (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t] and the same of delta and u."""
    first, last = torch.minimum(t, u), torch.maximum(t, u)
    later = torch.where(t >= u, gamma, delta)  # the exponent of the one that goes on for longer
    return (gamma + 1) * (delta + 1) / (gamma + delta + 1) * (first / last) ** later / last


class PowerEMA(EMA):
    """The average whose profile is a power; of a relative length."""

    def __init__(self, module: nn.Module, length: float) -> None:
        super().__init__(module, 0.0)
        self.length, self.gamma = length, gamma_of(length)

    def share(self, step: int) -> float:
        return 1 - (1 - 1 / (step + 1)) ** (self.gamma + 1)


@dataclass(frozen=True)
class Snapshot:
    """One stored average of one net."""

    path: Path
    player: str
    step: int
    length: float


@dataclass(frozen=True)
class Mixture:
    """Which combination of snapshots stands for an average."""

    shares: tuple[float, ...]
    rest: float  # the distance of the profiles, as a share of the wanted one's norm


def write_snapshot(
    folder: Path, step: int, player: str, length: float, average: Mapping[str, Tensor]
) -> None:
    """Store the average of a player as it is after `step` steps, on the processor."""
    about = {"player": player, "step": step, "length": length}
    path = folder / f"step-{step:08d}-{player}-{length:g}.safetensors"
    write_tensors(path, average, metadata={_ABOUT: json.dumps(about)}, replace=True)


def read_snapshots(folder: Path) -> list[Snapshot]:
    """What is stored in a folder, in the order of steps. MezzotintError for a file that is no snapshot."""
    found = []
    for path in sorted(folder.glob("step-*.safetensors")):
        try:
            about = json.loads(read_metadata(path)[_ABOUT])
            found.append(Snapshot(path, about["player"], about["step"], about["length"]))
        except (KeyError, ValueError) as error:
            raise MezzotintError(f"{path} is no snapshot of an average; remove it") from error
    return found


def forget_after(folder: Path, step: int) -> None:
    """Remove the snapshots of steps that will be taken anew."""
    for snapshot in read_snapshots(folder):
        if snapshot.step > step:
            snapshot.path.unlink()


def mixture(snapshots: Sequence[tuple[int, float]], step: int, length: float) -> Mixture:
    """The shares of snapshots (step, length) that come nearest to the average of `length` after `step` steps."""
    t = torch.tensor([float(at) for at, _ in snapshots], dtype=torch.float64)
    gamma = torch.tensor([gamma_of(one) for _, one in snapshots], dtype=torch.float64)
    end, wanted = (torch.tensor(float(x), dtype=torch.float64) for x in (step, gamma_of(length)))
    norms = inner(
        t, gamma, t, gamma
    ).sqrt()  # profiles are compared at norm 1: late ones are as good as early ones
    norm = inner(end, wanted, end, wanted).sqrt()
    a = inner(t[:, None], gamma[:, None], t, gamma) / norms[:, None] / norms
    b = inner(t, gamma, end, wanted) / norms / norm
    x = torch.linalg.lstsq(a, b[:, None], rcond=CUT, driver="gelsd").solution[:, 0]
    rest = float((1 - 2 * (x @ b) + x @ a @ x).clamp(min=0).sqrt())
    return Mixture(tuple((x * norm / norms).tolist()), rest)


def rebuild(snapshots: Sequence[Snapshot], length: float, step: int) -> tuple[dict[str, Tensor], Mixture]:
    """The average of `length` of one net after `step` steps, as weights, and how it was put together."""
    before = [s for s in snapshots if s.step <= step]
    mixed = mixture([(s.step, s.length) for s in before], step, length)
    total: dict[str, Tensor] = {}
    for share, snapshot in zip(mixed.shares, before, strict=True):
        for name, value in read_tensors(snapshot.path).items():
            if not value.is_floating_point():
                total[name] = value  # a count; the last one holds
            elif name in total:
                total[name].add_(value.double(), alpha=share)
            else:
                total[name] = value.double() * share
    return {k: v.float() if v.is_floating_point() else v for k, v in total.items()}, mixed
