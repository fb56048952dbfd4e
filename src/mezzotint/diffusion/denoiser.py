"""From a net to a denoiser: D(x, sigma, cond) = c_skip x + c_out F(scale x, time, cond).

Everything above this file (samplers, guidance, tasks, likelihood) sees D alone: the best guess at the picture x0
behind x = x0 + sigma * eps. By Tweedie's formula it is also the score of the noisy data,
grad log p_sigma(x) = (D(x, sigma) - x) / sigma^2 (Efron 2011; Karras et al. 2022, eq. 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .loss import Weight, simple
from .prediction import Prediction, named
from .process import Process
from .types import Cond, Net


def per_row(sigma: Tensor | float, x: Tensor) -> Tensor:
    """sigma (a number, [] or [B]) as [B, 1, ...], to go with x [B, *S] in its dtype and on its device."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    return sigma.expand(len(x)).reshape(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class Denoiser:
    """A net, the process it was trained on, and what it predicts: a name of `PREDICTIONS` or such a function.

    The net is given z and t in the dtype of x and may answer in a lower precision (autocast); x never leaves
    its own. Raises UsageError for an unknown prediction.
    """

    net: Net
    process: Process
    prediction: str | Prediction

    def __post_init__(self) -> None:
        named(self.prediction)

    def __call__(self, x: Tensor, sigma: Tensor | float, cond: Cond = Cond()) -> Tensor:
        """The estimate of x0 [B, *S] from x [B, *S] at noise level sigma [B] (or one number for all)."""
        c_skip, c_out, answer = self._ask(x, per_row(sigma, x), cond)
        return c_skip * x + c_out * answer

    def score(self, x: Tensor, sigma: Tensor | float, cond: Cond = Cond()) -> Tensor:
        """grad log p_sigma(x) [B, *S], for sigma > 0."""
        return (self(x, sigma, cond) - x) / per_row(sigma, x) ** 2

    def loss(
        self, x0: Tensor, eps: Tensor, sigma: Tensor, cond: Cond = Cond(), *, weight: Weight = simple
    ) -> Tensor:
        """Squared error of the net's answer, a mean over each picture, times its weight: [B].

        x0 and eps [B, *S]: pictures and standard normal noise; sigma [B]: noise levels, all > 0.
        """
        sigma = per_row(sigma, x0)
        x = x0 + sigma * eps
        c_skip, c_out, answer = self._ask(x, sigma, cond)
        target = (x0 - c_skip * x) / c_out
        error = (answer - target).square().flatten(1).mean(1)  # [B]
        return weight(sigma.flatten(), c_out.flatten()) * error

    def _ask(self, x: Tensor, sigma: Tensor, cond: Cond) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, the net's answer) for sigma [B, 1, ...]."""
        c_skip, c_out = named(self.prediction)(sigma)
        answer = self.net(self.process.scale(sigma) * x, self.process.time(sigma.flatten()), cond)
        return c_skip, c_out, answer.to(x.dtype)
