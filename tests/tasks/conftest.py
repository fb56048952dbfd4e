"""A tiny model, and pictures to work on."""

import numpy as np
import pytest
from PIL import Image

from mezzotint import Pipeline
from tiny import write_tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def pipe(folder):
    return Pipeline.load(folder, device="cpu")


@pytest.fixture(scope="session")
def photo():
    """Sixteen by sixteen: a soft gradient with a red square."""
    y, x = np.mgrid[0:16, 0:16]
    pixels = np.stack([x * 15, y * 15, 255 - x * 8], -1).astype(np.uint8)
    pixels[4:9, 5:11] = (220, 20, 20)
    return Image.fromarray(pixels)
