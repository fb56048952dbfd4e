"""Ray: several processes or machines, found or started in one place (Moritz et al. 2018, arXiv 1712.05889).

A cluster that `RAY_ADDRESS` names is joined; without one, processes are started on this machine and ended with the
block. Machines of a cluster need the same installation of mezzotint and a folder that they share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import MezzotintError, UsageError

STORE = 256 << 20  # bytes of memory that processes on one machine share; pictures pass through files


@contextmanager
def cluster(workers: int) -> Iterator[Any]:
    """Ray with room for so many workers, as the module `ray`. Raises UsageError if it is missing or too small."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    try:
        import ray
    except ImportError as error:
        raise UsageError(f"Ray needs more packages ({error.name}): pip install 'mezzotint[ray]'") from error
    if ray.is_initialized():  # the caller's, who will also end it
        yield ray
        return
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=True)
        else:
            ray.init(
                num_cpus=max(workers, os.cpu_count() or 1),
                object_store_memory=STORE,
                include_dashboard=False,
                configure_logging=False,
            )
    except Exception as error:  # Ray's own are of no common kind
        raise MezzotintError(f"Ray does not start: {' '.join(str(error).split())[:300]}") from error
    try:
        have = int(ray.cluster_resources().get("CPU", 0))
        if have < workers:
            raise UsageError(f"{workers} workers are asked for, and the cluster has {have} processors")
        yield ray
    finally:
        ray.shutdown()


def threads(ray: Any, workers: int) -> int:
    """Processors of a worker, where all of them share the cluster's evenly."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)


def gpus(ray: Any, device: str) -> int:
    """GPUs of a worker: one where `device` is one, or may be and there are some."""
    there = ray.cluster_resources().get("GPU", 0) > 0
    return int(device.startswith("cuda") or (device == "auto" and there))
