"""Statistics of another picture: taken over exactly, moving as little as can be, and only where it is said."""

import torch

from mezzotint.diffusion.style import resembling, transported
from mezzotint.diffusion.types import Cond


def maps(seed, size=12, rows=2):
    draw = torch.Generator().manual_seed(seed)
    mix, mean = (torch.randn(rows, 4, n, generator=draw) for n in (4, 1))
    return (mix @ torch.randn(rows, 4, size * size, generator=draw) + mean).unflatten(2, (size, size))


def covariance(x):
    return torch.stack([torch.cov(row.flatten(1), correction=0) for row in x])


def test_mean_and_covariance_are_the_other_s_whatever_its_size():
    x, other = maps(0), maps(1, size=7)
    y = transported(x, other)
    assert torch.allclose(y.mean((2, 3)), other.mean((2, 3)), atol=1e-4)
    assert torch.allclose(covariance(y), covariance(other), rtol=0.02, atol=0.02)
    assert torch.allclose(transported(x, x), x, atol=1e-4)
    flat = transported(torch.zeros(1, 4, 5, 5), other[:1])
    assert torch.allclose(flat.mean((2, 3)), other[:1].mean((2, 3)), atol=1e-4)


def test_no_other_map_that_does_it_moves_less():
    """The transport's mean squared way is the squared Wasserstein distance; a turned one's is longer."""
    x, other = maps(2, rows=1), maps(3, rows=1)
    way = (transported(x, other) - x).square().mean()
    turned = transported(x.flip(1), other)  # the channels in another order
    assert way < (turned - x).square().mean()


def test_only_above_the_level_and_by_the_strength():
    style, x = maps(4), maps(5)

    def denoise(x, sigma, cond):
        return x / 2

    def told(strength, level, until=0.5):
        return resembling(denoise, style, strength, until=until)(x, torch.full((2,), level), Cond())

    assert torch.equal(told(1.0, 0.4), x / 2)
    assert torch.allclose(told(1.0, 0.6), transported(x / 2, style))
    half = told(0.5, 0.6)
    assert torch.allclose(half, (x / 2 + transported(x / 2, style)) / 2, atol=1e-5)
    assert resembling(denoise, style, 0.0) is denoise
