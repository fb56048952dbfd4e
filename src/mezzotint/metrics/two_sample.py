"""Can a classifier tell two sets of samples apart? 0.5: no better than a coin; 1: always.

Half of each set trains a small net, the other half is judged (Lopez-Paz & Oquab 2017, arXiv 1610.06545). Hard to
please by looking good on average, since the net looks for whatever differs; the floor is the same test on two sets
of true samples.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion.noise import generator

WIDTH, BATCH, RATE = 64, 512, 3e-3


def two_sample_accuracy(a: Tensor, b: Tensor, *, steps: int = 400, seed: int = 0) -> float:
    """Accuracy on the held-out halves of a and b, [n, d] each, as many of one as of the other."""
    half = len(a) // 2
    train, test = (torch.cat([x, y]).float() for x, y in ((a[:half], b[:half]), (a[half:], b[half:])))
    mean, std = train.mean(0), train.std(0).clamp(min=1e-6)
    labels = torch.arange(2).repeat_interleave(half).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(a.shape[1], WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1)
        )
    optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        rows = torch.randint(2 * half, (BATCH,), generator=generator("two samples", seed, step))
        loss = F.binary_cross_entropy_with_logits(net((train[rows] - mean) / std)[:, 0], labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    with torch.no_grad():
        said = net((test - mean) / std)[:, 0] > 0
    truth = torch.arange(2).repeat_interleave(len(a) - half).bool()
    return float((said == truth).float().mean())
