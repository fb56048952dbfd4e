"""What is let in: a request settled, checked and within the limits; and how it is kept until it is drawn.

Bounds on a picture from afar are checked before a pixel of it is decoded, those on a canvas before it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from ..formats.image import open_image
from ..inputs import Input
from ..pipeline import Pipeline
from ..request import PICTURES, Request, Settled
from .settings import Limits
from .store import Job, Store


def read(fields: Mapping[str, Any], limits: Limits, *, mark: bool) -> Request:
    """The request that a client's fields make; `mark` where they do not say. Raises UsageError.

    No path is opened that a field names.
    """
    for name, text in fields.items():
        if isinstance(text, str) and name not in PICTURES and len(text) > limits.prompt:
            raise UsageError(f"{name} has {len(text)} characters; at most {limits.prompt} are read")
    return Request.parse({"mark": mark} | dict(fields), files=False)


def settled(request: Request, pipeline: Pipeline, limits: Limits) -> Settled:
    """The request with nothing left open. Raises UsageError for what is beyond the limits or cannot be done."""
    for name, value in request:
        if isinstance(value, Input):
            _check_picture(name, value, limits)
    _check_growth(request, limits)
    found = pipeline.settle(request, files=False)
    _check_limits(found, limits)
    return found


def uploads(request: Settled) -> dict[str, bytes]:
    """The pictures that a request was given, by the hash of their bytes: kept as files of their own."""
    return {value.sha256: value.data for _, value in request if isinstance(value, Input)}


def reread(job: Job, store: Store) -> Settled:
    """The request of a job, its pictures beside it."""
    given = {name: store.upload(sha256).read_bytes() for name, sha256 in job.given.items()}
    return Settled.parse(job.request | given, files=False)


def _check_picture(name: str, given: Input, limits: Limits) -> None:
    if len(given.data) > limits.upload_bytes:
        raise UsageError(f"{name} has {len(given.data)} bytes; this service reads {limits.upload_bytes}")
    open_image(given.data, max_pixels=limits.upload_pixels, name=name)


def _check_growth(request: Request, limits: Limits) -> None:
    if request.image is None or request.task != "outpaint":
        return
    width, height = request.image.image.size
    width += (request.left or 0) + (request.right or 0)
    height += (request.top or 0) + (request.bottom or 0)
    if width * height > limits.pixels:
        raise UsageError(f"left, top, right, bottom: {width} x {height} pixels are more than are drawn here")


def _check_limits(request: Settled, limits: Limits) -> None:
    if request.width * request.height > limits.pixels:
        raise UsageError(
            f"width x height is {request.width} x {request.height}"
            f"; this service draws {limits.pixels} pixels at most"
        )
    for name, most in (("num_inference_steps", limits.steps), ("num_images", limits.images)):
        if getattr(request, name) > most:
            raise UsageError(f"{name} is {getattr(request, name)}; this service takes at most {most}")
