"""Sigma grids: the noise levels at which a sampler stops on its way from sigma_max to the picture.

A grid is a function (process, n) -> sigmas [n + 1], float64, strictly descending, ending in 0 (or in
`final`): exactly n steps, whatever the spacing. The schedule's own timesteps: Lin et al. 2023, table 2.
Karras: Karras et al. 2022, eq. 5. Beta: Lee et al. 2024. Flow with shift: Esser et al. 2024, eq. 23.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import UsageError, unknown
from .process import Flow, Process, VariancePreserving

Grid = Callable[..., Tensor]  # (process, n, *, final=0.0, **knobs) -> sigmas [n + 1]


def leading(process: Process, n: int, *, steps_offset: int = 0, spare: int = 0, final: float = 0.0) -> Tensor:
    """Every (T // n)-th timestep counted from 0, plus `steps_offset`: Stable Diffusion 1's.

    With `spare`, laid out for as many more steps, whose timesteps, the lowest, are left to the last step.
    """
    total = _timesteps(process, n + spare)
    spread = torch.arange(spare, n + spare) * (total // (n + spare))
    t = spread + min(steps_offset, total - 1 - int(spread[-1]))  # stays in the table when n == T
    return _close(process.sigma(t.flip(0)), final)


def trailing(process: Process, n: int, *, final: float = 0.0) -> Tensor:
    """n even strides down from the last timestep: right for few steps and for zero terminal SNR."""
    total = _timesteps(process, n)
    stride = total - (total - total / n)  # T / n, rounded as in diffusers, where that decides ties
    t = (total - torch.arange(n, dtype=torch.float64) * stride).round() - 1
    return _close(process.sigma(t), final)


def linspace(process: Process, n: int, *, spare: int = 0, whole: bool = True, final: float = 0.0) -> Tensor:
    """n timesteps evenly from the last to the first, both visited; rounded if `whole`. `spare` as in `leading`."""
    total = _timesteps(process, n + spare)
    t = torch.linspace(total - 1, 0, n + spare, dtype=torch.float64)[:n]
    return _close(process.sigma(t.round() if whole else t), final)


def distilled(process: Process, n: int, *, stops: int = 50, final: float = 0.0) -> Tensor:
    """n of the `stops` timesteps that a consistency model was distilled at (Luo et al. 2023, section 4.3)."""
    total = _timesteps(process, n)
    if n > stops:
        raise UsageError(
            f"sigma grid: {n} steps asked of a model distilled for at most {stops}; ask for fewer"
        )
    t = (total // stops) * (stops - torch.arange(n) * stops // n) - 1
    return _close(process.sigma(t), final)


def karras(
    process: Process,
    n: int,
    *,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final: float = 0.0,
) -> Tensor:
    """Evenly in sigma^(1 / rho): the larger rho, the denser where sigma is small."""
    low, high = _ends(process, sigma_min, sigma_max)
    return _close(torch.lerp(high ** (1 / rho), low ** (1 / rho), _ramp(n)) ** rho, final)


def exponential(
    process: Process,
    n: int,
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final: float = 0.0,
) -> Tensor:
    """Evenly in log sigma: every step takes away the same share of the noise."""
    low, high = _ends(process, sigma_min, sigma_max)
    return _close(torch.lerp(high.log(), low.log(), _ramp(n)).exp(), final)


def beta(
    process: Process,
    n: int,
    *,
    alpha: float = 0.6,
    beta: float = 0.6,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    final: float = 0.0,
) -> Tensor:
    """Times at the quantiles of Beta(alpha, beta): below 1, dense at both ends, where most of the work is."""
    low, high = (process.time(sigma) for sigma in _ends(process, sigma_min, sigma_max))
    t = torch.lerp(low, high, beta_quantile(1 - _ramp(n), alpha, beta))
    return _close(process.sigma(t), final)


def flow(process: Process, n: int, *, shift: float | None = None, final: float = 0.0) -> Tensor:
    """t = 1, 1 - 1/n, ..., 1/n on the straight line, shifted (by the process's own shift if None)."""
    if shift is None:
        shift = process.shift if isinstance(process, Flow) else 1.0
    t = torch.linspace(1, 0, n + 1, dtype=torch.float64)[:-1]
    return _close((shift * t / (1 - t)).clamp(max=process.sigma_max), final)


GRIDS: dict[str, Grid] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "distilled": distilled,
    "karras": karras,
    "exponential": exponential,
    "beta": beta,
    "flow": flow,
}


def sigma_grid(name: str, process: Process, n: int, **knobs: float) -> Tensor:
    """`GRIDS[name](process, n, **knobs)`: sigmas [n + 1]. Raises UsageError for what cannot be."""
    if name not in GRIDS:
        raise unknown("sigma grid", name, GRIDS)
    if n < 1:
        raise UsageError(f"sigma grid: {n} steps make no picture; ask for 1 or more")
    return GRIDS[name](process, n, **knobs)


def beta_quantile(p: Tensor, a: float, b: float) -> Tensor:
    """The x with I_x(a, b) = p, for p [...] (float64) in [0, 1]; by bisection."""
    low, high = torch.zeros_like(p), torch.ones_like(p)
    for _ in range(54):  # one more than float64 has bits
        middle = (low + high) / 2
        below = beta_cdf(middle, a, b) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where((p > 0) & (p < 1), (low + high) / 2, p)


def beta_cdf(x: Tensor, a: float, b: float) -> Tensor:
    """The regularised incomplete beta function I_x(a, b), for x [...] (float64) in [0, 1].

    The continued fraction of DLMF 8.17.22 by Lentz's method, to 1e-15 for a and b of order 1. It converges fast
    for x < (a + 1) / (a + b + 2); I_x(a, b) = 1 - I_{1-x}(b, a) covers the rest.
    """
    mirrored = x > (a + 1) / (a + b + 2)
    y = torch.where(mirrored, 1 - x, x)
    p, q = torch.where(mirrored, x.new_tensor(b), a), torch.where(mirrored, x.new_tensor(a), b)
    fraction, c, d = torch.ones_like(y), 1 / torch.zeros_like(y), torch.ones_like(y)
    for k in range(1, 40):
        m = k // 2
        top = m * (q - m) if k % 2 == 0 else -(p + m) * (p + q + m)
        step = top * y / ((p + k - 1) * (p + k))
        c, d = 1 + step / c, 1 / (1 + step * d)
        fraction = fraction * c * d
    inverse_beta = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))
    area = inverse_beta * y**p * (1 - y) ** q / p * fraction
    return torch.where(mirrored, 1 - area, area)


def _ramp(n: int) -> Tensor:
    """0 to 1 in n values, 0 first."""
    return torch.linspace(0, 1, n, dtype=torch.float64)


def _ends(process: Process, sigma_min: float | None, sigma_max: float | None) -> tuple[Tensor, Tensor]:
    """Lowest and highest sigma, the process's own where None."""
    low = process.sigma_min if sigma_min is None else sigma_min
    high = process.sigma_max if sigma_max is None else sigma_max
    return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)


def _timesteps(process: Process, n: int) -> int:
    """T, for a process that has timesteps, of which n are asked for."""
    if not isinstance(process, VariancePreserving):
        raise UsageError(
            f"sigma grid: {type(process).__name__} has no timesteps to space; use karras, exponential or flow"
        )
    if n > process.steps:
        raise UsageError(
            f"sigma grid: {n} steps asked of a model with {process.steps} timesteps; ask for fewer"
        )
    return process.steps


def _close(levels: Tensor, final: float) -> Tensor:
    """levels [n] and the final one, which is 0 if the last level stands at `final`: a step leads down."""
    sigmas = torch.cat([levels, levels.new_tensor([final if final < levels[-1] * (1 - 1e-9) else 0.0])])
    if (sigmas.diff() >= 0).any():
        raise UsageError(
            f"sigma grid: {len(levels)} steps do not fit between {sigmas[0]:g} and {sigmas[-2]:g}"
        )
    return sigmas
