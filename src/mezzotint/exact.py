"""The last bit: image i of a batch is the image that its seed makes alone.

Noise is a function of (seed, step), so all that can differ is rounding: a kernel may pick another order of sums for
another batch. Frozen linear layers (nets/layers.py) take fixed shapes; convolutions, normalisations and attention were
found to treat a picture alike whatever its company (from two rows on, which guidance makes of one picture). What was
found on one processor need not hold on another, so it is tried before it is trusted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .diffusion.guidance import per_image
from .diffusion.types import Cond, Denoise, Net

Trials = dict[
    tuple[str | int, ...], bool
]  # (what was tried, shape of batch and text) -> whether it was equal


def tried(denoise: Denoise, trials: Trials, kind: str = "") -> Denoise:
    """Batches at once if, at the first one, its first and last image come out as they do alone; else one by one.

    Kernels are picked by shapes, not by values, so that one trial speaks for all batches of a shape; it costs two
    evaluations of one image. `trials` remembers what was found of denoisers of this `kind`.
    """
    alone = per_image(denoise)

    def evaluated(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        key = (kind, *x.shape, *(() if cond.text is None else cond.text.shape[1:2]))
        if len(x) == 1 or not trials.get(key, True):
            return alone(x, sigma, cond)
        together = denoise(x, sigma, cond)
        if key not in trials:
            ends = [0, len(x) - 1]
            apart = alone(x[ends], sigma[ends], cond.map(lambda field: field[ends]))
            trials[key] = torch.equal(together[ends], apart)
            if not trials[key]:
                return alone(x, sigma, cond)
        return together

    return evaluated


def gathered(net: Net, calls: Sequence[tuple[Tensor, Tensor, Cond]], trials: Trials | None) -> list[Tensor]:
    """The net's answers to several calls of equal shapes, from one forward if they come out as they do alone.

    As in `tried`, the first and the last call are made alone once for each shape and number of calls, and `trials`
    remembers what was found. `trials` None: not held to the last bit, never tried.
    """
    rows = len(calls[0][0])
    sizes = (size for field in calls[0][2] for size in (() if field is None else field.shape))
    key = (len(calls), *calls[0][0].shape, *sizes)
    if len(calls) == 1 or (trials is not None and not trials.get(key, True)):
        return [net(*call) for call in calls]
    zs, ts, _ = zip(*calls, strict=True)
    cond = Cond(
        *(
            None if field[0] is None else torch.cat(field)
            for field in zip(*(c[2] for c in calls), strict=True)
        )
    )
    together = [answer.clone() for answer in net(torch.cat(zs), torch.cat(ts), cond).split(rows)]
    if trials is not None and key not in trials:
        trials[key] = all(torch.equal(together[i], net(*calls[i])) for i in (0, -1))
        if not trials[key]:
            return [net(*call) for call in calls]
    return together
