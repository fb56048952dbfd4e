"""What can be asked of a pipeline: one row and one file each.

A row says what a task must be given and which fields beyond the common ones it heeds; commands, methods of a pipeline
and the service's schema come from it. The file `tasks/NAME.py` states the problem, in a function of that name; it is
imported when the task is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..request import Request, called

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request import Settled
    from .problem import Problem


@dataclass(frozen=True)
class Task:
    """One thing that can be asked for."""

    name: str
    about: str  # one sentence, for the help
    given: tuple[
        str, ...
    ]  # what must be given, in the order in which it stands on a command line and in a call
    heeds: Mapping[str, Any] = field(default_factory=dict)  # further field -> what it is if not given
    # common field -> the most that is taken of the model's own value
    most: Mapping[str, float] = field(default_factory=dict)
    ignores: tuple[str, ...] = ()  # common fields that mean nothing to it
    inherits: bool = False  # what is not given is taken from the recipe of the picture given

    @property
    def state(self) -> Callable[[Pipeline, Settled], Problem]:
        """The function that states its problem."""
        module = import_module(f".{self.name}", __name__)
        function: Callable[[Pipeline, Settled], Problem] = getattr(module, self.name)
        return function

    @property
    def fields(self) -> list[str]:
        """The fields of a request that it heeds, in their order."""
        own = {*self.given, *self.heeds}
        return [
            name
            for name in Request.model_fields
            if name in own or (name not in SPECIAL and name not in self.ignores)
        ]

    def check(self, request: Request) -> None:
        """Raises UsageError for what is missing, and for what was asked that this task does not know."""
        for name in self.given:
            if name != "prompt" and getattr(request, name) is None:
                raise UsageError(
                    f"{self.name} needs {_article(name)}: {Request.model_fields[name].description}"
                )
        heeded = self.fields
        for name, kind in Request.model_fields.items():
            if name not in heeded and getattr(request, name) != kind.default:
                able = [task.name for task in TASKS.values() if name in task.fields]
                raise UsageError(f"{self.name} takes no {called(name)}; what does: {', '.join(able)}")


def _article(name: str) -> str:
    word = name.replace("_", " ")
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


_ROWS = (
    Task("text2img", "Draw pictures from words.", ("prompt",)),
    Task(
        "img2img",
        "Draw a picture anew, from words and its own outlines.",
        ("image", "prompt"),
        {"strength": 0.6},
    ),
    Task(
        "inpaint",
        "Draw a part of a picture anew.",
        ("image", "prompt"),
        {
            "mask": None,
            "fit_mask": None,
            "feather": 4,
            "crop": None,
            "strength": 1.0,
            "method": None,
            "inner_steps": 3,
        },
    ),
    Task(
        "outpaint",
        "Draw what lies beyond a picture's edges.",
        ("image", "prompt"),
        {
            "left": None,
            "top": None,
            "right": None,
            "bottom": None,
            "strength": 1.0,
            "method": None,
            "inner_steps": 3,
        },
        # the picture says what goes on; more guidance draws what the prompt says once more
        most={"guidance_scale": 1.5},
    ),
    Task(
        "rewrite",
        "Change what a picture shows to what another prompt says.",
        ("image", "prompt"),
        {
            "source_prompt": "",
            "source_guidance": 1.5,
            "strength": 0.7,
            "method": None,
            "content_strength": 0.8,
            "reweight": None,
        },
    ),
    Task(
        "restyle",
        "Draw pictures from words in the manner of another picture.",
        ("style_image", "prompt"),
        {"style_strength": 0.7, "source_prompt": ""},
    ),
    Task(
        "stylize",
        "Draw a picture anew in the manner of another one.",
        ("image", "style_image"),
        {"strength": 0.6, "style_strength": 0.7, "content_strength": 0.5, "source_prompt": ""},
    ),
    Task(
        "invert",
        "Find the noise that a picture comes from, and draw it again from there.",
        ("image", "prompt"),
        {"prompt_to": None, "strength": 1.0, "method": None},
        ignores=("sampler", "eta"),
    ),
    Task(
        "restore",
        "Restore a picture whose damage is known.",
        ("image", "damage"),
        {"method": None, "inner_steps": 3, "mask": None, "fit_mask": None},
    ),
    Task(
        "vary",
        "Draw a picture once more, a little differently.",
        ("image",),
        {"distance": 0.2},
        inherits=True,
    ),
    Task(
        "interpolate",
        "Draw what lies between two prompts, two seeds, or both.",
        ("prompt",),
        {"prompt_to": None, "seed_to": None, "at": 0.5},
    ),
)
TASKS: dict[str, Task] = {task.name: task for task in _ROWS}
SPECIAL = frozenset(name for task in _ROWS for name in (*task.given, *task.heeds)) - {"prompt"}
