"""From a prompt to what a net is conditioned on: words, weights, chunks of tokens, states of the text encoders.

A text encoder holds 77 positions (the embedded one 32), a prompt any number of tokens: it is cut into chunks, each
with a begin and an end of its own, each encoded by itself, and their states stand one after another. A chunk that is
full is cut behind its last comma if that is near. Words that weigh w have their states multiplied by w, after which
the chunk's mean is what it was. All this is as AUTOMATIC1111's program does it, for each text by itself, so that its
states do not depend on what else is asked for.

A word that was learnt by textual inversion stands for vectors of its own, which are ids beyond the vocabulary here.

Stable Diffusion 1 and 2 look at the encoder's last states. SDXL looks at the states before the last layer, of both its
encoders side by side, and is told the second's vector of the first chunk (Podell et al. 2023, section 2). Models may
have been trained on an earlier layer ("clip skip"): it is normalised as the last one is, where the model does that.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .diffusion.types import Cond
from .errors import UsageError
from .formats.tokenizer import END_OF_WORD, Tokenizer
from .nets import CLIPTextModel
from .prompt import Run, weigh

REMEMBERED = 64  # texts whose states are kept
MOST_CHUNKS = 32  # of one text; beyond, somebody pasted a book
NEAR = 20 / 75  # a comma is near a chunk's end if it lies in this share of it
NOTHING = 1e-4  # of the states' size: a mean smaller than this is rounding, and no measure to go by


class Token(NamedTuple):
    """One token and how much it counts."""

    id: int
    weight: float


class Encoder(Protocol):
    """What a pipeline asks of whatever hears its prompts."""

    @property
    def capacity(self) -> int:
        """Tokens that are heard at once."""

    def check(self, text: str, *, what: str = "prompt") -> None:
        """Raises UsageError if `text` cannot be told."""

    def __call__(self, text: str) -> Cond:
        """What the net is told of `text`: one row."""

    def null(self, text: str) -> Cond:
        """What guidance steers away from."""

    def heard_at(self, layer: int) -> Encoder:
        """The same, heard at another of its layers, 1 being the last. Raises UsageError if there is none such."""


Chunk = tuple[Token, ...]  # at most `capacity` of them


class TextEncoder:
    """Texts -> `Cond`, one row each; the last ones are remembered."""

    def __init__(
        self,
        encoders: Sequence[tuple[CLIPTextModel, Tokenizer]],
        device: torch.device,
        *,
        pooled: bool = False,
        zeros_for_empty: bool = False,
        learnt: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        """`pooled`: as SDXL has it, see above. `zeros_for_empty`: guidance away from nothing is away from zeros.

        `learnt`: words with their vectors [n, D] for each encoder. Raises UsageError for one that fills no chunk.
        """
        self.encoders, self.device = tuple(encoders), device
        self.pooled, self.zeros_for_empty = pooled, zeros_for_empty
        self.layer = 2 if pooled else 1  # whose states are heard, counted from the end
        self.learnt = dict(learnt or {})
        for word, (vectors, *_) in self.learnt.items():
            if len(vectors) > self.capacity:
                raise UsageError(
                    f"the embedding '{word}' has {len(vectors)} vectors, and a text of this model holds {self.capacity}"
                )
        self._states = lru_cache(REMEMBERED)(self._encode)

    @property
    def tokenizer(self) -> Tokenizer:
        """The first encoder's; others cut texts at the same words."""
        return self.encoders[0][1]

    @property
    def capacity(self) -> int:
        """Tokens of a chunk, without those that mark its begin and end."""
        return min(tokenizer.max_length for _, tokenizer in self.encoders) - 2

    def with_nets(
        self, nets: Sequence[CLIPTextModel], learnt: Mapping[str, Sequence[Tensor]] | None = None
    ) -> TextEncoder:
        """The same with other nets, and with words that were learnt."""
        encoders = [(net, tokenizer) for net, (_, tokenizer) in zip(nets, self.encoders, strict=True)]
        options = {"pooled": self.pooled, "zeros_for_empty": self.zeros_for_empty}
        return TextEncoder(encoders, self.device, **options, learnt=learnt)

    def heard_at(self, layer: int) -> TextEncoder:
        """The same, which remembers what this one does, heard at another layer: 1 is the last.

        Raises UsageError for one that an encoder does not have.
        """
        layers = min(net.config.num_hidden_layers for net, _ in self.encoders)
        if not 1 <= layer <= layers:
            raise UsageError(
                f"clip_skip (--clip-skip) is {layer}; the text encoder of this model has {layers} layers"
            )
        other = copy.copy(self)
        other.layer = layer
        return other

    def chunks(self, text: str, encoder: int = 0) -> list[Chunk]:
        """How an encoder reads a text; one chunk, of none, where it is empty."""
        *before, last = weigh(text)
        sections = (
            [*before, last] if last or not before else before
        )  # after a BREAK at the end there is nothing
        return [chunk for section in sections for chunk in self._filled(section, encoder)]

    def check(self, text: str, *, what: str = "prompt") -> None:
        """Raises UsageError if `text` is longer than any prompt."""
        chunks = self.chunks(text)
        if len(chunks) > MOST_CHUNKS:
            raise UsageError(
                f"the {what} has {sum(map(len, chunks))} tokens and would be read in {len(chunks)} chunks of "
                f"{self.capacity}; shorten it to at most {MOST_CHUNKS} chunks"
            )

    def __call__(self, text: str) -> Cond:
        """What the net is told of `text`, in which brackets are weights (see `prompt.weigh`).

        `Cond.text` [1, chunks * L, D], and `Cond.pooled` [1, P] where the net takes that. Raises UsageError as
        `check` does.
        """
        return self._states(text, self.layer)

    def null(self, text: str) -> Cond:
        """What guidance steers away from: `text`, or zeros where there is none and the model was made for that."""
        told = self(text)
        return told.map(torch.zeros_like) if self.zeros_for_empty and not text else told

    def _encode(self, text: str, layer: int) -> Cond:
        self.check(text)
        texts, pooled = [], None
        with torch.inference_mode():
            for number, (net, tokenizer) in enumerate(self.encoders):
                parts = []
                new = [vectors[number] for vectors in self.learnt.values()]
                rows = torch.cat(new).to(self.device) if new else None  # [n, D]
                for i, chunk in enumerate(self.chunks(text, number)):
                    ids = torch.tensor(
                        [framed(tokenizer, [t.id for t in chunk])], device=self.device
                    )  # [1, L]
                    said = net(ids, rows)
                    states = said.hidden[-layer]
                    states = states if self.pooled else net.text_model.final_layer_norm(states)
                    parts.append(_weighed(states, chunk))
                    pooled = said.pooled if i == 0 and self.pooled else pooled
                texts.append(torch.cat(parts, dim=1))
            return Cond(text=torch.cat(texts, dim=-1), pooled=pooled)

    def _filled(self, section: Sequence[Run], encoder: int) -> Iterator[Chunk]:
        """The chunks of one section: full ones, cut behind a comma that is near the end, and what is left."""
        comma = self.encoders[encoder][1].vocab.get("," + END_OF_WORD)
        chunk: list[Token] = []
        begun = False
        for text, weight in section:
            for ids in self._pieces(text, encoder):
                if len(chunk) == self.capacity:
                    commas = [i for i, token in enumerate(chunk) if token.id == comma]
                    cut = commas[-1] + 1 if commas and ids != (comma,) else self.capacity
                    cut = cut if self.capacity - cut < self.capacity * NEAR else self.capacity
                    yield tuple(chunk[:cut])
                    chunk, begun = chunk[cut:], True
                if len(chunk) + len(ids) > self.capacity:
                    yield tuple(chunk)
                    chunk, begun = [], True
                chunk += [Token(id_, weight) for id_ in ids]
        if chunk or not begun:
            yield tuple(chunk)

    def _pieces(self, text: str, encoder: int) -> Iterator[tuple[int, ...]]:
        net, tokenizer = self.encoders[encoder]
        counts = {word: len(vectors[encoder]) for word, vectors in self.learnt.items()}
        return pieces(tokenizer, text, places(counts, net.config.vocab_size))


def places(counts: Mapping[str, int], first: int) -> dict[str, tuple[int, ...]]:
    """The ids of words that were learnt, in lower case: word -> number of vectors; `first` is the vocabulary's size."""
    found = {}
    for word, count in counts.items():
        found[word.lower()] = tuple(range(first, first + count))
        first += count
    return found


def pieces(
    tokenizer: Tokenizer, text: str, learnt: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[int, ...]]:
    """Ids that stay together: single tokens, and the vectors of a word that was learnt (see `places`)."""
    for i, part in enumerate(_split(tuple(learnt), text)):
        if i % 2:
            yield learnt[part.lower()]
        else:
            yield from ((id_,) for id_ in tokenizer.tokens(part))


def framed(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """`max_length` ids: begin, at most two fewer than that, end, padding."""
    ids = [tokenizer.bos, *ids, tokenizer.eos]
    return ids + [tokenizer.pad] * (tokenizer.max_length - len(ids))


def said(words: Iterable[str], text: str) -> set[str]:
    """Which of these learnt words a text has, in lower case, as an encoder would find them."""
    return {part.lower() for part in _split(tuple(words), text)[1::2]}


def _split(words: tuple[str, ...], text: str) -> list[str]:
    """The text between the words, and in turn the words: whole ones, the longest first, in capitals or not."""
    if not words:
        return [text]
    alone = (
        ("(?<!\\w)" if word[0].isalnum() else "")
        + re.escape(word)
        + ("(?!\\w)" if word[-1].isalnum() else "")
        for word in sorted(words, key=len, reverse=True)
    )
    return re.split(f"({'|'.join(alone)})", text, flags=re.IGNORECASE)


def _weighed(states: Tensor, chunk: Chunk) -> Tensor:
    """states [1, L, D] times the weights of their tokens, the mean of all kept where there is one."""
    if all(token.weight == 1 for token in chunk):
        return states
    weights = states.new_ones(states.shape[1])
    weights[1 : 1 + len(chunk)] = states.new_tensor([token.weight for token in chunk])
    weighed = states * weights[:, None]
    before, after = states.mean(), weighed.mean()
    if min(before.abs(), after.abs()) < NOTHING * states.abs().mean():
        return weighed
    return weighed * (before / after)
