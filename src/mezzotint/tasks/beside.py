"""A picture that is drawn with others beside it in every evaluation, for attention to look to.

The others are given pictures, which stand at each noise level with noise of their own, or where the way back to their
noise passed it (`diffusion/inversion.py`): nothing of them is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..diffusion.guidance import joined
from ..diffusion.inversion import climb
from ..diffusion.types import Cond, Denoise
from ..errors import UsageError
from ..nets.blocks import Attentive, Control
from .problem import guided, single

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request import Settled


class Other(NamedTuple):
    """A given picture that is looked at."""

    at: Callable[[float], Tensor]  # noise level -> its state there, [B, C, *S]
    shown: Cond  # what it shows


def drowned(x0: Tensor, noise: Tensor, shown: Cond) -> Other:
    """A picture x0 [B, C, *S] that stands at every level with the same noise."""
    return Other(lambda sigma: x0 + sigma * noise, shown)


def climbed(denoise: Denoise, x0: Tensor, sigmas: Tensor, shown: Cond) -> Other:
    """A picture on the exact way back to its noise, under the eyes of `denoise`; between levels, on straight lines.

    The rows of x0 are one picture, and go one way.
    """
    alone = climb(denoise, x0[:1], sigmas, shown.map(lambda field: field[:1]))
    states = [state.expand(x0.shape) for state in alone][::-1]  # as sigmas, falling
    levels = sigmas.tolist()

    def at(sigma: float) -> Tensor:
        i = min(max(sum(level > sigma for level in levels) - 1, 0), len(levels) - 2)
        high, low = levels[i], levels[i + 1]
        return torch.lerp(states[i + 1], states[i], min((sigma - low) / (high - low), 1.0))

    return Other(at, shown)


def looking(
    pipeline: Pipeline,
    request: Settled,
    sigmas: Tensor,
    others: Sequence[Other],
    control: Callable[[float], Control],
) -> Denoise:
    """The guided denoiser of a request whose attention is under `control`, a function of the noise level.

    `others` stand in the order in which the control knows them. Each picture is evaluated by itself, so that a batch is
    its seeds alone. Raises UsageError for a model without such attention.
    """
    single(request, request.prompt, request.source_prompt)
    net: Any = pipeline.denoiser.net
    if not isinstance(net, Attentive):
        raise UsageError(
            f"'{pipeline.name}' has no attention that could look at another picture; take another model"
        )

    def denoise(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        level = float(sigma.max())
        watched = replace(pipeline.denoiser, net=partial(net, control=control(level)))
        inner = guided(pipeline, request, sigmas, denoiser=watched)

        def alone(i: int) -> Tensor:
            row = slice(i, i + 1)
            noisy = [other.at(level)[row].to(x) for other in others]
            told = [each.map(lambda field: field[row]) for each in (cond, *(other.shown for other in others))]
            texts = joined(told)
            return inner(torch.cat([x[row], *noisy]), sigma[row].expand(1 + len(others)), texts)[:1]

        return torch.cat([alone(i) for i in range(len(x))])

    return denoise
