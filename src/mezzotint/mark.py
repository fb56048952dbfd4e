"""An invisible mark: a faint pattern, the same in every picture, that a search finds again.

Spread spectrum (Cox et al. 1997): y = x + a p, p a fixed pattern of unit variance, periodic in 128 x 128 pixels, whose
waves are 5 to 17 pixels long: longer than what JPEG throws away, shorter than what eyes see at this strength (a = 2 of
255: 42 dB). Found again by phase correlation (Kuglin & Hines 1975) with the pattern at every shift and at scales from
1/3 to 3, so that cutting and scaling do not hide it; turning and mirroring do.

Under chance each correlation is nearly standard normal, and the largest of n of them passes z with probability of at
most n (1 - Phi(z)): `Found.chance` is that number, and `SURE` its limit. The pattern is no secret: whoever wants to can
take it out, or put it into any other picture. It says "probably made by mezzotint", and proves nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .diffusion.noise import generator

PERIOD = 128  # pixels
BAND = (0.06, 0.22)  # waves a pixel
STRENGTH = 2.0  # of 255
LEAST = 64  # pixels of the shorter side: smaller pictures have no room
WINDOW = 256  # pixels at most of the side that is searched
SCALES = np.geomspace(1 / 3, 3, 185)  # neighbours differ by 1.2 %: at most 0.8 pixels at the window's rim
SURE = 1e-6  # false positives among pictures that were never marked, at most
LEVELLED = 7  # pixels over which brightness and contrast are evened out before the search


@dataclass(frozen=True)
class Found:
    """The best match. `z`: in standard deviations; `chance`: of as good a one in a picture without a mark."""

    z: float
    chance: float
    scale: float  # of the picture as it is, to what it was

    @property
    def sure(self) -> bool:
        return self.chance < SURE


def marked(image: Image.Image) -> Image.Image:
    """An RGB picture with the mark; one smaller than `LEAST` as it is."""
    if min(image.size) < LEAST:
        return image
    pixels = torch.from_numpy(np.array(image)).float()  # [H, W, 3]
    rows, columns = (-(-side // PERIOD) for side in pixels.shape[:2])
    pattern = _pattern().tile(rows, columns)[: image.height, : image.width, None]
    values = (pixels + STRENGTH * pattern).clamp(0, 255).round().to(torch.uint8)
    return Image.fromarray(values.numpy())


def find(image: Image.Image) -> Found:
    """Search a picture for the mark: about a second."""
    grey = image.convert("L")
    best, scale = -math.inf, 1.0
    tried = 0
    for one in SCALES:
        size = tuple(round(side / one) for side in grey.size)
        if min(size) < LEAST // 2 or max(size) > 16 * WINDOW:
            continue
        z = _correlation(grey.resize((size[0], size[1]), Image.Resampling.BICUBIC))
        tried += PERIOD * PERIOD
        if z > best:
            best, scale = z, float(one)
    if not tried:
        return Found(0.0, 1.0, 1.0)
    return Found(best, min(1.0, tried * math.erfc(best / math.sqrt(2)) / 2), scale)


def _correlation(grey: Image.Image) -> float:
    """The largest correlation over all shifts, in standard deviations."""
    left, top = (max(0, (side - WINDOW) // 2) for side in grey.size)
    part = grey.crop((left, top, min(grey.width, left + WINDOW), min(grey.height, top + WINDOW)))
    pixels = torch.from_numpy(np.array(part)).float()[None, None]
    mean = _blurred(pixels)
    even = (pixels - mean) / ((_blurred(pixels**2) - mean**2).clamp(min=0).sqrt() + 3)
    rows, columns = (-(-side // PERIOD) for side in even.shape[2:])
    whole = F.pad(even, (0, columns * PERIOD - even.shape[3], 0, rows * PERIOD - even.shape[2]))[0, 0]
    folded = whole.unflatten(1, (columns, PERIOD)).unflatten(0, (rows, PERIOD)).sum((0, 2))
    match = torch.fft.irfft2(_phases(folded) * _wanted(), (PERIOD, PERIOD))
    spread = float(match.std())
    return float(match.max()) / spread if spread > 0 else 0.0


def _blurred(pixels: Tensor) -> Tensor:
    return F.avg_pool2d(pixels, LEVELLED, 1, LEVELLED // 2, count_include_pad=False)


def _phases(tile: Tensor) -> Tensor:
    """The directions of a tile's waves in the band, all of one size."""
    waves = torch.fft.rfft2(tile)
    return torch.where(_band(), waves / waves.abs().clamp(min=1e-9), 0)


@cache
def _wanted() -> Tensor:
    return _phases(_pattern()).conj()


@cache
def _band() -> Tensor:
    radius = torch.hypot(torch.fft.fftfreq(PERIOD)[:, None], torch.fft.rfftfreq(PERIOD)[None])
    return (radius > BAND[0]) & (radius < BAND[1])


@cache
def _pattern() -> Tensor:
    """[PERIOD, PERIOD] of zero mean and unit variance."""
    noise = torch.randn(PERIOD, PERIOD, generator=generator("mark", 1))
    pattern = torch.fft.irfft2(torch.where(_band(), torch.fft.rfft2(noise), 0), (PERIOD, PERIOD))
    return pattern / pattern.std()
