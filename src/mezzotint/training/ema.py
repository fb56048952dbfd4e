"""The exponential average of the weights over the run: what is sampled from and shipped.

w_ema <- decay * w_ema + (1 - decay) * w after every step; early on the decay is at most (1 + n) / (10 + n), so
that the average forgets the random start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """The average of a module's parameters and buffers, by their names in its state dict."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.average: dict[str, Tensor] = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are after step number `step` (from 0)."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        now = self.module.state_dict()
        floating = [k for k, v in now.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.average[k] for k in floating], [now[k] for k in floating], share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block, the module has the averaged weights."""
        kept = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
        self.module.load_state_dict(self.average)
        try:
            yield
        finally:
            self.module.load_state_dict(kept)
