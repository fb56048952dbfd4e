"""Which models are served, loaded when they are first asked for, the least recently used let go when memory is short.

Whoever uses a model holds it: it is let go after that, never under somebody's hands. One that is loading holds up those
who ask for it, and nobody else.

A client names a model by the name that the operator gave it; a path that a client gives is never opened.
"""

from __future__ import annotations

import gc
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ..catalog import content_hash, find_model
from ..codec import Latents
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
            name = folder.stem if folder.is_file() else folder.name
            if name in self.folders:
                raise UsageError(f"two models are called '{name}'; rename one of them")
            self.folders[name] = folder
        self._device, self._memory, self._share, self._extras = device, memory, share, extras
        self._loaded: OrderedDict[str, Pipeline] = OrderedDict()
        self._used: Counter[str] = Counter()
        self._loading = {name: threading.Lock() for name in self.folders}
        self._about: dict[str, dict[str, Any]] = {}
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
        name = self.check(name)
        with self._lock:
            self._used[name] += 1
        try:
            yield self._get(name)
        finally:
            with self._lock:
                self._used[name] -= 1

    def about(self, name: str) -> dict[str, Any]:
        """What clients are told of a model; it is loaded for that once, and need not stay."""
        if name not in self._about:
            with self.use(name) as pipeline:
                self._about[name] = pipeline.defaults.fields() | {
                    "license": pipeline.defaults.license,
                    "hash": self.fingerprint(name),
                    "tokens": pipeline.encoder.capacity,
                    "factor": pipeline.grain,
                    "sized": bool(pipeline.configs.sized),
                }
        return self._about[name]

    def _get(self, name: str) -> Pipeline:
        with self._loading[name]:
            with self._lock:
                if name in self._loaded:
                    self._loaded.move_to_end(name)
                    return self._loaded[name]
                self._make_room(sum(file.stat().st_size for file in _files(self.folders[name])))
            try:
                pipeline = self._share(
                    Pipeline.load(self.folders[name], device=self._device, extras=self._extras)
                )
            except MezzotintError as error:
                raise Broken(f"the model '{name}' cannot be loaded: {error}") from error
            with self._lock:
                self._loaded[name] = pipeline
                self._make_room(0)  # in memory it may be larger than its files
            return pipeline

    def _make_room(self, wanted: int) -> None:
        """Lets go of what was used longest ago and is not in use; a model too large for all is loaded all the same."""
        gone = False
        for name in list(self._loaded):
            if sum(map(held, self._loaded.values())) + wanted <= self._memory:
                break
            if not self._used[name]:
                del self._loaded[name]
                gone = True
        if gone:
            gc.collect()  # an encoder that remembers its last texts is part of a circle


def held(pipeline: Pipeline) -> int:
    """Bytes that a model's nets hold: weights, and what layers have made of them and keep (see `nets/layers.py`)."""
    codec = getattr(pipeline.codec, "codec", pipeline.codec)  # the one behind the lane
    nets: list[nn.Module] = [pipeline.wardrobe.unet, *pipeline.wardrobe.texts.values()]
    nets += [codec.vae] if isinstance(codec, Latents) else []
    modules = [module for net in nets for module in net.modules()]
    tensors = [
        tensor for module in modules for tensor in (*module._parameters.values(), *module._buffers.values())
    ]
    # `list`: somebody may draw with it meanwhile, and what layers keep grows
    kept = [made for module in modules for _, made in list(getattr(module, "remembered", {}).values())]
    return sum(tensor.numel() * tensor.element_size() for tensor in (*tensors, *kept) if tensor is not None)


def _files(model: Path) -> list[Path]:
    return [model] if model.is_file() else list(model.rglob("*.safetensors"))
