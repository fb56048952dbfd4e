"""Samples given a part: the known part is kept, the rest is as likely as it should be."""

import pytest
import torch

from conditional import METHODS, PROBLEMS, conditional
from mezzotint.diffusion.posterior import corrected, reconstructed, region, replaced
from mezzotint.diffusion.samplers import SAMPLERS
from mezzotint.diffusion.types import Cond
from mezzotint.metrics.two_sample import two_sample_accuracy
from oracle import Mixture, gaussian

LANGEVIN = "Langevin, 5 inner steps"


def test_a_known_mode_is_found():
    """Two modes; what is known belongs to one of them: replacement finds the other far too often, Langevin does not."""
    target = Mixture(
        torch.tensor([[1.0, 2.0], [-1.0, -2.0]]).double(),
        torch.tensor([0.3, 0.7]).double(),
        torch.full((2,), 0.4).double(),
    )
    x0 = torch.tensor([[0.6, 0.0]]).double().expand(800, 2)
    odds = (0.3 / 0.7) * torch.exp(torch.tensor(2 * 0.6 / 0.4**2))
    wrong_truth = float(1 / (1 + odds))
    wrong = {}
    for name in ("replacement", "RePaint, 6 times", LANGEVIN):
        drawn, _ = conditional(target, x0, 1, METHODS[name])
        assert torch.equal(drawn[:, 0], x0[:, 0])
        wrong[name] = float((drawn[:, 1] < 0).double().mean())
    assert wrong_truth < 0.01
    assert wrong["replacement"] > 0.4
    assert wrong[LANGEVIN] < 0.1
    assert wrong["RePaint, 6 times"] > 0.3


@pytest.mark.parametrize("until", [0.0, 0.3])
def test_of_a_gaussian_mean_and_covariance_are_right(until):
    target = gaussian(4, seed=1)
    x0 = target.sample(1, torch.Generator().manual_seed(0)).expand(4000, 4)
    way = (40, lambda d, k, e: (d, corrected(SAMPLERS["ddim"], k, times=5, until=until)))
    drawn, _ = conditional(target, x0, 2, way)
    a, b, c = target.cov[:2, :2], target.cov[:2, 2:], target.cov[2:, 2:]
    gain = b.T @ torch.linalg.inv(a)
    mean, cov = target.mean[2:] + gain @ (x0[0, :2] - target.mean[:2]), c - gain @ b
    assert torch.allclose(drawn[:, 2:].mean(0), mean, atol=0.1 * float(c.diag().max().sqrt()))
    assert torch.allclose(drawn[:, 2:].T.cov(), cov, atol=0.2 * float(cov.diag().max()))


def test_inner_steps_are_taken_above_a_level():
    target, calls = gaussian(4, seed=1), []

    def counted(x, sigma, cond):
        calls.append(float(sigma[0]))
        return target.denoise(x, sigma)

    known = region(torch.ones(2, 4).double(), torch.tensor([1.0, 1, 0, 0]).double())
    sampler = corrected(SAMPLERS["ddim"], known, times=3, until=0.5)
    levels = torch.tensor([2.0, 1.0, 0.5, 0.25, 0.0]).double()
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).double()
    list(sampler(counted, x, levels, Cond(), noise=lambda i: torch.zeros(2, 4).double()))
    assert calls == [2.0] * 4 + [1.0] * 4 + [0.5, 0.25]


def test_reconstruction_steps_towards_what_is_known():
    target = gaussian(4, seed=1)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
    known = region(torch.ones(5, 4).double(), torch.tensor([1.0, 1, 0, 0]).double())
    sigma = torch.full((5,), 0.5).double()
    with torch.inference_mode():
        plain = target.denoise(x, sigma)
        moved = reconstructed(target.denoise, known)(x, sigma, Cond())
    assert (known.part(moved - 1).norm(dim=1) < known.part(plain - 1).norm(dim=1)).all()
    assert ((moved - plain)[:, 2:].abs() > 1e-3).any()  # what is unknown hears of it


def test_what_is_known_is_answered_exactly():
    target = gaussian(4, seed=1)
    x0 = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
    known = region(x0, torch.tensor([1.0, 0, 1, 0]).double())
    d = replaced(target.denoise, known, torch.zeros(3, 4).double())(x0 + 1, torch.ones(3).double(), Cond())
    assert torch.equal(d[:, ::2], x0[:, ::2])


def test_the_two_sample_test_knows_same_from_different():
    a, b = torch.randn(2, 4000, 2, generator=torch.Generator().manual_seed(0))
    assert abs(two_sample_accuracy(a, b, steps=150) - 0.5) < 0.03
    turned = torch.stack([b[:, 0], 0.9 * b[:, 0] + 0.44 * b[:, 1]], 1)  # the same marginals
    assert two_sample_accuracy(a, turned, steps=150) > 0.6


@pytest.mark.slow
@pytest.mark.parametrize("title", PROBLEMS)
def test_a_classifier_cannot_tell(title):
    target, known = PROBLEMS[title]
    x0, true = (target.sample(4000, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert two_sample_accuracy(conditional(target, x0, known, METHODS[LANGEVIN])[0], true) < 0.56
    assert two_sample_accuracy(conditional(target, x0, known, METHODS["replacement"])[0], true) > 0.65
