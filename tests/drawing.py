"""What tests of tasks say again and again."""

import numpy as np

from mezzotint import Request
from mezzotint.pipeline import Picture, Progress


def drawn(pipeline, **fields):
    """The finished pictures of a request, with their recipes."""
    return [event for event in pipeline.generate(Request.parse(fields)) if isinstance(event, Picture)]


def steps(pipeline, **fields):
    return [event for event in pipeline.generate(Request.parse(fields)) if isinstance(event, Progress)]


def apart(left, right):
    """The largest difference between two pictures, of 255."""
    left, right = (np.asarray(getattr(image, "image", image)).astype(int) for image in (left, right))
    return abs(left - right).max()
