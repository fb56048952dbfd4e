"""How it works, for the page: the forward process of the reader's own picture.

z_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps (Ho et al. 2020, eq. 4), at levels even in the time that the net is told.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from ..diffusion.process import Process
from ..film import forward_film
from ..formats.image import encode_plain, flatten
from .http import base64_of

SIDE = 256  # pixels at most of a moment


def forward(image: Image.Image, process: Process, *, frames: int) -> dict[str, Any]:
    """{"frames": [{"sigma": noise over signal, "png": base64}, ...]}, from clean to the model's most."""
    small = flatten(image)
    small.thumbnail((SIDE, SIDE))
    film = forward_film(small, process, frames=frames)
    return {
        "frames": [
            {"sigma": film.levels[frame.at], "png": base64_of(encode_plain(frame.left))}
            for frame in film.frames
        ]
    }
