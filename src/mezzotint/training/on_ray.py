"""The same training on Ray: `TorchTrainer` starts the processes, joins them, and starts them again when one dies.

What a process does is what it does under torchrun (`watch.py`, `world.py`); checkpoints are ours, in the run's folder,
which all machines must see. So a run may be begun by one launcher and ended by the other.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..cluster import cluster, gpus, threads
from ..errors import MezzotintError, UsageError
from .config import TrainConfig

RESTARTS = 3  # of all processes, when one has died


def train_on_ray(config: TrainConfig, workers: int) -> Path:
    """Train to the end with so many processes; the folder of the result. The first process prints where it is.

    Raises MezzotintError as the stage and the loop do, UsageError where Ray is not installed or too small.
    """
    with cluster(workers) as ray:
        try:
            from ray.train import FailureConfig, RunConfig, ScalingConfig
            from ray.train.torch import TorchConfig, TorchTrainer
        except ImportError as error:
            raise UsageError(
                f"Ray Train needs more packages: pip install 'mezzotint[ray]' ({error})"
            ) from error
        out = config.out.absolute()
        of_gpu = gpus(ray, config.run.device)
        told = config.model_copy(update={"out": out})
        trainer = TorchTrainer(
            _work,
            train_loop_config={"config": told.model_dump_json(), "folder": os.getcwd()},
            torch_config=TorchConfig(backend="nccl" if of_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=bool(of_gpu),
                resources_per_worker={"CPU": threads(ray, workers)} | ({"GPU": 1} if of_gpu else {}),
            ),
            run_config=RunConfig(
                name="ray", storage_path=str(out), failure_config=FailureConfig(max_failures=RESTARTS)
            ),
        )
        try:
            trainer.fit()
        except Exception as error:
            raise MezzotintError(_line(error)) from error
    return out / config.stage


def _work(given: dict[str, Any]) -> None:
    """What each process does."""
    from .watch import session

    os.chdir(given["folder"])  # paths of the configuration may be relative to it
    config = TrainConfig.model_validate(json.loads(given["config"]))
    with session(config) as here:
        for _ in here.prepare():
            pass
        for now in here.steps():
            stats = now.stats
            due = stats.step % config.run.log == 0 or stats.step == config.optim.steps
            if here.world.writes and (due or stats.notes):
                print(
                    f"step {stats.step} of {now.steps}: loss {stats.loss:.4f}",
                    *stats.notes,
                    sep="; ",
                    flush=True,
                )


def _line(error: BaseException) -> str:
    """What a process said of itself at the end of Ray's account."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("mezzotint.errors.")]
    said = (ours or lines or [type(error).__name__])[-1]
    return said.partition(": ")[2] if ours else f"training on Ray ended: {said[:300]}"
