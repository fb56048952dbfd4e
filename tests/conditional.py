"""Inpainting where the answer is known: of a Gaussian mixture's samples a part is kept, the rest drawn anew."""

import torch

from mezzotint.diffusion.grids import karras
from mezzotint.diffusion.posterior import corrected, reconstructed, region, replaced, resampled
from mezzotint.diffusion.process import VarianceExploding
from mezzotint.diffusion.samplers import SAMPLERS
from mezzotint.diffusion.types import Cond
from oracle import Mixture, mixture

BUDGET = 240  # evaluations of the denoiser


METHODS = {  # name -> (steps, (denoise, known, eps) -> (denoise, sampler))
    "replacement": (240, lambda d, k, e: (replaced(d, k, e), SAMPLERS["ddim"])),
    "RePaint, 6 times": (40, lambda d, k, e: (d, resampled(SAMPLERS["euler_ancestral"], k, times=6))),
    "RePaint, 10 times": (24, lambda d, k, e: (d, resampled(SAMPLERS["euler_ancestral"], k, times=10))),
    "reconstruction guidance": (120, lambda d, k, e: (reconstructed(d, k), SAMPLERS["ddim"])),
    "Langevin, 3 inner steps": (60, lambda d, k, e: (d, corrected(SAMPLERS["ddim"], k, times=3))),
    "Langevin, 5 inner steps": (40, lambda d, k, e: (d, corrected(SAMPLERS["ddim"], k, times=5))),
    "Langevin, 9 inner steps": (24, lambda d, k, e: (d, corrected(SAMPLERS["ddim"], k, times=9))),
}


def _wide(target, by):
    return Mixture(target.means * by, target.weights, target.stds)


PROBLEMS = {  # title -> (mixture, how many of its first numbers are known)
    "4 numbers, 4 modes, 2 known": (mixture(4, 4, seed=3), 2),
    "4 numbers, 8 far modes, 2 known": (_wide(mixture(4, 8, seed=3), 2), 2),
    "8 numbers, 6 modes, 2 known": (mixture(8, 6, seed=4), 2),
}


def conditional(target, x0, known, method, seed=0):
    """x0 [n, d] with all but its first `known` numbers drawn anew, and the evaluations of the denoiser that it took."""
    steps, prepare = method
    count = 0

    def denoise(x, sigma, cond=Cond()):
        nonlocal count
        count += 1 + torch.is_grad_enabled()  # the way back costs as much again
        return target.denoise(x, sigma)

    def noise(step):
        return torch.randn(x0.shape, generator=torch.Generator().manual_seed(1000 * seed + step + 1)).double()

    kept = torch.arange(x0.shape[1]) < known
    with torch.no_grad():
        sigmas = karras(VarianceExploding(0.02, 20.0), steps)
        prepared, sampler = prepare(denoise, region(x0, kept.to(x0)), noise(-1))
        x = float(sigmas[0]) * noise(-1)
        *_, last = sampler(prepared, x, sigmas, Cond(), noise=noise)
    return torch.where(kept, x0, last.x), count
