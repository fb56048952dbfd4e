"""The evaluation of editing on held-out scenes of emoji: five questions, each with floor, ceiling and error bar.

    (g) inpaint   is the thing that was asked for inside the mask, and every bit outside as it was?
    (h) rewrite   is one thing of a pair exchanged by another prompt, and the other one kept?
    (i) restyle   how near come the colours to the style picture, and does the judge still name what the prompt asks?
    (j) stylize   the same of a picture that is given: is it still named as before?
    (k) outpaint  is what was cut off continued, without a seam, and no second thing begun?

Scenes are drawn with seeds of their own, pairs are ones that training never drew together. The floor is the same
measure with every picture held against another's question, the ceiling that on the true picture of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.captions import PALETTE, Scene, Thing, pair, single, with_article
from ..data.scenes import EmojiScenes
from ..errors import MezzotintError
from .evaluate import DRAWS, RELATIONS, SHEET, TOO_FEW, Figure, Section, pair_hits, unseen_pair
from .intervals import Interval, mean, ratio_of_means, share
from .judge import Judge
from .pictures import background_colours, colour_distance, half, lab, stack

Edit = Callable[[Mapping[str, Any]], Tensor]  # fields of a request -> its picture, uint8 [3, H, W]
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
CUT = 32  # columns that are cut off, and grown again
NEAR = 8  # columns on both sides of a border that are what it is compared with
OTHER = 20.0  # a pixel is not the background's if it is farther from it, in CIELAB
SPECK = 0.02  # share of such pixels that is no thing yet


@dataclass(frozen=True)
class EditsConfig:
    """How many of each; `seed` fixes scenes and noise."""

    inpaint: int = 100
    rewrite: int = 100
    restyle: int = 20
    stylize: int = 20
    outpaint: int = 100
    seed: int = 2027

    def scaled(self, share: float) -> EditsConfig:
        """With this share of the questions, at least 8 of each kind: quicker, and wider intervals."""
        kinds = [field.name for field in fields(self) if field.name != "seed"]
        return replace(self, **{kind: max(8, round(share * getattr(self, kind))) for kind in kinds})


@dataclass(frozen=True)
class Asked:
    """A scene of two, and the same with one of them exchanged."""

    before: Scene
    after: Scene
    which: int  # of the two: 0 is left or above
    upright: bool  # one above the other

    @property
    def end(self) -> str:
        return (("left", "right"), ("top", "bottom"))[self.upright][self.which]

    def mask(self, size: int) -> Image.Image:
        """The half of the canvas in which the thing that is exchanged stands."""
        near, far = ((0, size // 2), (size // 2, size))[self.which]
        mask = Image.new("L", (size, size))
        mask.paste(255, (0, near, size, far) if self.upright else (near, 0, far, size))
        return mask


@dataclass(frozen=True)
class EditBench:
    """What all sections share."""

    edit: Edit
    judge: Judge
    scenes: EmojiScenes
    config: EditsConfig
    pairs: set[frozenset[int]]  # that training has drawn together

    def rng(self, letter: str) -> np.random.Generator:
        return np.random.default_rng((self.config.seed, ord(letter)))

    def picture(self, scene: Scene) -> Image.Image:
        return Image.fromarray(self.scenes.picture(scene))

    def asked(self, letter: str, count: int) -> list[Asked]:
        """Scenes of two that training never drew, before and after."""
        rng = self.rng(letter)
        found = []
        for i in range(count):
            form, which, key = RELATIONS[i % len(RELATIONS)], int(rng.integers(2)), int(rng.integers(2**32))
            things = [p.thing for p in unseen_pair(self.scenes.things, self.pairs, rng, form).objects]
            changed = list(things)
            for _ in range(DRAWS):
                changed[which] = self.scenes.things[int(rng.integers(len(self.scenes.things)))]
                if changed[which] not in things and frozenset(t.index for t in changed) not in self.pairs:
                    break
            else:
                raise MezzotintError(TOO_FEW)
            background = list(PALETTE)[int(rng.integers(len(PALETTE)))] if rng.random() < 0.5 else ""
            old, new = (
                pair(
                    a, a.name, b, b.name, form, background=background, rng=np.random.default_rng(key)
                )  # one place for both
                for a, b in (things, changed)
            )
            first, second = old.objects
            found.append(Asked(old, new, which, abs(first.y - second.y) > abs(first.x - second.x)))
        return found

    def draw(self, requests: Sequence[Mapping[str, Any]], letter: str) -> Tensor:
        """The picture of each request, with a seed of its own: uint8 [B, 3, H, W]."""
        first = 1_000_000 * (ord(letter) - ord("a")) + self.config.seed
        return torch.stack([self.edit({**asked, "seed": first + i}) for i, asked in enumerate(requests)])

    def named(self, pictures: Tensor, things: Sequence[Thing]) -> list[bool]:
        """Whether each thing is among the five that its picture looks most like."""
        return self.judge.found(pictures, [[thing.index] for thing in things], 5)


def evaluate_edits(
    edit: Edit,
    judge: Judge,
    scenes: EmojiScenes,
    pairs: set[frozenset[int]],
    *,
    config: EditsConfig = EditsConfig(),
) -> Iterator[Section]:
    """Yields the sections (g) to (k) as they are done; `pairs` are the things that training has drawn together."""
    bench = EditBench(edit, judge, scenes, config, pairs)
    yield inpaint(bench)
    yield rewrite(bench)
    yield restyle(bench)
    yield stylize(bench)
    yield outpaint(bench)


def inpaint(bench: EditBench) -> Section:
    """(g) One of two things painted over by another."""
    asked = bench.asked("g", bench.config.inpaint)
    given = [bench.picture(one.before) for one in asked]
    masks = [one.mask(given[0].width) for one in asked]
    requests = [
        {"task": "inpaint", "image": picture, "mask": mask, "prompt": one.after.caption}
        for one, picture, mask in zip(asked, given, masks, strict=True)
    ]
    pictures = bench.draw(requests, "g")
    before, true = (_pictures(bench, [scene(one) for one in asked]) for scene in (_before, _after))
    outside = torch.stack([torch.from_numpy(np.array(mask) == 0) for mask in masks])  # [B, H, W]
    kept = [
        bool((new == old)[:, where].all()) for new, old, where in zip(pictures, before, outside, strict=True)
    ]
    hits, floor, ceiling = (_there(bench, p, asked) for p in (pictures, pictures.roll(1, 0), true))
    how = (
        f"{len(asked)} scenes of two things; the half of the canvas with one of them is the mask, the prompt is the "
        "caption with another thing in its place; the asked thing is there if it is among the five training pictures "
        "nearest to the crop of that side. Default method and steps."
    )
    figures = (
        Figure("asked thing inside the mask", share(hits), "%", 0.70, share(floor), share(ceiling)),
        Figure("every bit outside as it was", share(kept), "%", 1.0),
    )
    return _section("g", "Inpaint", how, figures, asked, hits, before, pictures)


def rewrite(bench: EditBench) -> Section:
    """(h) One of two things exchanged by the prompt alone."""
    asked = bench.asked("h", bench.config.rewrite)
    before, true = (_pictures(bench, [scene(one) for one in asked]) for scene in (_before, _after))
    figures: list[Figure] = []
    drawn: list[Tensor] = []
    first: list[bool] = []
    ceiling, floor = (pair_hits(bench.judge, p, [one.after for one in asked])[0] for p in (true, before))
    for method in ("flow", "words"):
        requests = [
            {
                "task": "rewrite",
                "method": method,
                "image": bench.picture(one.before),
                "source_prompt": one.before.caption,
                "prompt": one.after.caption,
            }
            for one in asked
        ]
        pictures = bench.draw(requests, "h")
        both, _ = pair_hits(bench.judge, pictures, [one.after for one in asked])
        changed = _there(bench, pictures, asked)
        first = first or both
        drawn.append(pictures)
        figures += [
            Figure(f"{method}: changed and kept", share(both), "%", 0.60, share(floor), share(ceiling)),
            Figure(f"{method}: changed", share(changed), "%"),
            Figure(f"{method}: kept", share(_there(bench, pictures, asked, other=True)), "%"),
        ]
    how = (
        f"{len(asked)} scenes of two things; `--from` is the caption, the prompt the caption with another thing in the "
        "place of one; changed: the new thing is among the five nearest to the crop of its side; kept: the other "
        "still is. The floor is the picture as it was."
    )
    return _section("h", "Rewrite", how, figures, asked, first, before, *drawn)


def restyle(bench: EditBench) -> Section:
    """(i) A prompt in the manner of a scene on a coloured ground."""
    rng = bench.rng("i")
    things, styles = _things(bench, rng, bench.config.restyle), _styles(bench, rng, bench.config.restyle)
    requests = [
        {
            "task": "restyle",
            "style_image": bench.picture(style),
            "source_prompt": style.caption,
            "prompt": with_article(thing.name),
        }
        for thing, style in zip(things, styles, strict=True)
    ]
    how = (
        f"{len(things)} names, each in the manner of another thing on a coloured ground. Distance: the Wasserstein "
        "distance between Gaussians with the means and covariances of the two pictures' colours in CIELAB; named: "
        "the thing of the prompt is among the five nearest training pictures."
    )
    return _curve(bench, "i", "Restyle", how, requests, things, styles)


def stylize(bench: EditBench) -> Section:
    """(j) A picture in the manner of another."""
    rng = bench.rng("j")
    things, styles = _things(bench, rng, bench.config.stylize), _styles(bench, rng, bench.config.stylize)
    given = [bench.picture(single(thing, thing.name, rng=rng)) for thing in things]
    requests = [
        {
            "task": "stylize",
            "image": picture,
            "style_image": bench.picture(style),
            "prompt": with_article(thing.name),
        }
        for picture, thing, style in zip(given, things, styles, strict=True)
    ]
    how = (
        f"{len(things)} pictures of one thing, each in the manner of another thing on a coloured ground; measured as "
        "(i), the thing being that of the picture."
    )
    return _curve(bench, "j", "Stylize", how, requests, things, styles)


def outpaint(bench: EditBench) -> Section:
    """(k) What was cut off at one side, and what lies beyond both sides of a whole picture."""
    rng, count = bench.rng("k"), bench.config.outpaint
    things = _things(bench, rng, count)
    colours = [list(PALETTE)[int(i)] for i in rng.integers(len(PALETTE), size=count)]
    whole = [single(t, t.name, background=c, rng=rng) for t, c in zip(things, colours, strict=True)]
    true = _pictures(bench, whole)
    size = true.shape[-1]
    keep = size - CUT
    cut = [
        {"task": "outpaint", "image": _image(picture[:, :, :keep]), "right": CUT, "prompt": scene.caption}
        for picture, scene in zip(true, whole, strict=True)
    ]
    wide = [
        {"task": "outpaint", "image": _image(picture), "left": CUT, "right": CUT, "prompt": scene.caption}
        for picture, scene in zip(true, whole, strict=True)
    ]
    grown, widened = bench.draw(cut, "k"), bench.draw(wide, "k")
    ratio = ratio_of_means(*_across(grown, keep))
    named, floor, ceiling = (bench.named(p, things) for p in (grown, grown.roll(1, 0), true))
    strips = torch.cat([widened[..., :CUT], widened[..., -CUT:]], dim=-1)
    empty = [value <= SPECK for value in _things_share(strips, background_colours(true)).tolist()]
    how = (
        f"{count} pictures of one thing on a coloured ground. The {CUT} columns at the right are cut off and drawn "
        f"again: the seam is the mean difference between neighbours across the border over that within {NEAR} columns "
        "of it (its ceiling: of the true picture); continued: the whole picture is named as before. Then both sides "
        f"are grown by {CUT} columns, where there is nothing but ground to come: no second thing if at most "
        f"{SPECK:.0%} of the pixels there are farther than {OTHER:g} from the ground's colour in CIELAB. The captions "
        "name thing and ground."
    )
    figures = (
        Figure(
            "gradient across the border to inside",
            ratio,
            "ratio",
            1.0,
            ceiling=ratio_of_means(*_across(true, keep)),
        ),
        Figure("continued: still named", share(named), "%", None, share(floor), share(ceiling)),
        Figure("no second thing beside a whole one", share(empty), "%", None),
    )
    prompts = tuple(scene.caption for scene in whole)
    pictures = torch.stack([true, grown], 1).flatten(0, 1)
    return Section("k", "Outpaint", how, figures, prompts, tuple(named), pictures[:SHEET])


def _curve(
    bench: EditBench,
    letter: str,
    title: str,
    how: str,
    requests: Sequence[Mapping[str, Any]],
    things: Sequence[Thing],
    styles: Sequence[Scene],
) -> Section:
    """Both measures over strength; the floor of a distance is what no style at all gives."""
    manner = _pictures(bench, styles)
    figures: list[Figure] = []
    drawn, hits = [manner], []
    none: Interval | None = None
    for strength in STRENGTHS:
        pictures = bench.draw([{**asked, "style_strength": strength} for asked in requests], letter)
        named = bench.named(pictures, things)
        distance = mean(colour_distance(pictures, manner))
        none = none or distance
        figures.append(Figure(f"colour distance at {strength:g}", distance, "ΔE", None, none))
        floor = share(bench.named(pictures.roll(1, 0), things))
        figures.append(Figure(f"named at {strength:g}", share(named), "%", None, floor))
        drawn.append(pictures)
        hits = named
    prompts = tuple(str(asked["prompt"]) for asked in requests)
    kept = torch.stack(drawn, 1).flatten(0, 1)
    return Section(letter, title, how, tuple(figures), prompts, tuple(hits), kept[:SHEET])


def _things(bench: EditBench, rng: np.random.Generator, count: int) -> list[Thing]:
    things = bench.scenes.things
    return [things[int(i)] for i in rng.integers(len(things), size=count)]


def _styles(bench: EditBench, rng: np.random.Generator, count: int) -> list[Scene]:
    """One thing each, on a ground that is not white."""
    colours = [name for name in PALETTE if name != "white"]
    return [
        single(thing, thing.name, background=colours[int(rng.integers(len(colours)))], rng=rng)
        for thing in _things(bench, rng, count)
    ]


def _there(bench: EditBench, pictures: Tensor, asked: Sequence[Asked], *, other: bool = False) -> list[bool]:
    """Whether the thing that was exchanged (or the `other`) is on its side."""
    crops, wanted = [], []
    for picture, one in zip(pictures, asked, strict=True):
        which = 1 - one.which if other else one.which
        turned = replace(one, which=which)
        crops.append(half(picture[None], turned.end))
        wanted.append(one.after.objects[which].thing)
    return bench.named(torch.cat(crops), wanted)


def _across(pictures: Tensor, border: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean differences of neighbours: across the border (between columns border - 1 and border), and near it."""
    steps = pictures.float().diff(dim=-1).abs().mean((1, 2))  # [B, W - 1]; number i is between i and i + 1
    at = border - 1
    near = torch.cat([steps[:, max(0, at - NEAR) : at], steps[:, at + 1 : at + 1 + NEAR]], dim=1)
    return steps[:, at].numpy(), near.mean(1).numpy()


def _things_share(strips: Tensor, grounds: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] and colours [B, 3] -> the share of pixels that are not the ground's, [B]."""
    pixels = lab(strips.permute(0, 2, 3, 1).reshape(-1, 3)).view(len(strips), -1, 3)
    return ((pixels - lab(grounds)[:, None]).norm(dim=-1) > OTHER).float().mean(1)


def _pictures(bench: EditBench, scenes: Sequence[Scene]) -> Tensor:
    return stack([bench.scenes.picture(scene) for scene in scenes])


def _image(pixels: Tensor) -> Image.Image:
    """uint8 [3, H, W] -> a picture."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _before(one: Asked) -> Scene:
    return one.before


def _after(one: Asked) -> Scene:
    return one.after


def _section(
    letter: str,
    title: str,
    how: str,
    figures: Sequence[Figure],
    asked: Sequence[Asked],
    hits: Sequence[bool],
    *shown: Tensor,
) -> Section:
    prompts = tuple(one.after.caption for one in asked)
    pictures = torch.stack(shown, 1).flatten(0, 1)
    return Section(letter, title, how, tuple(figures), prompts, tuple(hits), pictures[:SHEET])
