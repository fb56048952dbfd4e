"""Noise schedules of the variance-preserving process: how much noise each of its T steps adds.

q(z_t | z_{t-1}) = N(sqrt(1 - beta_t) z_{t-1}, beta_t I). A schedule is a function (T, beta_start, beta_end) -> betas;
what the rest of the program reads is the running product alphas_cumprod[t] = prod_{s <= t} (1 - beta_s).
Linear: Ho et al. 2020. Scaled linear: Rombach et al. 2022. Cosine: Nichol & Dhariwal 2021. Sigmoid: Xu et al. 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Schedule = Callable[[int, float, float], Tensor]  # (steps, beta_start, beta_end) -> betas [steps], float64


def linear(steps: int, beta_start: float, beta_end: float) -> Tensor:
    """beta rises linearly."""
    return torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)


def scaled_linear(steps: int, beta_start: float, beta_end: float) -> Tensor:
    """sqrt(beta) rises linearly: the schedule of Stable Diffusion."""
    return torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2


def cosine(
    steps: int, beta_start: float, beta_end: float, *, offset: float = 0.008, cap: float = 0.999
) -> Tensor:
    """alphas_cumprod falls like cos^2 (eq. 17), whatever beta_start and beta_end are.

    `offset` keeps the first steps from being too small, `cap` the last ones from destroying everything.
    """
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    remaining = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - remaining[1:] / remaining[:-1]).clamp(max=cap)


def sigmoid(steps: int, beta_start: float, beta_end: float) -> Tensor:
    """beta rises along a logistic curve, seen from -6 to 6."""
    curve = torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid()
    return beta_start + (beta_end - beta_start) * curve


SCHEDULES: dict[str, Schedule] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
}

LEAST_SIGNAL = 2.0**-24  # alphas_cumprod where theory says 0: sigma is then 4096, not infinite


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """The same schedule, shifted and stretched so that its last step holds no signal (Lin et al. 2023, alg. 1).

    sqrt(alphas_cumprod) is mapped linearly: its first value stays, its last becomes 0. Sigma would be infinite
    there, so the last value is set to `LEAST_SIGNAL`, the smallest half-precision number, as diffusers does;
    to less where the step before it has come as low, for sigma must rise.
    """
    signal = alphas_cumprod.sqrt()
    signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    rescaled = signal**2
    rescaled[-1] = rescaled[-2].div(2).clamp(max=LEAST_SIGNAL)
    return rescaled
