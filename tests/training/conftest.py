"""A folder of eight drawn glyphs: training data in a second."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

WORDS = ["apple", "square", "ring", "bar", "cross", "dot", "pie", "wedge"]


@pytest.fixture(scope="session")
def glyph_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glyphs")
    rng = np.random.default_rng(0)
    lines = []
    for i, word in enumerate(WORDS):
        glyph = Image.new("RGBA", (128, 128))
        colour = (*rng.integers(0, 255, 3).tolist(), 255)
        draw = ImageDraw.Draw(glyph)
        (draw.ellipse if i % 2 else draw.rectangle)((10 + 5 * i, 10, 118, 118 - 5 * i), fill=colour)
        glyph.save(folder / f"{word}.png")
        record = {"file_name": f"{word}.png", "text": word, "name": word, "aliases": [], "skin_tone": i == 7}
        lines.append(json.dumps(record | {"keywords": [f"{word} thing"], "emoji": "", "codepoints": ""}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder
