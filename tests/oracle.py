"""Targets with closed-form answers: what every sampler, prediction and likelihood is measured against.

For data p and x = x0 + sigma * eps, the perfect denoiser is the posterior mean
D(x, sigma) = E[x0 | x] = x + sigma^2 grad log p_sigma(x) (Tweedie). For a Gaussian and for a mixture of
isotropic Gaussians both sides are elementary; for the Gaussian even the probability-flow ODE is solved.
Everything is computed in float64 and returned in the dtype of x; x has any shape [B, *S], d numbers a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mezzotint.diffusion.types import Cond, Net


def rows(x: Tensor) -> Tensor:
    """x as float64 rows [B, d]."""
    return x.flatten(1).double()


def column(sigma: Tensor | float, x: Tensor) -> Tensor:
    """sigma (a number, [] or [B]) as float64 [B, 1]."""
    return torch.as_tensor(sigma, dtype=torch.float64).expand(len(x)).unsqueeze(1)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Data x0 ~ N(mean [d], cov [d, d]), both float64."""

    mean: Tensor
    cov: Tensor

    def _basis(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(eigenvalues [d], eigenvectors [d, d], coordinates [B, d] of x - mean in them)."""
        lam, q = torch.linalg.eigh(self.cov)
        return lam, q, (rows(x) - self.mean) @ q

    def denoise(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> Tensor:
        """E[x0 | x] = mean + cov (cov + sigma^2)^-1 (x - mean)."""
        lam, q, y = self._basis(x)
        return (self.mean + (y * lam / (lam + column(sigma, x) ** 2)) @ q.T).reshape(x.shape).to(x)

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """grad log p_sigma(x) = -(cov + sigma^2)^-1 (x - mean), like x."""
        lam, q, y = self._basis(x)
        return ((-y / (lam + column(sigma, x) ** 2)) @ q.T).reshape(x.shape).to(x)

    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """log p_sigma(x) [B] in nats."""
        lam, _, y = self._basis(x)
        var = lam + column(sigma, x) ** 2
        return -0.5 * (y**2 / var + var.log() + math.log(2 * math.pi)).sum(1)

    def flow(self, x: Tensor, sigma_from: Tensor | float, sigma_to: Tensor | float) -> Tensor:
        """The solution at sigma_to of dx/dsigma = (x - D) / sigma through x at sigma_from."""
        lam, q, y = self._basis(x)
        growth = ((lam + column(sigma_to, x) ** 2) / (lam + column(sigma_from, x) ** 2)).sqrt()
        return (self.mean + (y * growth) @ q.T).reshape(x.shape).to(x)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws of x0, [n, d] float64."""
        lam, q = torch.linalg.eigh(self.cov)
        eps = torch.randn(n, len(lam), generator=generator, dtype=torch.float64)
        return self.mean + (eps * lam.sqrt()) @ q.T

    def moments(self, sigma: float = 0.0) -> tuple[Tensor, Tensor]:
        """Mean [d] and covariance [d, d] of x at sigma."""
        return self.mean, self.cov + sigma**2 * torch.eye(len(self.mean), dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Data x0 ~ sum_k weights[k] N(means[k], stds[k]^2 I); means [K, d], weights and stds [K], float64."""

    means: Tensor
    weights: Tensor
    stds: Tensor

    def _log_joint(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """log(weights[k] N(x; means[k], stds[k]^2 + sigma^2)), [B, K]."""
        var = self.stds**2 + column(sigma, x) ** 2  # [B, K]
        square = (rows(x).unsqueeze(1) - self.means).square().sum(2)  # [B, K]
        d = self.means.shape[1]
        return self.weights.log() - 0.5 * (square / var + d * (2 * math.pi * var).log())

    def denoise(self, x: Tensor, sigma: Tensor | float, cond: Cond | None = None) -> Tensor:
        """E[x0 | x]: each component's Gaussian posterior mean, weighted by its posterior probability."""
        post = self._log_joint(x, sigma).softmax(1).unsqueeze(2)  # [B, K, 1]
        gain = (self.stds**2 / (self.stds**2 + column(sigma, x) ** 2)).unsqueeze(2)  # [B, K, 1]
        each = self.means + gain * (rows(x).unsqueeze(1) - self.means)  # [B, K, d]
        return (post * each).sum(1).reshape(x.shape).to(x)

    def score(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        """grad log p_sigma(x), like x."""
        post = self._log_joint(x, sigma).softmax(1)  # [B, K]
        pull = post / (self.stds**2 + column(sigma, x) ** 2)  # [B, K]
        return (pull @ self.means - pull.sum(1, keepdim=True) * rows(x)).reshape(x.shape).to(x)

    def log_prob(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """log p_sigma(x) [B] in nats."""
        return self._log_joint(x, sigma).logsumexp(1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws of x0, [n, d] float64."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        eps = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[k] + self.stds[k, None] * eps

    def moments(self, sigma: float = 0.0) -> tuple[Tensor, Tensor]:
        """Mean [d] and covariance [d, d] of x at sigma."""
        w = self.weights / self.weights.sum()
        mean = w @ self.means
        off = self.means - mean
        inner = (w * self.stds**2).sum() + sigma**2
        return mean, (w * off.T) @ off + inner * torch.eye(len(mean), dtype=torch.float64)


def gaussian(d: int, seed: int = 0) -> Gaussian:
    """A correlated Gaussian in d dimensions, standard deviations between about 0.3 and 2."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(d, d, generator=g, dtype=torch.float64) / math.sqrt(d)
    return Gaussian(torch.randn(d, generator=g, dtype=torch.float64), a @ a.T + 0.1 * torch.eye(d).double())


def mixture(d: int, k: int = 4, seed: int = 0) -> Mixture:
    """k well separated components in d dimensions, standard deviations 0.2 to 0.6."""
    g = torch.Generator().manual_seed(seed)
    means = 1.5 * torch.randn(k, d, generator=g, dtype=torch.float64)
    weights = 0.5 + torch.rand(k, generator=g, dtype=torch.float64)
    return Mixture(
        means, weights / weights.sum(), 0.2 + 0.4 * torch.rand(k, generator=g, dtype=torch.float64)
    )


# What a perfect net says, by each prediction's own definition: functions of (x0, eps, sigma), where
# a and s are the signal and noise amplitudes of the variance-preserving view z = a * x0 + s * eps.
ANSWERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda x0, eps, sigma: eps,
    "sample": lambda x0, eps, sigma: x0,
    "v_prediction": lambda x0, eps, sigma: (eps - sigma * x0) / (1 + sigma**2).sqrt(),  # a * eps - s * x0
    "flow": lambda x0, eps, sigma: eps - x0,
    "score": lambda x0, eps, sigma: -eps / sigma,
}


def net(oracle: Gaussian | Mixture, process: Any, prediction: str, sigma_data: float = 0.5) -> Net:
    """The perfect net of `oracle` for a process and a prediction; it sees z = scale * x and the time."""

    def answer(z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        sigma = process.sigma(t).reshape(-1, *[1] * (z.ndim - 1))
        x = z / process.scale(sigma)
        x0 = oracle.denoise(x, sigma.flatten())
        if prediction == "edm":  # table 1 of Karras et al. 2022, from x0 and x
            total = sigma**2 + sigma_data**2
            return (x0 - sigma_data**2 / total * x) * total.sqrt() / (sigma * sigma_data)
        return ANSWERS[prediction](x0, (x - x0) / sigma, sigma)

    return answer
