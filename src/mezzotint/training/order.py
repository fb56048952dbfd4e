"""Which pictures a step sees: a function of (seed, step), without epochs that a resume could lose.

In each epoch every bucket is shuffled and cut into batches, and the batches of all buckets are shuffled together. What
does not fill a batch waits for another epoch; a bucket that is smaller than a batch is repeated until it fills one.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache

import torch

from ..diffusion.noise import generator


class Order:
    """Step -> indexes of the pictures of its batch, all of one bucket."""

    def __init__(self, buckets: Sequence[Hashable], batch: int, *key: int | str) -> None:
        """`buckets`: that of each picture. `key`: what the order is a function of beside the step."""
        kinds = sorted(set(buckets), key=repr)
        self.members = [[i for i, bucket in enumerate(buckets) if bucket == kind] for kind in kinds]
        self.batch, self.key = batch, key
        self.steps_per_epoch = sum(max(1, len(members) // batch) for members in self.members)
        self._epoch = lru_cache(2)(self._shuffled)

    def __call__(self, step: int) -> list[int]:
        """The pictures of a step's batch."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[within]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        batches: list[list[int]] = []
        for number, members in enumerate(self.members):
            draw = generator("order", *self.key, epoch, number)
            shuffled = [members[i] for i in torch.randperm(len(members), generator=draw)]
            shuffled *= -(-self.batch // len(shuffled))  # more than once only if there are too few
            batches += [
                shuffled[i * self.batch : (i + 1) * self.batch]
                for i in range(max(1, len(members) // self.batch))
            ]
        turn = torch.randperm(len(batches), generator=generator("batches", *self.key, epoch))
        return [batches[i] for i in turn]
