"""Nets that are too large for one machine: each process keeps a part of every weight, gradient and moment.

FSDP2 (torch's `fully_shard`; Zhao et al. 2023, arXiv 2304.11277): a weight is cut along its first dimension; a
block's weights are gathered just before it is computed and let go after it; its gradients are averaged and cut the
same way. What is kept in parts is written in parts (`torch.distributed.checkpoint`), as safetensors, so that nothing is
unpickled when it is read, by as many processes as there are then.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import MezzotintError, UsageError
from .world import World

STORED = "shard-*.safetensors"  # the files that `write` makes, one for each process


def shard(net: nn.Module, world: World, device: torch.device) -> None:
    """Let this process keep its part of `net`'s weights alone; called by every process of the world.

    Raises UsageError for a net that is never called as a whole, and so has no moment to gather its weights at.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if type(net).forward is nn.Module.forward:
        raise UsageError(
            'run.sharding = "fsdp" cuts nets that are trained whole; what is trained here are small additions to a '
            'net that stays as it is: use run.sharding = "none"'
        )
    mesh = init_device_mesh(device.type, (world.size,))
    for p in net.parameters():
        p.data = p.data.contiguous()  # not channels_last: parts are rows of plain memory
    for block in _blocks(net):
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)


def _blocks(net: nn.Module) -> Iterator[nn.Module]:
    """What is gathered at a time: the entries of the lists in a net's blocks, or a block that has no lists.

    Not whole blocks of a U-Net: FSDP hands copies of the lists that it is given on, and they take maps off one list.
    """
    for child in net.children():
        for block in child if isinstance(child, nn.ModuleList) else [child]:
            lists = [inner for inner in block.children() if isinstance(inner, nn.ModuleList)]
            if lists:
                yield from (entry for inner in lists for entry in inner)
            elif isinstance(child, nn.ModuleList) or any(True for _ in block.children()):
                yield block


def local_part(tensor: Tensor) -> Tensor:
    """What this process keeps of a tensor, in the same memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may keep a part; every process must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor that every process has: the part that this one keeps of `like`."""
    if not hasattr(like, "to_local"):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(like, DTensor)
    everywhere = [Replicate()] * like.device_mesh.ndim
    here = DTensor.from_local(tensor, like.device_mesh, everywhere, run_check=False)
    return here.redistribute(placements=like.placements)


def gathered(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """The whole tensors in the memory of process 0, nothing elsewhere; every process must ask."""
    found = ((name, whole(tensor.detach())) for name, tensor in tensors.items())
    return {name: tensor.cpu().contiguous() for name, tensor in found if world.writes}


def write(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Each process writes what it keeps of `tensors` into `folder`, which is there; all of them must call."""
    checkpoint, (writer, _) = _distributed()
    try:
        checkpoint.save(tensors, storage_writer=writer(str(folder), save_distributed=True))
    except checkpoint.CheckpointException as error:  # of any process, told to all of them
        first = next(iter(error.failures.values()))[0]
        raise MezzotintError(f"cannot write {folder}: {first}") from error


def read(folder: Path, like: Mapping[str, Tensor], *, alone: bool) -> dict[str, Tensor]:
    """The tensors of `folder`, cut as those of `like` are that have a name's end and size in common with them.

    `alone`: this process reads for itself. Else all of them must call, each with its own parts of the same tensors.
    """
    checkpoint, (_, reader) = _distributed()
    there = reader(str(folder)).read_metadata().state_dict_metadata
    tensors = {name: _room(name, stored, like) for name, stored in there.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as is meant
        checkpoint.load(tensors, storage_reader=reader(str(folder)), no_dist=alone)
    return tensors


def _room(name: str, stored: object, like: Mapping[str, Tensor]) -> Tensor:
    """Memory for a tensor: `optim.unet.exp_avg.conv_in.weight` is cut as `conv_in.weight` is."""
    size, dtype = stored.size, stored.properties.dtype  # type: ignore[attr-defined]
    parts = name.split(".")
    ends = (".".join(parts[at:]) for at in range(len(parts)))
    model = next((like[end] for end in ends if end in like and like[end].shape == size), None)
    return torch.empty(size, dtype=dtype) if model is None else torch.empty_like(model, dtype=dtype)


def _distributed():  # type: ignore[no-untyped-def]
    """(torch.distributed.checkpoint, its (writer, reader) of safetensors)."""
    try:
        import torch.distributed.checkpoint as checkpoint
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
    except ImportError as error:
        raise UsageError(
            f'run.sharding = "fsdp" needs torch 2.9 or newer; this is {torch.__version__}'
        ) from error
    return checkpoint, (HuggingFaceStorageWriter, HuggingFaceStorageReader)
