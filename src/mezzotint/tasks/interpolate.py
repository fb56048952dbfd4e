"""Interpolate: what lies between two prompts and between two seeds, `at` a share of the way.

The noise and the states of the text each turn from one end to the other along the sphere (see `diffusion/between.py`);
every `at` is a picture of its own, and many in a row are a film.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..diffusion.between import noise_between, slerp
from ..diffusion.types import Cond
from ..errors import UsageError
from .problem import Problem, fresh_noise, guided, levels, pure_noise, single, told

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request import Settled


def interpolate(pipeline: Pipeline, request: Settled) -> Problem:
    """The problem of a settled request; needs `at`. Picture i lies between seed + i and seed_to + i."""
    assert request.at is not None
    share = request.at
    sigmas = levels(pipeline, request)
    noise, cond = fresh_noise(pipeline, request), told(pipeline, request)
    if request.seed_to is not None:
        far = fresh_noise(pipeline, request.model_copy(update={"seed": request.seed_to}))
        noise = noise_between(noise, far, share)
    if request.prompt_to not in (None, request.prompt):
        single(request, request.prompt, request.prompt_to)
        if cond.label is not None:
            raise UsageError(
                f"'{pipeline.name}' is told classes, between which nothing lies; go from seed to seed (--seed-to)"
            )
        cond = _between(cond, told(pipeline, request.model_copy(update={"prompt": request.prompt_to})), share)
    return Problem(
        guided(pipeline, request, sigmas), pure_noise(noise, float(sigmas[0])), sigmas, cond, noise
    )


def _between(near: Cond, far: Cond, share: float) -> Cond:
    """States of two texts; where one has more of them, the other's are gone through again."""
    if near.text is not None and far.text is not None:
        length = max(near.text.shape[1], far.text.shape[1])
        near, far = (_repeated(cond, length) for cond in (near, far))
    pairs = zip(near, far, strict=True)
    return Cond(*(None if a is None or b is None else slerp(a, b, share) for a, b in pairs))


def _repeated(cond: Cond, length: int) -> Cond:
    assert cond.text is not None
    at = torch.arange(length, device=cond.text.device) % cond.text.shape[1]
    return cond._replace(text=cond.text[:, at])
