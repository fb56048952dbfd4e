"""Small changes of large weights: W + w (alpha / r) B A, A [r, in], B [out, r] (LoRA: Hu et al. 2021, 2106.09685).

Of a convolution, A has its kernel and B is 1 x 1; or a third, M [r, r, kernel], stands between two of 1 x 1 (LoCon).
DoRA (Liu et al. 2024, 2402.09353) also learns the length of each row or column: m (W + dW) / |W + dW|.

A net with changes is another net. It shares every weight that is not changed with the first, which is never touched:
to take a change off is to go on with the first. Branches beside each layer would save the memory of the changed
weights and cost time at every step; adding once is paid back within a few (see benchmarks/README.md).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from .layers import Conv2d

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class LowRank:
    """A change of one layer's weight [out, in, *kernel]."""

    down: Tensor  # A: [r, in, *kernel], or [r, in] where there is a `mid`
    up: Tensor  # B: [out, r]; ones for a kernel may follow here and above
    mid: Tensor | None = None  # M: [r, r, *kernel]
    alpha: float | None = None  # r if not given
    magnitude: Tensor | None = None  # DoRA's m: [out, 1, ...] of rows or [1, in, ...] of columns

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def size(self) -> int:
        """How many numbers the weight that this changes has."""
        kernel = 1 if self.mid is None else self.mid[0, 0].numel()
        return self.up.shape[0] * self.down[0].numel() * kernel

    def delta(self, weight: Tensor) -> Tensor:
        """What is added to `weight` at weight 1: float32, in its shape. `size` must be its `numel()`."""
        down, up = (matrix.to(weight.device, torch.float32) for matrix in (self.down, self.up))
        if self.mid is None:
            change = up.flatten(1) @ down.flatten(1)
        else:
            mid = self.mid.to(weight.device, torch.float32)
            change = torch.einsum("or,rskl,si->oikl", up.flatten(1), mid, down.flatten(1))
        change = self.scale * change.reshape(weight.shape)
        if self.magnitude is None:
            return change
        whole = weight.float() + change
        magnitude = self.magnitude.to(weight.device, torch.float32)
        magnitude = magnitude.reshape(*magnitude.shape, *[1] * (weight.ndim - magnitude.ndim))
        kept = 0 if magnitude.shape[0] == len(weight) else 1  # a length for each row, or for each column
        length = whole.square().sum([d for d in range(weight.ndim) if d != kept], keepdim=True).sqrt()
        return magnitude * whole / length - weight.float()


Changes = Mapping[str, Sequence[tuple[LowRank, float]]]  # name of a layer -> changes and their weights


@torch.no_grad()
def changed(net: M, changes: Changes) -> M:
    """A net like `net`, some of whose layers have changed weights; it shares all others with it.

    Sums are made in float32, in the given order, and rounded once. Raises KeyError for a layer that is not there.
    """
    if not changes:
        return net
    other = _twin(net)
    layers = dict(other.named_modules())
    for name, several in changes.items():
        layer = layers[name]
        weight = layer.weight
        assert isinstance(weight, Tensor)
        total = weight.float()
        for change, share in several:
            total = total + share * change.delta(weight)
        placed = torch.empty_like(weight).copy_(total)  # in its type and its order in memory
        layer.weight = nn.Parameter(placed, requires_grad=False)
        if isinstance(layer, Conv2d) and layer.frozen:
            layer.remembered = {}  # of its own; layers that are not changed share theirs
    return other


def _twin(module: M) -> M:
    """The same tree of modules over the same weights: what is set in one is not set in the other."""
    twin = copy.copy(module)
    state = vars(twin)
    for name in ("_parameters", "_buffers"):
        state[name] = dict(state[name])
    state["_modules"] = {name: child and _twin(child) for name, child in module._modules.items()}
    return twin
