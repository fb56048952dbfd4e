"""The service on several processes or machines: Ray Serve's replicas draw, one process in front answers and remembers.

    HTTP -> service.py (who may, queue, store) -> a replica that is free -> steps and pictures, back to service.py

The queue and its database have one owner, so that a job ends once whatever becomes of a replica: a picture is a
function of its request, and one whose replica died is drawn again by another. A replica computes in a lane of its own
(`lane.py`), and what it draws is, to the last bit, what any other would.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from ..cluster import cluster, gpus, threads
from ..errors import MezzotintError, UsageError
from ..pipeline import Event, Picture, Pipeline, Progress
from ..request import Settled
from .lane import Lane
from .models import Models
from .service import Painter
from .settings import Settings

log = logging.getLogger("mezzotint.serve")

LOOKS = 8  # pictures of the way that are sent along, where somebody watches
DRAWN_AGAIN = 3  # times that a picture is begun whose replica dies


@dataclass(frozen=True)
class Way:
    """A step, as it is sent: `Progress` without what computes."""

    first: int
    count: int
    step: int
    steps: int
    start: float
    sigma: float
    seen: list[Image.Image] | None


class Replica:
    """One of the processes that draw."""

    def __init__(self, folder: str, settings: Settings, running: int) -> None:
        os.chdir(folder)  # paths of the settings may be relative to it
        self.lane = Lane(running if settings.step_batching else 1)
        self.models = Models(
            settings.models, device=settings.device, memory=settings.memory, extras=settings.extras,
            share=self.lane.shared,
        )  # fmt: skip
        self.pool = ThreadPoolExecutor(running, thread_name_prefix="draw")
        with self.models.use(self.models.names[0]):
            pass

    async def draw(self, model: str, request: Settled, watched: bool) -> AsyncIterator[Way | Picture]:
        """The steps of a request and its pictures; between two of them, others of this replica go on."""
        with self.models.use(model) as pipeline, self.lane.member():
            events = pipeline.generate(request)
            while (event := await self._computed(next, events, None)) is not None:
                yield event if isinstance(event, Picture) else await self._way(event, watched)

    async def _way(self, now: Progress, watched: bool) -> Way:
        due = watched and (now.step - 1) % max(1, now.steps // LOOKS) == 0
        seen = await self._computed(now.look) if due else None
        return Way(now.first, now.count, now.step, now.steps, now.start, now.sigma, seen)

    async def _computed(self, what: Callable[..., Any], *given: Any) -> Any:
        """What it gives, found in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, what, *given)


@contextmanager
def painters(settings: Settings, replicas: int) -> Iterator[Painter]:
    """Replicas that draw, while the block lasts.

    Raises UsageError where Ray is not installed or too small, and for a model that is not there.
    """
    Models(settings.models)  # here, where it is told in one line, rather than in every replica
    with cluster(replicas) as ray:
        try:
            from ray import serve
        except ImportError as error:
            raise UsageError(
                f"Ray Serve needs more packages: pip install 'mezzotint[ray]' ({error})"
            ) from error
        serve.start(proxy_location="Disabled")  # the service has its own front
        each = max(1, settings.running // replicas)
        deployment = serve.deployment(
            Replica,
            name="painter",
            num_replicas=replicas,
            max_ongoing_requests=each,
            ray_actor_options={
                "num_cpus": threads(ray, replicas),
                "num_gpus": gpus(ray, settings.device),
            },
        )
        try:
            handle = serve.run(
                deployment.bind(os.getcwd(), settings, each), name="mezzotint", route_prefix=None
            )
            yield partial(_drawn, handle)
        finally:
            serve.shutdown()


def _drawn(handle: Any, model: str, pipeline: Pipeline, request: Settled, watched: bool) -> Iterator[Event]:
    """The events of a request that a replica draws; begun again by another where that one dies."""
    from ray.exceptions import RayActorError, RayTaskError

    for attempt in range(DRAWN_AGAIN):
        sent = handle.options(stream=True).draw.remote(model, request, watched)
        try:
            yield from _received(sent)
            return
        except RayActorError:
            log.warning("a replica died while it drew; attempt %d of %d", attempt + 1, DRAWN_AGAIN)
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, MezzotintError) else error) from None
        finally:
            sent.cancel()
    raise MezzotintError(f"{DRAWN_AGAIN} replicas died while they drew this")


def _received(sent: Any) -> Iterator[Event]:
    seen: list[Image.Image] = []
    for message in sent:
        if isinstance(message, Picture):
            yield message
            continue
        seen = message.seen or seen
        kept: Callable[[], list[Image.Image]] = partial(list, seen)
        yield Progress(
            message.first,
            message.count,
            message.step,
            message.steps,
            message.start,
            message.sigma,
            kept,
            kept,
        )
