"""What every request passes through: bounds, an id, a line in the log, headers that keep browsers in check.

A service without keys trusts whoever reaches it, so it must not be reached through somebody else's page in this
machine's browser: the Host must be this machine (no DNS rebinding), and a request with an Origin must come from the
service's own page or from a site that the operator named.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from contextlib import suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .http import explained
from .metrics import Metrics
from .settings import LOOPBACK, Settings

log = logging.getLogger("mezzotint.serve.http")

HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
LINGER, LINGERING = 0.5, 1_000_000  # seconds, and bytes, that are read of what is refused
ID = re.compile(r"[\w.\-]{1,64}")  # of a request, where the client brings one


class TooLarge(HTTPException):
    """More came than is read; what is still to come is not waited for."""

    def __init__(self, most: int) -> None:
        super().__init__(413, f"more than {most} bytes are not read", {"connection": "close"})


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.most = settings.limits.upload_bytes * 3  # several pictures, in base64

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        brought = headers.get("x-request-id", "")
        request_id = brought if ID.fullmatch(brought) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        origin = headers.get("origin")
        status, read = 0, 0  # 0: nothing was answered yet

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most:
                raise TooLarge(self.most)
            return message

        async def answered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = HEADERS | {"x-request-id": request_id}
                if origin in self.settings.origins:
                    extra |= {"access-control-allow-origin": str(origin), "vary": "Origin"}
                present = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((n.encode(), v.encode()) for n, v in extra.items() if n.encode() not in present),
                ]
            await send(message)

        try:
            refusal = self._refusal(headers)
            if refusal:
                await _lingered(receive)
                await _say(answered, *refusal)
            elif scope["method"] == "OPTIONS" and origin in self.settings.origins:
                await _preflight(answered)
            else:
                await self.app(scope, counted, answered)
        except Exception as error:
            log.exception("a mistake of ours", extra={"request_id": request_id})
            if status:  # too late to say so
                raise
            await explained(Request(scope), error)(scope, receive, answered)
        finally:
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(scope["method"], route, str(status)).inc()
            self.metrics.seconds.labels(route).observe(seconds)
            log.info(
                "request",
                extra={
                    "request_id": request_id, "method": scope["method"], "path": scope["path"], "status": status,
                    "ms": round(seconds * 1000, 1), "who": scope["state"].get("who"),
                },
            )  # fmt: skip

    def _refusal(self, headers: dict[str, str]) -> tuple[int, str, str] | None:
        host = headers.get("host", "")
        if self.settings.local and not _is_here(host):
            return (
                403,
                f"this service answers to this machine's own name, not to '{host[:200]}'",
                "wrong_host",
            )
        origin = headers.get("origin")
        ours = {f"{scheme}://{headers.get('host')}" for scheme in ("http", "https")}
        if origin is not None and origin not in {*self.settings.origins, *ours}:
            return 403, f"pages of {origin[:200]} may not use this service; see --origin", "wrong_origin"
        if (
            headers.get("content-length", "0").isdigit()
            and int(headers.get("content-length", "0")) > self.most
        ):
            return 413, f"more than {self.most} bytes are not read", "too_large"
        return None


def _is_here(host: str) -> bool:
    """Whether a Host header means this machine; 127.example.org, say, is a name like any other."""
    try:
        name = urlsplit("//" + host).hostname or ""
        return name in LOOPBACK or ip_address(name).is_loopback
    except ValueError:  # not an address, or no host at all
        return False


async def _lingered(receive: Receive) -> None:
    """Reads on for a moment: whoever is hung up on in the middle of a sentence does not hear why."""
    read = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            while read < LINGERING and (message := await receive()).get("more_body"):
                read += len(message.get("body", b""))


async def _say(send: Send, status: int, message: str, code: str) -> None:
    body = json.dumps(
        {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    )
    start: dict[str, Any] = {"type": "http.response.start", "status": status}
    await send(start | {"headers": [(b"content-type", b"application/json"), (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body.encode()})


async def _preflight(send: Send) -> None:
    headers = {
        "access-control-allow-methods": "GET, POST, DELETE",
        "access-control-allow-headers": "authorization, content-type, x-request-id",
        "access-control-max-age": "600",
    }
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 204, "headers": pairs})
    await send({"type": "http.response.body", "body": b""})
