"""Who asks: API keys, of which only the hash is kept, with a role, a rate and a quota.

A key is 32 random bytes, so one SHA-256 of it is enough: there is nothing to guess. Without any key the service is
open, and binds to this machine alone. Rates are token buckets: `rate` requests a minute, a minute's worth at once.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import MezzotintError, UsageError, unknown
from .store import Store

PREFIX = "mz-"
ROLES = ("user", "admin")  # one's own jobs; everybody's, and the metrics
DAY = 24 * 3600.0


@dataclass(frozen=True)
class Caller:
    """Who asks, and what they may."""

    name: str
    role: str = "admin"
    rate: float | None = None  # requests a minute
    quota: int | None = None  # pictures in 24 hours

    @property
    def sees(self) -> str | None:
        """Whose jobs: one's own, or (None) everybody's."""
        return None if self.role == "admin" else self.name


ANYBODY = Caller("local")


class TooMany(MezzotintError):
    """Come back in `seconds`."""

    def __init__(self, text: str, seconds: float) -> None:
        super().__init__(text)
        self.seconds = seconds


class Keys:
    """The keys of a store, and how often each was used of late."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}  # name -> (tokens, when)

    def add(
        self, name: str, *, role: str = "user", rate: float | None = None, quota: int | None = None
    ) -> str:
        """A new key, told this once. Raises UsageError for a name that is taken or a role that is unknown."""
        if role not in ROLES:
            raise unknown("role", role, ROLES)
        if not name or name == ANYBODY.name:
            raise UsageError(f"a key cannot be called '{name}'; choose another name")
        key = PREFIX + secrets.token_urlsafe(32)
        if not self._store.add_key(name, digest(key), role, rate, quota):
            raise UsageError(
                f"there is a key '{name}' already; choose another name, or revoke that one first"
            )
        return key

    def revoke(self, name: str) -> None:
        if not self._store.remove_key(name):
            raise UsageError(f"there is no key '{name}'; see `mezzotint keys list`")

    @property
    def any(self) -> bool:
        return bool(self._store.all_keys())

    def caller(self, key: str | None) -> Caller | None:
        """Whose key it is; None if it is nobody's. Anybody's where there are no keys."""
        known = self._store.all_keys()
        if not known:
            return ANYBODY
        if not key:
            return None
        wanted = digest(key)
        for row in known:
            if secrets.compare_digest(row["hash"], wanted):
                return Caller(row["name"], row["role"], row["rate"], row["quota"])
        return None

    def spend(self, caller: Caller) -> None:
        """One request of a caller's rate. Raises TooMany."""
        if caller.rate is None:
            return
        most, now = max(1.0, caller.rate), self._clock()
        with self._lock:
            tokens, then = self._buckets.get(caller.name, (most, now))
            tokens = min(most, tokens + (now - then) * caller.rate / 60)
            if tokens < 1:
                wait = (1 - tokens) * 60 / caller.rate
                raise TooMany(f"more than {caller.rate:g} requests a minute; come back in {wait:.0f} s", wait)
            self._buckets[caller.name] = (tokens - 1, now)

    def check_quota(self, caller: Caller, pictures: int) -> None:
        """Raises TooMany if that many more would pass the caller's quota of the last 24 hours."""
        if caller.quota is None:
            return
        made = self._store.made_since(caller.name, time.time() - DAY)
        if made + pictures > caller.quota:
            raise TooMany(
                f"the quota of '{caller.name}' is {caller.quota} pictures in 24 hours, and {made} are used",
                DAY / max(1, caller.quota),
            )


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
