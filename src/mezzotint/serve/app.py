"""The application: routes, the page, health, and how it starts and stops."""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from .. import __version__
from ..errors import MezzotintError, UsageError
from . import a1111, a1111_lists, native, openai
from .guard import Guard
from .http import Asking, Refused, Serving, explained, told
from .service import Painter, Service, here
from .settings import Settings

WEB = Path(__file__).parent / "web"


def create_app(service: Service) -> FastAPI:
    """The application of a service; it starts and stops with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(service.start)
        yield
        await run_in_threadpool(service.stop)

    app = FastAPI(
        title="mezzotint",
        version=__version__,
        description="Pictures from words. Native under /api, OpenAI's under /v1, AUTOMATIC1111's under /sdapi/v1.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service, app.state.chosen_models = (
        service,
        {},
    )  # name of a key -> model, for AUTOMATIC1111's options
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics)
    for kind in (MezzotintError, RequestValidationError, Refused, ClientDisconnect):
        app.add_exception_handler(kind, explained)
    app.add_exception_handler(HTTPException, _http_error)
    for router in (native.router, openai.router, a1111.router, a1111_lists.router):
        app.include_router(router)
    app.add_api_route("/healthz", healthz, include_in_schema=False)
    app.add_api_route("/readyz", readyz, include_in_schema=False)
    app.add_api_route("/metrics", metrics, include_in_schema=False)
    app.add_api_route("/", page, include_in_schema=False)
    app.mount("/web", StaticFiles(directory=WEB))
    return app


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = told(request.url.path, error.status_code, str(error.detail), None, None)
    answer.headers.update(error.headers or {})
    if error.status_code == 405:  # routes of one path know their own methods alone
        patterns = {
            re.sub(r"\{[^}]+\}", "[^/]+", path): item for path, item in request.app.openapi()["paths"].items()
        }
        known = {
            name.upper()
            for path, item in patterns.items()
            if re.fullmatch(path, request.url.path)
            for name in item
        }
        answer.headers["allow"] = ", ".join(sorted(known)) or answer.headers.get("allow", "GET")
    return answer


def page() -> FileResponse:
    return FileResponse(WEB / "index.html", headers={"cache-control": "no-cache"})


def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


def readyz(service: Serving, response: Response) -> dict[str, Any]:
    """It takes jobs: 503 while it is about to stop."""
    response.status_code = 503 if service.draining else 200
    return {"status": "draining" if service.draining else "ready", "waiting": len(service.queue)}


def metrics(service: Serving, caller: Asking) -> Response:
    """For Prometheus; where there are keys, an admin's is needed."""
    if caller.sees is not None:
        raise Refused(403, "metrics are for admins", code="forbidden")
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


class Server(uvicorn.Server):
    """Told to stop, it stops accepting jobs before it stops accepting connections."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.drain()
        self.force_exit = self.should_exit and sig == signal.SIGINT  # twice Ctrl-C: at once
        self.should_exit = True


def run(settings: Settings, painter: Painter = here) -> None:
    """Serve until told to stop.

    Raises UsageError for a wider address without a key, MezzotintError if the service cannot start.
    """
    service = Service(settings, painter=painter)
    if not settings.local and not service.keys.any:
        service.store.close()
        raise UsageError(
            f"--host {settings.host} lets other machines in, and there is no key yet: make one with "
            "`mezzotint keys add NAME`, or serve on 127.0.0.1"
        )
    service.prepare()
    log_as_json()
    config = uvicorn.Config(
        create_app(service), host=settings.host, port=settings.port, log_config=None, access_log=False,
        server_header=False, timeout_graceful_shutdown=int(settings.drain) + 1, timeout_keep_alive=30,
    )  # fmt: skip
    Server(config, service).run()


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        plain = vars(logging.makeLogRecord({}))
        said = {key: value for key, value in vars(record).items() if key not in plain and value is not None}
        said.pop("message", None), said.pop("color_message", None)
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return json.dumps(
            {"time": round(record.created, 3), "level": record.levelname.lower(), "what": record.getMessage()}
            | said,
            default=str,
        )


def log_as_json() -> None:
    """One JSON object a line on stderr, those of the libraries below too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    for name in ("mezzotint", "uvicorn", "python_multipart"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
