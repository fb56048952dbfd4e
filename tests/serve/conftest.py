"""A service with a tiny model, answering on a port of this machine."""

import socket
import threading
import time
from dataclasses import replace

import httpx2
import pytest
import uvicorn

pytest.importorskip("fastapi", reason="the serve extra is not installed")

from mezzotint.serve.app import Server, create_app
from mezzotint.serve.service import Service, here
from mezzotint.serve.settings import Limits, Settings
from tiny import write_tiny


class Running:
    """A service behind a port."""

    def __init__(self, settings, safety=None, painter=here):
        self.service = Service(settings, safety, painter)
        config = uvicorn.Config(
            create_app(self.service), port=0, log_config=None, timeout_graceful_shutdown=2
        )
        self.server = Server(config, self.service)
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]}, daemon=True)
        self.thread.start()
        until = time.monotonic() + 60
        while not self.server.started:
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.01)
        self.client = httpx2.Client(base_url=self.url, timeout=30)

    def stop(self):
        self.client.close()
        self.service.drain()
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()

    def post(self, **fields):
        return self.client.post("/api/jobs", json={"prompt": "a red apple"} | fields)

    def wait(self, job, *, until=("done", "failed", "blocked", "cancelled", "expired"), seconds=60):
        end = time.monotonic() + seconds
        while (found := self.client.get(f"/api/jobs/{job}").json())["state"] not in until:
            assert time.monotonic() < end, found
            time.sleep(0.02)
        return found


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def start(tmp_path, model):
    """Starts services; those that a test leaves are stopped."""
    made = []

    def started(safety=None, limits=None, painter=here, **settings):
        base = Settings(data=tmp_path / "data", models=(str(model),), device="cpu", drain=5.0)
        chosen = replace(base, limits=replace(Limits(), **(limits or {})), **settings)
        made.append(Running(chosen, safety, painter))
        return made[-1]

    yield started
    for running in made:
        if running.thread.is_alive():
            running.stop()


@pytest.fixture(scope="session")
def shared(tmp_path_factory, model):
    """One service for tests that leave it as it was."""
    running = Running(
        Settings(data=tmp_path_factory.mktemp("data"), models=(str(model),), device="cpu", drain=1.0)
    )
    yield running
    running.stop()
