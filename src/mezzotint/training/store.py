"""What is computed once and kept on disk: latents, states of texts, under a hash of all that they depend on.

A file holds the entries of some hundred keys, and its name is a hash of these; what is in the folder is found out by
reading headers. So a changed picture or autoencoder has other keys and never meets what was computed of the old one,
several processes may write at a time, and a damaged file is computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..formats.tensors import write_tensors

Entry = Mapping[str, Tensor]


class Store:
    """Key -> entry; entries of a file are read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._where: dict[str, Any] = {}  # key -> the open file
        self._names: dict[str, list[str]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Look at the folder again: other processes may have written."""
        for path in sorted(self.folder.glob("[!.]*.safetensors")):  # hidden ones are being written
            try:
                file = safe_open(path, framework="pt")
                names = list(file.keys())
            except (SafetensorError, OSError):
                path.unlink(missing_ok=True)  # cut short by a kill of the machine; it is computed again
                continue
            for name in names:
                key, _, part = name.partition("/")
                if key not in self._where:
                    self._where[key], self._names[key] = file, []
                if self._where[key] is file:
                    self._names[key].append(part)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that are not there, each once."""
        return [key for key in dict.fromkeys(keys) if key not in self._where]

    def add(self, entries: Mapping[str, Entry]) -> None:
        """Write entries; they are there for everybody after `refresh`."""
        name = hashlib.sha256("".join(sorted(entries)).encode()).hexdigest()[:32]
        flat = {f"{key}/{part}": t for key, entry in entries.items() for part, t in entry.items()}
        write_tensors(self.folder / f"{name}.safetensors", flat, replace=True)

    def largest(self) -> int:
        """Bytes of the largest entry, 0 if there is none."""
        return max((sum(t.nbytes for t in self[key].values()) for key in self._where), default=0)

    def __getitem__(self, key: str) -> dict[str, Tensor]:
        return {part: self._where[key].get_tensor(f"{key}/{part}") for part in self._names[key]}


def content_key(*parts: str | bytes) -> str:
    """SHA-256 over parts, each with its length, so that no two lists of parts look alike."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


@torch.no_grad()
def weights_hash(nets: Sequence[nn.Module]) -> str:
    """SHA-256 over the names, shapes and bytes of nets' weights."""
    parts: list[str | bytes] = []
    for net in nets:
        for name, tensor in sorted(net.state_dict().items()):
            parts += [f"{name} {list(tensor.shape)} {tensor.dtype}"]
            parts += [tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()]
    return content_key(*parts)
