"""What an operator decides: where things lie, who may come in, and how much of what anybody may ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True)
class Limits:
    """Bounds on one request, and on how many may wait."""

    pixels: int = 1024 * 1024  # of a picture, width x height
    steps: int = 250
    images: int = 16  # of a job
    upload_bytes: int = 20_000_000
    upload_pixels: int = 16_000_000
    prompt: int = 32_000  # characters of a text; what the model holds is far less, and told by name
    waiting: int = 100  # jobs in the queue; beyond, 429
    deadline: float = 900.0  # seconds from acceptance that a job has at most
    attempts: int = 3  # starts of a job that ended with the process, before it is reported failed


@dataclass(frozen=True)
class Settings:
    """All of it. `data` holds the database, the pictures, the uploads and the audit log."""

    data: Path
    models: tuple[str, ...] = ("emoji",)
    extras: tuple[Path, ...] = ()  # folders in which LoRAs and learnt words are found by name
    host: str = "127.0.0.1"
    port: int = 7860
    origins: tuple[str, ...] = ()  # of other sites whose pages may call
    device: str = "auto"
    running: int = 8  # pictures drawn at a time
    memory: float = 4e9  # bytes of weights that are kept
    drain: float = 30.0  # seconds that running pictures have when the service is told to stop
    step_batching: bool = True
    mark: bool = True  # whether pictures are marked where a request does not say
    sign: Path | None = None  # a folder with certificates and a key: pictures carry signed credentials
    blocked: Path | None = None  # words that are refused besides those that are built in
    limits: Limits = field(default_factory=Limits)

    @property
    def local(self) -> bool:
        """Whether only this machine can come in."""
        return self.host in LOOPBACK
