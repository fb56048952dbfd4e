"""Shards at a URL: fetched from beginning to end when they are needed, and kept on a shelf of bounded size.

Nothing is fetched unless an opener is passed in. The order of training visits few shards at a time, so that a shelf
that holds these fetches each of them once an epoch; where all have room, once.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO, cast

from ..errors import MezzotintError, UsageError
from ..formats.atomic import new_file

Opener = Callable[[str], BinaryIO]  # URL -> its bytes, from the first to the last; raises OSError
TRIES = 3
PATIENCE = 60.0  # seconds without a byte
PIECE = 1 << 20  # bytes


def address(path: Path) -> str | None:
    """The URL that was given as a path (which makes one slash of two), or None for a path of this machine."""
    found = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):/+(.+)", path.as_posix())
    return f"{found[1].lower()}://{found[2]}" if found else None


def plain(url: str) -> str:
    """A URL without its query, which may hold a key that is nobody's business."""
    return url.partition("?")[0] if "://" in url else url


def shown(path: Path) -> str:
    """A path for people, or the URL that it stands for without its query."""
    url = address(path)
    return str(path) if url is None else plain(url)


def open_url(url: str) -> BinaryIO:
    """http and https by the standard library; s3, gs and others by fsspec, if it and its part for them are there."""
    scheme = url.partition("://")[0]
    if scheme in ("http", "https"):
        return cast(BinaryIO, urllib.request.urlopen(url, timeout=PATIENCE))
    try:
        import fsspec

        return cast(BinaryIO, fsspec.open(url, "rb").open())
    except (ImportError, ValueError) as error:
        raise UsageError(f"{plain(url)} cannot be opened: {error}") from error


class Shelf:
    """The shards in a folder that are being read, at most `room` bytes of them; several processes may share it."""

    def __init__(self, folder: Path, opener: Opener, room: int) -> None:
        self.folder, self.opener, self.room = folder, opener, room
        self._locks: defaultdict[str, Lock] = defaultdict(Lock)
        self._lock = Lock()

    def open(self, url: str) -> BinaryIO:
        """A shard, fetched if it is not there. Raises MezzotintError if it cannot be."""
        path = self.folder / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.tar"
        with self._lock:
            lock = self._locks[url]
        with lock:
            while True:
                try:
                    os.utime(path)  # it was used now
                    return path.open("rb")
                except FileNotFoundError:  # not fetched, or taken away by another process
                    self._fetch(url, path)

    def _fetch(self, url: str, path: Path) -> None:
        for attempt in range(TRIES):
            try:
                with new_file(path, replace=True) as part:
                    with part.open("wb") as file:
                        for piece in _pieces(self.opener, url):
                            file.write(piece)
                    self._make_room(part.stat().st_size)
                return
            except _Broken as error:
                if attempt == TRIES - 1:
                    raise MezzotintError(
                        f"{plain(url)} cannot be fetched ({error}); check the address and the connection, and start "
                        "again: the run goes on where it was"
                    ) from error
                time.sleep(2**attempt / 2)

    def _make_room(self, size: int) -> None:
        """Take away what was used longest ago; readers that have it open keep it."""
        there = []
        for path in self.folder.glob("[!.]*.tar"):
            with suppress(FileNotFoundError):  # another reader has made room meanwhile
                there.append((path, path.stat()))
        there.sort(key=lambda entry: entry[1].st_mtime_ns)
        used = sum(facts.st_size for _, facts in there)
        for path, facts in there:
            if used + size <= self.room:
                return
            path.unlink(missing_ok=True)
            used -= facts.st_size


class _Broken(Exception):
    """A transfer did not come to its end."""


def _pieces(opener: Opener, url: str) -> Iterator[bytes]:
    try:
        with opener(url) as source:
            while piece := source.read(PIECE):
                yield piece
            if missing := getattr(source, "length", 0):  # of http: bytes that were told of and did not come
                raise _Broken(f"{missing} bytes are missing at its end")
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(str(error) or type(error).__name__) from error
