"""The native API: every task and every field of a request, jobs that outlive their client, events on the way.

    POST /api/jobs {"prompt": "a red apple"}  ->  202 {"id": ..., "state": "queued", ...}
    GET  /api/jobs/{id}/events?previews=true  ->  server-sent events: state, step, preview, picture, end
    GET  /api/jobs/{id}/pictures/0.png        ->  the picture, its recipe inside

The body is `mezzotint.request.Request` itself, so the schema cannot fall behind.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from .. import __version__
from ..diffusion.grids import GRIDS
from ..diffusion.samplers import METHODS
from ..formats.image import open_image, read_recipe
from ..heat import spelled
from ..origin import origin
from ..pipeline import Progress
from ..request import Request as Drawing
from ..tasks import TASKS
from ..tasks.problem import levels
from .explain import forward, reverse
from .http import Asking, Refused, Serving, base64_of, events, fields_of, line
from .keys import Caller
from .service import Service
from .store import ENDED, Job, Made

ID = Annotated[str, Path(pattern="^[0-9a-f]{24}$", description="of a job")]
PREVIEWS_EVERY = 0.12  # seconds at least between two previews


class JobRequest(Drawing):
    """What is to be drawn, by which model, and until when."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    model: Annotated[str | None, Field(description="one of those served; the first if not given")] = None
    deadline: Annotated[float | None, Field(gt=0, le=86400, description="seconds that it may take")] = None


def body_of(model: type[BaseModel], kind: str = "application/json") -> dict[str, Any]:
    """The OpenAPI document's word on a body that is not read by FastAPI, which would read pictures as paths."""
    return {
        "requestBody": {
            "content": {kind: {"schema": model.model_json_schema()}},
            "required": True,
        }
    }


class PictureOut(BaseModel):
    job: str
    number: int
    seed: int
    width: int
    height: int
    created: float
    url: str
    recipe: dict[str, Any]


class JobOut(BaseModel):
    id: str
    state: Literal["queued", "running", "done", "failed", "blocked", "cancelled", "expired"]
    error: str | None
    ahead: Annotated[int, Field(description="pictures of others that wait before it")]
    model: str
    request: Annotated[dict[str, Any], Field(description="with nothing left open")]
    created: float
    started: float | None
    ended: float | None
    deadline: float
    pictures: list[PictureOut]


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorOut(BaseModel):
    error: ErrorBody


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorOut, "description": text}
    for status, text in {
        400: "the request names something that cannot be done",
        401: "no valid key",
        403: "not for this caller, host or origin",
        404: "no such thing",
        413: "too large",
        429: "too many; see Retry-After",
        503: "about to stop; see Retry-After",
    }.items()
}
router = APIRouter(prefix="/api", tags=["native"], responses=PROBLEMS)


@router.get("/info")
def info(service: Serving, caller: Asking) -> dict[str, Any]:
    """What can be asked for here: models with their defaults, tasks, samplers, grids, limits."""
    limits = service.settings.limits
    return {
        "version": __version__,
        "who": caller.name,
        "models": {name: service.models.about(name) for name in service.models.names},
        "tasks": {
            task.name: {
                "about": task.about,
                "given": task.given,
                "fields": task.fields,
                "heeds": dict(task.heeds),
            }
            for task in TASKS.values()
        },
        "samplers": {
            name: {"order": method.order, "evaluations": method.evaluations, "stochastic": method.stochastic}
            for name, method in METHODS.items()
        },
        "grids": list(GRIDS),
        "mark": service.settings.mark,
        "loras": list(service.shelf.loras()),
        "words": sorted(service.shelf.words()),
        "limits": {
            name: getattr(limits, name)
            for name in ("pixels", "steps", "images", "upload_bytes", "waiting", "deadline")
        },
        "request": Drawing.model_json_schema(),
    }


@router.get("/levels")
def noise_levels(
    service: Serving,
    caller: Asking,
    model: str | None = None,
    grid: str | None = None,
    steps: Annotated[int | None, Query(ge=1, le=10_000)] = None,
) -> dict[str, Any]:
    """The noise levels that a picture would walk down: sigma, from pure noise to 0."""
    with service.models.use(service.models.check(model)) as pipeline:
        settled = pipeline.settle(Drawing(grid=grid, num_inference_steps=steps, seed=0))
        return {"sigmas": levels(pipeline, settled).tolist()}


@router.post("/jobs", status_code=202, openapi_extra=body_of(JobRequest))
async def submit(request: Request, service: Serving, caller: Asking) -> JobOut:
    """Accept a job. When this answers, the job is on disk and will end. Pictures are their files' bytes in base64."""
    body = await fields_of(request)
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in body.items()}
    asked = await run_in_threadpool(JobRequest.parse, given, files=False)
    fields = {name: getattr(asked, name) for name in asked.model_fields_set - {"model", "deadline"}}
    job = await run_in_threadpool(
        service.submit,
        caller,
        fields,
        model=asked.model,
        deadline=asked.deadline,
        request_id=request.state.request_id,
    )
    return shown(service, job)


@router.get("/jobs")
def jobs(
    service: Serving,
    caller: Asking,
    before: float | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> list[JobOut]:
    """One's jobs, the newest first; an admin sees everybody's."""
    return [shown(service, job) for job in service.store.jobs(caller.sees, before=before, limit=limit)]


@router.get("/jobs/{job}")
def status(job: ID, service: Serving, caller: Asking) -> JobOut:
    """How a job stands."""
    return shown(service, own(service, caller, job))


@router.post("/jobs/{job}/cancel")
def cancel(job: ID, service: Serving, caller: Asking) -> JobOut:
    """Stop a job; pictures that are made are kept. One that has ended stays as it is."""
    service.cancel(own(service, caller, job).id)
    return shown(service, own(service, caller, job))


@router.delete("/jobs/{job}", status_code=204, response_class=Response)
def remove(job: ID, request: Request, service: Serving, caller: Asking) -> None:
    """Forget a job that has ended, its pictures, and those it was given."""
    found = own(service, caller, job)
    if found.state not in ENDED:
        raise Refused(400, f"job {job} has not ended; cancel it first", code="not_ended")
    service.store.remove(job)
    service.audit.write(who=caller.name, what="removed", request_id=request.state.request_id, job=job)


@router.get("/jobs/{job}/events", response_class=StreamingResponse)
async def follow(job: ID, service: Serving, caller: Asking, previews: bool = False) -> StreamingResponse:
    """Server-sent events until the job ends: state, step, preview (PNG in base64), picture, end."""
    found = own(service, caller, job)
    last: dict[int, float] = {}

    def looks(number: int, progress: Progress) -> bool:
        now = time.monotonic()
        if not previews or now - last.get(number, 0.0) < PREVIEWS_EVERY:
            return False
        last[number] = now
        return True

    async def told() -> AsyncIterator[bytes]:
        async for event in events(service, found.id, looks):
            name = event["event"]
            if name == "alive":
                yield b": alive\n\n"
                continue
            if name == "preview":
                event = {**event, "png": base64_of(event["png"])}
            if name == "picture":
                event = {**event, "url": url(found.id, event["number"])}
            yield line(name, event)

    return StreamingResponse(told(), media_type="text/event-stream", headers={"cache-control": "no-store"})


@router.get("/jobs/{job}/pictures/{number}.png", response_class=FileResponse)
def picture(
    job: ID, number: Annotated[int, Path(ge=0, le=10_000)], service: Serving, caller: Asking
) -> FileResponse:
    """A finished picture with its recipe inside."""
    own(service, caller, job)
    path = service.store.path(job, number)
    if not path.is_file():
        raise Refused(404, f"job {job} has no picture {number}", code="not_found")
    return FileResponse(
        path, media_type="image/png", headers={"cache-control": "private, max-age=31536000, immutable"}
    )


@router.get("/jobs/{job}/inputs/{field}", response_class=FileResponse)
def given_picture(job: ID, field: str, service: Serving, caller: Asking) -> FileResponse:
    """A picture that the job was given, as it came: what `image` was, say."""
    sha256 = own(service, caller, job).given.get(field)
    if sha256 is None:
        raise Refused(404, f"job {job} was given no picture '{field}'", code="not_found")
    return FileResponse(
        service.store.upload(sha256), media_type="application/octet-stream",
        headers={"cache-control": "private, max-age=31536000, immutable"},
    )  # fmt: skip


@router.get("/pictures")
def gallery(
    service: Serving,
    caller: Asking,
    before: float | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> list[PictureOut]:
    """One's pictures, the newest first."""
    return [card(made) for made in service.store.gallery(caller.sees, before=before, limit=limit)]


BYTES = {
    "requestBody": {
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
        "required": True,
    }
}


@router.post("/read", openapi_extra=BYTES)
async def read(request: Request, service: Serving, caller: Asking) -> dict[str, Any]:
    """The recipe inside a picture that is sent as the body: ours, or AUTOMATIC1111's."""
    data = await upload(request, service)
    return {"recipe": await run_in_threadpool(read_recipe, data)}


@router.post("/verify", openapi_extra=BYTES)
async def verify(request: Request, service: Serving, caller: Asking) -> dict[str, Any]:
    """Where a picture (the body) comes from: its label, its recipe, the invisible mark, and how sure that is."""
    data = await upload(request, service)
    own = service.signing.certificates if service.signing else b""
    return await run_in_threadpool(
        origin, data, max_pixels=service.settings.limits.upload_pixels, trusted=own
    )


@router.post("/forward", openapi_extra=BYTES)
async def forward_process(
    request: Request,
    service: Serving,
    caller: Asking,
    model: str | None = None,
    frames: Annotated[int, Query(ge=2, le=60)] = 24,
) -> dict[str, Any]:
    """How a picture (the body) sinks into noise: moments with their noise level, PNGs in base64."""
    data = await upload(request, service)

    def made() -> dict[str, Any]:
        image = open_image(data, max_pixels=service.settings.limits.upload_pixels)
        with service.models.use(service.models.check(model)) as pipeline:
            return forward(image, pipeline.plan.process, frames=frames)

    return await run_in_threadpool(made)


@router.post("/reverse", openapi_extra=body_of(Drawing))
async def reverse_process(request: Request, service: Serving, caller: Asking) -> dict[str, Any]:
    """How a picture is found in noise: the moments of one picture, and where each word was looked up."""
    asked = await fields_of(request)

    def made() -> dict[str, Any]:
        with service.explaining(caller, asked) as (pipeline, settled):
            return {
                "words": list(spelled(pipeline.wearing(settled), settled.prompt)),
                "frames": list(reverse(pipeline, settled)),
            }

    return await run_in_threadpool(made)


async def upload(request: Request, service: Service) -> bytes:
    """The body, in bounds."""
    data = await request.body()
    if not data:
        raise Refused(400, "send a picture as the body", code="missing_picture")
    if len(data) > service.settings.limits.upload_bytes:
        raise Refused(
            413, f"more than {service.settings.limits.upload_bytes} bytes are not read", code="too_large"
        )
    return data


def own(service: Service, caller: Caller, job: str) -> Job:
    """A job that the caller may see; for others it does not exist."""
    found = service.store.job(job)
    if found is None or caller.sees not in (None, found.owner):
        raise Refused(404, f"there is no job {job}", code="not_found")
    return found


def url(job: str, number: int) -> str:
    return f"/api/jobs/{job}/pictures/{number}.png"


def card(made: Made) -> PictureOut:
    return PictureOut(
        job=made.job, number=made.number, seed=made.recipe["seed"], width=made.width, height=made.height,
        created=made.created, url=url(made.job, made.number), recipe=made.recipe,
    )  # fmt: skip


def shown(service: Service, job: Job) -> JobOut:
    return JobOut(
        id=job.id, state=job.state, error=job.error, model=job.model, request=job.request, created=job.created,
        ahead=service.queue.ahead(job.id) if job.state == "queued" else 0, started=job.started, ended=job.ended,
        deadline=job.deadline, pictures=[card(made) for made in service.store.made(job.id)],
    )  # fmt: skip
