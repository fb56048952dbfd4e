"""A model with something on: LoRAs added to its weights, words that were learnt added to its vocabulary.

The model itself is never changed: what is worn are second nets, which share every weight that no LoRA changes with the
first (see nets/lowrank.py). So off is the very same weights, and pictures with and without can be drawn side by side.
The sets worn last are kept; another one is put on in about the time of a step.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from .diffusion.types import Net
from .errors import MezzotintError, UsageError
from .extras import EmbeddingUse, Extra, LoraUse, find_extra
from .formats.embedding import read_embedding
from .formats.lora import aliases, read_lora, short_hash
from .nets import Backbone, UNet
from .nets.lowrank import Change, changed
from .text import Encoder, TextEncoder

E = TypeVar("E", bound=Extra)
KEPT = 2  # sets


class Worn(NamedTuple):
    """A net and an encoder with something on."""

    net: Net
    encoder: Encoder


class Wardrobe:
    """What one model can wear.

    `names` are those of the encoder's nets, as checkpoints call them; `folders`, where LoRAs and embeddings are looked
    for by name (see `extras.find_extra`); `realised` makes what computes of a U-Net (see `engine.realiser`).
    """

    def __init__(
        self,
        unet: Backbone,
        encoder: Encoder,
        names: Sequence[str] = (),
        folders: Sequence[Path | str] = (),
        realised: Callable[[Backbone], Net] = lambda unet: unet,
    ) -> None:
        self.unet, self.encoder, self.realised = unet, encoder, realised
        self.net = realised(unet)
        nets = [net for net, _ in encoder.encoders] if isinstance(encoder, TextEncoder) else []
        self.texts = dict(zip(names, nets, strict=True))
        self.folders = tuple(map(Path, folders))
        self._kept: OrderedDict[tuple[Extra, ...], Worn] = OrderedDict()
        self._hashes: dict[tuple[str, Path, int, int], str] = {}
        self._lock = threading.Lock()

    def settled(self, kind: str, extras: Sequence[E]) -> tuple[E, ...]:
        """The same with what their files are known by. Raises UsageError for one that is not there.

        Raises MezzotintError for a file that is not the one that was meant.
        """
        return tuple(each.model_copy(update={"sha256": self._hash(kind, each)}) for each in extras)

    def wear(self, loras: Sequence[LoraUse], embeddings: Sequence[EmbeddingUse]) -> Worn:
        """The nets with these on. Raises MezzotintError for a file that is damaged, or for another kind of model."""
        key = (*loras, *embeddings)
        if not key:
            return Worn(self.net, self.encoder)
        with self._lock:
            if key not in self._kept:
                while len(self._kept) >= KEPT:
                    self._kept.popitem(last=False)
                self._kept[key] = self._put_on(loras, embeddings)
            self._kept.move_to_end(key)
            return self._kept[key]

    def _put_on(self, loras: Sequence[LoraUse], embeddings: Sequence[EmbeddingUse]) -> Worn:
        nets: dict[str, nn.Module] = {"unet": self.unet, **self.texts}
        changes: dict[str, dict[str, list[tuple[Change, float]]]] = {name: {} for name in nets}
        others = aliases(self.unet) if isinstance(self.unet, UNet) else {}
        for use in loras:
            path = find_extra("LoRA", use.name, self.folders)
            for component, layers in read_lora(path, nets, aliases=others).layers.items():
                weight = use.weights[component != "unet"]
                for layer, change in layers.items() if weight else ():
                    changes[component].setdefault(layer, []).append((change, weight))
        drawing = self.realised(changed(self.unet, changes["unet"])) if changes["unet"] else self.net
        if not isinstance(self.encoder, TextEncoder):
            if embeddings:
                raise UsageError("this model reads no text, and has no use for an embedding")
            return Worn(drawing, self.encoder)
        texts = [changed(net, changes[name]) for name, net in self.texts.items()]
        return Worn(drawing, self.encoder.with_nets(texts, self._learnt(embeddings)))

    def _learnt(self, embeddings: Sequence[EmbeddingUse]) -> dict[str, list[Tensor]]:
        """Words and their vectors for each text encoder."""
        widths = {name: net.config.hidden_size for name, net in self.texts.items()}
        learnt = {}
        for use in embeddings:
            path = find_extra("embedding", use.name, self.folders)
            for embedding in read_embedding(path):
                try:
                    learnt[embedding.word] = list(embedding.for_encoders(widths).values())
                except MezzotintError as error:
                    raise MezzotintError(f"{path}: {error}") from error
        return learnt

    def short_hashes(self, loras: Sequence[LoraUse]) -> dict[str, str]:
        """By title, what other programs know these by."""
        return {
            use.title: self._known(find_extra("LoRA", use.name, self.folders), short_hash) for use in loras
        }

    def _known(self, path: Path, of: Callable[[Path], str]) -> str:
        """What a function says of a file, asked once for as long as it does not change."""
        about = path.stat()
        key = of.__name__, path, about.st_mtime_ns, about.st_size
        if key not in self._hashes:
            self._hashes[key] = of(path)
        return self._hashes[key]

    def _hash(self, kind: str, extra: Extra) -> str:
        path = find_extra(kind, extra.name, self.folders)
        found = self._known(path, _sha256)
        if extra.sha256 and extra.sha256 != found:
            raise MezzotintError(
                f"{path} is not the {kind} that the recipe means: its SHA-256 begins with {found[:10]}, "
                f"the recipe's with {extra.sha256[:10]}"
            )
        return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
