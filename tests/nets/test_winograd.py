"""Winograd's convolution is the convolution: against torch's in float64, over shapes, strips and batches."""

import pytest
import torch
import torch.nn.functional as F

from mezzotint.nets.winograd import POINTS, TOGETHER, convolve, tile_size, transformed, transforms


@pytest.mark.parametrize("m", POINTS)
def test_transforms_filter_polynomials(m):
    """In one dimension: y_i = sum_j w_j x_(i + j), from which the matrices are Kronecker squares."""
    n = m + 2
    into, filters, out = (matrix.double() for matrix in transforms(m))
    x, w = torch.randn(n, n, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    y = (out @ ((filters @ w.flatten()) * (into @ x.flatten()))).view(m, m)
    torch.testing.assert_close(y, F.conv2d(x[None, None], w[None, None])[0, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("m", POINTS)
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (17, 33), (40, 90)])
@pytest.mark.parametrize("images", [1, 3, 18])
def test_agrees_with_the_definition(m, size, images):
    torch.manual_seed(0)
    x = torch.randn(images, 33, *size).contiguous(memory_format=torch.channels_last)
    w, b = torch.randn(34, 33, 3, 3) / 17, torch.randn(34)
    for bias in (b, None):
        y = convolve(x, transformed(w, m), bias, m)
        exact = F.conv2d(x.double(), w.double(), None if bias is None else bias.double(), padding=1)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y.double(), exact, atol=2e-5, rtol=0)


def test_rounding_error_is_small():
    torch.manual_seed(0)
    x, w = torch.randn(2, 320, 32, 32), torch.randn(320, 320, 3, 3) / (9 * 320) ** 0.5
    exact = F.conv2d(x.double(), w.double(), padding=1)
    for m, most in ((2, 6e-6), (4, 4e-5)):  # of values of unit variance; torch's own kernels: 1e-6 to 1.5e-5
        assert (convolve(x, transformed(w, m), None, m) - exact).abs().max() < most


def test_an_image_does_not_depend_on_the_batch():
    x, w = (
        torch.randn(16, 48, 16, 16).contiguous(memory_format=torch.channels_last),
        torch.randn(48, 48, 3, 3),
    )
    together = convolve(x, transformed(w, 4), None, 4)
    assert TOGETHER < 16 * 16  # tiles: more than one round
    for i in range(0, 16, 2):
        assert torch.equal(convolve(x[i : i + 2].clone(), transformed(w, 4), None, 4), together[i : i + 2])


@pytest.mark.parametrize(
    ("shape", "m"),
    [
        ((4, 320, 2, 64, 64), 0),  # too few channels for transforms to pay
        ((320, 320, 2, 64, 64), 4),
        ((1280, 1280, 2, 16, 16), 2),  # the filters of m = 4 would be read for longer than they are used
        ((96, 96, 2, 16, 16), 0),
        ((128, 128, 1, 32, 32), 4),
        ((160, 160, 2, 8, 8), 0),  # too little work
        ((1280, 1280, 2, 8, 8), 2),
        ((2560, 1280, 2, 2, 2), 0),
        ((640, 640, 2, 5, 5), 0),  # of tiles, too much would lie outside
    ],
)
def test_size_of_tiles(shape, m):
    assert tile_size(*shape) == m
