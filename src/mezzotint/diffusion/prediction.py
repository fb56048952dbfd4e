"""What a net may predict: one function each, sigma -> (c_skip, c_out), so that x0 = c_skip * x + c_out * F.

Read backwards, the same line is the training target of every one of them: F = (x0 - c_skip * x) / c_out.
Only these two scalars tell eps (Ho et al. 2020), x0, v (Salimans & Ho 2022), flow (Lipman et al. 2023), the
score (Song et al. 2021) and EDM's preconditioned net (Karras et al. 2022) apart. Each follows from x = x0 +
sigma * eps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import unknown

Prediction = Callable[[Tensor], tuple[Tensor, Tensor]]  # sigma -> (c_skip, c_out), both like sigma


def epsilon(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """F = eps, the noise: x0 = x - sigma F."""
    return torch.ones_like(sigma), -sigma


def sample(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """F = x0, the picture."""
    return torch.zeros_like(sigma), torch.ones_like(sigma)


def v_prediction(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """F = a eps - s x0 with a = 1 / sqrt(1 + sigma^2), s = sigma a: velocity on the circle a^2 + s^2 = 1."""
    a = (1 + sigma**2).rsqrt()
    return a**2, -sigma * a


def flow(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """F = eps - x0 = dz/dt: the velocity on the line z = (1 - t) x0 + t eps."""
    return 1 / (1 + sigma), -sigma / (1 + sigma)


def score(sigma: Tensor) -> tuple[Tensor, Tensor]:
    """F = grad log p_sigma(x), which is -eps / sigma on average (Vincent 2011)."""
    return torch.ones_like(sigma), sigma**2


def edm(sigma: Tensor, sigma_data: float = 0.5) -> tuple[Tensor, Tensor]:
    """F has unit variance and is amplified least; table 1 of the paper. sigma_data: the data's deviation."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data * total.rsqrt()


PREDICTIONS: dict[str, Prediction] = {
    "epsilon": epsilon,
    "sample": sample,
    "v_prediction": v_prediction,
    "flow": flow,
    "score": score,
    "edm": edm,
}


def named(prediction: str | Prediction) -> Prediction:
    """The function of a name; a function stands for itself. Raises UsageError for an unknown name."""
    if not isinstance(prediction, str):
        return prediction
    if prediction not in PREDICTIONS:
        raise unknown("prediction", prediction, PREDICTIONS)
    return PREDICTIONS[prediction]
