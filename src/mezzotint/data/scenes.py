"""The emoji folder as training data: its glyphs, what each may be called, and pictures number i of a run.

`scenes.scene(seed, i)` is a function of (seed, i): no epoch, no shuffling, no state. A word names a glyph in a
caption only if it fits few glyphs ("doctor"), not if it fits many ("nature").
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .captions import Scene, Thing, compose, draw
from .folder import read_folder

COMMON = 4  # a keyword of more glyphs than this names none of them


@dataclass(frozen=True)
class EmojiScenes:
    """The things that captions name (no skin tones), and the glyphs of all, skin tones behind them."""

    things: tuple[Thing, ...]
    glyphs: tuple[Image.Image, ...]

    def scene(self, seed: int, i: int, *, plain: float = 0.5, pairs: float = 0.25) -> Scene:
        """Scene number i of the run `seed`."""
        return draw(self.things, np.random.default_rng((seed, i)), plain=plain, pairs=pairs)

    def picture(self, scene: Scene, canvas: int = 128) -> np.ndarray:
        """The scene painted: uint8 [canvas, canvas, 3]."""
        return np.asarray(compose(scene, self.glyphs, canvas))


def load_scenes(folder: Path) -> EmojiScenes:
    """From a folder that `mezzotint data emoji` wrote. MezzotintError as `read_folder` raises it."""
    records = read_folder(folder)
    plain = [r for r in records if not r.extra.get("skin_tone")]
    toned = [r for r in records if r.extra.get("skin_tone")]
    names = {r.captions[0] for r in plain}
    uses = Counter(word for r in plain for word in {*r.extra["aliases"], *r.extra["keywords"]})
    things = []
    for index, record in enumerate(plain):
        words = [*record.extra["aliases"], *record.extra["keywords"]]
        fitting = tuple(dict.fromkeys(w for w in words if uses[w] <= COMMON and w not in names))
        things.append(Thing(index, record.captions[0], fitting))
    return EmojiScenes(tuple(things), tuple(r.open().convert("RGBA") for r in plain + toned))
