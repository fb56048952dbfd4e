"""Attention under control: what stands in for `blocks.attend` when one picture is drawn with an eye on another.

The rows of an evaluation are thirds, halves, ...: the picture that is drawn first, then those it looks to, each with
the same number of rows (one, or two under guidance, the prompt's last). Two kinds:

- `styled`: self-attention sees the style picture's keys and values beside its own, its queries and keys brought to
  their mean and spread (StyleAligned, Hertz et al. 2023, arXiv 2312.02133); queries may be drawn towards those of a
  third picture, which holds the content (StyleID, Chung et al. 2023, arXiv 2312.09008).
- `lent`: cross-attention to words that the old prompt has too is the old picture's, and so is self-attention where
  maps are small; words may count more or less (prompt-to-prompt, Hertz et al. 2022, arXiv 2208.01626).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import Control, Place, attend

SMALL_MAP = 256  # tokens: self-attention of maps up to this size is lent, which is layout and not detail


def styled(style: float, content: float = 0.0) -> Control:
    """Rows: drawn, style, and if `content` > 0 a third picture.

    `style` in [0, 1]: its odds are those at which the style picture is looked at rather than the picture itself: 0
    never, 0.5 alike, 1 at nothing else. `content` in [0, 1]: how much of the queries is the third picture's.
    """
    parts = 3 if content > 0 else 2

    def control(place: Place, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None) -> Tensor:
        if place.cross or style == 0:
            return attend(q, k, v, heads, mask)
        (q_own, q_style, *q_content), (k_own, k_style, *_), (v_own, v_style, *_) = (
            x.chunk(parts) for x in (q, k, v)
        )
        if content > 0:
            q_own = torch.lerp(q_own, q_content[0], content)
        keys = torch.cat([aligned(k_own, k_style), k_style], dim=1)
        values = torch.cat([v_own, v_style], dim=1)
        weight = keys.new_zeros(keys.shape[1])
        weight[: k_own.shape[1]] = math.log(1 - style) if style < 1 else -torch.inf
        weight[k_own.shape[1] :] = math.log(style)
        seen = attend(aligned(q_own, q_style), keys, values, heads, weight.expand(1, 1, q.shape[1], -1))
        rest = len(seen)
        return torch.cat([seen, attend(q[rest:], k[rest:], v[rest:], heads, mask)])

    return control


def aligned(x: Tensor, other: Tensor) -> Tensor:
    """x [B, N, C] with the mean and the spread over tokens that `other` has in each channel."""
    free = min(x.shape[1] - 1, 1)  # a single token has no spread
    spread, wanted = (each.std(1, correction=free, keepdim=True) + 1e-5 for each in (x, other))
    return (x - x.mean(1, keepdim=True)) / spread * wanted + other.mean(1, keepdim=True)


def lent(
    old: Sequence[int],
    new: Sequence[int],
    *,
    words: bool = True,
    layout: bool = True,
    weights: Sequence[float] = (),
) -> Control:
    """Rows: drawn, and the old picture. `old` and `new`: ids at the positions of the two texts.

    Positions that hold the same id, or others in its place, look as the old picture's do; what is new looks for
    itself. `words` lends cross-attention, then multiplied at each position of `new` by its weight, if there are
    `weights`; `layout` lends self-attention. What guidance flees keeps its own looks, as in the paper.
    """
    counterparts, common = alignment(old, new)
    counts = torch.tensor(weights or [1.0] * len(new))

    def control(place: Place, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None) -> Tensor:
        if not (words if place.cross else layout and q.shape[1] <= SMALL_MAP):
            return attend(q, k, v, heads, mask)
        share = looks(q, k, heads, mask)  # [B, heads, N, M]
        half, length = len(share) // 2, share.shape[-1]
        own, source = share[half - 1 : half], share[-1:]
        if place.cross:
            moved = _fitted(_fitted(counterparts, length).T, length).T.to(share)
            kept, weight = _fitted(common, length).to(share.device), _fitted(counts, length).to(share)
            source = torch.where(kept, source @ moved, own) * weight
        share = torch.cat([share[: half - 1], source, share[half:]])
        return (share @ v.unflatten(-1, (heads, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)

    return control


def _fitted(values: Tensor, length: int) -> Tensor:
    """[..., n] cut, or filled up with zeros, to [..., length]: of two texts one may be read in more chunks."""
    return F.pad(values[..., :length], (0, max(0, length - values.shape[-1])))


def looks(q: Tensor, k: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)): who looks where, [B, heads, N, M]."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)


def alignment(old: Sequence[int], new: Sequence[int]) -> tuple[Tensor, Tensor]:
    """How looks at `old` become looks at `new`: a matrix [old, new], and which of `new` have any [new] bool.

    The same ids are one to one, and so are as many that stand for others; where their numbers differ, each new one has
    an equal share of all that were looked at before.
    """
    moved, common = torch.zeros(len(old), len(new)), torch.zeros(len(new), dtype=torch.bool)
    for kind, i, j, k, end in SequenceMatcher(None, list(old), list(new), autojunk=False).get_opcodes():
        if kind in ("equal", "replace"):
            same = j - i == end - k
            moved[i:j, k:end] = torch.eye(j - i) if same else torch.full((j - i, end - k), 1 / (end - k))
            common[k:end] = True
    return moved, common
