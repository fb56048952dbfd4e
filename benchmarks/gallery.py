"""One picture for each way of editing, each by one command of `mezzotint`: docs/editing.md shows them.

    python benchmarks/gallery.py [--model emoji] [--out docs/gallery] [--steps 25]

The pictures that are worked on are drawn first, so that nothing but the model is needed. Prints each command.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from mezzotint.cli import run  # noqa: E402

APPLE, CAT, FLOWER = "a red apple", "a cat face", "a sunflower on a blue background"
COMMANDS = [  # (name of the picture, words of the command)
    ("apple", ["generate", APPLE, "--seed", "1"]),
    ("cat", ["generate", CAT, "--seed", "1"]),
    ("flower", ["generate", FLOWER, "--seed", "1"]),
    ("img2img", ["img2img", "{apple}", "a green pear", "--strength", "0.7", "--seed", "1"]),
    ("vary", ["vary", "{apple}", "--distance", "0.3", "--seed", "7"]),
    ("interpolate", ["interpolate", APPLE, CAT, "--at", "0.5", "--seed", "1"]),
    ("inpaint", ["inpaint", "{apple}", CAT, "--mask", "{mask}", "--seed", "1"]),
    ("outpaint", ["outpaint", "{apple}", APPLE, "--left", "32", "--right", "32", "--seed", "1"]),
    ("restyle", ["restyle", "{flower}", APPLE, "--from", FLOWER, "--seed", "1"]),
    ("stylize", ["stylize", "{apple}", "{flower}", APPLE, "--from", FLOWER, "--seed", "1"]),
    ("rewrite", ["rewrite", "{apple}", "a green apple", "--from", APPLE, "--seed", "1"]),
    (
        "rewrite-words",
        ["rewrite", "{apple}", "a green apple", "--from", APPLE, "--method", "words", "--seed", "1"],
    ),
    ("invert", ["invert", "{apple}", APPLE, "--guidance", "1", "--seed", "1"]),
    ("restore", ["restore", "{small}", "smaller:4", APPLE, "--size", "128", "--seed", "1"]),
    ("attention", ["attention", APPLE, "--seed", "1"]),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--out", type=Path, default=Path("docs/gallery"))
    parser.add_argument("--steps", type=int)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    files = {
        name: str(asked.out / f"{name}.png") for name in ("mask", "small", *(name for name, _ in COMMANDS))
    }
    for name, words in COMMANDS:
        steps = ["--steps", str(asked.steps)] if asked.steps else []
        command = [word.format(**files) for word in words]
        print("mezzotint", shlex.join([*command, "-o", files[name]]), flush=True)
        status = run([*command, *steps, "-o", files[name], "-m", asked.model, "--force"])
        if status:
            sys.exit(status)
        if name == "apple":
            _prepare(Path(files["apple"]), files)


def _prepare(apple: Path, files: dict[str, str]) -> None:
    """A mask of the right half, and the apple at a quarter of its size."""
    with Image.open(apple) as image:
        width, height = image.size
        image.resize((width // 4, height // 4), Image.Resampling.BOX).save(files["small"])
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rectangle((width // 2, 0, width, height), fill=255)
    mask.save(files["mask"])


if __name__ == "__main__":
    main()
