"""Text to image: from pure noise, down all noise levels, guided by the prompt (Ho et al. 2020; Ho & Salimans 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .problem import Problem, fresh_noise, from_noise

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request import Settled


def text2img(pipeline: Pipeline, request: Settled) -> Problem:
    """The problem of a settled request (see `Pipeline.settle`)."""
    return from_noise(pipeline, request, fresh_noise(pipeline, request))
