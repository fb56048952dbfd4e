"""The random numbers that diffusers' pipelines would draw from a `torch.Generator`, in the order in which they do.

A generator gives its numbers one after another: what a picture's latents are drawn with, then where sampling starts,
then the noise of each step. Ours are a function of seed and step instead (see `diffusion/noise.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import torch
from torch import Tensor

from ..codec import Latents
from ..diffusion.noise import INITIAL, Draws
from ..diffusion.types import Noise
from ..errors import UsageError


@dataclass(frozen=True)
class DrawnLatents(Latents):
    """diffusers draws a picture's latents from q(z|x) where ours are its mean: once in a call, for all its prompts."""

    generator: torch.Generator
    drawn: Iterator[bool] = field(
        default_factory=lambda: repeat(True), compare=False
    )  # whether the next one is

    known: list[tuple[Tensor, Tensor]] = field(default_factory=list, compare=False)  # pictures, their latents

    def encode(self, image: Tensor) -> Tensor:
        for before, z in self.known:
            if torch.equal(before, image):
                return z
        self.known.append((image, self._encoded(image)))
        return self.known[-1][1]

    def _encoded(self, image: Tensor) -> Tensor:
        mean, logvar = self.vae.encode(image.to(self.vae.dtype))
        z = mean
        if next(self.drawn):
            z = mean + (logvar / 2).exp() * _randn(mean.shape, [self.generator]).to(mean)
        return ((z - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor).to(image.dtype)


def draws_of(generators: list[torch.Generator], latents: Tensor | None, rows: int) -> Draws:
    """Noise for `rows` pictures, whose seeds are their numbers: `latents`, if given, are where they start.

    What is returned raises UsageError for latents of another shape.
    """
    drawn: dict[int, Tensor] = {} if latents is None else {INITIAL: latents.float().cpu()}
    order: list[int] = list(drawn)

    def draws(seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Noise:
        if latents is not None and latents.shape != (rows, *shape):
            raise UsageError(f"latents is {list(latents.shape)}; these pictures start from {[rows, *shape]}")

        def noise(step: int) -> Tensor:
            while step not in drawn:  # first the start, then step by step
                upcoming = INITIAL if not order else order[-1] + 1
                drawn[upcoming] = _randn((rows, *shape), generators)
                order.append(upcoming)
            return drawn[step][list(seeds)].to(device)

        return noise

    return draws


def _randn(shape: Sequence[int], generators: list[torch.Generator]) -> Tensor:
    """Normal numbers, drawn in float32 where the generators live: row by row from many, at once from one."""
    if len(generators) == 1:
        return torch.randn(*shape, generator=generators[0], device=generators[0].device).cpu()
    return torch.stack(
        [torch.randn(*shape[1:], generator=each, device=each.device).cpu() for each in generators]
    )


def fresh() -> torch.Generator:
    """One whose numbers nobody has seen."""
    generator = torch.Generator()
    generator.seed()
    return generator
