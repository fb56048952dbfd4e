"""Stage `text`: an encoder that knows what words mean before it has seen a picture of any.

A causal transformer (CLIP's) is trained on captions and dictionary entries. At the end of each noun phrase its
state must agree with a sentence encoder's embedding of that phrase alone (distillation: Hinton et al. 2015; cosine
loss), so that 'sedan', which names no picture, stands near 'automobile', which does. At the end of the text it must
also tell where each thing stands, how large it is, and the background: what word order means. The readout layers
are thrown away; the embeddings start as the teacher's own, turned to fewer dimensions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..data.captions import PALETTE, Placed, Scene, Thing, draw
from ..data.scenes import load_scenes
from ..errors import UsageError
from ..formats.atomic import new_folder, write_json
from ..formats.tensors import load, read_weights, write_tensors
from ..formats.tokenizer import END_OF_WORD, Tokenizer, train_bpe, write_tokenizer
from ..nets.clip_text import CLIPTextConfig, CLIPTextModel
from . import teacher, wordnet
from .config import TrainConfig
from .loop import Loss
from .world import WHOLE, Share, whole_only

LAYOUT = 6  # (x, y, side) of the first and the second thing
NEARNESS = (
    6.0  # an entry that means the same as a name is seen e^6 times as often as one at a right angle to it
)
TEMPERATURE = 0.05  # of the cosines by which a state calls names to mind


class Readout(nn.Module):
    """What is read from the states in training, and only there."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.meaning = nn.Linear(dim, teacher.DIM)
        self.layout = nn.Linear(dim, LAYOUT)
        self.background = nn.Linear(dim, len(PALETTE))


class Student(nn.Module):
    """The encoder and its readout: one player."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.encoder = CLIPTextModel(config)
        self.readout = Readout(config.hidden_size)


@dataclass(frozen=True)
class Lesson:
    """A batch of texts: their ids, and what the states at some positions must say."""

    ids: Tensor  # [B, L]
    at: tuple[Tensor, Tensor]  # rows and positions of the P states that end a phrase or a text
    meaning: Tensor  # [P, 384] unit vectors
    ends: Tensor  # [B] the position of each text's end
    layout: Tensor  # [B, 6]
    drawn: Tensor  # [B, 6] 1 where the layout says something
    background: Tensor  # [B]
    drawable: Tensor  # [B] true where all that the text names has a picture


class TextStage:
    """Trains vocabulary, tokenizer and text encoder."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config, self.device, settings = config, device, config.text
        if settings.keep and settings.start is None:
            raise UsageError("text.keep needs text.start: the folder whose states are to stay")
        scenes = load_scenes(config.data)
        named = [(thing.name, *thing.words) for thing in scenes.things]
        self.common, self.rare = wordnet.dictionary(settings.dictionary, set(teacher.common_words()))
        known = {word for words in named for word in words}
        texts = [*sorted(known), *self.common, *self.rare, *PALETTE]
        self.row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        cache = config.out / "cache"
        self.meanings = self._meanings(cache)  # [texts, 384]
        self.things = (*scenes.things, *(Thing(-1, word) for word in self.common))
        self.named = sorted(known)
        self.names = {thing.name for thing in scenes.things}
        self.everyday = [word for word in self.common if " " not in word]
        self.entries = [*self.common, *self.rare]
        self.chances = self._nearness().mul(NEARNESS).softmax(0).cumsum(0).double().numpy()

        corpus = [scenes.scene(config.seed, i).caption for i in range(20_000)] + texts * 2
        vocab, merges = train_bpe(corpus, settings.vocabulary)
        self.tokenizer = Tokenizer(vocab, merges, max_length=settings.length)
        keys = config.net | {
            "vocab_size": len(vocab),
            "max_position_embeddings": settings.length,
            "bos_token_id": self.tokenizer.bos,
            "eos_token_id": self.tokenizer.eos,
            "pad_token_id": self.tokenizer.eos,
        }
        torch.manual_seed(config.seed)
        self.net = Student(CLIPTextConfig.from_dict(keys)).to(device)
        spellings = [token.removesuffix(END_OF_WORD) or token for token in vocab]
        if settings.start is None:
            self._begin_as(teacher.embed(spellings, cache))
        else:
            tensors, where = read_weights(settings.start / "text_encoder", "model")
            load(self.net.encoder, tensors, where=where, device=device)
        self.first = copy.deepcopy(self.net.encoder).requires_grad_(False) if settings.keep else None
        self.gallery = self.meanings[[self.row[thing.name] for thing in scenes.things]].to(
            device
        )  # [names, 384]
        self.players: dict[str, nn.Module] = {"text": self.net}

    def _meanings(self, cache: Path) -> Tensor:
        """What the teacher says of each text and, where it is defined, of its definition: unit vectors [texts, 384]."""
        said = teacher.embed(list(self.row), cache)
        if not self.config.text.define:
            return said
        entries = wordnet.definitions(self.config.text.dictionary)
        defined = [wordnet.entry_of(text, entries) or text for text in self.row]
        return F.normalize(said + teacher.embed(defined, cache), dim=1)

    def _nearness(self) -> Tensor:
        """Cosine of each dictionary entry with whatever has a picture and is nearest to it: [entries]."""
        named = self.meanings[[self.row[word] for word in self.named]]
        entries = self.meanings[[self.row[word] for word in self.entries]]
        return torch.cat([(part @ named.T).amax(1) for part in entries.split(4096)])

    def _begin_as(self, embedding: Tensor) -> None:
        """Let the token embeddings start as the principal components of the teacher's."""
        table = self.net.encoder.text_model.embeddings.token_embedding.weight
        centred = embedding - embedding.mean(0)
        directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -table.shape[1] :]  # [384, D]
        with torch.no_grad():
            table.copy_(F.normalize(centred @ directions, dim=1))

    def batch(self, step: int, share: Share = WHOLE) -> Lesson:
        whole_only(share, "text")
        rng = np.random.default_rng((self.config.seed, step, 2))
        size = self.config.optim.batch
        entries = rng.random() < self.config.text.words
        texts = [self._entry(rng) if entries else self._caption(rng) for _ in range(size)]
        return self._lesson(texts, rng)

    def _entry(self, rng: np.random.Generator) -> tuple[str, list[str], Scene | None]:
        """A name, an everyday word, or any entry, those near in meaning to something drawn more often; alone."""
        kind = rng.random()
        if kind < 0.6:
            words = self.named if kind < 0.2 else self.everyday
            word = words[int(rng.integers(len(words)))]
        else:
            at = int(np.searchsorted(self.chances, rng.random() * self.chances[-1], side="right"))
            word = self.entries[min(at, len(self.entries) - 1)]
        return word, [], None

    def _caption(self, rng: np.random.Generator) -> tuple[str, list[str], Scene | None]:
        """A caption, half of the time about things that have no picture."""
        things = self.things if rng.random() < 0.5 else self.things[: -len(self.common)]
        scene = draw(things, rng, plain=0.2, pairs=0.5)
        return scene.caption, [placed.phrase for placed in scene.objects], scene

    def _lesson(
        self, texts: Sequence[tuple[str, list[str], Scene | None]], rng: np.random.Generator
    ) -> Lesson:
        encodings = [self.tokenizer.encode(text) for text, _, _ in texts]
        longest = max(e.length for e in encodings)
        width = min(self.config.text.length, longest + int(rng.choice([0, 2, 31], p=[0.6, 0.3, 0.1])))
        ids = torch.tensor([e.ids[:width] for e in encodings])
        at: list[tuple[int, int]] = []
        meaning: list[Tensor] = []
        layout, drawn = torch.zeros(len(texts), LAYOUT), torch.zeros(len(texts), LAYOUT)
        background = torch.zeros(len(texts), dtype=torch.long)
        for b, ((text, phrases, scene), encoding) in enumerate(zip(texts, encodings, strict=True)):
            vectors = [self.meanings[self.row[phrase]] for phrase in phrases or [text]]
            for phrase, vector in zip(phrases, vectors, strict=False):
                end = self._end_of(phrase, encoding.ids[: encoding.length])
                if end is not None:
                    at.append((b, end))
                    meaning.append(vector)
            whole = F.normalize(torch.stack(vectors).mean(0), dim=0)
            for position in range(
                encoding.length - 1, width
            ):  # the end token, and the padding that repeats it
                at.append((b, position))
                meaning.append(whole)
            if scene is not None:
                background[b] = list(PALETTE).index(scene.background)
                for n, placed in enumerate(self._in_order(scene)):
                    layout[b, 3 * n : 3 * n + 3] = torch.tensor([placed.x, placed.y, placed.side])
                    drawn[b, 3 * n : 3 * n + 3] = 1
        rows, positions = (torch.tensor(index) for index in zip(*at, strict=True))
        ends = torch.tensor([e.length - 1 for e in encodings])
        drawable = torch.tensor([self._drawable(text, scene) for text, _, scene in texts])
        return Lesson(ids, (rows, positions), torch.stack(meaning), ends, layout, drawn, background, drawable)

    def _drawable(self, text: str, scene: Scene | None) -> bool:
        if scene is None:
            return text in self.names
        return all(placed.thing.index >= 0 for placed in scene.objects)

    @staticmethod
    def _in_order(scene: Scene) -> list[Placed]:
        """The things of a scene in the order in which the caption names them."""
        return sorted(scene.objects, key=lambda placed: scene.caption.find(placed.phrase))

    def _end_of(self, phrase: str, ids: Sequence[int]) -> int | None:
        """The position of the last token of `phrase` among the ids of a text."""
        inner = self.tokenizer.encode(phrase)
        tokens = inner.ids[1 : inner.length - 1]
        for start in range(1, len(ids) - len(tokens)):
            if tuple(ids[start : start + len(tokens)]) == tokens:
                return start + len(tokens) - 1
        return None

    def losses(self, batch: Lesson, step: int) -> Iterator[Loss]:
        states = self.net.encoder(batch.ids.to(self.device)).last  # [B, L, D]
        rows, positions = (index.to(self.device) for index in batch.at)
        said = self.net.readout.meaning(states[rows, positions]).float()  # [P, 384]
        meaning = 1 - F.cosine_similarity(said, batch.meaning.to(said), dim=1).mean()
        ends = states[torch.arange(len(states), device=self.device), batch.ends.to(self.device)]  # [B, D]
        drawn = batch.drawn.to(self.device)
        error = (self.net.readout.layout(ends).float() - batch.layout.to(said)).square() * drawn
        layout = error.sum() / drawn.sum().clamp(min=1)
        in_scene = drawn[:, 0] > 0
        colours = self.net.readout.background(ends).float()[in_scene]
        background = (
            F.cross_entropy(colours, batch.background.to(self.device)[in_scene]) if len(colours) else layout
        )
        loss = meaning + self.config.text.phrases * (layout + 0.1 * background)
        parts = {"meaning": meaning, "layout": layout, "background": background}
        if self.config.text.recall:
            parts["recall"] = self._recall(said, batch.meaning.to(said))
            loss = loss + self.config.text.recall * parts["recall"]
        if self.first is not None:
            parts["keep"] = self._keep(states, batch)
            loss = loss + self.config.text.keep * parts["keep"]
        yield Loss("text", loss, parts)

    def _recall(self, said: Tensor, meaning: Tensor) -> Tensor:
        """Divergence of the names that a state calls to mind from those that its meaning does.

        A cosine counts every direction alike; which picture a word ends at is decided among the names near it.
        """
        ours = F.log_softmax(F.normalize(said, dim=1) @ self.gallery.T / TEMPERATURE, dim=1)
        truth = F.log_softmax(meaning @ self.gallery.T / TEMPERATURE, dim=1)
        return F.kl_div(ours, truth, log_target=True, reduction="batchmean")

    def _keep(self, states: Tensor, batch: Lesson) -> Tensor:
        """Squared distance from the first weights' states of texts that can be drawn: a U-Net knows them."""
        assert self.first is not None
        kept = batch.drawable.to(self.device)
        if not kept.any():
            return states.new_zeros(())
        with torch.no_grad():
            before = self.first(batch.ids[batch.drawable].to(self.device)).last
        return (states[kept].float() - before.float()).square().mean()

    def picture(self) -> Image.Image | None:
        return None

    def export(self, folder: Path) -> None:
        """Write `text_encoder/` and `tokenizer/` of a diffusers folder."""
        with new_folder(folder, replace=True) as part:
            (part / "text_encoder").mkdir()
            write_json(part / "text_encoder" / "config.json", self.net.encoder.config.to_dict())
            tensors = {k: v.contiguous() for k, v in self.net.encoder.state_dict().items()}
            write_tensors(part / "text_encoder" / "model.safetensors", tensors)
            write_tokenizer(part / "tokenizer", self.tokenizer)
