"""Signs that a run goes wrong, while it runs: samples that are noise, pictures that are learned by heart.

Roughness is E[(neighbours' difference)^2] / (2 variance): 1 for white noise, near 0 for pictures, and what it is for
the data is known. The loss on held-out pictures, under the same noise every time, falls as long as a model learns what
pictures have in common, and rises when it begins to learn them one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

RISEN = 1.05  # held-out loss over its best, from which on it counts as rising
LOOKS = 3  # in a row
WIDENED = 1.25  # held-out over trained loss, over its lowest, from which on it is an early sign
NOISY = (
    1 / 3
)  # a model of CIFAR-10 after twenty steps is at a half; a dozen pictures of its data reach a twentieth


@dataclass(frozen=True)
class Validation:
    """The loss under fixed noise, by noise level: sigma -> loss."""

    held_out: dict[float, float]
    train: dict[float, float]  # of as many pictures that are trained on

    @property
    def loss(self) -> float:
        """The mean over noise levels, held out if anything is."""
        return _mean(self.held_out or self.train)

    @property
    def gap(self) -> float:
        """Loss on held-out pictures over that on trained ones; 1 if nothing is held out."""
        return _mean(self.held_out) / _mean(self.train) if self.held_out else 1.0


@dataclass
class Memory:
    """The validations of a run so far."""

    losses: list[tuple[int, float]] = field(default_factory=list)  # step, loss
    gaps: list[float] = field(default_factory=list)

    def warn(self, step: int, validation: Validation) -> str:
        """A line if the pictures are being learned by heart, or may soon be; else nothing."""
        self.losses.append((step, validation.loss))
        self.gaps.append(validation.gap)
        if not validation.held_out or len(self.losses) < LOOKS:
            return ""
        best_step, best = min(self.losses, key=lambda pair: pair[1])
        if min(loss for _, loss in self.losses[-LOOKS:]) >= RISEN * best:
            return (
                f"the loss on held-out pictures is {validation.loss / best - 1:.0%} above its best, at step "
                f"{best_step}: the pictures are being learned by heart; stop, or use more of them"
            )
        narrowest = min(self.gaps)
        if min(self.gaps[-LOOKS:]) >= WIDENED * narrowest:
            return (
                f"the loss on held-out pictures is {validation.gap:.2f} times that on trained ones, and was "
                f"{narrowest:.2f} times: an early sign that the pictures are being learned by heart"
            )
        return ""


def remembered(looks: Sequence[Mapping[str, Any]], step: int) -> Memory:
    """The memory of a run that goes on after `step`, from the looks in its log."""
    memory = Memory()
    for look in looks:
        if look["step"] <= step:
            sides = (
                {float(sigma): loss for sigma, loss in look["validation"][side].items()}
                for side in ("held_out", "train")
            )
            memory.warn(look["step"], Validation(*sides))
    return memory


def roughness(x: Tensor) -> float:
    """Of maps [B, C, H, W]: 1 for white noise, near 0 for smooth pictures."""
    x = x.float()
    differences = (x.diff(dim=2).square().mean() + x.diff(dim=3).square().mean()) / 2
    variance = x.var(dim=(2, 3)).mean().clamp(min=1e-12)
    return float(differences / (2 * variance))


def look_like_noise(samples: Tensor, data: Tensor) -> str:
    """A line if samples are rougher than the data by `NOISY` of the way to white noise, else nothing."""
    made, real = roughness(samples), roughness(data)
    if made <= real + NOISY * (1 - real):
        return ""
    return f"the samples look like noise (roughness {made:.2f}; the data's is {real:.2f}, noise has 1)"


def _mean(losses: dict[float, float] | Sequence[float]) -> float:
    values = list(losses.values()) if isinstance(losses, dict) else list(losses)
    return sum(values) / max(1, len(values))
