"""Pages of files that are mapped into memory, and how to be rid of them.

A weight that is read from a mapped file and stored in another type is in memory twice: as a number to compute with, and
as pages of the file, which count until something else needs the room. Letting go of them as they are read keeps the
peak near what stays. They remain in the system's cache: to read them again costs little. Linux only; elsewhere nothing.
"""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

MAPS = Path("/proc/self/maps")
SUFFIX = ".safetensors"


def letting_go() -> Callable[[Tensor], None]:
    """A function that drops the pages of a tensor, if it lies in a file of weights that is mapped by now.

    The tensor stays readable, from the file; what was written to it is lost.
    """
    spans = _spans()
    if not spans:
        return lambda tensor: None
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    starts = [start for start, _ in spans]

    def let_go(tensor: Tensor) -> None:
        first, page = tensor.data_ptr(), mmap.PAGESIZE
        span = bisect_right(starts, first) - 1
        if span < 0 or first + tensor.nbytes > spans[span][1]:
            return
        begin, end = -(-first // page) * page, (first + tensor.nbytes) // page * page
        if begin < end:
            advise(begin, end - begin, mmap.MADV_DONTNEED)

    return let_go


def _spans() -> list[tuple[int, int]]:
    """The addresses [start, end) of mapped files of weights, in order."""
    if not MAPS.exists() or not hasattr(mmap, "MADV_DONTNEED"):
        return []
    lines = (line.split(maxsplit=5) for line in MAPS.read_text(errors="replace").splitlines())
    spans = [line[0].split("-") for line in lines if len(line) == 6 and line[5].endswith(SUFFIX)]
    return sorted((int(start, 16), int(end, 16)) for start, end in spans)
