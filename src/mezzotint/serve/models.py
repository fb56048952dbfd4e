"""Which models are served, loaded when they are first asked for, the least recently used let go when memory is short.

A client names a model by the name that the operator gave it; a path that a client gives is never opened.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..catalog import content_hash, find_model
from ..errors import MezzotintError, UsageError, unknown
from ..pipeline import Pipeline


class Broken(MezzotintError):
    """A model of the operator's that cannot be loaded: not the client's fault."""


class Models:
    """Name -> pipeline. `share` is applied to each one that is loaded: it brings it into the lane."""

    def __init__(
        self,
        models: Sequence[str],
        *,
        device: str = "auto",
        memory: float = float("inf"),
        extras: Sequence[Path] = (),
        share: Callable[[Pipeline], Pipeline] = lambda pipeline: pipeline,
    ) -> None:
        """Raises UsageError for a model that is not there, or two of one name."""
        self.folders: dict[str, Path] = {}
        for model in models:
            folder = find_model(model)
            if folder.name in self.folders:
                raise UsageError(f"two models are called '{folder.name}'; rename one of the folders")
            self.folders[folder.name] = folder
        self._device, self._memory, self._share, self._extras = device, memory, share, extras
        self._loaded: OrderedDict[str, Pipeline] = OrderedDict()
        self._used: dict[str, int] = {}
        self._hashes: dict[str, str] = {}
        self._lock = threading.RLock()

    @property
    def names(self) -> list[str]:
        return list(self.folders)

    @property
    def loaded(self) -> list[str]:
        """The least recently used first."""
        with self._lock:
            return list(self._loaded)

    def check(self, name: str | None) -> str:
        """The name of a model that is served, the first one for None. Raises UsageError."""
        if name is None:
            return self.names[0]
        if name not in self.folders:
            raise unknown("model", name, self.folders)
        return name

    def fingerprint(self, name: str) -> str:
        """What a model's recipes know it by; it is not loaded for that."""
        if name not in self._hashes:
            self._hashes[name] = content_hash(self.folders[name])
        return self._hashes[name]

    @contextmanager
    def use(self, name: str) -> Iterator[Pipeline]:
        """A model that is not let go meanwhile. Raises UsageError for one that is not served."""
        with self._lock:
            pipeline = self._get(self.check(name))
            self._used[name] = self._used.get(name, 0) + 1
        try:
            yield pipeline
        finally:
            with self._lock:
                self._used[name] -= 1

    def _get(self, name: str) -> Pipeline:
        if name not in self._loaded:
            self._make_room(sum(file.stat().st_size for file in self.folders[name].rglob("*.safetensors")))
            try:
                self._loaded[name] = self._share(
                    Pipeline.load(self.folders[name], device=self._device, extras=self._extras)
                )
            except MezzotintError as error:
                raise Broken(f"the model '{name}' cannot be loaded: {error}") from error
        self._loaded.move_to_end(name)
        return self._loaded[name]

    def _make_room(self, wanted: float) -> None:
        """Lets go of what was used longest ago and is not in use; a model too large for all is loaded all the same."""
        for name in list(self._loaded):
            if sum(map(_bytes, self._loaded.values())) + wanted <= self._memory:
                return
            if not self._used.get(name):
                del self._loaded[name]


def _bytes(pipeline: Pipeline) -> int:
    """Of its weights, as files."""
    return sum(file.stat().st_size for file in pipeline.folder.rglob("*.safetensors"))
