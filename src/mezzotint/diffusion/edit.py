"""FlowEdit: from a picture to another without ever going to noise (Kulikov et al. 2024, arXiv 2412.08629).

At each level the picture is given fresh noise and asked for under the old prompt and under the new one; what is changed
is what the two answers differ by. In the coordinate x = x0 + sigma eps this is a denoiser,

    D'(x, sigma) = x0 + D(x + sigma eps, new) - D(x0 + sigma eps, old),

whose probability-flow equation starts at x = x0 itself. So every sampler solves it.
"""

from __future__ import annotations

from torch import Tensor

from .denoiser import per_row
from .types import Cond, Denoise, Noise


def flow_edit(
    new: Denoise, old: Denoise, old_cond: Cond, x0: Tensor, sigmas: Tensor, noise: Noise
) -> Denoise:
    """`new` hears the new prompt from the sampler, `old` hears `old_cond`; x0 [B, C, *S] is the picture.

    The noise at a level between sigmas[i] and sigmas[i + 1] is noise(i).
    """
    levels = sigmas.tolist()

    def edited(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        level = float(sigma.max())
        i = max(sum(level <= other * (1 + 1e-6) for other in levels) - 1, 0)
        drowned = per_row(sigma, x) * noise(i).to(x)
        return x0 + new(x + drowned, sigma, cond) - old(x0 + drowned, sigma, old_cond)

    return edited
