"""Small changes of large weights: W + w dW, where dW comes from few numbers.

    LoRA  dW = s B A                    A [r, in], B [out, r]            Hu et al. 2021, arXiv 2106.09685
    LoHa  dW = s (B1 A1) * (B2 A2)      element by element               Hyeon-Woo et al. 2021, arXiv 2108.06098
    LoKr  dW = s C (x) D                Kronecker's product              Yeh et al. 2023, arXiv 2309.14859
    OFT   dW = (R - 1) W                R turns blocks of rows           Qiu et al. 2023, arXiv 2306.07280

Of a convolution, A has its kernel and B is 1 x 1; or a third, M [r, r, kernel], stands between two of 1 x 1 (Tucker's
form; LoCon). DoRA (Liu et al. 2024, 2402.09353) also learns the length of each row or column: m (W + dW) / |W + dW|.

A net with changes is another net. It shares every weight that is not changed with the first, which is never touched:
to take a change off is to go on with the first. Branches beside each layer would save the memory of the changed
weights and cost time at every step; adding once is paid back within a few (see benchmarks/README.md).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from .layers import Conv2d

M = TypeVar("M", bound=nn.Module)
Shape = Sequence[int]  # of a weight: [out, in, *kernel]


@dataclass(frozen=True)
class Change(ABC):
    """A change of one layer's weight [out, in, *kernel]."""

    @abstractmethod
    def fits(self, shape: Shape) -> bool:
        """Whether the parts are of one piece, and made for a weight of this shape."""

    @abstractmethod
    def delta(self, weight: Tensor) -> Tensor:
        """What is added to `weight`, which it must fit, at weight 1: float32, in its shape."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """How much there is to learn: of a rotation, the size of its blocks; 0 of a product of whole matrices."""


@dataclass(frozen=True)
class LowRank(Change):
    """LoRA, LoCon and their DoRA."""

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

    def fits(self, shape: Shape) -> bool:
        return _size(self) == _matrix(shape) and self.down.shape[1] == shape[1]

    def delta(self, weight: Tensor) -> Tensor:
        change = self.scale * _product(self, weight.device).reshape(weight.shape)
        return _normed(weight, change, self.magnitude)


Factor = Tensor | LowRank  # a matrix [m, n], whole or as a product of scale 1; a kernel may follow


@dataclass(frozen=True)
class Hadamard(Change):
    """LoHa: two products of rank r, multiplied, have ranks up to r^2."""

    first: LowRank
    second: LowRank
    scale: float = 1.0
    magnitude: Tensor | None = None  # as in `LowRank`

    @property
    def rank(self) -> int:
        return self.first.rank

    def fits(self, shape: Shape) -> bool:
        return _size(self.first) == _size(self.second) == _matrix(shape)

    def delta(self, weight: Tensor) -> Tensor:
        first, second = (_product(factor, weight.device) for factor in (self.first, self.second))
        return _normed(weight, self.scale * (first * second).reshape(weight.shape), self.magnitude)


@dataclass(frozen=True)
class Kronecker(Change):
    """LoKr: blocks, each a multiple of one matrix."""

    first: Factor  # C [m, n]
    second: Factor  # D [out / m, in / n, *kernel]
    scale: float = 1.0
    magnitude: Tensor | None = None  # as in `LowRank`

    @property
    def rank(self) -> int:
        return max((part.rank for part in (self.first, self.second) if isinstance(part, LowRank)), default=0)

    def fits(self, shape: Shape) -> bool:
        first, second = _size(self.first), _size(self.second)
        if first is None or second is None:
            return False
        return (first[0] * second[0], first[1] * second[1]) == _matrix(shape) and shape[1] % first[1] == 0

    def delta(self, weight: Tensor) -> Tensor:
        first, second = (_product(factor, weight.device) for factor in (self.first, self.second))
        return _normed(weight, self.scale * torch.kron(first, second).reshape(weight.shape), self.magnitude)


@dataclass(frozen=True)
class Rotation(Change):
    """OFT: R = (1 + Q) (1 - Q)^-1 turns each block of rows, Q = P - P^T (Cayley), with |Q| <= `most`, if any."""

    blocks: Tensor  # P: [n, b, b], n b = out
    most: float | None = None  # of all blocks together, Frobenius' norm
    lengths: Tensor | None = None  # [out, 1, ...]: how much longer rows become

    @property
    def rank(self) -> int:
        return self.blocks.shape[-1]

    def fits(self, shape: Shape) -> bool:
        size = self.blocks.shape
        whole = self.lengths is None or self.lengths.numel() == shape[0]
        return len(size) == 3 and size[1] == size[2] and size[0] * size[1] == shape[0] and whole

    def delta(self, weight: Tensor) -> Tensor:
        blocks = self.blocks.to(weight.device, torch.float32)
        q = blocks - blocks.transpose(1, 2)
        if self.most is not None and (size := float(q.norm())) > self.most:
            q = q * (self.most / size)
        one = torch.eye(q.shape[1], device=q.device)
        turn = torch.linalg.solve(one - q, one + q, left=False)  # (1 + Q) (1 - Q)^-1
        before = weight.float()
        rows = before.reshape(len(q), q.shape[1], -1)
        turned = (turn.transpose(1, 2) @ rows).reshape(weight.shape)  # files have R^T by this name
        if self.lengths is not None:
            lengths = self.lengths.to(weight.device, torch.float32)
            turned = lengths.reshape(-1, *[1] * (weight.ndim - 1)) * turned
        return turned - before


def _matrix(shape: Shape) -> tuple[int, int]:
    """A weight as a matrix: (out, in times its kernel)."""
    return shape[0], math.prod(shape[1:])


def _size(factor: Factor) -> tuple[int, int] | None:
    """The same of a factor; None if its parts are not of one piece."""
    if isinstance(factor, Tensor):
        return _matrix(factor.shape) if factor.ndim >= 2 and factor.numel() else None
    down, up, mid = factor.down, factor.up, factor.mid
    if min(down.ndim, up.ndim) < 2 or up[0].numel() != len(down) or 0 in (*down.shape, *up.shape):
        return None
    if mid is not None and (mid.ndim != 4 or mid.shape[:2] != (len(down), len(down))):
        return None
    return len(up), down[0].numel() * (1 if mid is None else mid[0, 0].numel())


def _product(factor: Factor, device: torch.device) -> Tensor:
    """The factor as a matrix, float32."""
    if isinstance(factor, Tensor):
        return factor.to(device, torch.float32).flatten(1)
    down, up = (part.to(device, torch.float32).flatten(1) for part in (factor.down, factor.up))
    if factor.mid is None:
        return up @ down
    mid = factor.mid.to(device, torch.float32)
    return torch.einsum("or,rskl,si->oikl", up, mid, down).flatten(1)


def _normed(weight: Tensor, change: Tensor, magnitude: Tensor | None) -> Tensor:
    """`change`, or with DoRA's `magnitude` the one that gives the lengths that were learnt."""
    if magnitude is None:
        return change
    whole = weight.float() + change
    magnitude = magnitude.to(weight.device, torch.float32)
    magnitude = magnitude.reshape(*magnitude.shape, *[1] * (weight.ndim - magnitude.ndim))
    kept = 0 if magnitude.shape[0] == len(weight) else 1  # a length for each row, or for each column
    length = whole.square().sum([d for d in range(weight.ndim) if d != kept], keepdim=True).sqrt()
    return magnitude * whole / length - weight.float()


Changes = Mapping[str, Sequence[tuple[Change, float]]]  # name of a layer -> changes and their weights


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
