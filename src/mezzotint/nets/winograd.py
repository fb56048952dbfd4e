"""3 x 3 convolution with fewer products: Winograd's minimal filtering.

    Y = A^T [(G w G^T) * (B^T X B)] A

makes m x m pixels of Y from n x n of X, n = m + 2, with n^2 products where the definition takes 9 m^2: 2.25 times fewer
for m = 2, 4 times for m = 4 (Lavin & Gray 2016, arXiv 1509.09308; Cook and Toom's construction from points). Here each
transform is one matrix product over all tiles, and so are the products over channels. With the points 0, 1, -1, 1/2, -2
the largest rounding error of m = 4 in float32 is about 3e-5 of the deviation, twice oneDNN's; m = 2 stays below it.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 1.0, -1.0, 0.5, -2.0)}  # and infinity
LEAST_CHANNELS = 128  # with fewer, transforms cost more than they save
LEAST_WORK = 10 * 2**20  # channels in times channels out times pixels; with less, oneDNN is as fast or faster
LEAST_TILES = 8  # with fewer, the transformed filters take longer to read than there is to compute with them
MANY_TILES = (
    64  # from here on any filters pay; below, those of m = 4 must be small enough to stay in the cache
)
CACHED = 8 * 2**20  # bytes
TOGETHER = 64  # tiles at a time


class Transforms(NamedTuple):
    """The three matrices for m x m outputs, each for both directions at once, over flattened tiles."""

    into: Tensor  # [n^2, n^2], B^T x B^T
    filters: Tensor  # [n^2, 9], G x G; float64
    out: Tensor  # [m^2, n^2], A^T x A^T


@cache
def transforms(m: int) -> Transforms:
    """Evaluate both polynomials at n - 1 points and infinity, multiply, interpolate; transposed."""
    n, points = m + 2, torch.tensor(POINTS[m], dtype=torch.float64)
    powers = torch.zeros(n, n, dtype=torch.float64)  # row i: 1, a_i, a_i^2, ...; infinity sees the last alone
    powers[:-1] = points[:, None] ** torch.arange(n)
    powers[-1, -1] = 1
    into = torch.linalg.inv(powers).T
    a, g = powers[:, :m].clone(), powers[:, :3].clone()
    a[-1, -1] = g[-1, -1] = 1
    size = torch.exp2(into.abs().amax(1, keepdim=True).log2().round())  # powers of two move without rounding
    into, g = into / size, g * size
    return Transforms(
        torch.kron(into, into).float(),
        torch.kron(g, g),
        torch.kron(a.T.contiguous(), a.T.contiguous()).float(),
    )


def tile_size(c_in: int, c_out: int, images: int, height: int, width: int) -> int:
    """m for maps of this shape that are convolved together; 0 where the definition is as fast."""
    if min(c_in, c_out) < LEAST_CHANNELS or c_in * c_out * images * height * width < LEAST_WORK:
        return 0
    for m in (4, 2):
        n, tiles = m + 2, images * math.ceil(height / m) * math.ceil(width / m)
        small = n * n * c_in * c_out * 4 <= CACHED
        saves = n * n * tiles < 5 * images * height * width  # of 9; the rest pays for the transforms
        if saves and tiles >= (LEAST_TILES if small or m == 2 else MANY_TILES):
            return m
    return 0


def transformed(weight: Tensor, m: int) -> Tensor:
    """Filters [C_out, C_in, 3, 3] -> [n^2, C_in, C_out], float32.

    In this order: of products with [C_out, C_in], the last bit was found to depend on the number of tiles.
    """
    c_out, c_in = weight.shape[:2]
    flat = weight.detach().permute(2, 3, 1, 0).reshape(9, -1)
    return (transforms(m).filters.float() @ flat.float()).view(-1, c_in, c_out)


def convolve(x: Tensor, filters: Tensor, bias: Tensor | None, m: int) -> Tensor:
    """[B, C_in, H, W] float32 with `transformed` filters, padding 1 -> [B, C_out, H, W] in channels_last memory.

    Some tiles at a time (several small maps, or a strip of a large one), so that what lies between the products
    stays in the cache.
    """
    n, (images, c_in, height, width), c_out = m + 2, x.shape, filters.shape[2]
    down, across = math.ceil(height / m), math.ceil(width / m)
    maps = x.permute(0, 2, 3, 1)  # [B, H, W, C_in]
    y = x.new_empty(images, down, m, across, m, c_out)
    rows = min(down, max(1, TOGETHER // across))
    each = min(images, max(1, TOGETHER // (down * across)))
    padded = x.new_zeros(each, rows * m + 2, across * m + 2, c_in)
    tiles = each * rows * across
    scratch = [x.new_empty(n * n * tiles * c) for c in (c_in, c_in, c_out)]
    for i in range(0, images, each):
        for j in range(0, down, rows):
            part = y[i : i + each, j : j + rows]
            strip = padded[: len(part), : part.shape[1] * m + 2]
            above, below = int(j == 0), min(height + 1 - j * m, strip.shape[1])
            if rows < down:  # another strip was here
                strip[:, :above].zero_()
                strip[:, below:].zero_()
            strip[:, above:below, 1 : 1 + width] = maps[i : i + each, j * m - 1 + above : j * m - 1 + below]
            _tiles(strip, filters, bias, part, scratch)
    y = y.view(images, down * m, across * m, c_out)[:, :height, :width].permute(0, 3, 1, 2)
    return y.contiguous(memory_format=torch.channels_last)


def _tiles(maps: Tensor, filters: Tensor, bias: Tensor | None, y: Tensor, scratch: list[Tensor]) -> None:
    """maps [b, t * m + 2, across * m + 2, C_in] -> y [b, t, m, across, m, C_out], in place."""
    b, t, m, across, _, c_out = y.shape
    n, tiles, c_in = m + 2, b * t * across, maps.shape[3]
    size = n * n
    seen, waves, products = (
        buffer[: size * tiles * c].view(size, tiles * c)
        for buffer, c in zip(scratch, (c_in, c_in, c_out), strict=True)
    )
    into, _, out = transforms(m)
    image, line, pixel, _ = maps.stride()
    windows = maps.as_strided((n, n, b, t, across, c_in), (line, pixel, image, m * line, m * pixel, 1))
    seen.view(windows.shape).copy_(windows)
    torch.mm(into, seen, out=waves)
    torch.bmm(waves.view(size, tiles, c_in), filters, out=products.view(size, tiles, c_out))
    made = torch.mm(out, products).view(m, m, b, t, across, c_out).permute(2, 3, 0, 4, 1, 5)
    if bias is None:
        y.copy_(made)
    else:
        torch.add(made, bias, out=y)
