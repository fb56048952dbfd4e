"""Jobs that have not ended, and who is told what happens to them.

A watcher lives in a coroutine of the server, what it is told happens in the threads that draw: events cross over by the
watcher's own loop. Previews cost a decoding each, so a watcher says at which steps it wants one; who does not read what
it is told is shown no more of them until it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..pipeline import Progress
from .store import Job

BEHIND = 32  # events that a watcher may have before it that are not read yet, and still be shown pictures
Looks = Callable[[int, Progress], bool]  # whether to show picture number i at this step


def never(number: int, progress: Progress) -> bool:
    return False


@dataclass(frozen=True)
class Watcher:
    """Somebody who is told what happens to a job; `looks` says at which steps they want to see a picture."""

    events: asyncio.Queue[dict[str, Any]]
    loop: asyncio.AbstractEventLoop
    looks: Looks

    def wants(self, number: int, progress: Progress) -> bool:
        """Whether it is to be shown picture `number` now."""
        return self.events.qsize() < BEHIND and self.looks(number, progress)

    def tell(self, event: dict[str, Any]) -> None:
        with suppress(RuntimeError):  # their loop has ended
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


@dataclass
class Live:
    """A job that has not ended."""

    job: Job
    left: set[int]  # pictures that are not made yet
    watchers: list[Watcher] = field(default_factory=list)
    stopped: tuple[str, str] | None = None  # how it is to end, and why
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)  # number -> the last step's event


class Stopped(Exception):
    """A picture is not to be finished."""
