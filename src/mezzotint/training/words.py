"""Stage `embedding`: a new word is learned from a few pictures (textual inversion, Gal et al. 2022, arXiv 2208.01618).

v* = argmin_v E |F(z, t, text(caption with v)) - target|^2: the model stays as it is, and of its text encoders' tables
a few rows are new, which alone are trained. Captions are templates with the word put in, so that what is learned is
the thing and not the sentence. The result is a file of a few kilobytes, in diffusers' form and in A1111's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.folder import Record
from ..diffusion.noise import generator
from ..errors import UsageError
from ..formats.atomic import new_folder, write_file
from ..formats.embedding import Embedding, write_embedding
from ..formats.tokenizer import Tokenizer
from ..nets import CLIPTextModel
from .card import card_files
from .denoising import DenoisingStage

FILE = "learned_embeds.safetensors"  # what diffusers looks for
TEMPLATES = {
    "object": (
        "{}",
        "a {}",
        "the {}",
        "a photo of a {}",
        "a picture of the {}",
        "a close photo of a {}",
        "a bright picture of a {}",
        "a dark photo of the {}",
        "a small {}",
        "a large {}",
        "one {}, seen from the front",
        "a good photo of the {}",
    ),
    "style": (
        "{}",
        "in the style of {}",
        "a picture in the style of {}",
        "a painting in the style of {}",
        "a drawing in the style of {}",
        "a small picture in the style of {}",
        "a detail of a picture in the style of {}",
        "art in the style of {}",
    ),
}


class Words(nn.Module):
    """The vectors of a word: component -> [n, D]."""

    def __init__(self, vectors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.embedding = nn.ParameterDict({name: nn.Parameter(rows) for name, rows in vectors.items()})


class EmbeddingStage(DenoisingStage):
    """Trains the vectors of `embedding.word`; the result is `embedding/learned_embeds.safetensors` and others."""

    @property
    def hears_anew(self) -> bool:
        return True

    def captioned(self, record: Record) -> Record:
        """With the word, in every template."""
        settings = self.config.embedding
        if settings.templates == "own":
            return record
        templates = (
            TEMPLATES[settings.templates] if isinstance(settings.templates, str) else settings.templates
        )
        own = record.captions or ("",)
        captions = [
            template.replace("{}", settings.word).replace("{caption}", caption)
            for template in templates
            for caption in (own if "{caption}" in template else ("",))
        ]
        return replace(record, captions=tuple(dict.fromkeys(captions)))

    def trained(self) -> dict[str, nn.Module]:
        settings = self.config.embedding
        if not settings.word.strip():
            raise UsageError(
                "stage 'embedding' needs embedding.word, the word to learn, for instance <zorple>"
            )
        if self.model.teller is None or not self.config.model.start:
            raise UsageError("stage 'embedding' needs model.start, a text-to-image model")
        if self.config.prior.prompt:
            raise UsageError("prior.prompt: stage 'embedding' changes no weight, so there is nothing to keep")
        names = (
            list(self.model.checkpoint.encoders) if self.model.checkpoint is not None else ["text_encoder"]
        )
        self.model.unet.requires_grad_(False)
        vectors = {}
        for name, (net, tokenizer) in zip(names, self.model.teller.encoders, strict=True):
            net.requires_grad_(False)
            self._check_word(tokenizer)
            vectors[name] = first_vectors(
                net, tokenizer, settings.start, settings.vectors, generator("word", self.config.seed, name)
            )
        self.words = Words(vectors)
        self.model.teller = self.model.teller.learning({settings.word: list(self.words.embedding.values())})
        self._check_captions(self.model.teller.encoders[0][0].config.vocab_size)
        return {"words": self.words}

    def _check_word(self, tokenizer: Tokenizer) -> None:
        word, room = self.config.embedding.word, tokenizer.max_length - 2
        if word != word.strip() or len(tokenizer.tokens(word)) == 1:
            raise UsageError(
                f"embedding.word '{word}' is one that the model knows already, or begins or ends in a blank; choose "
                f"another, for instance <{word.strip()}>"
            )
        if self.config.embedding.vectors > room:
            raise UsageError(
                f"embedding.vectors {self.config.embedding.vectors}: a text of this model holds {room}"
            )

    def _check_captions(self, vocabulary: int) -> None:
        """Raises UsageError for a caption in which the word is not heard."""
        assert self.model.teller is not None
        room = self.model.teller.encoders[0][1].max_length - 2
        for record in self.pictures.records:
            for caption in record.captions:
                if max(self.model.teller.ids(caption)) < vocabulary:
                    raise UsageError(
                        f"{record.name}: the word {self.config.embedding.word} is not heard in the caption "
                        f"'{caption}'; write it there, or {{}} into each of embedding.templates, early enough: a text "
                        f"of this model holds {room} tokens"
                    )

    def export(self, folder: Path) -> None:
        """Write the word as `learned_embeds.safetensors` and, named after it, as A1111 reads it.

        Vectors for two encoders have one form for both, and are in the second file alone.
        """
        word = self.config.embedding.word
        vectors = {name: rows.detach().cpu() for name, rows in self.words.embedding.items()}
        if len(vectors) == 1:
            vectors = {"": next(iter(vectors.values()))}
        with new_folder(folder, replace=True) as part:
            if "" in vectors:
                write_embedding(part / FILE, Embedding(word, vectors))
            write_embedding(
                part / f"{file_name(word)}.safetensors", Embedding(word, vectors), dialect="a1111"
            )
            for name, content in card_files(self.config, self.pictures, self.prompts()).items():
                write_file(part / name, content)


def file_name(word: str) -> str:
    """What A1111 calls a word: <zorple> is zorple."""
    return re.sub(r"[^\w-]+", "-", word).strip("-") or "word"


@torch.no_grad()
def first_vectors(
    net: CLIPTextModel, tokenizer: Tokenizer, start: str, count: int, draw: torch.Generator
) -> Tensor:
    """[count, D] to begin with: those of the tokens of `start`, dealt out in turn, several means of as many.

    Without a `start` they are drawn from a normal distribution with the mean and spread of the whole table.
    """
    table = net.text_model.embeddings.token_embedding.weight.float()
    tokens = tokenizer.tokens(start)
    if not tokens:
        noise = torch.randn(count, table.shape[1], generator=draw).to(table)
        return table.mean(0) + table.std(0) * noise
    dealt = [tokens[i::count] or (tokens[i % len(tokens)],) for i in range(count)]
    return torch.stack([table[list(some)].mean(0) for some in dealt])
