"""A small set that stands in for the emoji: shapes of one colour each, under names that the word list asks for."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

NAMES = ["dog", "cat", "automobile", "airplane", "house", "fire", "ghost", "robot", "bed", "tent"]
SHAPES = ["ellipse", "rectangle", "triangle", "cross", "ring"]
COLOURS = ["#c02020", "#2040c0"]


def glyph(i: int, colour: str | None = None) -> Image.Image:
    """Shape i in its colour on nothing: RGBA, 128 x 128."""
    picture = Image.new("RGBA", (128, 128))
    draw, fill = ImageDraw.Draw(picture), colour or COLOURS[i // len(SHAPES)]
    match SHAPES[i % len(SHAPES)]:
        case "ellipse":
            draw.ellipse((4, 24, 124, 104), fill=fill)
        case "rectangle":
            draw.rectangle((24, 4, 104, 124), fill=fill)
        case "triangle":
            draw.polygon([(64, 4), (124, 124), (4, 124)], fill=fill)
        case "cross":
            draw.rectangle((4, 50, 124, 78), fill=fill)
            draw.rectangle((50, 4, 78, 124), fill=fill)
        case "ring":
            draw.ellipse((4, 4, 124, 124), outline=fill, width=20)
    return picture


def glyphs() -> list[Image.Image]:
    return [glyph(i) for i in range(len(NAMES))]


def write_folder(folder: Path) -> Path:
    """The shapes as a captioned folder, and two with a skin tone that captions never name."""
    folder.mkdir(parents=True)
    lines = []
    for i, name in enumerate(NAMES):
        glyph(i).save(folder / f"{i}.png")
        lines.append(
            {"file_name": f"{i}.png", "text": name, "aliases": [], "keywords": [], "skin_tone": False}
        )
    for i in range(2):
        glyph(i, "#308040").save(folder / f"toned{i}.png")
        toned = {"file_name": f"toned{i}.png", "text": f"{NAMES[i]} dark skin tone", "skin_tone": True}
        lines.append(toned | {"aliases": [], "keywords": []})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder
