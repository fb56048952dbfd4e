"""What turns gradients into steps: AdamW, or Muon for matrices and AdamW for the rest.

Muon (Jordan et al. 2024) replaces the momentum M = U S V^T of a matrix by nearly U V^T: all its directions move
alike, found by five Newton-Schulz steps X <- a X + b (X X^T) X + c (X X^T)^2 X, which bring singular values to about
1. Scaled by 0.2 sqrt(max(rows, columns)) its steps are as long as AdamW's (Liu et al. 2025, arXiv 2502.16982), so
that one learning rate serves both. A convolution is the matrix of its output channels by all else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .config import Optim
from .sharding import part_like, whole

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c: steepest at 0, within [0.7, 1.2] after five steps
AS_LONG_AS_ADAM = 0.2  # root mean square of AdamW's steps, in units of the learning rate


def optimisers(net: nn.Module, optim: Optim) -> list[torch.optim.Optimizer]:
    """The optimisers of a net: each parameter that is trained belongs to one of them."""
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    if optim.optimiser == "adamw":
        return [_adamw([p for _, p in named], optim)]
    inner = [p for name, p in named if p.ndim in (2, 4) and not _is_outer(name)]
    chosen = {id(p) for p in inner}
    rest = [p for _, p in named if id(p) not in chosen]
    muon = Muon(inner, lr=optim.lr, weight_decay=optim.weight_decay)
    return [muon, _adamw(rest, optim)] if rest else [muon]


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal; parameters of 2 or 4 dimensions. Keeps one tensor for each."""

    def __init__(
        self, params: Sequence[Tensor], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                ahead = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(ahead, group["momentum"])  # Nesterov's
                matrix = as_matrix(whole(ahead))  # directions are those of the whole matrix
                step = part_like(orthogonal(matrix).to(p.dtype), p)
                length = AS_LONG_AS_ADAM * math.sqrt(max(matrix.shape)) * group["lr"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                as_matrix(p).add_(step, alpha=-length)


def as_matrix(p: Tensor) -> Tensor:
    """[out, in] as it is; [out, in, kh, kw] as the view [out, kh kw in] (of channels_last) or [out, in kh kw]."""
    if p.ndim == 2:
        return p
    return (p.permute(0, 2, 3, 1) if p.is_contiguous(memory_format=torch.channels_last) else p).flatten(1)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearly U V^T of U S V^T, [rows, columns] in bfloat16, which is exact enough: the aim is directions."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.float().norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def _is_outer(name: str) -> bool:
    """Where a net meets the world and embeddings: not the kind of matrix that Muon is for."""
    *layers, last = name.split(".")
    outer = any(part in ("conv_in", "conv_out") or part.endswith("embedding") for part in layers)
    of_patches = bool(layers) and layers[0] in ("pos_embed", "proj_out", "proj_out_2")
    return outer or of_patches or "embedding_table" in layers or last == "scale_shift_table"


def _adamw(parameters: list[nn.Parameter], optim: Optim) -> torch.optim.AdamW:
    """Weight decay on matrices alone: not on biases, scales or norms."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=optim.lr, betas=optim.betas, fused=True)
