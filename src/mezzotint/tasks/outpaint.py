"""Outpaint: a picture goes on beyond its edges, which is inpainting on a grown canvas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .inpaint import inpaint

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request import Settled
    from .problem import Problem


def outpaint(pipeline: Pipeline, request: Settled) -> Problem:
    """The problem of a settled request; needs `image` and at least one of `canvas.SIDES`, in pixels."""
    return inpaint(pipeline, request)
