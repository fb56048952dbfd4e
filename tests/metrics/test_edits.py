"""The measures of editing against editors whose worth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapes
import torch
from conftest import SMALL
from PIL import Image
from test_evaluate import Painter
from torch import Tensor

from mezzotint.data.scenes import EmojiScenes, load_scenes
from mezzotint.metrics import edits
from mezzotint.metrics.edits import EditBench, EditsConfig, evaluate_edits
from mezzotint.metrics.judge import Judge
from mezzotint.metrics.pictures import colour_distance
from mezzotint.metrics.run import Stream, run_edits

CONFIG = EditsConfig(inpaint=16, rewrite=16, restyle=6, stylize=6, outpaint=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.write_folder(tmp_path_factory.mktemp("emoji") / "data")


@pytest.fixture(scope="module")
def scenes(folder: Path) -> EmojiScenes:
    return load_scenes(folder)


class Editor:
    """Paints what is asked for; at full strength of style, the style picture itself."""

    def __init__(self, scenes: EmojiScenes) -> None:
        self.painter, self.seeds = Painter(scenes), list[tuple[str, int]]()

    def __call__(self, asked: dict) -> Tensor:
        self.seeds.append((asked["task"], asked["seed"]))
        return pixels(getattr(self, asked["task"])(asked))

    def painted(self, asked: dict) -> Image.Image:
        [picture] = self.painter([asked["prompt"]], [asked["seed"]])
        return Image.fromarray(picture.permute(1, 2, 0).numpy())

    def inpaint(self, asked: dict) -> Image.Image:
        return Image.composite(self.painted(asked), asked["image"], asked["mask"])

    def rewrite(self, asked: dict) -> Image.Image:
        return self.painted(asked)

    def restyle(self, asked: dict) -> Image.Image:
        return Image.blend(self.painted(asked), asked["style_image"], asked["style_strength"])

    def stylize(self, asked: dict) -> Image.Image:
        return Image.blend(asked["image"], asked["style_image"], asked["style_strength"])

    def outpaint(self, asked: dict) -> Image.Image:
        margins = ((0, 0), (asked.get("left", 0), asked["right"]), (0, 0))
        return Image.fromarray(np.pad(np.array(asked["image"]), margins, mode="edge"))


class Vandal(Editor):
    """Changes a pixel too many, changes nothing else, grows black."""

    def inpaint(self, asked: dict) -> Image.Image:
        picture, mask = asked["image"].copy(), np.array(asked["mask"])
        y, x = np.argwhere(mask == 0)[0]
        picture.putpixel((int(x), int(y)), (1, 2, 3))
        return picture

    def rewrite(self, asked: dict) -> Image.Image:
        return asked["image"]

    def outpaint(self, asked: dict) -> Image.Image:
        margins = ((0, 0), (asked.get("left", 0), asked["right"]), (0, 0))
        return Image.fromarray(np.pad(np.array(asked["image"]), margins))


def pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def figures(editor: Editor, judge: Judge, scenes: EmojiScenes) -> dict[str, dict[str, edits.Figure]]:
    sections = list(evaluate_edits(editor, judge, scenes, set(), config=CONFIG))
    return {section.letter: {figure.name: figure for figure in section.figures} for section in sections}


def test_who_does_what_is_asked_reaches_the_ceiling(judge: Judge, scenes: EmojiScenes) -> None:
    editor = Editor(scenes)
    told = figures(editor, judge, scenes)
    inside = told["g"]["asked thing inside the mask"]
    assert inside.interval.value >= inside.ceiling.value - 0.1 > inside.floor.value
    assert told["g"]["every bit outside as it was"].interval.value == 1
    both = told["h"]["flow: changed and kept"]
    assert both.interval.value >= both.ceiling.value - 0.2 > both.floor.value
    for letter in "ij":
        distances = [told[letter][f"colour distance at {s:g}"].interval.value for s in edits.STRENGTHS]
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] == pytest.approx(0, abs=1e-3)
        assert told[letter]["named at 0"].interval.value > told[letter]["named at 1"].interval.value
    assert told["k"]["gradient across the border to inside"].interval.value < 0.1
    assert told["k"]["no second thing beside a whole one"].interval.value == 1
    tasks = {task for task, _ in editor.seeds}
    assert tasks == {"inpaint", "rewrite", "restyle", "stylize", "outpaint"}


def test_who_does_not_is_found_out(judge: Judge, scenes: EmojiScenes) -> None:
    told = figures(Vandal(scenes), judge, scenes)
    assert told["g"]["every bit outside as it was"].interval.value == 0
    assert told["g"]["asked thing inside the mask"].interval.value <= 0.7  # five of ten are near
    assert told["h"]["words: kept"].interval.value > told["h"]["words: changed and kept"].interval.value
    assert told["k"]["gradient across the border to inside"].interval.value > 3
    assert told["k"]["no second thing beside a whole one"].interval.value <= 0.4


def test_one_of_two_is_exchanged_where_it_stands(judge: Judge, scenes: EmojiScenes) -> None:
    known = {frozenset((0, i)) for i in range(1, 10)}
    bench = EditBench(Editor(scenes), judge, scenes, CONFIG, known)
    for one in bench.asked("g", 24):
        old, new = one.before.objects, one.after.objects
        assert old[1 - one.which] == new[1 - one.which]
        assert (old[one.which].x, old[one.which].side) == (new[one.which].x, new[one.which].side)
        assert len({*(p.thing.index for p in (*old, *new))}) == 3
        assert not known & {frozenset(p.thing.index for p in objects) for objects in (old, new)}
        inside = np.array(one.mask(128)) > 0
        apart = (scenes.picture(one.before) != scenes.picture(one.after)).any(-1)
        assert inside.mean() == 0.5
        assert apart[inside].sum() > 20 * apart[~inside].sum()  # the two may reach a little over the middle


def test_distance_of_colours_is_that_of_gaussians() -> None:
    """Of two flat pictures, that of their colours; of a picture and itself, turned or not, none."""
    flat = torch.tensor([[255, 255, 255], [0, 0, 0]], dtype=torch.uint8)[:, :, None, None].expand(2, 3, 8, 8)
    assert colour_distance(flat[:1], flat[1:])[0] == pytest.approx(100, abs=0.1)  # L* of white
    noise = torch.randint(256, (1, 3, 16, 16), dtype=torch.uint8)
    assert colour_distance(noise, noise.flip(-1))[0] == pytest.approx(0, abs=1e-3)
    dark = (noise.float() / 2).byte()
    assert colour_distance(noise, dark)[0] > 15


def test_a_report_with_all_sections(
    folder: Path, judge_file: Path, scenes: EmojiScenes, tmp_path: Path
) -> None:
    config = EditsConfig(2, 2, 2, 2, 2)
    stream = Stream(seed=1, count=30, plain=0.5, pairs=0.2)
    done = list(
        run_edits(Editor(scenes), folder, judge_file, tmp_path, stream=stream, config=config, training=SMALL)
    )
    assert [section.letter for section in done] == list("ghijk")
    table = (tmp_path / "evaluation.md").read_text()
    assert "| (k) Outpaint: gradient across the border to inside |" in table
    assert all(line.count("|") == 7 for line in table.splitlines() if line.startswith("|"))
    assert (tmp_path / "g.png").exists()
    assert EditsConfig().scaled(0.01).inpaint == 8
