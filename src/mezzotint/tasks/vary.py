"""Vary: the same picture once more, from noise that lies `distance` away from its own.

A picture of ours says in its recipe which noise it was drawn from; that noise turns towards a fresh seed's along the
sphere (see `diffusion/between.py`). Distance 0 is the picture itself, 1 the picture of the fresh seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..diffusion.between import noise_between
from ..diffusion.noise import batch_noise
from ..errors import UsageError
from .problem import Problem, fresh_noise, from_noise

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request import Settled


def vary(pipeline: Pipeline, request: Settled) -> Problem:
    """The problem of a settled request; needs `image`, whose recipe has the seed, and `distance`.

    Raises UsageError for a picture whose noise its recipe does not tell.
    """
    assert request.image is not None
    assert request.distance is not None
    own = request.image.recipe
    if own.get("task") != "text2img" or own.get("model_hash") != pipeline.fingerprint:
        raise UsageError(
            f"{request.image.name} was not drawn from words by '{pipeline.name}', its noise is not known; use img2img"
        )
    base = batch_noise([int(own["seed"])] * request.num_images, pipeline.shape(request), pipeline.device)
    return from_noise(
        pipeline, request, noise_between(base, fresh_noise(pipeline, request), request.distance)
    )
