"""What outlives the process: jobs and pictures in SQLite (write-ahead log), the pictures' bytes in files beside it.

A job is written before it is acknowledged, with everything settled, seed and all. So it can be started again after any
crash and ends in the same pictures, and a picture that was made before is not made twice. A picture's file is renamed
into place before its row is written: a row always has its file.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MezzotintError
from ..formats.atomic import write_file

OPEN = ("queued", "running")
ENDED = ("done", "failed", "blocked", "cancelled", "expired")

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, api TEXT NOT NULL, model TEXT NOT NULL, request TEXT NOT NULL,
    state TEXT NOT NULL, created REAL NOT NULL, started REAL, ended REAL, deadline REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, error TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, created);
CREATE INDEX IF NOT EXISTS jobs_by_owner ON jobs (owner, created);
CREATE TABLE IF NOT EXISTS pictures (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, number INTEGER NOT NULL, created REAL NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, recipe TEXT NOT NULL, PRIMARY KEY (job, number)
);
CREATE INDEX IF NOT EXISTS pictures_by_time ON pictures (created);
CREATE TABLE IF NOT EXISTS keys (
    name TEXT PRIMARY KEY, hash TEXT NOT NULL UNIQUE, role TEXT NOT NULL, rate REAL, quota INTEGER,
    created REAL NOT NULL
);
"""


@dataclass(frozen=True)
class Job:
    """One row of `jobs`."""

    id: str
    owner: str  # the name of the key
    api: str  # native, openai, a1111
    model: str
    request: dict[str, Any]  # settled
    state: str
    created: float  # seconds since 1970, as all times here
    started: float | None
    ended: float | None
    deadline: float
    attempts: int
    error: str | None

    @property
    def count(self) -> int:
        return int(self.request["num_images"])

    @property
    def given(self) -> dict[str, str]:
        """The pictures that it was given: field -> hash of the file's bytes."""
        return {
            name: value["sha256"]
            for name, value in self.request.items()
            if isinstance(value, dict) and "sha256" in value
        }


@dataclass(frozen=True)
class Made:
    """One row of `pictures`."""

    job: str
    number: int
    created: float
    width: int
    height: int
    recipe: dict[str, Any]


class Store:
    """The folder with everything. Its methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        """Raises MezzotintError if the folder cannot be used."""
        self.folder = folder
        self.pictures = folder / "pictures"
        self._lock = threading.RLock()
        self._claim: sqlite3.Connection | None = None
        try:
            self.pictures.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                folder / "mezzotint.sqlite", check_same_thread=False, isolation_level=None
            )
            self._db.row_factory = sqlite3.Row
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
                self._db.execute(f"PRAGMA {pragma}")
            self._db.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise MezzotintError(
                f"the data folder {folder} cannot be used ({error}); choose another one with --data"
            ) from error

    def claim(self) -> None:
        """Be the one service of this folder, until `close`. Raises MezzotintError if there is another."""
        if self._claim is not None:
            return
        held = sqlite3.connect(
            self.folder / "service.lock", check_same_thread=False, isolation_level=None, timeout=0
        )
        try:
            held.execute("BEGIN EXCLUSIVE")  # given up by the system when the process ends, however it ends
        except sqlite3.OperationalError as error:
            held.close()
            raise MezzotintError(
                f"another service works in {self.folder}; stop that one, or choose another folder with --data"
            ) from error
        self._claim = held

    def close(self) -> None:
        with self._lock:
            self._db.close()
            if self._claim is not None:
                self._claim.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _all(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # Jobs

    def add(self, job: Job, uploads: Mapping[str, bytes]) -> None:
        """A job, and the pictures that it was given, by the hash of their bytes: a row always has its files."""
        with self._writing() as db:
            for sha256, data in uploads.items():
                if not self.upload(sha256).exists():
                    write_file(self.upload(sha256), data, replace=True)
            db.execute(
                "INSERT INTO jobs (id, owner, api, model, request, state, created, deadline)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    job.id,
                    job.owner,
                    job.api,
                    job.model,
                    json.dumps(job.request),
                    job.state,
                    job.created,
                    job.deadline,
                ),
            )

    def job(self, job: str) -> Job | None:
        found = self._all("SELECT * FROM jobs WHERE id = ?", job)
        return _job(found[0]) if found else None

    def jobs(self, owner: str | None, *, before: float | None = None, limit: int = 50) -> list[Job]:
        """The newest first; of one owner, or of all."""
        rows = self._all(
            "SELECT * FROM jobs WHERE (?1 IS NULL OR owner = ?1) AND (?2 IS NULL OR created < ?2)"
            " ORDER BY created DESC LIMIT ?3",
            owner,
            before,
            limit,
        )
        return [_job(row) for row in rows]

    def unfinished(self) -> list[Job]:
        """In the order in which they came."""
        return [
            _job(row)
            for row in self._all(
                "SELECT * FROM jobs WHERE state IN ('queued', 'running') ORDER BY created, rowid"
            )
        ]

    def start(self, job: str) -> None:
        """It runs, for one time more."""
        with self._writing() as db:
            db.execute(
                "UPDATE jobs SET state = 'running', started = ?, attempts = attempts + 1"
                " WHERE id = ? AND state = 'queued'",
                (time.time(), job),
            )

    def put_back(self, job: str, *, forgiven: bool) -> None:
        """It waits again; `forgiven`: it was stopped in good order, and the attempt does not count."""
        with self._writing() as db:
            db.execute(
                "UPDATE jobs SET state = 'queued', attempts = attempts - ? WHERE id = ? AND state = 'running'",
                (int(forgiven), job),
            )

    def end(self, job: str, state: str, error: str | None = None) -> bool:
        """It has ended; False if it had before: a job ends once."""
        with self._writing() as db:
            done = db.execute(
                "UPDATE jobs SET state = ?, ended = ?, error = ? WHERE id = ? AND state IN ('queued', 'running')",
                (state, time.time(), error, job),
            )
            return done.rowcount == 1

    def remove(self, job: str) -> None:
        """With its pictures, and those it was given that no other job has.

        Rows first: a file without a row is nobody's, a row without a file would be a broken promise.
        """
        with self._lock:  # nobody is given one of these meanwhile
            if (found := self.job(job)) is None:
                return
            files = [self.path(job, made.number) for made in self.made(job)]
            with self._writing() as db:
                db.execute("DELETE FROM jobs WHERE id = ?", (job,))
            for sha256 in {*found.given.values()}:
                if not self._all("SELECT 1 FROM jobs WHERE instr(request, ?) LIMIT 1", sha256):
                    files.append(self.upload(sha256))
            for file in files:
                file.unlink(missing_ok=True)

    # Pictures

    def path(self, job: str, number: int) -> Path:
        return self.pictures / job[:2] / f"{job}-{number}.png"

    def keep(self, job: str, number: int, png: bytes, size: tuple[int, int], recipe: dict[str, Any]) -> None:
        write_file(self.path(job, number), png, replace=True)
        with self._writing() as db:
            db.execute(
                "INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, ?, ?)",
                (job, number, time.time(), *size, json.dumps(recipe)),
            )

    def upload(self, sha256: str) -> Path:
        """A picture that a job was given, by the hash of its bytes."""
        return self.folder / "uploads" / sha256

    def made(self, job: str) -> list[Made]:
        rows = self._all("SELECT * FROM pictures WHERE job = ? ORDER BY number", job)
        return [_made(row) for row in rows]

    def gallery(self, owner: str | None, *, before: float | None = None, limit: int = 50) -> list[Made]:
        """The newest pictures first; of one owner, or of all."""
        rows = self._all(
            "SELECT pictures.* FROM pictures JOIN jobs ON jobs.id = pictures.job"
            " WHERE (?1 IS NULL OR owner = ?1) AND (?2 IS NULL OR pictures.created < ?2)"
            " ORDER BY pictures.created DESC, number DESC LIMIT ?3",
            owner,
            before,
            limit,
        )
        return [_made(row) for row in rows]

    def made_since(self, owner: str, moment: float) -> int:
        """Pictures of an owner that were asked for since, and not given up: what a quota counts."""
        rows = self._all(
            "SELECT COALESCE(SUM(json_extract(request, '$.num_images')), 0) FROM jobs"
            " WHERE owner = ? AND created >= ? AND state IN ('queued', 'running', 'done')",
            owner,
            moment,
        )
        return int(rows[0][0])

    # Keys

    def add_key(self, name: str, digest: str, role: str, rate: float | None, quota: int | None) -> bool:
        """False if the name is taken."""
        with self._writing() as db:
            done = db.execute(
                "INSERT OR IGNORE INTO keys VALUES (?, ?, ?, ?, ?, ?)",
                (name, digest, role, rate, quota, time.time()),
            )
            return done.rowcount == 1

    def remove_key(self, name: str) -> bool:
        with self._writing() as db:
            return db.execute("DELETE FROM keys WHERE name = ?", (name,)).rowcount == 1

    def all_keys(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self._all("SELECT * FROM keys ORDER BY created")]


def _job(row: sqlite3.Row) -> Job:
    return Job(**dict(row) | {"request": json.loads(row["request"])})


def _made(row: sqlite3.Row) -> Made:
    return Made(**dict(row) | {"recipe": json.loads(row["recipe"])})
