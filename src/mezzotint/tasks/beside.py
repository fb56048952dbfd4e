"""A picture that is drawn with others beside it in every evaluation, for attention to look to.

The others are given pictures, which stand at each noise level with noise of their own: nothing of them is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..diffusion.denoiser import per_row
from ..diffusion.guidance import joined
from ..diffusion.types import Cond, Denoise
from ..errors import UsageError
from ..nets.blocks import Attentive, Control
from .problem import guided, single

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request import Settled


def looking(
    pipeline: Pipeline,
    request: Settled,
    sigmas: Tensor,
    others: list[tuple[Tensor, Tensor, Cond]],
    control: Callable[[float], Control],
) -> Denoise:
    """The guided denoiser of a request whose attention is under `control`, a function of the noise level.

    `others`: (x0 [B, C, *S], noise like it, what it shows), in the order in which the control knows them. Each picture
    is evaluated by itself, so that a batch is its seeds alone. Raises UsageError for a model without such attention.
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
            noisy = [x0[row] + per_row(sigma[row], x0[row]) * noise[row] for x0, noise, _ in others]
            told = [each.map(lambda field: field[row]) for each in (cond, *(shown for *_, shown in others))]
            texts = joined(told)
            return inner(torch.cat([x[row], *noisy]), sigma[row].expand(1 + len(others)), texts)[:1]

        return torch.cat([alone(i) for i in range(len(x))])

    return denoise
