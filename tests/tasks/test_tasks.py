"""The table of tasks: what each needs and heeds, in requests, calls, commands and recipes alike."""

import numpy as np
import pytest
from PIL import Image

from drawing import apart, drawn
from mezzotint.cli import run
from mezzotint.errors import MezzotintError, UsageError
from mezzotint.formats.image import read_recipe
from mezzotint.pipeline import fitted
from mezzotint.request import Request
from mezzotint.tasks import SPECIAL, TASKS


def test_every_special_field_belongs_to_a_task_and_every_row_to_a_file():
    assert set(Request.model_fields) >= SPECIAL
    for task in TASKS.values():
        assert {*task.given, *task.heeds, *task.ignores} <= {*Request.model_fields}
        assert callable(task.state)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"task": "img2img"}, "img2img needs an image: the picture that is worked on"),
        ({"strength": 0.5}, "text2img takes no strength (--strength); what does: img2img"),
        ({"task": "vary", "at": 0.5}, "vary needs an image"),
        (
            {"task": "img2img", "image": Image.new("RGB", (8, 8)), "strength": 0},
            "strength 0 leaves the picture",
        ),
        ({"task": "img2img", "image": Image.new("RGB", (8, 8)), "strength": 1e-3}, "has not so many levels"),
        (
            {"task": "invert", "image": Image.new("RGB", (8, 8)), "strength": 0},
            "strength 0 leaves the picture",
        ),
        (
            {"task": "restyle", "style_image": Image.new("RGB", (8, 8)), "prompt": "[cats:apple:0.5]"},
            "restyle takes prompts that stay the same over the steps",
        ),
        ({"task": "img2img", "image": Image.new("RGB", (8, 8)), "strength": 2}, "strength (--strength) is 2"),
        *(
            ({"task": "restore", "image": Image.new("RGB", (8, 8)), "damage": damage}, "needs a number")
            for damage in ("smaller:1e999", "blur:nan")
        ),
        (
            {"task": "rewrite", "image": Image.new("RGB", (8, 8)), "prompt": "cats", "reweight": "cats:nan"},
            "write it as word:2",
        ),
        (
            {"task": "rewrite", "image": Image.new("RGB", (8, 8)), "source_prompt": "<lora:x:1> cats"},
            "the prompt of what is there has a LoRA tag",
        ),
        ({"task": "vary", "image": Image.new("RGB", (8, 8))}, "carries no recipe"),
    ],
)
def test_one_line_for_what_cannot_be(pipe, fields, says):
    with pytest.raises(MezzotintError) as caught:
        drawn(pipe, **fields)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_call_is_the_request(pipe, photo):
    [image] = pipe.img2img(photo, "a red apple", strength=0.5, seed=3)
    [again] = drawn(pipe, task="img2img", image=photo, prompt="a red apple", strength=0.5, seed=3)
    assert apart(image, again) == 0
    with pytest.raises(UsageError, match="img2img is given image, prompt; the rest by name"):
        pipe.img2img(photo, "a red apple", 0.5)
    with pytest.raises(AttributeError, match="no 'img2imgs'; what it can do: text2img, img2img"):
        _ = pipe.img2imgs


def test_a_recipe_holds_what_its_task_heeds_and_no_more(pipe, photo):
    recipe = drawn(pipe, task="img2img", image=photo, prompt="cats")[0].recipe
    assert recipe["strength"] == TASKS["img2img"].heeds["strength"]
    assert not SPECIAL - {"image", "strength"} & recipe.keys()
    assert not SPECIAL & drawn(pipe, prompt="cats")[0].recipe.keys()


@pytest.mark.parametrize(
    ("size", "asked", "expected"),
    [
        ((64, 64), (None, None), (64, 64)),
        ((90, 62), (None, None), (88, 64)),  # near enough to the model's size: its own
        ((4000, 3000), (None, None), (72, 56)),
        ((16, 16), (None, None), (64, 64)),
        ((100, 50), (64, None), (64, 32)),
        ((100, 50), (64, 64), (64, 64)),
    ],
)
def test_the_size_to_work_at(size, asked, expected):
    assert fitted(size, asked, (64, 64), 8) == expected


def test_commands(folder, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photo.save("photo.png")
    model = ["-m", str(folder), "--seed", "1"]
    assert (
        run(["img2img", "photo.png", "a cat", "-n", "2", "--film", "f.gif", "--strength", "0.5", *model]) == 0
    )
    assert capsys.readouterr().out.split() == ["out/a-cat-1.png", "out/a-cat-2.png", "f.gif", "f.png"]
    recipe = read_recipe("out/a-cat-2.png")
    assert (recipe["task"], recipe["strength"], recipe["image"]["path"]) == ("img2img", 0.5, "photo.png")
    assert run(["replay", "out/a-cat-2.png", "-m", str(folder)]) == 0
    assert b"compositeWithTrainedAlgorithmicMedia" in (tmp_path / "out/a-cat-2.png").read_bytes()

    assert run(["generate", "a cat", "-o", "cat.png", *model]) == 0
    assert run(["vary", "cat.png", "-n", "2", "--distance", "0.3", "-o", "v", *model]) == 0
    assert (
        run(["interpolate", "a cat", "an apple", "--frames", "3", "--slides", "s.gif", "-o", "i", *model])
        == 0
    )
    with Image.open("s.gif") as film:
        assert film.n_frames == 3
    names = sorted(path.name for path in (tmp_path / "i").iterdir())
    assert names == [f"a-cat-{share}-an-apple-1.png" for share in ("0-000", "0-500", "1-000")]
    with Image.open(f"i/{names[0]}") as first, Image.open("cat.png") as cat:
        assert np.array_equal(first, cat)
    capsys.readouterr()
    assert run(["interpolate", "a cat", *model]) == 2
    assert "a walk needs another prompt" in capsys.readouterr().err
    assert run(["img2img", "nothing.png", "a cat", *model]) == 1
    assert capsys.readouterr().err == "mezzotint: nothing.png: there is no such file\n"
