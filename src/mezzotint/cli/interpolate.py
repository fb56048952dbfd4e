"""`mezzotint interpolate`: a walk from prompt to prompt, or from seed to seed; every stop is a picture."""

from __future__ import annotations

import inspect
import secrets
from itertools import pairwise
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..request import Request
from ..tasks import TASKS
from .draw import command

SHORT_SEEDS = 2**32

FRAMES = inspect.Parameter(
    "frames",
    inspect.Parameter.KEYWORD_ONLY,
    default=8,
    annotation=Annotated[
        int, typer.Option(min=2, help="Pictures from one prompt to the next, both ends included.")
    ],
)


def walk(fields: dict[str, Any], prompts: list[str], *, frames: int) -> list[Request]:
    """The stops between each prompt and the next, all with one seed, or with `at` that one stop alone.

    Raises UsageError for a walk that goes nowhere, or whose seeds would change at several prompts.
    """
    ends = [*prompts, *([fields["prompt_to"]] if "prompt_to" in fields else [])]
    if len(ends) == 1 and "seed_to" not in fields:
        raise UsageError("a walk needs another prompt to go to, or another seed (--seed-to)")
    if len(ends) > 2 and "seed_to" in fields:
        raise UsageError("--seed-to goes with one prompt or two; with more, leave it out")
    fields = {"seed": secrets.randbelow(SHORT_SEEDS)} | fields
    pairs = list(pairwise(ends)) or [(ends[0], ends[0])]
    stops = [
        (near, far, j / (frames - 1)) for n, (near, far) in enumerate(pairs) for j in range(n > 0, frames)
    ]
    if "at" in fields:
        stops = [(near, far, fields["at"]) for near, far in pairs]
    return [Request.parse(fields | {"prompt": a, "prompt_to": b, "at": share}) for a, b, share in stops]


interpolate = command(TASKS["interpolate"], walk, extra=(FRAMES,))
