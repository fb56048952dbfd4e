"""Averages of the weights over the run: what is sampled from and shipped.

w_ema <- w_ema + share * (w - w_ema) after every step. The exponential one has share = 1 - decay, and early on at
least 9 / (10 + n), so that the average forgets the random start; others are in `posthoc.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .sharding import local_part


class EMA:
    """The average of a module's parameters and buffers, by their names in its state dict."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.average: dict[str, Tensor] = {k: v.detach().clone() for k, v in module.state_dict().items()}

    def share(self, step: int) -> float:
        """Of the weights as they are after step number `step` (from 0) in the average."""
        return 1 - min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are after step number `step` (from 0)."""
        now = self.module.state_dict()
        floating = [k for k, v in now.items() if v.is_floating_point()]
        averages, weights = (
            [local_part(self.average[k]) for k in floating],
            [local_part(now[k]) for k in floating],
        )
        torch._foreach_lerp_(averages, weights, self.share(step))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block, the module has the averaged weights."""
        kept = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
        self.module.load_state_dict(self.average)
        try:
            yield
        finally:
            self.module.load_state_dict(kept)
