"""Scenes of emoji and the sentences that describe them: an endless training set from 1,648 glyphs.

A `Scene` is one or two glyphs with a size and a place on a plain background; its caption says some of that and
leaves the rest at the usual (whole canvas, centre, white). `draw` is a function of a random generator, so picture
number i of a run is a function of (run seed, i); `compose` paints it. Because nearly no scene is drawn twice,
copying does not pay: the model has to learn what each word does to the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image

T = TypeVar("T")

PALETTE: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "gray": (150, 150, 150),
    "red": (214, 40, 40),
    "orange": (247, 127, 0),
    "yellow": (252, 211, 50),
    "green": (56, 158, 70),
    "blue": (40, 90, 210),
    "light blue": (150, 205, 245),
    "navy": (20, 30, 90),
    "teal": (20, 150, 150),
    "purple": (120, 50, 170),
    "pink": (250, 160, 200),
    "brown": (120, 75, 40),
    "beige": (240, 225, 195),
}

SIZES: dict[str, tuple[float, float]] = {  # the glyph's side as a share of the canvas
    "": (0.88, 0.96),  # nothing said
    "tiny": (0.30, 0.36),
    "small": (0.44, 0.52),
    "medium-sized": (0.62, 0.70),
}

PLACES: dict[str, tuple[float, float]] = {  # the glyph's centre (x, y) as a share of the room that it has
    "": (0.5, 0.5),
    "in the middle": (0.5, 0.5),
    "on the left": (0.0, 0.5),
    "on the right": (1.0, 0.5),
    "at the top": (0.5, 0.0),
    "at the bottom": (0.5, 1.0),
    "in the top left corner": (0.0, 0.0),
    "in the top right corner": (1.0, 0.0),
    "in the bottom left corner": (0.0, 1.0),
    "in the bottom right corner": (1.0, 1.0),
}

# {a} stands first in space (left, above), {b} second.
BESIDE = (
    "{a} to the left of {b}",
    "{b} to the right of {a}",
    "{a} left of {b}",
    "{a} on the left and {b} on the right",
)
STACKED = ("{a} above {b}", "{b} below {a}", "{a} over {b}", "{b} under {a}")
UNORDERED = ("{a} and {b}", "{a} next to {b}", "{a} with {b}")  # drawn side by side, either first

BACKGROUNDS = (" on a {c} background", ", {c} background", " on {c}")


@dataclass(frozen=True)
class Thing:
    """What can be drawn: its glyph's index, its name and the other words for it."""

    index: int
    name: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Placed:
    """A thing at a place: centre (x, y) and side as shares of the canvas, and the words used for it."""

    thing: Thing
    phrase: str
    x: float
    y: float
    side: float


@dataclass(frozen=True)
class Scene:
    """One picture to be: what is where, on which background, and the sentence that says so."""

    objects: tuple[Placed, ...]
    background: str
    caption: str


def with_article(noun: str) -> str:
    """'apple' -> 'an apple'; plurals and names that bring an article stay as they are."""
    first, last = noun.split()[0], noun.split()[-1]
    plural = last.endswith("s") and not last.endswith(("ss", "us", "is"))
    if plural or first in ("a", "an", "the", "no") or not noun[0].isalpha():
        return noun
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def draw(
    things: Sequence[Thing], rng: np.random.Generator, *, plain: float = 0.5, pairs: float = 0.25
) -> Scene:
    """A random scene: `plain` (only its name) or a pair with the given chances, else one thing placed and sized."""
    kind = rng.random()
    if kind < plain:
        thing = _choice(things, rng)
        return single(thing, _phrase(thing, rng), rng=rng)
    if kind < 1 - pairs:
        thing = _choice(things, rng)
        size = _choice(tuple(SIZES), rng) if rng.random() < 0.5 else ""
        place = _choice(tuple(PLACES), rng) if size else ""
        background = _choice(tuple(PALETTE), rng) if rng.random() < 0.8 else ""
        return single(thing, _phrase(thing, rng), size=size, place=place, background=background, rng=rng)
    first, second = (_choice(things, rng) for _ in range(2))
    form = _choice(BESIDE + STACKED + UNORDERED, rng)
    background = _choice(tuple(PALETTE), rng) if rng.random() < 0.5 else ""
    return pair(
        first, _phrase(first, rng), second, _phrase(second, rng), form, background=background, rng=rng
    )


def single(
    thing: Thing,
    phrase: str,
    *,
    size: str = "",
    place: str = "",
    background: str = "",
    rng: np.random.Generator,
) -> Scene:
    """One thing; an empty size, place or background is not said and is the usual one."""
    side = rng.uniform(*SIZES[size])
    (fx, fy), wobble = PLACES[place], 0.3 * (1 - side) * rng.uniform(-0.5, 0.5, 2)
    x, y = (side / 2 + f * (1 - side) for f in (fx, fy))
    x, y = (float(np.clip(v + w, side / 2, 1 - side / 2)) for v, w in zip((x, y), wobble, strict=True))
    noun = with_article(f"{size} {phrase}".strip()) if size or rng.random() < 0.6 else phrase
    caption = f"{noun} {place}".strip() + _background(background, rng)
    return Scene((Placed(thing, phrase, x, y, side),), background or "white", caption)


def pair(
    first: Thing,
    first_phrase: str,
    second: Thing,
    second_phrase: str,
    form: str,
    *,
    background: str = "",
    rng: np.random.Generator,
) -> Scene:
    """Two things in the relation that `form` (of BESIDE, STACKED, UNORDERED) states; {a} is left or above."""
    sides = rng.uniform(0.44, 0.50, 2)
    along = np.array([0.26, 0.74]) + rng.uniform(-0.01, 0.01, 2)
    across = 0.5 + rng.uniform(-0.04, 0.04, 2)
    if form in UNORDERED and rng.random() < 0.5:
        along = along[::-1]
    xs, ys = (across, along) if form in STACKED else (along, across)
    objects = tuple(
        Placed(thing, phrase, float(x), float(y), float(side))
        for thing, phrase, x, y, side in zip(
            (first, second), (first_phrase, second_phrase), xs, ys, sides, strict=True
        )
    )
    caption = form.format(a=with_article(first_phrase), b=with_article(second_phrase))
    return Scene(objects, background or "white", caption + _background(background, rng))


def compose(scene: Scene, glyphs: Sequence[Image.Image], canvas: int = 128) -> Image.Image:
    """The picture of a scene (RGB, canvas x canvas) from RGBA glyphs indexed by `Thing.index`."""
    picture = Image.new("RGB", (canvas, canvas), PALETTE[scene.background])
    for placed in scene.objects:
        side = max(1, round(placed.side * canvas))
        glyph = glyphs[placed.thing.index].resize((side, side), Image.Resampling.LANCZOS)
        corner = (round(placed.x * canvas - side / 2), round(placed.y * canvas - side / 2))
        picture.paste(glyph, corner, glyph)
    return picture


def _choice(options: Sequence[T], rng: np.random.Generator) -> T:
    return options[int(rng.integers(len(options)))]


def _phrase(thing: Thing, rng: np.random.Generator) -> str:
    """The thing's name, or now and then another word for it."""
    return _choice(thing.words, rng) if thing.words and rng.random() < 0.25 else thing.name


def _background(colour: str, rng: np.random.Generator) -> str:
    return _choice(BACKGROUNDS, rng).format(c=colour) if colour else ""
