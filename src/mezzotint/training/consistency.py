"""Stage `consistency`: a model that took twenty steps learns to take one or two.

Easy consistency tuning (Geng et al. 2024, arXiv 2406.14548): the estimate D(x_t, t) is to be what D(x_r, r) is for
x_t = x0 + t eps and x_r = x0 + r eps, r < t. At first r = 0, which is the loss that the model was trained on; then the
gap 1 - r / t is halved again and again. With a guidance scale, x_r is where the model as it was, guided, would step
from x_t (Luo et al. 2023, arXiv 2310.04378), and the tuned model needs no guidance and half the evaluations.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..diffusion.denoiser import Denoiser, per_row
from ..diffusion.guidance import cfg
from ..diffusion.process import VariancePreserving
from ..diffusion.types import Cond
from ..errors import UsageError
from .config import TrainConfig
from .denoising import Batch, DenoisingStage
from .loop import Loss

HUBER = 0.00054  # c / sqrt(dimensions) of sqrt(|d|^2 + c^2) - c (Song and Dhariwal 2023)
STEEP, SHARP = 8.0, 1.0  # k and b of n(t) = 1 + k sigmoid(-b t): smaller gaps where there is less noise
STOPS = 50  # timesteps that the shipped grid picks from


class ConsistencyStage(DenoisingStage):
    """Tunes the U-Net of `model.start`."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        if not config.model.start:
            raise UsageError("stage 'consistency' needs model.start: the model that is to take fewer steps")
        super().__init__(config, device)
        plan = self.model.plan
        if not isinstance(plan.process, VariancePreserving) or plan.prediction == "sample":
            raise UsageError(
                f"stage 'consistency' takes models of a variance-preserving process that predict epsilon or v; this "
                f"one is of {type(plan.process).__name__} and predicts {plan.prediction}"
            )
        self.model.plan = replace(plan, sampler="lcm", sampler_knobs={}, grid="distilled", grid_knobs={})

    def trained(self) -> dict[str, nn.Module]:
        players = super().trained()
        teacher = copy.deepcopy(self.model.unet).eval().requires_grad_(False)
        self.teacher = Denoiser(teacher, self.model.process, self.model.plan.prediction)
        return players

    @property
    def guidance(self) -> float:
        """That which was learned needs no more of it."""
        return 1.0

    def losses(self, batch: Batch, step: int) -> Iterator[Loss]:
        doublings = int(self.config.consistency.doublings * step / self.config.optim.steps)
        loss = self._distances(batch, doublings)
        yield Loss("unet", loss.mean(), {"gap": torch.tensor(0.5**doublings)})

    def _distances(self, batch: Batch, doublings: int) -> Tensor:
        """How far the estimates at t are from those at r, per row [B]."""
        x0, eps = (
            x.to(self.device).contiguous(memory_format=torch.channels_last) for x in (batch.x0, batch.eps)
        )
        t = batch.sigma.to(self.device)
        r = earlier(t, doublings)
        cond = self.told(batch.captions, batch.labels, batch.sizes)
        x_t = x0 + per_row(t, x0) * eps
        with torch.no_grad():
            x_r = self._there(x0, x_t, eps, t, r, cond, batch)
            arrived = r > self.model.process.sigma_min
            aim = self.denoiser(x_r, r.clamp(min=self.model.process.sigma_min), cond)
            aim = torch.where(per_row(arrived, x0).bool(), aim, x_r)
        error = (self.denoiser(x_t, t, cond) - aim).square().flatten(1).sum(1)
        c = HUBER * x0[0].numel() ** 0.5
        return ((error + c * c).sqrt() - c) / (t - r) / x0[0].numel() ** 0.5

    def _there(
        self, x0: Tensor, x_t: Tensor, eps: Tensor, t: Tensor, r: Tensor, cond: Cond, batch: Batch
    ) -> Tensor:
        """x_r: on the line between picture and noise, or where the guided model would go."""
        scale = self.config.consistency.guidance
        if scale == 1:
            return x0 + per_row(r, x0) * eps
        null = self.told([""] * len(x0), [None] * len(x0), batch.sizes)
        estimate = cfg(self.teacher, scale, null)(x_t, t, cond)
        return estimate + per_row(r / t, x0) * (x_t - estimate)


def earlier(t: Tensor, doublings: int) -> Tensor:
    """r < t for each noise level t: 0 at first, then ever nearer to t (eqs. 12 and 13 of the paper)."""
    gap = (1 + STEEP * torch.sigmoid(-SHARP * t)) / 2**doublings
    return t * (1 - gap).clamp(min=0)
