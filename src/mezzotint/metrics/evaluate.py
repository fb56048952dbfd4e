"""The evaluation of a text-to-image model of emoji: six questions, each with floor, ceiling and error bar.

    (a) names       is the emoji that was asked for the nearest, or among the five nearest, of all training pictures?
    (b) words       the same for everyday words that no caption holds
    (c) colours     is the background the one that was asked for?
    (d) scenes      are both things of a pair that training never drew there, and on the right sides?
    (e) copying     are generated pictures nearer to training pictures than fresh true pictures are?
    (f) autoencoder how much of a held-out picture survives encoding?

The floor is the same measure with every picture held against another's prompt, the ceiling that on true pictures
composed for the same prompts: what the judge can tell at best. Prompts and seeds are fixed by the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ..data.captions import BESIDE, PALETTE, STACKED, Scene, Thing, draw, pair, single, with_article
from ..data.folder import Record
from ..data.scenes import EmojiScenes
from ..errors import MezzotintError
from .intervals import Interval, mean, ratio_of_means, share
from .judge import Judge, plain
from .pictures import background_colours, half, named_colours, nearest_two, psnr, small, stack
from .words import held_out_words, read_words

Generate = Callable[[Sequence[str], Sequence[int]], Tensor]  # prompts, seeds -> uint8 [B, 3, H, W]
Reconstruct = Callable[[Tensor], Tensor]  # uint8 [B, 3, H, W] -> what the autoencoder makes of it, likewise
SHEET = 64  # pictures of a section that are kept to be looked at
RELATIONS = BESIDE + STACKED
DRAWS = 10_000  # in which a pair that training never drew must be found
TOO_FEW = "training has drawn nearly every pair; evaluate against a shorter stretch of it"


@dataclass(frozen=True)
class EvaluationConfig:
    """How many of each; `seed` fixes prompts and noise."""

    names: int = 300
    colours: int = 300
    scenes: int = 200
    fresh: int = 300
    training_pictures: int = 20_000
    reconstructions: int = 300
    batch: int = 16
    seed: int = 2026

    def scaled(self, share: float) -> EvaluationConfig:
        """With this share of the questions, at least 20 of each kind: quicker, and wider intervals."""
        kinds = ("names", "colours", "scenes", "fresh", "reconstructions")
        return replace(self, **{kind: max(20, round(share * getattr(self, kind))) for kind in kinds})


@dataclass(frozen=True)
class Figure:
    """One number of the report; `aim` is what the project wants of it."""

    name: str
    interval: Interval
    unit: str = "%"
    aim: float | None = None
    floor: Interval | None = None
    ceiling: Interval | None = None


@dataclass(frozen=True)
class Section:
    """The answer to one question."""

    letter: str
    title: str
    how: str
    figures: tuple[Figure, ...]
    prompts: tuple[str, ...] = ()
    hits: tuple[bool, ...] = ()  # of the first figure, prompt by prompt
    pictures: Tensor | None = field(default=None, compare=False)  # uint8 [<= SHEET, 3, H, W]


@dataclass(frozen=True)
class Bench:
    """What all sections share."""

    generate: Generate
    judge: Judge
    scenes: EmojiScenes
    config: EvaluationConfig

    def rng(self, letter: str) -> np.random.Generator:
        return np.random.default_rng((self.config.seed, ord(letter)))

    def draw(self, prompts: Sequence[str], letter: str) -> Tensor:
        """A picture of each prompt: uint8 [B, 3, H, W]."""
        first = 1_000_000 * (ord(letter) - ord("a")) + self.config.seed
        seeds = range(first, first + len(prompts))
        step = self.config.batch
        parts = [
            self.generate(prompts[i : i + step], seeds[i : i + step]) for i in range(0, len(prompts), step)
        ]
        return torch.cat(parts)

    def true(self, scenes: Iterable[Scene]) -> Tensor:
        """The scenes as they should look: uint8 [B, 3, 128, 128]."""
        return stack([self.scenes.picture(scene) for scene in scenes])


def evaluate(
    generate: Generate,
    judge: Judge,
    scenes: EmojiScenes,
    records: Sequence[Record],
    training: Iterable[Scene],
    *,
    reconstruct: Reconstruct | None = None,
    config: EvaluationConfig = EvaluationConfig(),
) -> Iterator[Section]:
    """Yields the sections (a) to (f) as they are done; (f), and a part of (e), only with `reconstruct`.

    `records` are those of the folder that `scenes` came from; `training` are the scenes that the model was trained
    on, run through once. Raises MezzotintError if an evaluation word stands in a training caption.
    """
    bench = Bench(generate, judge, scenes, config)
    wanted = held_out_words(read_words(), records)
    yield names(bench)
    yield words(bench, [(word.text, word.accepted) for word in wanted])
    yield colours(bench)
    sample, pairs = seen(training, config)
    yield sides(bench, pairs)
    yield copying(bench, sample, pairs, reconstruct)
    if reconstruct is not None:
        yield autoencoder(bench, reconstruct)


def names(bench: Bench) -> Section:
    """(a) Names drawn at random without replacement."""
    rng, things = bench.rng("a"), bench.scenes.things
    count = min(bench.config.names, len(things))
    chosen = [things[int(i)] for i in rng.permutation(len(things))[:count]]
    prompts = [with_article(thing.name) for thing in chosen]
    true = bench.true(single(thing, thing.name, rng=rng) for thing in chosen)
    how = (
        f"{count} emoji names drawn at random; the emoji counts as found if its picture is the nearest (top 1) or "
        f"among the five nearest (top 5) of all {len(bench.judge.distinct)} different training pictures, by cosine "
        "between the judge's embeddings. Men, women and persons doing the same thing count as different emoji."
    )
    wanted = [[thing.index] for thing in chosen]
    return _found(bench, "a", "Names", how, prompts, wanted, true, aims=(0.80, 0.95))


def words(bench: Bench, answers: Sequence[tuple[str, Sequence[str]]]) -> Section:
    """(b) Words that no caption holds, each with the names that are accepted."""
    rng = bench.rng("b")
    by_name = {thing.name: thing for thing in bench.scenes.things}
    prompts = [with_article(word) for word, _ in answers]
    wanted = [[by_name[name].index for name in accepted] for _, accepted in answers]
    true = bench.true(single(by_name[accepted[0]], accepted[0], rng=rng) for _, accepted in answers)
    how = (
        f"{len(answers)} everyday words that stand in no name, alias or keyword of any emoji (evaluation_words.txt; "
        "checked by program), each with the emoji that a fair viewer would accept; found if any of those is the "
        "nearest (top 1) or among the five nearest (top 5). The dictionary that the text encoder learns from may "
        "hold them: the encoder has read them, but no picture was ever named so."
    )
    return _found(bench, "b", "Words found in no caption", how, prompts, wanted, true, aims=(None, 0.60))


def colours(bench: Bench) -> Section:
    """(c) Each colour equally often, each time with another emoji."""
    rng, things = bench.rng("c"), bench.scenes.things
    asked = [list(PALETTE)[i % len(PALETTE)] for i in range(bench.config.colours)]
    chosen = [things[int(i)] for i in rng.integers(len(things), size=len(asked))]
    prompts = [
        f"{with_article(t.name)} on a {colour} background" for t, colour in zip(chosen, asked, strict=True)
    ]
    pictures = bench.draw(prompts, "c")
    true = bench.true(
        single(t, t.name, background=colour, rng=rng) for t, colour in zip(chosen, asked, strict=True)
    )
    told, at_best = (named_colours(background_colours(p), PALETTE) for p in (pictures, true))
    hits, ceiling = ([a == b for a, b in zip(asked, found, strict=True)] for found in (told, at_best))
    floor = [a == b for a, b in zip(asked, told[-1:] + told[:-1], strict=True)]
    figure = Figure("background right", share(hits), "%", 0.95, share(floor), share(ceiling))
    how = (
        f"{len(asked)} prompts `... on a <colour> background`, {len(PALETTE)} colours; right if the median of the "
        "border pixels is, in CIELAB, nearest to the colour that was asked for."
    )
    return Section("c", "Background colour", how, (figure,), tuple(prompts), tuple(hits), pictures[:SHEET])


def sides(bench: Bench, pairs: set[frozenset[int]]) -> Section:
    """(d) Two things that training never drew together, side by side or one above the other."""
    rng = bench.rng("d")
    asked = [
        unseen_pair(bench.scenes.things, pairs, rng, RELATIONS[i % len(RELATIONS)])
        for i in range(bench.config.scenes)
    ]
    prompts = [scene.caption for scene in asked]
    pictures, true = bench.draw(prompts, "d"), bench.true(asked)
    right, either = pair_hits(bench.judge, pictures, asked)
    floor, ceiling = (pair_hits(bench.judge, p, asked) for p in (pictures.roll(1, 0), true))
    how = (
        f"{len(asked)} scenes of two emoji that training never drew together (all its captions were gone through), "
        "as `... to the left of ...`, `... above ...` and so on; a thing is there if its emoji is among the five "
        "nearest training pictures to the crop of its side (a square of 0.56 of the picture)."
    )
    figures = (
        Figure("both, on the right sides", share(right), "%", 0.60, share(floor[0]), share(ceiling[0])),
        Figure("both, on either side", share(either), "%", None, share(floor[1]), share(ceiling[1])),
    )
    return Section("d", "Scenes of two", how, figures, tuple(prompts), tuple(right), pictures[:SHEET])


def copying(
    bench: Bench, sample: Sequence[Scene], pairs: set[frozenset[int]], reconstruct: Reconstruct | None
) -> Section:
    """(e) Generated against fresh true pictures: which are nearer to what training drew?"""
    rng = bench.rng("e")
    fresh = [
        unseen_pair(bench.scenes.things, pairs, rng, RELATIONS[i % len(RELATIONS)])
        if i % 2
        else draw(bench.scenes.things, rng, plain=0, pairs=0)
        for i in range(bench.config.fresh)
    ]
    prompts = [scene.caption for scene in fresh]
    pictures = bench.draw(prompts, "e")
    known = torch.cat([small(bench.true(sample[i : i + 256])) for i in range(0, len(sample), 256)])
    made, true = nearest_two(small(pictures), known), nearest_two(small(bench.true(fresh)), known)
    figures = [
        Figure("nearest training picture, generated", mean(made[:, 0]), "rms"),
        Figure("nearest training picture, fresh true pictures", mean(true[:, 0]), "rms"),
        Figure("ratio, generated to fresh", ratio_of_means(made[:, 0], true[:, 0]), "ratio"),
        Figure("copies by the 1/3 rule, generated", share((made[:, 0] < made[:, 1] / 3).tolist())),
        Figure("copies by the 1/3 rule, fresh true pictures", share((true[:, 0] < true[:, 1] / 3).tolist())),
    ]
    if reconstruct is not None:
        copies = reconstruct(bench.true(sample[: bench.config.fresh]))
        copied = nearest_two(small(copies), known)[:, 0]
        figures.append(Figure("a training picture, only decoded anew, would measure", mean(copied), "rms"))
    how = (
        f"{len(fresh)} captions of fresh scenes, half of them one thing placed, sized and coloured, half pairs that "
        "training never drew. Every glyph is in training, so that what is held out is the composition: drawing the "
        "glyph that was asked for is the task, drawing a scene that training showed would be copying. Distance: "
        f"root mean square over 32 x 32 averaged pixels (0 to 1) to the nearest of {len(sample)} training pictures, "
        "drawn at random from all of them. A ratio of 1 or more, and no more copies by the 1/3 rule (nearest less "
        "than a third as far as the second nearest) than true pictures have, means no sign of copying."
    )
    return Section("e", "Copying", how, tuple(figures), tuple(prompts), (), pictures[:SHEET])


def autoencoder(bench: Bench, reconstruct: Reconstruct) -> Section:
    """(f) Peak signal to noise ratio on glyphs, and on compositions, that training never saw."""
    rng, count = bench.rng("f"), bench.config.reconstructions
    toned = range(len(bench.scenes.things), len(bench.scenes.glyphs))
    chosen = [int(i) for i in rng.permutation(len(toned))[:count]]
    kinds = {
        "fresh scenes of known emoji": bench.true(
            draw(bench.scenes.things, rng, plain=0.3, pairs=0.3) for _ in range(count)
        )
    }
    if chosen:
        glyphs = [bench.scenes.glyphs[toned[i]] for i in chosen]
        kinds = {"emoji never trained on": torch.stack([plain(glyph) for glyph in glyphs]), **kinds}
    step = bench.config.batch
    made = {
        kind: torch.cat([reconstruct(part) for part in pictures.split(step)])
        for kind, pictures in kinds.items()
    }
    figures = tuple(Figure(kind, mean(psnr(kinds[kind], made[kind])), "dB") for kind in kinds)
    how = (
        "Mean PSNR of encoding and decoding. Emoji never trained on: variants in the five skin tones, which differ "
        "from trained ones in little but colour. Fresh scenes: drawn as for training, with another seed."
    )
    kept = [torch.stack([kinds[kind][:8], made[kind][:8]], 1).flatten(0, 1) for kind in kinds]
    return Section("f", "Autoencoder", how, figures, pictures=torch.cat(kept))


def seen(training: Iterable[Scene], config: EvaluationConfig) -> tuple[list[Scene], set[frozenset[int]]]:
    """Of the scenes of training: a random sample (Vitter's algorithm R), and the pairs that occur in them."""
    rng = np.random.default_rng((config.seed, 0))
    sample: list[Scene] = []
    pairs: set[frozenset[int]] = set()
    for i, scene in enumerate(training):
        if len(scene.objects) > 1:
            pairs.add(frozenset(placed.thing.index for placed in scene.objects))
        if i < config.training_pictures:
            sample.append(scene)
        elif (j := int(rng.integers(i + 1))) < config.training_pictures:
            sample[j] = scene
    return sample, pairs


def _found(
    bench: Bench,
    letter: str,
    title: str,
    how: str,
    prompts: list[str],
    wanted: list[list[int]],
    true: Tensor,
    *,
    aims: tuple[float | None, float | None],
) -> Section:
    """Top 1 and top 5 of generated pictures, with floor and ceiling."""
    pictures = bench.draw(prompts, letter)
    figures, hits = [], []
    for k, aim in zip((1, 5), aims, strict=True):
        of = [bench.judge.found(p, wanted, k) for p in (pictures, pictures.roll(1, 0), true)]
        measured, floor, ceiling = map(share, of)
        hits.append(of[0])
        figures.append(Figure(f"top {k}", measured, "%", aim, floor, ceiling))
    return Section(letter, title, how, tuple(figures), tuple(prompts), tuple(hits[0]), pictures[:SHEET])


def unseen_pair(
    things: Sequence[Thing], pairs: set[frozenset[int]], rng: np.random.Generator, form: str
) -> Scene:
    """A scene of two different things, in that relation, that never occur together in `pairs`."""
    for _ in range(DRAWS):
        first, second = (things[int(i)] for i in rng.integers(len(things), size=2))
        if first is not second and frozenset((first.index, second.index)) not in pairs:
            background = list(PALETTE)[int(rng.integers(len(PALETTE)))] if rng.random() < 0.5 else ""
            return pair(first, first.name, second, second.name, form, background=background, rng=rng)
    raise MezzotintError(TOO_FEW)


def pair_hits(judge: Judge, pictures: Tensor, asked: Sequence[Scene]) -> tuple[list[bool], list[bool]]:
    """Both things there: on their own sides, on either side."""
    right, either = [], []
    for i, scene in enumerate(asked):
        first, second = scene.objects  # in the order of space: left or above stands first
        upright = abs(first.y - second.y) > abs(first.x - second.x)
        ends = ("top", "bottom") if upright else ("left", "right")
        crops = torch.cat([half(pictures[i : i + 1], end) for end in ends])
        a, b = [first.thing.index], [second.thing.index]
        right.append(all(judge.found(crops, [a, b], 5)))
        either.append(right[-1] or all(judge.found(crops, [b, a], 5)))
    return right, either
