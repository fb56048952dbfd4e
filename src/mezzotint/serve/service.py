"""The service without its HTTP: what is accepted, who is told, what runs, and how every job ends once.

    submit -> settled, checked, written down -> queue -> a thread per picture, all in one lane -> written down -> told

A job ends in one of five ways: done, failed (an error of the request or of ours), blocked (the safety check),
cancelled (by its owner, or its client went away), expired (its deadline passed). A service that is told to stop
finishes what runs as far as it can; what is left waits in the store and goes on at the next start.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from ..diffusion.samplers import METHODS
from ..errors import MezzotintError
from ..formats.credentials import Signing
from ..formats.image import encode_image, encode_plain
from ..pipeline import Event, Picture, Pipeline, Progress
from ..request import Request, Settled
from .admission import read, reread, settled, uploads
from .audit import Audit
from .keys import Caller, Keys, TooMany
from .lane import Lane
from .live import Live, Looks, Stopped, Watcher, never
from .metrics import Metrics
from .models import Models
from .queue import Piece, Queue
from .safety import Blocked, Safety, WordList
from .settings import Settings
from .shelf import Shelf
from .store import Job, Store

log = logging.getLogger("mezzotint.serve")

TICK = 0.5  # seconds between looks at deadlines
PACE = 0.03  # seconds of one evaluation of the net, until it was measured


# (model's name, the model, request, whether somebody watches) -> the events of drawing it
Painter = Callable[[str, Pipeline, Settled, bool], Iterator[Event]]


def here(model: str, pipeline: Pipeline, request: Settled, watched: bool) -> Iterator[Event]:
    """Drawn by this process."""
    return pipeline.generate(request)


class Unavailable(MezzotintError):
    """The service is about to stop."""


class Service:
    """One process's worth of service. `start`, then `submit`; `stop` in the end."""

    def __init__(self, settings: Settings, safety: Safety | None = None, painter: Painter = here) -> None:
        self.settings, self.painter = settings, painter
        self.store = Store(settings.data)
        self.keys = Keys(self.store)
        self.audit = Audit(settings.data / "audit.jsonl")
        self.metrics = Metrics()
        self.safety = safety or WordList.read(settings.blocked)
        self.queue = Queue()
        self.lane = Lane(settings.running if settings.step_batching else 1)
        self.models = Models(
            settings.models, device=settings.device, memory=settings.memory, extras=settings.extras,
            share=self.lane.shared,
        )  # fmt: skip
        self.signing = Signing.read(settings.sign) if settings.sign else None
        self.shelf = Shelf(settings.extras)
        self.draining, self._until = False, 0.0
        self._stopping = False
        self._lock = threading.RLock()
        self._live: dict[str, Live] = {}
        self._explaining = threading.Semaphore(1)
        self._slots = threading.Semaphore(settings.running)
        self._pool = ThreadPoolExecutor(settings.running, thread_name_prefix="draw")
        self._threads = [
            threading.Thread(target=each, name=each.__name__, daemon=True)
            for each in (self._dispatch, self._tick)
        ]
        self._pace = PACE
        self.metrics.watch(self)

    # From start to stop

    def prepare(self) -> None:
        """Raises MezzotintError if the first model cannot load, or if another service has this one's folder."""
        self.store.claim()
        with self.models.use(self.models.names[0]):
            pass

    def start(self) -> None:
        """Take up what an earlier process left, then draw. Raises as `prepare` does."""
        self.prepare()
        for job in self.store.unfinished():
            self._resume(job)
        for thread in self._threads:
            thread.start()

    def _resume(self, job: Job) -> None:
        if job.state == "running":
            if job.attempts >= self.settings.limits.attempts:
                self.store.end(
                    job.id, "failed", f"the service went down {job.attempts} times while it was drawn"
                )
                return
            self.store.put_back(job.id, forgiven=False)
            job = self.store.job(job.id) or job
        left = set(range(job.count)) - {made.number for made in self.store.made(job.id)}
        if job.model not in self.models.folders:
            self.store.end(job.id, "failed", f"the model '{job.model}' is not served any more")
        elif not left:
            self.store.end(job.id, "done")
        else:
            self._enqueue(job, left)

    def drain(self) -> None:
        """Accept nothing more; what waits, waits for the next start. What runs has from now as long as settings say."""
        if not self.draining:
            self._until, self.draining = time.monotonic() + self.settings.drain, True

    def stop(self) -> None:
        """Finish what runs, for as long as the settings say since `drain`, then put the rest back and end."""
        self.drain()
        while time.monotonic() < self._until and self.running:
            time.sleep(0.02)
        self._stopping = True
        self.queue.wake()
        self._pool.shutdown(wait=True)
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        with self._lock:
            for live in self._live.values():
                self.store.put_back(live.job.id, forgiven=True)
                self._tell(
                    live,
                    {"event": "end", "state": "queued", "error": "the service stops; it goes on later"},
                )
            self._live.clear()
        self.lane.close()
        self.store.close()

    @property
    def running(self) -> int:
        """Pictures that are being drawn."""
        return self.lane.members

    # Jobs

    def submit(
        self,
        caller: Caller,
        fields: Mapping[str, Any],
        *,
        model: str | None = None,
        api: str = "native",
        deadline: float | None = None,
        request_id: str = "",
        user: str | None = None,
    ) -> Job:
        """Accept a job. When this returns, it is on disk and will end.

        Raises UsageError for what cannot be done, Blocked for what may not, TooMany for a full queue, a rate or a
        quota, Unavailable when the service is about to stop.
        """
        if self.draining:
            raise Unavailable("the service is about to stop; try again in a minute")
        limits = self.settings.limits
        request = read(fields, limits, mark=self.settings.mark)
        name = self.models.check(model)
        self.keys.check_quota(caller, request.num_images)
        with self.models.use(name) as pipeline:
            asked = self._allowed(caller, request, pipeline, request_id=request_id, api=api)
        now = time.time()
        seconds = min(deadline or limits.deadline, limits.deadline)
        job = Job(
            secrets.token_hex(12), caller.name, api, name, asked.model_dump(mode="json"), "queued",
            now, None, None, now + seconds, 0, None,
        )  # fmt: skip
        with self._lock:
            waiting = sum(1 for live in self._live.values() if live.job.state == "queued")
            if waiting >= limits.waiting:
                self.metrics.refused.inc()
                raise TooMany(f"{waiting} jobs are waiting already; come back later", self.wait_estimate)
            self.keys.check_quota(caller, job.count)  # again: others of this caller's may have come meanwhile
            self.store.add(job, uploads(asked))
            self._enqueue(job, set(range(job.count)))
        self.audit.write(
            who=caller.name,
            what="accepted",
            request_id=request_id,
            job=job.id,
            api=api,
            recipe=recipe_hash(job),
            user=user,
        )
        return job

    def cancel(self, job: str, why: str = "cancelled by its owner", state: str = "cancelled") -> bool:
        """Stop a job that has not ended; False if it had."""
        with self._lock:
            live = self._live.get(job)
            if live is None or live.stopped:
                return False
            live.stopped = (state, why)
            self.queue.drop(job)
            if not live.steps.keys() & live.left:  # nothing of it runs: no thread will end it
                self._end(live, state, why)
            return True

    def watch(self, job: str, looks: Looks = never) -> Watcher:
        """Be told from now on; the first events say how things stand. For coroutines of a running loop."""
        watcher = Watcher(asyncio.Queue(), asyncio.get_running_loop(), looks)
        with self._lock:
            live = self._live.get(job)
            known = self.store.job(job)
            assert known is not None
            for made in self.store.made(job):
                watcher.events.put_nowait(
                    {"event": "picture", "number": made.number, "seed": made.recipe["seed"]}
                )
            if live is None:
                watcher.events.put_nowait({"event": "end", "state": known.state, "error": known.error})
            else:
                live.watchers.append(watcher)
                ahead = self.queue.ahead(job) if known.state == "queued" else 0
                watcher.events.put_nowait({"event": "state", "state": known.state, "ahead": ahead})
                for event in live.steps.values():
                    watcher.events.put_nowait(event)
        return watcher

    def leave(self, job: str, watcher: Watcher) -> None:
        """Be told no more."""
        with self._lock:
            live = self._live.get(job)
            if live is not None and watcher in live.watchers:
                live.watchers.remove(watcher)

    def running_jobs(self, owner: str | None) -> list[tuple[Job, dict[int, dict[str, Any]]]]:
        """Those that have not ended, oldest first, and the last step of each picture."""
        with self._lock:
            return [
                (live.job, dict(live.steps))
                for live in sorted(self._live.values(), key=lambda live: live.job.created)
                if owner is None or live.job.owner == owner
            ]

    @contextmanager
    def explaining(self, caller: Caller, fields: Mapping[str, Any]) -> Iterator[tuple[Pipeline, Settled]]:
        """A pipeline and a settled request to look at closely, one at a time. Raises as `submit` does."""
        request = read(fields, self.settings.limits, mark=False)
        if not self._explaining.acquire(blocking=False):
            raise TooMany("somebody else is looking how it works; try again in a moment", 5.0)
        try:
            with self.models.use(self.models.names[0]) as pipeline, self.lane.member():
                yield pipeline, self._allowed(caller, request, pipeline)
        finally:
            self._explaining.release()

    @property
    def wait_estimate(self) -> float:
        """Seconds until a job that comes now would begin, roughly; at least 1."""
        return max(1.0, self.queue.cost)

    # Within

    def _allowed(
        self,
        caller: Caller,
        request: Request,
        pipeline: Pipeline,
        *,
        request_id: str = "",
        api: str = "native",
    ) -> Settled:
        """The request settled, if it may be drawn and is within the limits."""

        def check(one: Request) -> None:
            if reason := self.safety.check_request(one):
                self.audit.write(who=caller.name, what="blocked", request_id=request_id, reason=reason)
                self.metrics.jobs.labels(api, "blocked").inc()
                raise Blocked(reason)

        check(request)
        found = settled(request, pipeline, self.settings.limits)
        check(found)  # a task may take its words from the recipe in a picture
        return found

    def _enqueue(self, job: Job, left: set[int]) -> None:
        with self._lock:
            self._live[job.id] = Live(job, left)
            self.queue.put(job.id, sorted(left), job.owner, self._cost(job))

    def _cost(self, job: Job) -> float:
        """Seconds that one of its pictures takes alone, roughly."""
        request = job.request
        calls = request["num_inference_steps"] * METHODS[request["sampler"]].evaluations
        inner = 1 + (request.get("inner_steps") or 0)
        return self._pace * calls * inner * (1 if request["guidance_scale"] == 1 else 1.7)

    def _dispatch(self) -> None:
        while not self._stopping:
            if not self._slots.acquire(timeout=TICK):
                continue
            piece = None if self.draining else self.queue.take(TICK)
            if piece is None or self._stopping:
                self._slots.release()
                if self.draining:
                    time.sleep(TICK / 10)
                continue
            self._pool.submit(self._run, piece)

    def _tick(self) -> None:
        """Jobs whose deadline passed."""
        while not self._stopping:
            now = time.time()
            with self._lock:
                late = [live.job.id for live in self._live.values() if now > live.job.deadline]
            for job in late:
                self.cancel(job, "its deadline passed before it was finished", "expired")
            time.sleep(TICK)

    def _run(self, piece: Piece) -> None:
        try:
            with self._lock:
                live = self._live.get(piece.job)
                if live is None or live.stopped:
                    return
                live.steps[piece.number] = {"event": "step", "number": piece.number, "step": 0}
                if live.job.state == "queued":
                    self.store.start(piece.job)
                    live.job = self.store.job(piece.job) or live.job
                    self.metrics.waited.observe(time.time() - live.job.created)
                    self._tell(live, {"event": "state", "state": "running", "ahead": 0})
            try:
                self._draw(live, piece)
                ending = None
            except Stopped:
                ending = live.stopped
            except Blocked as error:
                ending = ("blocked", str(error))
            except MezzotintError as error:
                ending = ("failed", str(error))
            except Exception as error:
                log.exception("job %s failed", piece.job)
                ending = (
                    "failed",
                    f"a mistake of ours: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
                )
            self._finish(live, piece.number, ending)
        except Exception:  # the store is gone, say; the job stays as it is, and is taken up at the next start
            log.exception("job %s was left", piece.job)
        finally:
            self._slots.release()

    def _finish(self, live: Live, number: int, ending: tuple[str, str] | None) -> None:
        with self._lock:
            live.steps.pop(number, None)
            if ending is None and number not in live.left and not live.left:
                ending = ("done", "")
            if ending is not None:
                live.stopped = live.stopped or ending
                self.queue.drop(live.job.id)
            if live.stopped and not live.steps:
                self._end(live, *live.stopped)

    def _end(self, live: Live, state: str, why: str) -> None:
        if self._live.pop(live.job.id, None) is None or not self.store.end(live.job.id, state, why or None):
            return
        self.metrics.jobs.labels(live.job.api, state).inc()
        if state == "done":
            self.metrics.took.labels(live.job.api).observe(time.time() - live.job.created)
        self.audit.write(
            who=live.job.owner, what=state, job=live.job.id, recipe=recipe_hash(live.job), reason=why or None
        )
        self._tell(live, {"event": "end", "state": state, "error": why or None})

    def _draw(self, live: Live, piece: Piece) -> None:
        """One picture, alone in the eyes of everything but the lane."""
        asked = reread(live.job, self.store)
        request = asked.model_copy(update={"seed": asked.seed + piece.number, "num_images": 1})
        begun, shown = time.monotonic(), 0
        made: Picture | None = None
        with self.models.use(live.job.model) as pipeline, self.lane.member():
            for event in self.painter(live.job.model, pipeline, request, bool(live.watchers)):
                if self._stopping:
                    raise Stopped
                if live.stopped:
                    raise Stopped
                if isinstance(event, Progress):
                    self._tell_step(live, piece.number, event)
                    shown += 1
                else:
                    made = event
        assert made is not None
        # Out of the lane, where others would wait for what this one asks next.
        self._keep(live, piece.number, made)
        calls = max(1, shown * METHODS[request.sampler].evaluations)
        self._pace += 0.1 * ((time.monotonic() - begun) / calls / max(1, self.running) - self._pace)

    def _tell_step(self, live: Live, number: int, progress: Progress) -> None:
        event = {
            "event": "step", "number": number, "step": progress.step, "steps": progress.steps, "sigma": progress.sigma,
        }  # fmt: skip
        self.metrics.steps.inc()
        live.steps[number] = event
        curious = [watcher for watcher in list(live.watchers) if watcher.wants(number, progress)]
        self._tell(live, event)
        # A replica sends no looks along where nobody watched when it began.
        if curious and progress.step < progress.steps and (seen := progress.look()):
            png = encode_plain(seen[0])
            for watcher in curious:
                watcher.tell({**event, "event": "preview", "png": png})

    def _keep(self, live: Live, number: int, picture: Picture) -> None:
        reason = self.safety.check_picture(picture.image, picture.recipe)
        if reason:
            raise Blocked(reason)
        png = encode_image(picture.image, picture.recipe, signing=self.signing)
        self.store.keep(live.job.id, number, png, picture.image.size, picture.recipe)
        self.metrics.pictures.labels(live.job.model).inc()
        with self._lock:
            live.left.discard(number)
        self._tell(live, {"event": "picture", "number": number, "seed": picture.seed})

    def _tell(self, live: Live, event: dict[str, Any]) -> None:
        for watcher in list(live.watchers):
            watcher.tell(event)


def recipe_hash(job: Job) -> str:
    """Under which the audit log knows what was asked for, without repeating it."""
    return hashlib.sha256(json.dumps([job.model, job.request], sort_keys=True).encode()).hexdigest()
