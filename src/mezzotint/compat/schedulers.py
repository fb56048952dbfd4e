"""diffusers' schedulers by name and configuration, each of which is a plan here: process, sampler, noise levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..formats.atomic import read_json
from ..formats.folder import CORRECTED
from ..formats.opened import configs_at
from ..formats.scheduler import Plan, from_config, to_config


class Scheduler:
    """What `pipe.scheduler` is: the configuration of one of diffusers' schedulers, which samples here as a plan."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)
        self.plan = from_config(self.config)


@dataclass(frozen=True)
class SchedulerClass:
    """A scheduler of diffusers by its name: `DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)`."""

    name: str

    def __call__(self, **config: Any) -> Scheduler:
        return Scheduler(config | {"_class_name": self.name})

    def from_config(self, config: Mapping[str, Any], **changes: Any) -> Scheduler:
        """This class with another one's configuration. Raises UsageError for what it cannot be."""
        needed = {"skip_prk_steps": True} if self.name == "PNDMScheduler" else {}
        return self(**(needed | dict(config) | changes | {"_class_name": self.name}))


def config_of(path: Path) -> dict[str, Any]:
    """A folder's own, silent where that is: another class made from it has its own defaults there."""
    configs, file = configs_at(path), path / "scheduler" / "scheduler_config.json"
    if path.is_file():
        return to_config(configs.plan)
    return read_json(file) | ({} if configs.sized else CORRECTED)


def plan_of(scheduler: Any) -> Plan:
    """What a scheduler of ours, or of diffusers, says."""
    if isinstance(scheduler, Scheduler):
        return scheduler.plan
    config = dict(getattr(scheduler, "config", {}))
    return from_config(config | {"_class_name": config.get("_class_name", type(scheduler).__name__)})
