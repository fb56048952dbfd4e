"""What training minimises: which noise levels are drawn, and how much an error at each of them counts.

The loss is E[ w |F - target|^2 ] in the net's own space. As D - x0 = c_out (F - target), an error in the picture
counts w / c_out^2 in it: with that, each weight is one line in (sigma, c_out), right for every prediction.
Weights: Ho et al. 2020, Hang et al. 2023, Karras et al. 2022 and 2024. Levels: Karras et al. 2022, Esser et al. 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .noise import generator
from .process import Flow, Process

Weight = Callable[[Tensor, Tensor], Tensor]  # (sigma[B], c_out[B]) -> factor on the net's squared error [B]


def simple(sigma: Tensor, c_out: Tensor) -> Tensor:
    """1: every answer of the net counts the same (Ho et al. 2020, eq. 14)."""
    return torch.ones_like(sigma)


def min_snr(sigma: Tensor, c_out: Tensor, gamma: float = 5.0) -> Tensor:
    """An error in the picture counts SNR = 1 / sigma^2, at most gamma (Hang et al. 2023)."""
    return (sigma**-2).clamp(max=gamma) * c_out**2


def edm(sigma: Tensor, c_out: Tensor, sigma_data: float = 0.5) -> Tensor:
    """An error in the picture counts 1 / sigma^2 + 1 / sigma_data^2 (Karras et al. 2022); 1 for EDM's net."""
    return (sigma**-2 + sigma_data**-2) * c_out**2


WEIGHTS: dict[str, Weight] = {"simple": simple, "min_snr": min_snr, "edm": edm}


class Uncertainty(nn.Module):
    """Learned weighting: loss / exp(u) + u, with u(sigma) a small function (Kendall et al. 2018; Karras et al. 2024).

    The best u is the log of the expected loss at sigma: every noise level ends up with the same say, however hard
    it is. It composes with any weight, `uncertainty(denoiser.loss(...), sigma)`. u is linear in Fourier features of
    log(sigma) / 4, starts at 0, and is thrown away after training.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, features: int = 128) -> None:
        super().__init__()
        draw = generator("uncertainty", features)
        self.register_buffer("frequency", 2 * torch.pi * torch.randn(features, generator=draw))
        self.register_buffer("phase", 2 * torch.pi * torch.rand(features, generator=draw))
        self.weight = nn.Parameter(torch.zeros(features))

    def log_variance(self, sigma: Tensor) -> Tensor:
        """u(sigma), shaped like sigma."""
        angle = (sigma.float().log() / 4).unsqueeze(-1) * self.frequency + self.phase
        return (2**0.5 * angle.cos() / len(self.weight) ** 0.5) @ self.weight

    def forward(self, loss: Tensor, sigma: Tensor) -> Tensor:
        """loss [B] at sigma [B] -> the loss to minimise [B], over the net and over u together."""
        u = self.log_variance(sigma)
        return loss / u.exp() + u


def uniform(process: Process, n: int, draw: torch.Generator) -> Tensor:
    """n noise levels [n] (float64), uniform in the process's own time."""
    return process.quantile(torch.rand(n, generator=draw, dtype=torch.float64))


def lognormal(
    process: Process, n: int, draw: torch.Generator, *, mean: float = -1.2, std: float = 1.2
) -> Tensor:
    """n noise levels [n] (float64) with log sigma ~ N(mean, std^2) (Karras et al. 2022, table 1)."""
    level = mean + std * torch.randn(n, generator=draw, dtype=torch.float64)
    return level.exp().clamp(process.sigma_min, process.sigma_max)


def logit_normal(
    process: Process, n: int, draw: torch.Generator, *, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """n noise levels [n] (float64) with logit t ~ N(mean, std^2), then shifted (Esser et al. 2024, eq. 19).

    logit t is log sigma: this is `lognormal`, and the shift of a `Flow` moves its mean.
    """
    shift = process.shift if isinstance(process, Flow) else 1.0
    return lognormal(process, n, draw, mean=mean + math.log(shift), std=std)


Levels = Callable[..., Tensor]  # (process, n, generator, **knobs) -> sigma [n]
LEVELS: dict[str, Levels] = {"uniform": uniform, "lognormal": lognormal, "logit_normal": logit_normal}
