"""Which picture is drawn next: fair between callers, kind to short ones, and nobody starves.

Between callers it is the turn of the one that has had least of the machine so far (start-time fair queueing: a caller
that comes anew starts level with the others). Among a caller's pictures the highest response ratio goes first,
(waiting + cost) / cost (Brinch Hansen 1971): a short one overtakes long ones until they have waited long enough.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """One picture of a job that waits to be drawn; `cost` in seconds, roughly."""

    job: str
    number: int
    owner: str
    cost: float
    since: float


class Queue:
    """The pieces that wait. May be used from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pieces: list[Piece] = []
        self._had: dict[str, float] = {}  # owner -> cost of what was handed out
        self._changed = threading.Condition()

    def put(self, job: str, numbers: list[int], owner: str, cost: float) -> None:
        """The pictures of a job, each of this cost."""
        with self._changed:
            waiting = {piece.owner for piece in self._pieces}
            if owner not in waiting:  # has no claim from the time when it asked for nothing
                level = min((self._had[one] for one in waiting), default=max(self._had.values(), default=0.0))
                self._had[owner] = max(self._had.get(owner, 0.0), level)
            now = self._clock()
            self._pieces += [Piece(job, number, owner, max(cost, 1e-6), now) for number in numbers]
            self._changed.notify_all()

    def drop(self, job: str) -> int:
        """A job's pieces wait no more; how many there were."""
        with self._changed:
            before = len(self._pieces)
            self._pieces = [piece for piece in self._pieces if piece.job != job]
            return before - len(self._pieces)

    def take(self, timeout: float) -> Piece | None:
        """The next one; None if there is none for so many seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._pieces), timeout):
                return None
            owner = min({piece.owner for piece in self._pieces}, key=lambda one: (self._had[one], one))
            now = self._clock()
            mine = [piece for piece in self._pieces if piece.owner == owner]
            chosen = max(mine, key=lambda piece: (now - piece.since) / piece.cost)
            self._pieces.remove(chosen)
            self._had[owner] += chosen.cost
            return chosen

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def ahead(self, job: str) -> int:
        """How many pieces of other jobs came before this one's first that waits."""
        with self._changed:
            return next((i for i, piece in enumerate(self._pieces) if piece.job == job), 0)

    @property
    def cost(self) -> float:
        """Of all that waits."""
        with self._changed:
            return sum(piece.cost for piece in self._pieces)

    def __len__(self) -> int:
        with self._changed:
            return len(self._pieces)
