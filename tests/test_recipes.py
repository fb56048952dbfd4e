"""The recipes of docs/training.md: what they give the training, and where their tables go."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mezzotint.data.captions import Thing
from mezzotint.data.folder import Record
from mezzotint.data.scenes import EmojiScenes
from mezzotint.data.sources import read_records
from mezzotint.training.config import read_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))


@pytest.fixture(scope="module")
def recipes():
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("recipes", ROOT / "benchmarks" / "recipes.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["recipes"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["recipes"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_one(path):
    assert read_config(path).stage


def test_five_captioned_pictures_of_a_new_thing(recipes, tmp_path):
    glyphs = []
    for colour in ("#c08040", "#101010"):
        glyph = Image.new("RGBA", (128, 128))
        ImageDraw.Draw(glyph).ellipse((4, 4, 124, 124), fill=colour)
        glyphs.append(glyph)
    scenes = EmojiScenes((Thing(0, recipes.CAT), Thing(1, recipes.HAT)), tuple(glyphs))
    made = recipes.new_thing(scenes, tmp_path)
    records: list[Record] = list(read_records(tmp_path, "auto"))
    assert records[0].captions == ("a zorple",)
    assert "a zorple on a blue background" in {r.text for r in records}
    assert "a small zorple at the bottom" in {r.text for r in records}
    assert len(records) == len(made) == 5
    red, green, _ = made[0][70, 64].astype(int)
    assert green > red  # another colour than the cat has
    assert np.abs(made[0][16, 64].astype(int) - 16).max() < 4  # the hat
    assert made[1][2, 2].tolist() == list(recipes.PALETTE["blue"])


def test_tables_stand_between_their_marks(recipes, tmp_path):
    asked = recipes.Asked(tmp_path, tmp_path, tmp_path, tmp_path, 0, True)
    page = tmp_path / "training.md"
    page.write_text("# A\n<!-- lora -->\nold\n<!-- /lora -->\nB\n<!-- cifar10 -->\n<!-- /cifar10 -->\n")
    recipes.table(asked, "lora", ("a", "b"), [("1", "2")])
    assert page.read_text() == (
        "# A\n<!-- lora -->\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\n<!-- /lora -->\nB\n"
        "<!-- cifar10 -->\n<!-- /cifar10 -->\n"
    )
    marks = (ROOT / "docs" / "training.md").read_text()
    assert all(
        f"<!-- {name} -->" in marks and f"<!-- /{name} -->" in marks
        for name in ("cifar10", "lora", "consistency")
    )
