"""Several processes as one: which rows of a batch are ours, and the mean of what all of them found.

A step's batch is one list of rows whatever computes it; process r of n takes the r-th part. Gradients are averaged
by one all-reduce of one flat tensor, so that the sum has a fixed order and a run resumes to the same bits. Launched
by torchrun, which sets the environment that is read here (PyTorch Elastic); without it there is one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UsageError

V = TypeVar("V")


class Share(NamedTuple):
    """Part number `part` of the `parts` equal ones that a step's batch is cut into."""

    part: int = 0
    parts: int = 1

    def rows(self, batch: int) -> range:
        """The rows of a batch that belong to it."""
        size = batch // self.parts
        return range(self.part * size, (self.part + 1) * size)


WHOLE = Share()


@dataclass(frozen=True)
class World:
    """The processes of a run; number 0 writes."""

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        return self.rank == 0

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Let each of `tensors` (of one dtype, alike in every process) be its mean over the processes."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))

    def told(self, value: V) -> V:
        """What process 0 gave as `value`."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def gathered(self, value: V) -> list[V]:
        """What each process gave, in their order."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


ALONE = World()


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world that torchrun started this process in, or `ALONE`."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield ALONE
        return
    if dist.is_initialized():  # another launcher, which will also end it
        yield World(dist.get_rank(), dist.get_world_size())
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # that which "cuda" means from here on
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
        dist.barrier()  # none leaves while another still speaks to it
    finally:
        dist.destroy_process_group()


def check_shares(batch: int, accumulate: int, world: World) -> None:
    """Raises UsageError unless the batch can be cut into equal parts."""
    if batch % (accumulate * world.size):
        raise UsageError(
            f"optim.batch {batch} cannot be cut into {accumulate * world.size} equal parts "
            f"(optim.accumulate {accumulate} x {world.size} processes)"
        )


def whole_only(share: Share, stage: str) -> None:
    """Raises UsageError for a stage that computes its batches in one piece."""
    if share != WHOLE:
        raise UsageError(f"stage '{stage}' runs in one process with optim.accumulate 1")
