"""Measures on pictures that need no judge: the colour of a background, distances, reconstruction.

A background is named by the colour of PALETTE nearest, in CIELAB (CIE 1976, D65), to the median of the frame of
border pixels. Distances between pictures are root mean squares over 32 x 32 averaged pixels: near means the same
things in the same places on the same colour, which is what a copied picture would be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FRAME = 1 / 32  # width of the border as a share of the side
SMALL = 32
_XYZ = torch.tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = torch.tensor([0.9505, 1.0, 1.089])


def background_colours(pictures: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> the median colour of each border, uint8 [B, 3]."""
    width = max(1, round(FRAME * pictures.shape[-1]))
    inside = torch.zeros(pictures.shape[-2:], dtype=torch.bool)
    inside[width:-width, width:-width] = True
    return pictures[:, :, ~inside].median(dim=2).values


def named_colours(colours: Tensor, palette: Mapping[str, tuple[int, int, int]]) -> list[str]:
    """uint8 [B, 3] -> for each the name of the nearest colour of the palette."""
    names = list(palette)
    distances = torch.cdist(lab(colours), lab(torch.tensor([palette[name] for name in names])))
    return [names[int(i)] for i in distances.argmin(1)]


def lab(colours: Tensor) -> Tensor:
    """sRGB colours of 0..255 [B, 3] -> CIELAB [B, 3] (IEC 61966-2-1, CIE 15)."""
    c = colours.float() / 255
    linear = torch.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    t = linear @ _XYZ.T / _WHITE
    f = torch.where(t > (6 / 29) ** 3, t.clamp(min=1e-9) ** (1 / 3), t * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def colour_distance(pictures: Tensor, others: Tensor) -> list[float]:
    """How far the colours of each pair of uint8 [B, 3, H, W] are apart, in units of CIELAB.

    The 2-Wasserstein distance between the Gaussians with their means and covariances: |m - n|^2 + tr(S + T - 2 (S^1/2 T
    S^1/2)^1/2) is its square (Dowson & Landau 1982).
    """
    return [_apart(_colours(a), _colours(b)) for a, b in zip(pictures, others, strict=True)]


def _colours(picture: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [3, H, W] -> mean [3] and covariance [3, 3] of its colours."""
    points = lab(picture.flatten(1).T).double()
    return points.mean(0), torch.cov(points.T)


def _apart(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    (m, s), (n, t) = a, b
    root = _root(s)
    square = (m - n).square().sum() + (s + t - 2 * _root(root @ t @ root)).trace()
    return float(square.clamp(min=0).sqrt())


def _root(matrix: Tensor) -> Tensor:
    """The square root of a symmetric matrix [3, 3] without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def small(pictures: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3 * 32 * 32] in [0, 1], averaged."""
    x = F.interpolate(pictures.float(), (SMALL, SMALL), mode="area")
    return x.flatten(1) / 255


def nearest_two(pictures: Tensor, others: Tensor) -> np.ndarray:
    """Distances of each picture to the nearest and the second nearest of `others` (both from `small`): [B, 2]."""
    parts = [torch.cdist(part, others).topk(2, dim=1, largest=False).values for part in pictures.split(64)]
    return torch.cat(parts).numpy() / pictures.shape[1] ** 0.5


def psnr(pictures: Tensor, others: Tensor) -> list[float]:
    """Peak signal to noise ratio of each pair, in dB, from uint8 [B, 3, H, W]; equal pictures count as 99."""
    errors = (pictures.float() - others.float()).square().flatten(1).mean(1)
    return [99.0 if error == 0 else 10 * float(np.log10(255**2 / error)) for error in errors.tolist()]


def half(pictures: Tensor, side: str) -> Tensor:
    """The crop of square pictures where a pair has its thing on that side: uint8 [B, 3, h, h]."""
    width = pictures.shape[-1]
    reach, first = round(0.56 * width), round(0.22 * width)
    across, near, far = slice(first, first + reach), slice(0, reach), slice(width - reach, width)
    rows = {"left": across, "right": across, "top": near, "bottom": far}[side]
    columns = {"left": near, "right": far, "top": across, "bottom": across}[side]
    return pictures[:, :, rows, columns]


def stack(arrays: Sequence[np.ndarray]) -> Tensor:
    """Arrays uint8 [H, W, 3] -> uint8 [B, 3, H, W]."""
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
