"""Forward processes: how pictures drown in noise, all in the one coordinate x = x0 + sigma * eps.

Variance preserving (Ho et al. 2020), variance exploding (Song et al. 2021), the same with EDM's normalised input
(Karras et al. 2022) and flow matching (Lipman et al. 2023) are one process seen through different windows: they
differ in what the net is shown, z = scale(sigma) * x, and in what it is told as time, time(sigma).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..errors import UsageError, unknown
from .schedules import SCHEDULES, zero_terminal_snr

SNAP = 1e-3  # a time this near to a whole timestep is meant to be that timestep


class Process(Protocol):
    """What a denoiser, a sigma grid and a trainer ask of a forward process.

    The methods work entry by entry on tensors of any shape; floating point results keep the dtype and
    device of what was given, integers and Python numbers give float64.
    """

    @property
    def sigma_min(self) -> float:
        """The least noise the net was trained at."""

    @property
    def sigma_max(self) -> float:
        """The most noise the net was trained at: where sampling starts."""

    def scale(self, sigma: Tensor) -> Tensor:
        """The factor with which the net sees x: z = scale * x."""

    def time(self, sigma: Tensor) -> Tensor:
        """What the net is told for a noise level."""

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level of a time: the inverse of `time`."""

    def quantile(self, u: Tensor) -> Tensor:
        """The noise level at which the share u in [0, 1) of training happens, lowest first."""


def _floating(value: Tensor | float) -> Tensor:
    """`value` if it is a floating point tensor, else the same in float64."""
    value = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.float64)
    return value if value.is_floating_point() else value.double()


@dataclass(frozen=True)
class VariancePreserving:
    """z_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps on T timesteps; sigma = sqrt((1 - abar) / abar).

    `schedule` is a name of `SCHEDULES`, shaped by `beta_start` and `beta_end`; `trained_betas`, if there are any,
    take its place. `zero_snr` takes the last of the signal out of the last step. Between timesteps sigma is
    geometric. Raises UsageError for an unknown schedule and for betas that are not `steps` numbers in (0, 1).
    """

    schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    steps: int = 1000
    zero_snr: bool = False
    trained_betas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise unknown("noise schedule", self.schedule, SCHEDULES)
        betas = self._given_betas()
        if len(betas) != self.steps or self.steps < 2 or not ((betas > 0) & (betas < 1)).all():
            raise UsageError(
                f"noise schedule: needs {max(self.steps, 2)} betas between 0 and 1, got {len(betas)}"
                f" from {betas.min():g} to {betas.max():g}; check steps and betas"
            )

    def _given_betas(self) -> Tensor:
        if self.trained_betas:
            return torch.tensor(self.trained_betas, dtype=torch.float64)
        return SCHEDULES[self.schedule](self.steps, self.beta_start, self.beta_end)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """abar [T], float64: the share of the signal's variance that is left at each timestep."""
        abar = (1 - self._given_betas()).cumprod(0)
        return zero_terminal_snr(abar) if self.zero_snr else abar

    @cached_property
    def log_sigmas(self) -> Tensor:
        """log sigma at each timestep [T], float64, ascending."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).log() / 2

    @property
    def sigma_min(self) -> float:
        return math.exp(self.log_sigmas[0])

    @property
    def sigma_max(self) -> float:
        return math.exp(self.log_sigmas[-1])

    def scale(self, sigma: Tensor) -> Tensor:
        """1 / sqrt(1 + sigma^2) = sqrt(abar): a picture of unit variance keeps it."""
        return (1 + _floating(sigma) ** 2).rsqrt()

    def time(self, sigma: Tensor) -> Tensor:
        """Fractional timestep in [0, T - 1], linear in log sigma; whole where within `SNAP`."""
        sigma = _floating(sigma)
        log_sigma = sigma.to("cpu", torch.float64).log()  # not every accelerator has float64
        after = torch.searchsorted(self.log_sigmas, log_sigma).clamp(1, self.steps - 1)
        low, high = self.log_sigmas[after - 1], self.log_sigmas[after]
        t = (after - 1 + (log_sigma - low) / (high - low)).clamp(0, self.steps - 1)
        return torch.where((t - t.round()).abs() < SNAP, t.round(), t).to(sigma)

    def sigma(self, t: Tensor) -> Tensor:
        """Sigma of a (fractional) timestep; those outside the table count as its ends."""
        t = _floating(t)
        at = t.to("cpu", torch.float64).clamp(0, self.steps - 1)
        before = at.long().clamp(max=self.steps - 2)
        return torch.lerp(self.log_sigmas[before], self.log_sigmas[before + 1], at - before).exp().to(t)

    def quantile(self, u: Tensor) -> Tensor:
        """Every timestep is trained equally often."""
        return self.sigma((_floating(u) * self.steps).floor())


@dataclass(frozen=True)
class _Exploding:
    """Time is log(sigma) / 4; training is uniform in it."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def time(self, sigma: Tensor) -> Tensor:
        """log(sigma) / 4, finite even for sigma = 0."""
        sigma = _floating(sigma)
        return sigma.clamp(min=torch.finfo(sigma.dtype).tiny).log() / 4

    def sigma(self, t: Tensor) -> Tensor:
        """exp(4 t)."""
        return (4 * _floating(t)).exp()

    def quantile(self, u: Tensor) -> Tensor:
        """Geometric between sigma_min and sigma_max."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** _floating(u)


@dataclass(frozen=True)
class VarianceExploding(_Exploding):
    """z = x itself (Song et al. 2021)."""

    def scale(self, sigma: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(_floating(sigma))


@dataclass(frozen=True)
class EDM(_Exploding):
    """z = x / sqrt(sigma^2 + sigma_data^2) has unit variance, sigma_data being the data's deviation.

    Karras et al. 2022, table 1: `scale` is c_in, `time` is c_noise. sigma_data = 1 is the variance-preserving scale.
    """

    sigma_data: float = 0.5

    def scale(self, sigma: Tensor) -> Tensor:
        """1 / sqrt(sigma^2 + sigma_data^2)."""
        return (_floating(sigma) ** 2 + self.sigma_data**2).rsqrt()


@dataclass(frozen=True)
class Flow:
    """z = (1 - t) x0 + t eps, a straight line from picture to noise; sigma = t / (1 - t).

    `shift` moves training and sampling towards noise for large pictures, t -> shift t / (1 + (shift - 1) t)
    (Esser et al. 2024, eq. 23), which in this coordinate is nothing but sigma -> shift * sigma.
    At t = 1 sigma is infinite; `sigma_max` stands for it. The net is told `told` * t: released models say 1000 t.
    """

    shift: float = 1.0
    sigma_min: float = 1e-3
    sigma_max: float = 1e4
    told: float = 1.0

    def scale(self, sigma: Tensor) -> Tensor:
        """1 / (1 + sigma) = 1 - t."""
        return 1 / (1 + _floating(sigma))

    def time(self, sigma: Tensor) -> Tensor:
        """told * t, t = sigma / (1 + sigma) in [0, 1)."""
        sigma = _floating(sigma)
        return self.told * (sigma / (1 + sigma))

    def sigma(self, t: Tensor) -> Tensor:
        """t / (1 - t), at most sigma_max; t is given `told` times as large."""
        t = _floating(t) / self.told
        return (t / (1 - t)).clamp(max=self.sigma_max)

    def quantile(self, u: Tensor) -> Tensor:
        """Uniform in t, then shifted."""
        u = _floating(u)
        return (self.shift * u / (1 - u)).clamp(self.sigma_min, self.sigma_max)
