"""Guidance: functions from denoisers to a denoiser, which compose because none knows another.

To guide is to walk past a strong estimate, away from a weak one: D = weak + scale (strong - weak), scale 1 = off.
Classifier-free guidance (Ho & Salimans 2022): the weak one knows no prompt. Autoguidance (Karras et al. 2024): it
is a worse model's. An interval (Kynkaanniemi et al. 2024) guides at those noise levels alone where it helps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .denoiser import per_row
from .prediction import v_prediction
from .types import Cond, Denoise


def cfg(denoise: Denoise, scale: float, null: Cond, *, rescale: float = 0.0) -> Denoise:
    """Classifier-free guidance, away from `null`.

    The fields of `null` have 1 row or B; where one is None (a mask to paint in, say), both estimates share
    cond's. They come from one call with 2B rows, each image's two side by side; of two texts the shorter is
    filled up with states that `mask` hides, so that it says what it says alone. scale 1 is `denoise` itself, at
    half the cost. `rescale` in [0, 1]: see `extrapolate`. Raises ValueError if null has a field that cond lacks.
    """
    if scale == 1:
        return denoise

    def guided(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        twice = denoise(
            x.repeat_interleave(2, 0), sigma.repeat_interleave(2, 0), _beside((null, cond), len(x))
        )
        weak, strong = twice.unflatten(0, (-1, 2)).unbind(1)
        return extrapolate(weak, strong, scale, x, sigma, rescale)

    return guided


def composed(
    denoise: Denoise, scale: float, parts: Sequence[tuple[Cond, float]], null: Cond, *, rescale: float = 0.0
) -> Denoise:
    """A picture of several things at once (Liu et al. 2022, arXiv 2206.01714, eq. 11).

    Each of N `parts` says one, with a weight w: strong = D0 + sum of w (D - D0), D0 being the estimate for `null`,
    and guidance goes past that, D0 + scale (strong - D0). What the sampler tells of text is not heard; what is joined
    to the picture is, and so is the class for a part that has none. `parts` and `null` have 1 row or B. One call with
    (1 + N) B rows.
    """

    def guided(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        several = [null, *(_in_place(part, cond) for part, _ in parts)]
        count = len(several)
        each = denoise(
            x.repeat_interleave(count, 0), sigma.repeat_interleave(count, 0), _beside(several, len(x))
        )
        weak, *estimates = each.unflatten(0, (-1, count)).unbind(1)
        strong = weak
        for (_, weight), estimate in zip(parts, estimates, strict=True):
            strong = strong + weight * (estimate - weak)
        return extrapolate(weak, strong, scale, x, sigma, rescale)

    return guided


def autoguidance(denoise: Denoise, bad: Denoise, scale: float, *, rescale: float = 0.0) -> Denoise:
    """Away from a model that errs like this one, but more: a smaller one, or an earlier one."""
    if scale == 1:
        return denoise

    def guided(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        return extrapolate(bad(x, sigma, cond), denoise(x, sigma, cond), scale, x, sigma, rescale)

    return guided


def interval(guided: Denoise, plain: Denoise, sigma_lo: float, sigma_hi: float) -> Denoise:
    """`guided` where sigma_lo < sigma <= sigma_hi, elsewhere `plain`, which costs one evaluation less.

    Rows that stand at different noise levels choose each for themselves.
    """

    def chosen(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        inside = (sigma > sigma_lo) & (sigma <= sigma_hi)
        if inside.all():
            return guided(x, sigma, cond)
        if not inside.any():
            return plain(x, sigma, cond)
        return torch.where(per_row(inside, x).bool(), guided(x, sigma, cond), plain(x, sigma, cond))

    return chosen


def saying(denoise: Denoise, text: Cond) -> Denoise:
    """`denoise` that hears `text` (or a class), 1 row or B, in the place of every one that it is told.

    What is joined to the picture stays what the sampler gives, and the class where `text` has none.
    """

    def telling(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        said = text.map(lambda field: field.expand(len(x), *field.shape[1:]))
        return denoise(x, sigma, _in_place(said, cond))

    return telling


def staged(stages: Sequence[Denoise], sigmas: Tensor) -> Denoise:
    """One denoiser for each of the N steps between sigmas [N + 1], chosen by the noise level alone.

    The levels sigmas[i] >= sigma > sigmas[i + 1] are those of step i; above the first, the first step's denoiser
    speaks, below the last but one, the last one's. Rows at different levels choose each for themselves.
    """
    starts = sigmas[1:-1].double()

    def chosen(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        # a sampler tells the level in the precision of x
        step = (sigma[:, None] <= starts.to(sigma)).sum(1).tolist()  # [B] of 0 .. N - 1
        first = stages[step[0]]
        if all(stages[i] is first for i in step):
            return first(x, sigma, cond)
        answers = {id(stages[i]): stages[i](x, sigma, cond) for i in step}
        return torch.stack([answers[id(stages[i])][row] for row, i in enumerate(step)])

    return chosen


def per_image(denoise: Denoise) -> Denoise:
    """Evaluates a batch image by image, so that image i of a batch is, to the last bit, the image alone.

    A row's result from a batched kernel depends on the size of the batch (another kernel is picked, sums
    are split otherwise); fixed shapes make it a function of the row. Each row is copied, since kernels look
    at alignment too. Put it outermost: `per_image(cfg(...))`.
    """

    def each(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        def alone(i: int) -> Tensor:
            def row(field: Tensor) -> Tensor:
                return field[i : i + 1].clone()

            return denoise(row(x), row(sigma), cond.map(row))

        return torch.cat([alone(i) for i in range(len(x))])

    return each


def extrapolate(
    weak: Tensor, strong: Tensor, scale: float, x: Tensor, sigma: Tensor, rescale: float = 0.0
) -> Tensor:
    """weak + scale (strong - weak) [B, *S], its contrast drawn back to that of strong by the share `rescale`.

    Large scales overexpose; Lin et al. 2023, eqs. 15 and 16, give the guided v the standard deviation that
    v had before. v is linear in the estimate, so this holds here whatever the model predicts.
    """
    guided = weak.lerp(strong, scale)
    if rescale == 0:
        return guided
    c_skip, c_out = v_prediction(per_row(sigma, x))
    v, v_strong = (guided - c_skip * x) / c_out, (strong - c_skip * x) / c_out
    contrast = v_strong.flatten(1).std(1) / v.flatten(1).std(1)  # [B]
    return c_skip * x + c_out * v * per_row(1 + rescale * (contrast - 1), x)


def joined(conds: Sequence[Cond]) -> Cond:
    """The rows of all, one after another; of a field that one lacks, none. Texts are brought to one length."""
    texts = [cond.text for cond in conds if cond.text is not None]
    if len({text.shape[1] for text in texts}) > 1:
        conds = [_filled(cond, max(text.shape[1] for text in texts)) for cond in conds]
    each = zip(*conds, strict=True)
    return Cond(*(None if any(f is None for f in fields) else torch.cat(fields) for fields in each))


def _in_place(text: Cond, cond: Cond) -> Cond:
    """`text` in the place of that of `cond`, whose `concat` stays, and whose class where `text` has none."""
    return text._replace(label=cond.label if text.label is None else text.label, concat=cond.concat)


def _beside(several: Sequence[Cond], rows: int) -> Cond:
    """[N B, ...] in every field: for each image a row of each in turn, the first of what guidance goes away from."""
    lengths = {cond.text.shape[1] for cond in several if cond.text is not None}
    unlike = len(lengths) > 1 or len({cond.mask is None for cond in several}) > 1  # a mask is of its own text
    if unlike and all(cond.text is not None for cond in several):
        several = [_filled(cond, max(lengths)) for cond in several]
    if len({(cond.keys is None, cond.told is None) for cond in several}) > 1:  # made of one, not of another
        several = [cond._replace(keys=None, told=None) for cond in several]
    return Cond(*(_in_turn(fields, rows) for fields in zip(*several, strict=True)))


def _filled(cond: Cond, length: int) -> Cond:
    """The same with `length` text states, of which `mask` shows those that were there."""
    text = cond.text
    assert text is not None
    mask = text.new_ones(text.shape[:2], dtype=torch.bool) if cond.mask is None else cond.mask
    more = length - text.shape[1]
    return cond._replace(text=F.pad(text, (0, 0, 0, more)), mask=F.pad(mask, (0, more)), keys=None, told=None)


def _in_turn(fields: Sequence[Tensor | None], rows: int) -> Tensor | None:
    null, *given = fields
    told = [field for field in given if field is not None]
    if len(told) < len(given):
        if null is not None or told:
            raise ValueError("guidance: null has a condition that the prompt lacks; give both or neither")
        return None
    several = [told[0] if null is None else null, *told]
    return torch.stack([field.expand(rows, *field.shape[1:]) for field in several], 1).flatten(0, 1)
