"""Between two points of a space where most of the mass lies on a sphere: noise, and states of a text.

slerp(a, b, s) = sin((1 - s) w) / sin(w) a + sin(s w) / sin(w) b, w the angle between them (Shoemake 1985). The
straight line would pass nearer to the origin, where no noise is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .types import Noise


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """From a (share 0) to b (share 1), turning by even angles; vectors [..., D]. Like a.

    Lengths change evenly too. Where the two point (almost) the same or opposite ways, it is the straight line.
    """
    if share in (0, 1):
        return b if share else a
    long_a, long_b = (torch.linalg.vector_norm(v.double(), dim=-1, keepdim=True) for v in (a, b))
    floor = torch.finfo(a.dtype).tiny
    unit_a, unit_b = a.double() / long_a.clamp(min=floor), b.double() / long_b.clamp(min=floor)
    cosine = (unit_a * unit_b).sum(-1, keepdim=True).clamp(-1, 1)
    angle = cosine.acos()
    flat = angle.sin() < 1e-4
    sine = torch.where(flat, 1.0, angle.sin())
    turned = (((1 - share) * angle).sin() * unit_a + (share * angle).sin() * unit_b) / sine
    turned = turned * torch.lerp(long_a, long_b, share)
    return torch.where(flat, torch.lerp(a.double(), b.double(), share), turned).to(a)


def noise_between(near: Noise, far: Noise, share: float) -> Noise:
    """Noise that lies between two, image by image, at every step."""

    def noise(step: int) -> Tensor:
        a, b = near(step), far(step)
        return slerp(a.flatten(1), b.flatten(1), share).reshape(a.shape)

    return noise
