"""Words that were learnt: textual inversion (Gal et al. 2022, arXiv 2208.01618), as diffusers and A1111 keep it.

A word is one vector or several in the table of a text encoder. diffusers' files have the word for a key; A1111's have
`emb_params` and are named after the word; for SDXL both have `clip_l` and `clip_g`, one for each encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..errors import MezzotintError
from .tensors import read_tensors, write_tensors

PAIR = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
NAMELESS = "emb_params"  # the file's name is the word
OLD_NAMELESS = "*"  # likewise, in pickled files
MOST = 16  # words in one file


@dataclass(frozen=True)
class Embedding:
    """A word and its vectors [n, D] for each text encoder; for the key "" whichever encoder has that width."""

    word: str
    vectors: Mapping[str, Tensor]

    def for_encoders(self, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """The vectors for a model's encoders, name -> width. Raises MezzotintError if they are not made for them."""
        found = {}
        for name, width in widths.items():
            vectors = self.vectors.get(name, self.vectors.get("") if len(widths) == 1 else None)
            if vectors is None or vectors.shape[1] != width:
                has = ", ".join(str(each.shape[1]) for each in self.vectors.values())
                takes = " and ".join(str(each) for each in widths.values())
                raise MezzotintError(
                    f"the embedding '{self.word}' has vectors of width {has}, this model's text encoders take {takes}: "
                    "it was made for another kind of model"
                )
            found[name] = vectors
        return found


def read_embedding(path: Path | str) -> list[Embedding]:
    """The words in a safetensors file. Raises MezzotintError if it is damaged, pickled or no embedding."""
    path = Path(path)
    tensors = {key: t[None] if t.ndim == 1 else t for key, t in read_tensors(path).items()}
    wrong = [key for key, t in tensors.items() if t.ndim != 2 or not t.is_floating_point() or 0 in t.shape]
    if wrong or not tensors:
        what = f"'{wrong[0]}' is no list of vectors" if wrong else "it is empty"
        raise MezzotintError(f"{path} is not a textual inversion embedding: {what}")
    if tensors.keys() & PAIR.keys():
        if tensors.keys() != PAIR.keys():
            raise MezzotintError(
                f"{path} has {', '.join(sorted(tensors))}; an SDXL embedding has clip_g and clip_l"
            )
        if len({len(t) for t in tensors.values()}) > 1:
            raise MezzotintError(f"{path} has as many vectors for one text encoder as not for the other")
        return [Embedding(path.stem, {PAIR[key]: t for key, t in tensors.items()})]
    return [Embedding(path.stem if key == NAMELESS else key, {"": t}) for key, t in tensors.items()]


def is_embedding(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these can be a file's words: a few lists of vectors."""
    return 0 < len(tensors) <= MOST and all(
        t.ndim in (1, 2) and t.is_floating_point() and t.numel() for t in tensors.values()
    )


def write_embedding(
    path: Path | str,
    embedding: Embedding,
    *,
    dialect: Literal["diffusers", "a1111"] = "diffusers",
    replace: bool = False,
) -> None:
    """Write a word for diffusers' `load_textual_inversion`, or for A1111, which calls it by the file's name.

    Of two encoders' vectors both read the same file. Raises MezzotintError as `tensors.write_tensors` does.
    """
    keys = {name: key for key, name in PAIR.items()} | {
        "": NAMELESS if dialect == "a1111" else embedding.word
    }
    tensors = {keys[name]: vectors.detach().contiguous() for name, vectors in embedding.vectors.items()}
    write_tensors(path, tensors, replace=replace)
