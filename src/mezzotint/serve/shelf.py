"""LoRAs and learnt words in the operator's folders: what clients may name.

The folders are looked at anew whenever somebody asks, so that a file laid there is there; one that did not change is
not read again. A file goes by what is in it, not by the folder that it lies in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import MezzotintError
from ..extras import extra_files
from ..formats.embedding import is_embedding, read_embedding
from ..formats.lora import is_lora
from ..formats.tensors import read_metadata, read_tensors
from ..text import said

Stamp = tuple[int, int]


@dataclass(frozen=True)
class Item:
    """What a file has: a LoRA and its header, or words that were learnt; neither if it cannot be read."""

    header: Mapping[str, str] | None = None
    words: tuple[str, ...] = ()


class Shelf:
    """What can be worn here, by name."""

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self.folders = tuple(folders)
        self._seen: dict[Path, tuple[Stamp, Item]] = {}

    def loras(self) -> dict[str, Mapping[str, str]]:
        """Name -> the free-form header of its file."""
        return {name: item.header for name, _, item in self._items("LoRA") if item.header is not None}

    def words(self) -> dict[str, Path]:
        """Word, in lower case -> the file in which it is."""
        return {word.lower(): path for _, path, item in self._items("embedding") for word in item.words}

    def worn(self, *texts: str) -> list[str]:
        """The names of the embeddings whose words these texts have."""
        words = self.words()
        return sorted({words[word].stem for text in texts for word in said(words, text)})

    def _items(self, kind: str) -> Iterator[tuple[str, Path, Item]]:
        for name, path in sorted(extra_files(kind, self.folders).items()):
            try:
                about = path.stat()
            except OSError:  # gone since, or a link to nowhere
                continue
            stamp = about.st_mtime_ns, about.st_size
            if self._seen.get(path, (None, None))[0] != stamp:
                self._seen[path] = stamp, _item(path)
            yield name, path, self._seen[path][1]


def _item(path: Path) -> Item:
    try:
        tensors = read_tensors(path)
        if is_lora(tensors):
            return Item(header=read_metadata(path))
        if is_embedding(tensors):
            return Item(words=tuple(each.word for each in read_embedding(path)))
    except MezzotintError:  # whoever names it hears what is wrong with it
        pass
    return Item()
