"""What can be asked of a pipeline: one file and one row each."""

from __future__ import annotations

from .problem import Problem, Task, levels, solve
from .text2img import text2img

TASKS: dict[str, Task] = {"text2img": text2img}

__all__ = ["TASKS", "Problem", "Task", "levels", "solve"]
