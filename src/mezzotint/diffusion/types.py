"""The few shapes that everything else is written in.

Samplers live in one coordinate, `x = x0 + sigma * eps` (sigma: noise-to-signal ratio), and know the model only
as `denoise(x, sigma, cond) -> x0_hat`. Guidance, editing and batching are functions from `Denoise` to `Denoise`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor


class Cond(NamedTuple):
    """What a net is conditioned on; a field that the model does not use is None."""

    text: Tensor | None = None  # [B, L, D] states of the text encoder, for cross-attention
    pooled: Tensor | None = None  # [B, P] one vector for the whole text
    mask: Tensor | None = None  # [B, L] True where a text state counts
    label: Tensor | None = None  # [B] class index
    concat: Tensor | None = None  # [B, C', *S] joined to the net's input: mask, masked image, low resolution
    # What a net has made of text and pooled already, so that it is not made again at every step; see `UNet.prepared`.
    keys: Tensor | None = None  # [B, L, K] keys and values of all its attention to the text
    told: Tensor | None = None  # [B, P'] what it is told beside the time

    def map(self, f: Callable[[Tensor], Tensor]) -> Cond:
        """The same with `f` applied to every field that is there."""
        return Cond(*(None if field is None else f(field) for field in self))


class Step(NamedTuple):
    """One step of a sampler, as its consumer sees it."""

    i: int  # 0 .. N-1
    sigma: float  # noise level that x stands at, after the step
    x: Tensor  # [B, C, *S] state after the step
    denoised: Tensor  # [B, C, *S] the model's estimate of x0 that the step used


Net = Callable[[Tensor, Tensor, Cond], Tensor]  # (z[B,C,*S], t[B], cond) -> [B,C,*S]
Denoise = Callable[[Tensor, Tensor, Cond], Tensor]  # (x[B,C,*S], sigma[B], cond) -> x0_hat[B,C,*S]
Noise = Callable[[int], Tensor]  # step index -> standard normal noise, [B, C, *S]
Sampler = Callable[..., Iterator[Step]]  # (denoise, x, sigmas[N+1], cond, *, noise, ...) -> N steps
