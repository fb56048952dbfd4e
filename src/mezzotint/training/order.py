"""Which pictures a step sees: a function of (seed, step), without epochs that a resume could lose.

In each epoch every bucket is shuffled and cut into batches, and the batches of all buckets are shuffled together. What
does not fill a batch waits for another epoch; a bucket that is smaller than a batch is repeated until it fills one.
Pictures in shards are not shuffled as a whole, but shard by shard and within a window: see `ShardOrder`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from functools import lru_cache
from math import gcd

import torch
from torch import Tensor

from ..diffusion.noise import generator


class Epochs(ABC):
    """Step -> indexes of the pictures of its batch, all of one bucket."""

    def __init__(self, buckets: Sequence[Hashable], batch: int, *key: int | str) -> None:
        """`buckets`: that of each picture. `key`: what the order is a function of beside the step."""
        kinds = {kind: number for number, kind in enumerate(sorted(set(buckets), key=repr))}
        self.members: list[list[int]] = [[] for _ in kinds]
        for i, bucket in enumerate(buckets):
            self.members[kinds[bucket]].append(i)
        self.batch, self.key = batch, key
        self.steps_per_epoch = sum(self.batches(members) for members in self.members)
        self._epoch = lru_cache(2)(self._shuffled)

    def batches(self, members: Sequence[int]) -> int:
        """How many of them a bucket fills in an epoch."""
        return max(1, len(members) // self.batch)

    def __call__(self, step: int) -> list[int]:
        """The pictures of a step's batch."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[within]

    @abstractmethod
    def _shuffled(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch, in turn."""


class Order(Epochs):
    """Every picture anywhere in an epoch."""

    def _shuffled(self, epoch: int) -> list[list[int]]:
        batches: list[list[int]] = []
        for number, members in enumerate(self.members):
            draw = generator("order", *self.key, epoch, number)
            shuffled = [members[i] for i in torch.randperm(len(members), generator=draw)]
            shuffled *= -(-self.batch // len(shuffled))  # more than once only if there are too few
            batches += [shuffled[i * self.batch : (i + 1) * self.batch] for i in range(self.batches(members))]
        turn = torch.randperm(len(batches), generator=generator("batches", *self.key, epoch))
        return [batches[i] for i in turn]


class ShardOrder(Epochs):
    """Near-sequential reading: shards in a random order, their pictures moved by no more than a window.

    The epoch's row of shards is cut into `lanes` equal stretches that are read side by side, each the same share of
    every batch's rows. Processes whose number divides the lanes get whole lanes: none reads a shard of another, but for
    the one where a stretch ends. The batches are the same ones however many processes there are.
    """

    def __init__(
        self,
        buckets: Sequence[Hashable],
        shards: Sequence[Hashable],
        batch: int,
        *key: int | str,
        lanes: int,
        window: int,
    ) -> None:
        """`shards`: that of each picture. `window`: pictures that are shuffled among one another, in all lanes."""
        super().__init__(buckets, batch, *key)
        numbers = {shard: number for number, shard in enumerate(dict.fromkeys(shards))}
        self.shards, self.count = torch.tensor([numbers[shard] for shard in shards]), len(numbers)
        self.lanes, self.window = gcd(lanes, batch), window

    def _shuffled(self, epoch: int) -> list[list[int]]:
        place = torch.randperm(self.count, generator=generator("shards", *self.key, epoch))
        batches: list[list[int]] = []
        times: list[Tensor] = []
        for number, members in enumerate(self.members):
            draw = generator("order", *self.key, epoch, number)
            mine, count = torch.tensor(members), self.batches(members)
            row = mine[place[self.shards[mine]].argsort(stable=True)]
            row = row.repeat(-(-self.batch // len(row)))[: count * self.batch]
            stretches = row.view(self.lanes, -1)
            far = self.window / self.lanes * len(members) / len(self.shards)
            moved = torch.arange(stretches.shape[1]) + far * torch.rand(stretches.shape, generator=draw)
            stretches = stretches.gather(1, moved.argsort(dim=1, stable=True))
            batches += stretches.view(self.lanes, count, -1).transpose(0, 1).reshape(count, -1).tolist()
            times.append((torch.arange(count) + torch.rand(count, generator=draw)) / count)
        return [batches[i] for i in torch.cat(times).argsort(stable=True)]
