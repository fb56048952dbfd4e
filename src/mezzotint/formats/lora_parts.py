"""One layer of a LoRA file: the parts by which it is known there, and the change that they make.

    LoRA, LoCon   down, up, mid                                       alpha / r
    LoHa          hada_w1_a, hada_w1_b, hada_t1, hada_w2_a, ...       alpha / r
    LoKr          lokr_w1 or lokr_w1_a, lokr_w1_b; lokr_w2, ...       alpha / r, and 1 if both are whole
    OFT           oft_blocks, rescale                                 alpha times the rows is the most that Q may be

The names and the scales are those of kohya's scripts and of LyCORIS (Yeh et al. 2023, arXiv 2309.14859), which PEFT
has taken over, but that it divides by r whatever the parts are. In Tucker's form (t1, t2) the `a` parts lie on their
side: [r, out].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import MezzotintError
from ..nets.lowrank import Change, Factor, Hadamard, Kronecker, LowRank, Rotation, Shape

KINDS = {  # of changes: how their parts begin
    "LoRA": ("down", "up", "mid"),
    "LoHa": ("hada_",),
    "LoKr": ("lokr_",),
    "OFT": ("oft_blocks", "rescale"),
}


@dataclass(frozen=True)
class LayerParts:
    """What a file says of one layer, and of the weight that it is to change."""

    where: str  # file and layer, for errors
    layer: str
    parts: Mapping[str, Tensor]
    shape: Shape
    settings: Mapping[str, Any]  # PEFT's, if the file has them

    def change(self) -> Change:
        """The parts together. Raises MezzotintError if one is missing, if they do not fit, or are of several kinds."""
        kinds = _kinds(self.parts)
        if len(kinds) > 1:
            raise MezzotintError(
                f"{self.where} has parts of {' and of '.join(kinds)}; a layer has one kind of change"
            )
        make = {"LoHa": self._loha, "LoKr": self._lokr, "OFT": self._oft}.get("".join(kinds), self._lora)
        change = make()
        if not change.fits(self.shape):
            shapes = ", ".join(f"{role} {list(part.shape)}" for role, part in self.parts.items() if part.ndim)
            raise MezzotintError(
                f"{self.where} has {shapes}, for which the model's weight {list(self.shape)} has no place; "
                "the LoRA was made for another kind of model"
            )
        return change

    def _lora(self) -> Change:
        down, up = self._need("down"), self._need("up")
        return LowRank(down, up, self.parts.get("mid"), self._alpha(len(down)), self._magnitude())

    def _loha(self) -> Change:
        first, second = self._product("hada_w1"), self._product("hada_w2")
        return Hadamard(first, second, self._scale(first.rank), self._magnitude())

    def _lokr(self) -> Change:
        first, second = (
            self._need(name) if name in self.parts else self._product(name) for name in ("lokr_w1", "lokr_w2")
        )
        rank = Kronecker(first, second).rank
        scale = self._scale(rank) if rank or "r" in self.settings else 1.0
        return Kronecker(first, second, scale, self._magnitude())

    def _oft(self) -> Change:
        blocks = self._need("oft_blocks")
        if blocks.ndim == 4:
            raise MezzotintError(
                f"{self.where} is a BOFT, which is not supported; LoCon, DoRA, {', '.join(KINDS)} are"
            )
        if self._magnitude() is not None:
            raise MezzotintError(f"{self.where} has DoRA's lengths for a rotation, which knows none")
        most = self._alpha(1) or 0.0
        return Rotation(blocks, most * self.shape[0] if most > 0 else None, self.parts.get("rescale"))

    def _need(self, role: str) -> Tensor:
        if role not in self.parts:
            raise MezzotintError(
                f"{self.where} lacks its '{role}' part; the file is incomplete, fetch it again"
            )
        part = self.parts[role]
        if part.ndim < 2 or not part.numel():
            raise MezzotintError(
                f"{self.where} has '{role}' {list(part.shape)}, which is no matrix; fetch it again"
            )
        return part

    def _product(self, name: str) -> LowRank:
        """`name`_a times `name`_b, with the core of Tucker's form between them if there is one."""
        a, b, core = self._need(f"{name}_a"), self._need(f"{name}_b"), self.parts.get(_core(name))
        return LowRank(b, a if core is None else a.transpose(0, 1), core)

    def _scale(self, rank: int) -> float:
        """alpha / r; 1 where no alpha is told."""
        rank = int(self._told("r", "rank_pattern") or rank)
        alpha = self._alpha(rank)
        return 1.0 if alpha is None or rank < 1 else alpha / rank

    def _alpha(self, rank: int) -> float | None:
        """The file's own, else that of the settings, rank-stabilised if so said."""
        if "alpha" in self.parts:
            own = self.parts["alpha"]
            alpha = float(own) if own.numel() == 1 else math.nan
        else:
            told = self._told("lora_alpha" if "lora_alpha" in self.settings else "alpha", "alpha_pattern")
            if told is None:
                return None
            alpha = float(told) * (math.sqrt(rank) if self.settings.get("use_rslora") else 1.0)
        if not math.isfinite(alpha):
            raise MezzotintError(f"{self.where} has alpha {alpha}; the file is damaged, fetch it again")
        return alpha

    def _told(self, key: str, patterns: str) -> Any:
        """What PEFT's settings say of this layer: its own value, found by the end of its name, or that of all."""
        for name, value in (self.settings.get(patterns) or {}).items():
            if f".{self.layer}".endswith(f".{name.removeprefix('^')}"):
                return value
        return self.settings.get(key)

    def _magnitude(self) -> Tensor | None:
        """DoRA's lengths as [out, 1] or [1, in]. PEFT has them of rows, LyCORIS of either, which its shape tells."""
        magnitude, rows = self.parts.get("magnitude", self.parts.get("dora_scale")), "magnitude" in self.parts
        outs, ins = self.shape[:2]
        if magnitude is None:
            return None
        if magnitude.numel() == outs and (rows or magnitude.shape[0] == outs):
            return magnitude.reshape(outs, 1)
        if magnitude.numel() == ins and not rows:
            return magnitude.reshape(1, ins)
        raise MezzotintError(
            f"{self.where} has lengths {list(magnitude.shape)} for a weight {list(self.shape)}"
        )


def _kinds(parts: Mapping[str, Tensor]) -> list[str]:
    return [kind for kind, roles in KINDS.items() if any(part.startswith(roles) for part in parts)]


def kind_of(parts: Mapping[str, Tensor]) -> str:
    """The kind of a layer's change, going by the names of its parts."""
    return next(iter(_kinds(parts)), "LoRA")


def rank_of(parts: Mapping[str, Tensor]) -> int:
    """The rank of a layer's change: of OFT the size of its blocks, 0 where all is whole."""
    for role in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if role in parts and parts[role].ndim:
            return len(parts[role])
    return parts["oft_blocks"].shape[-1] if "oft_blocks" in parts and parts["oft_blocks"].ndim else 0


def parts_of(change: Change) -> dict[str, Tensor]:
    """The parts of a change as kohya's scripts and LyCORIS call them; `LayerParts` makes the same change of them."""
    parts: dict[str, Tensor | None] = {}
    if isinstance(change, LowRank):
        alpha = change.rank if change.alpha is None else change.alpha
        parts = {"down": change.down, "mid": change.mid, "up": change.up, "dora_scale": change.magnitude}
    elif isinstance(change, Hadamard):
        alpha = change.scale * change.rank
        parts = {**_named("hada_w1", change.first), **_named("hada_w2", change.second)}
        parts["dora_scale"] = change.magnitude
    elif isinstance(change, Kronecker):
        alpha = change.scale * (change.rank or 1)
        first = change.first
        if change.rank == 0 and change.scale != 1:  # where both are whole, readers know of no alpha
            first = change.scale * change.first.float() if isinstance(change.first, Tensor) else first
        parts = {**_named("lokr_w1", first), **_named("lokr_w2", change.second)}
        parts["dora_scale"] = change.magnitude
    elif isinstance(change, Rotation):
        outs = change.blocks.shape[0] * change.blocks.shape[1]
        alpha = 0.0 if change.most is None else change.most / outs
        parts = {"oft_blocks": change.blocks, "rescale": change.lengths}
    named = {role: part for role, part in parts.items() if part is not None}
    return named | {"alpha": torch.tensor(float(alpha))}


def _named(name: str, factor: Factor) -> dict[str, Tensor | None]:
    if isinstance(factor, Tensor):
        return {name: factor}
    up = factor.up if factor.mid is None else factor.up.transpose(0, 1)
    return {f"{name}_a": up, f"{name}_b": factor.down, _core(name): factor.mid}


def _core(name: str) -> str:
    """hada_w1 -> hada_t1"""
    return name.replace("_w", "_t")
