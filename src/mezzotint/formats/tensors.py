"""Weights on disk: safetensors, read strictly and written atomically.

The format is a length (8 bytes), a JSON header {name: dtype, shape, offsets}, and the numbers. We write it
ourselves, so that the same tensors give the same bytes, and a full disk is an ordinary error. A net takes its
weights by assignment, without being initialised first; every key that is missing, unknown or of another shape
is reported, and pickled code (.bin, .ckpt, .pt) is never opened.
"""

from __future__ import annotations

import difflib
import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import MezzotintError
from .atomic import new_file, read_json
from .mapped import letting_go
from .pickled import read_pickled

M = TypeVar("M", bound=nn.Module)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_WEIGHTS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_OLD_STEMS = {"model": "pytorch_model"}  # what a pickled file is called where that differs
_SHOWN = 3  # names in a message
_SLACK = 1 << 20  # numbers that a net may have beyond twice those of its file
_ALIGNMENT = 64  # bytes; matrix products choose their inner loops by it


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped into memory: pages are read when they are used.

    Raises MezzotintError if the file is missing, truncated, damaged, or not safetensors.
    """
    path = _findable(Path(path))
    try:
        return dict(safetensors.torch.load_file(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise MezzotintError(_damage(path, error)) from error


def read_metadata(path: Path | str) -> dict[str, str]:
    """The free-form header of a safetensors file; raises as `read_tensors` does."""
    path = _findable(Path(path))
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise MezzotintError(_damage(path, error)) from error


def find_weights(
    folder: Path | str, stem: str, *, variant: str | None = None, allow_pickle: bool = False
) -> list[Path]:
    """The files of a component's weights: `stem.safetensors`, else its half-precision variant, else shards.

    A `variant` ("fp16", "non_ema") comes first where the component has it; a pickled file counts, if allowed, where
    there is nothing else. Raises MezzotintError if there are no weights, saying so if all that is there is pickled.
    """
    folder = Path(folder)
    for kind in dict.fromkeys((variant, None, "fp16")):
        name = f"{stem}.{kind}" if kind else stem
        if (folder / f"{name}.safetensors").exists():
            return [folder / f"{name}.safetensors"]
        marked = f"{stem}.safetensors.index.{kind}.json" if kind else ""
        for index in (folder / f"{name}.safetensors.index.json", folder / marked):
            if index.is_file():
                return _shards(index)
    if allow_pickle:
        for kind in dict.fromkeys((variant, None, "fp16")):
            old = folder / f"{_OLD_STEMS.get(stem, stem)}{f'.{kind}' if kind else ''}.bin"
            if old.exists():
                return [old]
    others = sorted(path.name for path in folder.glob(f"{stem}.*.safetensors"))
    if others:
        raise MezzotintError(
            f"{folder}: {stem}.safetensors is missing, {', '.join(others[:_SHOWN])} is there; ask for the variant "
            f"'{others[0].removeprefix(f'{stem}.').removesuffix('.safetensors')}'"
        )
    return [_findable(folder / f"{stem}.safetensors")]


def _shards(index: Path) -> list[Path]:
    """The files that an index names, all of them beside it."""
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(to, str) for to in placed.values()):
        raise MezzotintError(f"{index} has no 'weight_map'; fetch or copy it again")
    names = sorted(set(placed.values()))
    if outside := [name for name in names if Path(name).name != name]:
        raise MezzotintError(f"{index}: shard '{outside[0]}' lies outside of its folder")
    return [index.with_name(name) for name in names]


def read_weights(
    folder: Path | str, stem: str, *, variant: str | None = None, allow_pickle: bool = False
) -> tuple[dict[str, Tensor], str]:
    """All tensors of a component and, for messages, where they came from."""
    paths = find_weights(folder, stem, variant=variant, allow_pickle=allow_pickle)
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors |= read_tensors(path) if path.suffix == ".safetensors" else read_pickled(path)
    return tensors, str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def write_tensors(
    path: Path | str,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
    replace: bool = False,
) -> None:
    """Write `tensors` as safetensors; floating-point ones as `dtype` if given. Equal input gives equal bytes.

    Raises MezzotintError for a value that `dtype` cannot hold, and as `atomic.new_file` does.
    """
    to = {name: dtype if dtype and t.is_floating_point() else t.dtype for name, t in tensors.items()}
    for name in tensors:
        if to[name] not in _CODES:
            raise MezzotintError(f"{path}: tensor '{name}' has type {to[name]}, which is not written")
    size = {name: tensor.numel() * to[name].itemsize for name, tensor in tensors.items()}
    # The widest types first, as the format has it, and odd sizes last, so that what stands before is aligned.
    names = sorted(tensors, key=lambda name: (-to[name].itemsize, size[name] % _ALIGNMENT > 0, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name in names:
        start, end = end, end + size[name]
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _CODES[to[name]], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    with new_file(path, replace=replace) as part, part.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(_bytes(tensors[name], to[name], name, path))


def build(
    make: Callable[[], M],
    tensors: Mapping[str, Tensor],
    *,
    where: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> M:
    """The net that `make()` constructs, with `tensors` as its weights, in evaluation mode.

    Its first, random weights are neither drawn nor stored, so that this takes as long as reading the file.
    `where` names the source in the error. Raises MezzotintError as `load` does.
    """
    with _Uninitialised(sum(tensor.numel() for tensor in tensors.values()), where):
        net = make()
    load(net, tensors, where=where, dtype=dtype, device=device)
    return net.eval()


def load(
    net: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    where: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Let `tensors` be the weights of `net`, by assignment, as `dtype`.

    Raises MezzotintError that counts and names the keys that are missing, unknown, of another shape or of a
    type that weights cannot have; the net is as it was then.
    """
    check(net.state_dict(), tensors, where=where)
    let_go, weights = letting_go(), {}
    for name, tensor in tensors.items():
        weights[name] = _placed(tensor, dtype, device)
        if weights[name].data_ptr() != tensor.data_ptr():
            let_go(tensor)
    net.load_state_dict(weights, assign=True)


def check(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], *, where: str) -> None:
    """Raises MezzotintError unless `given` has just the keys and shapes of `expected`."""
    both = [name for name in expected if name in given]
    missing = [name for name in expected if name not in given]
    extra = [name for name in given if name not in expected]
    shapes = [
        f"{name} {list(given[name].shape)} instead of {list(expected[name].shape)}"
        for name in both
        if given[name].shape != expected[name].shape
    ]
    types = [f"{name} {given[name].dtype}" for name in both if given[name].dtype not in _WEIGHTS]
    faults = [
        _some("missing", missing),
        _some("unknown", [_with_nearest(name, missing or expected) for name in extra[:_SHOWN]], len(extra)),
        _some("of another shape", shapes),
        _some("of a type that is not supported", types),
    ]
    if any(faults):
        told = "; ".join(fault for fault in faults if fault)
        raise MezzotintError(f"{where}: the weights do not fit the net that config.json describes: {told}")


class _Uninitialised(TorchFunctionMode):
    """Inside, `torch.nn.init` does nothing: memory is reserved but not touched, and not much more than was `given`.

    So a configuration that lies about its net is found out before it costs anything. (The `meta` device would do as
    well, but its first use imports a second's worth of symbolic algebra.)
    """

    def __init__(self, given: int, where: str) -> None:
        super().__init__()
        self.room, self.where = 2 * given + _SLACK, where

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        if func is torch.empty:
            self.room -= math.prod(args[0] if isinstance(args[0], tuple | list | torch.Size) else args)
            if self.room < 0:
                raise MezzotintError(
                    f"{self.where}: config.json describes a net more than twice as large as these weights; one of "
                    "the two is of another checkpoint"
                )
        return func(*args, **(kwargs or {}))


def _placed(tensor: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """As wanted, filters in the order in which they run fastest, and aligned.

    Or else a product's last bit depends on where in the file its weight stood.
    """
    layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
    placed = tensor.to(device=device, dtype=dtype, memory_format=layout)
    return placed.clone() if placed.data_ptr() % _ALIGNMENT and placed.device.type == "cpu" else placed


def _bytes(tensor: Tensor, dtype: torch.dtype, name: str, path: Path | str) -> memoryview:
    flat = tensor.detach().to("cpu").reshape(-1)
    cast = flat.to(dtype)
    if (
        cast.dtype != flat.dtype
        and cast.is_floating_point()
        and not bool((cast.isfinite() | ~flat.isfinite()).all())
    ):
        raise MezzotintError(f"{path}: tensor '{name}' has values too great for {dtype}; write it as float32")
    return cast.contiguous().view(torch.uint8).numpy().data


def _some(kind: str, names: Iterable[str], count: int | None = None) -> str:
    names = list(names)
    count = len(names) if count is None else count
    more = ", ..." if count > _SHOWN else ""
    return f"{count} {kind} ({', '.join(names[:_SHOWN])}{more})" if count else ""


def _with_nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"{name}, nearest {near[0]}" if near else name


def _findable(path: Path) -> Path:
    """`path` if it can be safetensors; else the error that says what is there instead, and what to do."""
    if path.suffix in PICKLED:
        raise MezzotintError(
            f"{path} is pickled code, which is never opened; `mezzotint convert --allow-pickle {path} "
            f"{path.stem}.safetensors` takes the weights out of it"
        )
    if path.is_file():
        return path
    stem = path.name.removesuffix(".safetensors").removesuffix(".fp16")
    for suffix in PICKLED:
        for other in (path.with_name(_OLD_STEMS.get(stem, stem) + suffix), path.with_suffix(suffix)):
            if other.exists():
                raise MezzotintError(
                    f"{path} is missing; {other.name} beside it is pickled code, which is never opened: "
                    "`mezzotint convert --allow-pickle` takes the weights out of it"
                )
    raise MezzotintError(f"{path} is missing; the checkpoint is incomplete, fetch or copy it again")


def _damage(path: Path, error: Exception) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as unreadable:
        return f"{path} cannot be read ({unreadable.strerror})"
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`"
    reason = " ".join(str(error).split()).removeprefix("Error while deserializing header: ")
    return f"{path} is damaged or cut short ({reason}); fetch or copy it again"
