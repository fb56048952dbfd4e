"""What the three APIs share: who asks, how failures are told, how a job is waited for while its client stays."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from ..errors import MezzotintError, UsageError
from .keys import Caller, TooMany
from .live import Looks, never
from .models import Broken
from .safety import Blocked
from .service import Service, Unavailable
from .store import Job

HEARTBEAT = 10.0  # seconds after which an idle stream says that it is alive
NOTHING: dict[str, str] = {}


class Refused(Exception):
    """An answer other than what was asked for."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param = status, param
        self.code = code or ("invalid_value" if status == 400 else None)


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def caller_of(request: Request) -> Caller:
    """Whose key it is: `Authorization: Bearer KEY`, or Basic with the key as password. 401 without, 429 too often."""
    service = service_of(request)
    caller = service.keys.caller(_key(request.headers.get("authorization", "")))
    if caller is None:
        raise Refused(401, "give a valid API key: Authorization: Bearer mz-...", code="invalid_api_key")
    request.scope["state"]["who"] = caller.name
    if request.method != "GET":
        service.keys.spend(caller)
    return caller


Serving = Annotated[Service, Depends(service_of)]
Asking = Annotated[Caller, Depends(caller_of)]


def _key(header: str) -> str | None:
    kind, _, value = header.partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        with suppress(binascii.Error, UnicodeDecodeError):
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
    return None


def explained(request: Request, error: Exception) -> Response:
    """Any failure as an answer: in AUTOMATIC1111's form under /sdapi, elsewhere in OpenAI's."""
    status, code, param, headers = 500, None, None, NOTHING
    message = str(error)
    if isinstance(error, Refused):
        status, code, param = error.status, error.code, error.param
    elif isinstance(error, RequestValidationError):
        status, (message, param) = 400, _first(error.errors())
        code = "invalid_value"
    elif isinstance(error, ClientDisconnect):  # in the middle of a request; nobody will read this
        status, code, message = 499, "client_gone", "the client went away"
    elif isinstance(error, Blocked):
        status, code = 400, "content_policy_violation"
    elif isinstance(error, TooMany):
        status, code, headers = 429, "rate_limit_exceeded", {"retry-after": str(max(1, round(error.seconds)))}
    elif isinstance(error, Unavailable):
        status, code, headers = 503, "unavailable", {"retry-after": "30"}
    elif isinstance(error, UsageError):
        status, code = 400, "invalid_value"
        if isinstance(error.__cause__, ValidationError):
            loc = error.__cause__.errors()[0]["loc"]
            param = str(loc[0]) if loc else None
    elif isinstance(error, MezzotintError) and not isinstance(error, Broken):
        status, code = 400, "invalid_value"  # a picture that cannot be read, say
    elif not isinstance(error, Broken):
        message = "a mistake of ours; the log has it under this request's id"
    return told(request.url.path, status, message, code, param, headers)


def told(
    path: str,
    status: int,
    message: str,
    code: str | None,
    param: str | None,
    headers: Mapping[str, str] = NOTHING,
) -> Response:
    if path.startswith("/sdapi/"):
        body: dict[str, Any] = {"error": code or "error", "detail": message, "body": "", "errors": message}
    else:
        kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}.get(status)
        kind = kind or ("rate_limit_error" if status == 429 else None)
        kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(
        body, status, dict(headers) | ({"www-authenticate": "Bearer"} if status == 401 else {})
    )


def _first(errors: Any) -> tuple[str, str | None]:
    """The first thing that is wrong with a body or a query, in one line, and the field."""
    first = errors[0]
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    name = where[0] if where else None
    if first["type"] == "extra_forbidden":
        return f"unknown field '{name}'", name
    if first["type"] == "json_invalid":
        return "the body is not valid JSON", None
    return f"{'.'.join(where) or 'the body'}: {first['msg'][0].lower()}{first['msg'][1:]}", name


async def fields_of(request: Request) -> dict[str, Any]:
    """The body as a JSON object."""
    try:
        fields = await request.json()
    except ValueError as error:
        raise Refused(400, "the body is not valid JSON", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise Refused(400, "the body is not a JSON object", code="invalid_json")
    return fields


async def events(service: Service, job: str, looks: Looks = never) -> AsyncIterator[dict[str, Any]]:
    """What happens to a job until it ends; every HEARTBEAT without news, {"event": "alive"}."""
    watcher = service.watch(job, looks)
    try:
        while True:
            try:
                event = await asyncio.wait_for(watcher.events.get(), HEARTBEAT)
            except TimeoutError:
                event = {"event": "alive"}
            yield event
            if event["event"] == "end":
                return
    finally:
        service.leave(job, watcher)


async def finished(service: Service, request: Request, job: Job) -> Job:
    """Wait until a job is done. If its client goes away, it is cancelled.

    Raises Refused if it ends otherwise: 400 blocked, 500 failed, 504 expired, 499 cancelled.
    """

    async def to_the_end() -> dict[str, Any]:
        last: dict[str, Any] = {}
        async for event in events(service, job.id):
            last = event
        return last

    waiting = asyncio.ensure_future(to_the_end())
    leaving = asyncio.ensure_future(gone(request))
    try:
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            service.cancel(job.id, "its client went away")
        raise_unless_done(await waiting)
        ended = service.store.job(job.id)
        assert ended is not None
        return ended
    finally:
        leaving.cancel()
        waiting.cancel()


async def gone(request: Request) -> None:
    """Returns when the client has hung up; to be used when the body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def raise_unless_done(end: Mapping[str, Any]) -> None:
    state, why = end.get("state"), end.get("error") or ""
    if state == "blocked":
        raise Blocked(why)
    if state == "queued":
        raise Unavailable(why)
    if state != "done":
        status = {"cancelled": 499, "expired": 504}.get(str(state), 500)
        raise Refused(status, f"{state}: {why}", code=str(state))


def line(event: str | None, data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    named = f"event: {event}\n" if event else ""
    return f"{named}data: {json.dumps(data)}\n\n".encode()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()
