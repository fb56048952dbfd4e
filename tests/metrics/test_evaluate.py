"""The evaluation against generators whose worth is known: one that paints what is asked, one that does not."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapes
import torch
from torch import Tensor

from mezzotint.data.captions import BESIDE, PALETTE, PLACES, SIZES, STACKED, Scene, draw, pair, single
from mezzotint.data.folder import Record, read_folder
from mezzotint.data.scenes import EmojiScenes, load_scenes
from mezzotint.errors import MezzotintError
from mezzotint.metrics import evaluate as evaluation
from mezzotint.metrics.evaluate import EvaluationConfig, Section, evaluate, seen
from mezzotint.metrics.judge import Judge
from mezzotint.metrics.pictures import stack
from mezzotint.metrics.report import to_json, to_markdown
from mezzotint.metrics.words import read_words

CONFIG = EvaluationConfig(
    names=10, colours=30, scenes=24, fresh=20, training_pictures=100, reconstructions=6, batch=7
)
WORDS = {word.text: word.accepted for word in read_words()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.write_folder(tmp_path_factory.mktemp("emoji") / "data")


@pytest.fixture(scope="module")
def scenes(folder: Path) -> EmojiScenes:
    return load_scenes(folder)


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    return read_folder(folder)


def training(scenes: EmojiScenes, n: int = 150) -> list[Scene]:
    """Single things, and pairs that contain the first of all."""
    rng = np.random.default_rng(8)
    first, *others = scenes.things
    pairs = [pair(first, first.name, o, o.name, BESIDE[0], rng=rng) for o in others[:4]]
    return pairs + [draw(scenes.things, rng, plain=0.5, pairs=0) for _ in range(n - len(pairs))]


class Painter:
    """Understands the captions and paints just what they say."""

    def __init__(self, scenes: EmojiScenes) -> None:
        self.scenes, self.asked = scenes, list[tuple[str, int]]()
        self.things = {thing.name: thing for thing in scenes.things}

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        assert len(prompts) == len(seeds) <= CONFIG.batch
        self.asked += zip(prompts, seeds, strict=True)
        return stack([self.scenes.picture(self.scene(p, s)) for p, s in zip(prompts, seeds, strict=True)])

    def scene(self, prompt: str, seed: int) -> Scene:
        rng = np.random.default_rng(seed)
        colours = "|".join(sorted(PALETTE, key=len, reverse=True))
        found = re.fullmatch(rf"(.*?)(?:,| on a| on) ({colours})(?: background)?", prompt)
        text, background = (found[1], found[2]) if found else (prompt, "")
        for form in BESIDE + STACKED:
            pattern = re.escape(form).replace(r"\{a\}", "(?P<a>.*)").replace(r"\{b\}", "(?P<b>.*)")
            if match := re.fullmatch(pattern, text):
                a, b = (self.thing(match[name]) for name in "ab")
                return pair(a, a.name, b, b.name, form, background=background, rng=rng)
        place = next((place for place in PLACES if place and text.endswith(place)), "")
        text = text.removesuffix(place).strip()
        size = next((size for size in SIZES if size and f"{size} " in text), "")
        thing = self.thing(text.replace(size, "").strip())
        return single(thing, thing.name, size=size, place=place, background=background, rng=rng)

    def thing(self, text: str):
        noun = re.sub(r"^an? +", "", text)
        return self.things[noun if noun in self.things else next(n for n in WORDS[noun] if n in self.things)]


def by_letter(sections: list[Section]) -> dict[str, dict[str, evaluation.Figure]]:
    return {section.letter: {figure.name: figure for figure in section.figures} for section in sections}


def test_who_paints_what_is_asked_reaches_the_ceiling(
    judge: Judge, scenes: EmojiScenes, records: list[Record]
) -> None:
    painter = Painter(scenes)
    dim = lambda pictures: (pictures.float() * 0.9).to(torch.uint8)  # noqa: E731
    sections = list(
        evaluate(painter, judge, scenes, records, training(scenes), reconstruct=dim, config=CONFIG)
    )
    assert [section.letter for section in sections] == list("abcdef")
    figures = by_letter(sections)
    assert figures["a"]["top 1"].interval.value >= 0.9
    assert figures["a"]["top 5"].interval.value == 1
    assert figures["a"]["top 1"].floor.value <= 0.2  # a permutation of the names: chance is 0.1
    assert figures["b"]["top 1"].interval.value >= 0.9
    assert figures["b"]["top 1"].interval.n >= 10
    assert figures["c"]["background right"].interval.value == 1
    assert figures["c"]["background right"].floor.value < 0.2
    both = figures["d"]["both, on the right sides"]
    assert both.interval.value >= both.ceiling.value - 0.2
    assert both.interval.value > both.floor.value + 0.2
    assert figures["e"]["ratio, generated to fresh"].interval.low < 1.1
    assert figures["e"]["ratio, generated to fresh"].interval.high > 0.9
    assert figures["f"]["emoji never trained on"].interval.n == 2
    assert 15 < figures["f"]["emoji never trained on"].interval.value < 25
    assert len({seed for _, seed in painter.asked}) == len(painter.asked)

    again = Painter(scenes)
    repeated = list(evaluate(again, judge, scenes, records, training(scenes), config=CONFIG))
    assert again.asked == painter.asked
    assert repeated[:4] == sections[:4]
    assert [section.letter for section in repeated] == list("abcde")

    report = json.loads(json.dumps(to_json(sections, {"judge": judge.about})))
    assert report["sections"]["a"]["figures"][0]["aim"] == 0.8
    assert len(report["sections"]["a"]["prompts"]) == 10
    assert report["about"]["judge"] == judge.about
    table = to_markdown(sections, {"judge": judge.about})
    assert "| (a) Names: top 1 |" in table
    assert all(line.count("|") == 7 for line in table.splitlines() if line.startswith("|"))


def test_who_paints_anything_else_stays_at_the_floor(
    judge: Judge, scenes: EmojiScenes, records: list[Record]
) -> None:
    def blank(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return torch.full((len(prompts), 3, 128, 128), 255, dtype=torch.uint8)

    figures = by_letter(list(evaluate(blank, judge, scenes, records, training(scenes), config=CONFIG)))
    assert figures["a"]["top 1"].interval.value <= 0.1
    assert figures["a"]["top 5"].interval.value <= 0.5
    assert figures["c"]["background right"].interval.value == pytest.approx(1 / 15)
    assert figures["d"]["both, on the right sides"].interval.value < 0.35


class ColourJudge:
    """Tells thing 0, red, from thing 6, blue, by the colour that a picture has most of."""

    def found(self, pictures: Tensor, wanted: Sequence[Sequence[int]], k: int) -> list[bool]:
        seen = [0 if p[0].sum() > p[2].sum() else 6 for p in pictures.long()]
        return [thing in indices for thing, indices in zip(seen, wanted, strict=True)]


@pytest.mark.parametrize("painted", ["as asked", "swapped", "the first twice"])
def test_things_on_the_wrong_sides_are_told_from_missing_ones(scenes: EmojiScenes, painted: str) -> None:
    rng = np.random.default_rng(5)
    red, blue = scenes.things[0], scenes.things[6]
    asked = [pair(red, red.name, blue, blue.name, form, rng=rng) for form in BESIDE + STACKED]
    order = {"as asked": (red, blue), "swapped": (blue, red), "the first twice": (red, red)}[painted]
    shown = [
        replace(scene, objects=tuple(map(lambda o, t: replace(o, thing=t), scene.objects, order)))
        for scene in asked
    ]
    pictures = stack([scenes.picture(scene) for scene in shown])
    right, either = evaluation.pair_hits(ColourJudge(), pictures, asked)  # type: ignore[arg-type]
    assert right == [painted == "as asked"] * len(asked)
    assert either == [painted != "the first twice"] * len(asked)


def test_copies_are_noticed(judge: Judge, scenes: EmojiScenes, records: list[Record]) -> None:
    drawn = training(scenes)

    def copier(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        return stack([scenes.picture(drawn[seed % len(drawn)]) for seed in seeds])

    config = replace(CONFIG, training_pictures=150)
    bench = evaluation.Bench(copier, judge, scenes, config)
    sample, pairs = seen(drawn, config)
    (figures,) = by_letter([evaluation.copying(bench, sample, pairs, None)]).values()
    assert figures["nearest training picture, generated"].interval.value == pytest.approx(0, abs=1e-3)
    assert figures["ratio, generated to fresh"].interval.high < 0.5
    assert figures["copies by the 1/3 rule, generated"].interval.value > 0.7


def test_pairs_of_training_are_never_asked_for(judge: Judge, scenes: EmojiScenes) -> None:
    painter, drawn = Painter(scenes), training(scenes)
    _, pairs = seen(drawn, CONFIG)
    assert pairs == {frozenset((0, i)) for i in range(1, 5)}
    section = evaluation.sides(evaluation.Bench(painter, judge, scenes, CONFIG), pairs)
    asked = [
        {placed.thing.index for placed in painter.scene(prompt, 0).objects} for prompt in section.prompts
    ]
    assert len(asked) == CONFIG.scenes
    assert not [pair for pair in asked if frozenset(pair) in pairs or len(pair) < 2]
    every = {frozenset((i, j)) for i in range(10) for j in range(i)}
    with pytest.raises(MezzotintError, match="nearly every pair"):
        evaluation.sides(evaluation.Bench(painter, judge, scenes, CONFIG), every)


def test_the_sample_of_training_is_even(scenes: EmojiScenes) -> None:
    drawn = training(scenes, 400)
    place = {id(scene): i for i, scene in enumerate(drawn)}
    means = []
    for seed in range(20):
        sample, _ = seen(iter(drawn), replace(CONFIG, seed=seed))
        assert len({id(scene) for scene in sample}) == 100
        means.append(np.mean([place[id(scene)] for scene in sample]))
    assert abs(np.mean(means) - 199.5) < 12  # standard error: 10 / sqrt(20)


def test_a_leaked_word_stops_the_evaluation(judge: Judge, scenes: EmojiScenes, records: list[Record]) -> None:
    leaked = [*records, Record(Path("x"), ("puppy",), {"keywords": ["doggy"]})]
    with pytest.raises(MezzotintError, match="'doggy' stands in the caption text 'doggy'"):
        next(evaluate(Painter(scenes), judge, scenes, leaked, [], config=CONFIG))
