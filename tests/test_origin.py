"""What a picture says of where it comes from, and that independent programs read the same."""

import io
import json
import shutil
import subprocess

import pytest

from mezzotint import Pipeline, Request
from mezzotint.cli import run
from mezzotint.formats.image import encode_image, save_image
from mezzotint.mark import marked
from mezzotint.origin import origin
from test_mark import scene
from tiny import write_tiny

RECIPE = {"prompt": "a red apple", "seed": 3, "model": "emoji", "version": "mezzotint 0.1.0"}


def test_all_three_are_read(tmp_path):
    told = origin(encode_image(marked(scene(1)), RECIPE))
    assert told["label"] == "trainedAlgorithmicMedia"
    assert told["recipe"] == RECIPE
    assert told["mark"]["found"]
    assert "less than once in 1,000,000" in told["says"]


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_label_and_mark_are_in_other_formats_too(kind):
    told = origin(encode_image(marked(scene(2)), RECIPE | {"image": {}}, kind=kind, quality=80, source="x"))
    assert (told["label"], told["recipe"], told["mark"]["found"]) == ("x", None, True)


def test_what_is_not_there_is_not_found():
    held = io.BytesIO()
    scene(4).save(held, "PNG")
    told = origin(held.getvalue())
    assert (told["label"], told["recipe"], told["mark"]["found"]) == (None, None, False)
    assert told["says"] == "nothing says that mezzotint made it"
    word = origin(encode_image(scene(4), RECIPE))
    assert "the file's word is all there is" in word["says"]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_exiftool_reads_the_label(tmp_path, kind):
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool is not installed: apt-get install libimage-exiftool-perl")
    path = tmp_path / f"a.{kind}"
    path.write_bytes(encode_image(scene(1), RECIPE, kind=kind))
    told = subprocess.run(
        ["exiftool", "-j", "-XMP:all", path], capture_output=True, check=True, text=True
    ).stdout
    assert json.loads(told)[0]["DigitalSourceType"].endswith("/trainedAlgorithmicMedia")


def test_verify_on_the_command_line(tmp_path, capsys):
    path = save_image(tmp_path / "a.png", marked(scene(1)), RECIPE)
    assert run(["verify", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mark"]["found"]
    assert run(["verify", str(path)]) == 0
    assert "seed 3" in capsys.readouterr().out
    assert run(["verify", str(tmp_path / "none.png")]) == 1
    (tmp_path / "no.png").write_bytes(b"no picture")
    assert run(["verify", str(tmp_path / "no.png")]) == 1


def test_a_marked_picture_says_so_and_is_made_again(tmp_path, capsys):
    model, path = write_tiny(tmp_path / "tiny"), tmp_path / "a.png"
    asked = [
        "generate",
        "cats",
        "--mark",
        "--size",
        "96",
        "-m",
        str(model),
        "-o",
        str(path),
        "--device",
        "cpu",
    ]
    assert run(asked) == 0
    assert origin(path.read_bytes())["recipe"]["mark"] is True
    assert run(["replay", str(path), "-m", str(model), "--device", "cpu"]) == 0
    assert "identical" in capsys.readouterr().out
    pipeline = Pipeline.load(model, device="cpu")
    plain, with_mark = (
        pipeline("a red apple", seed=1, width=96, height=96, mark=mark)[0] for mark in (False, True)
    )
    assert with_mark.tobytes() == marked(plain).tobytes()
    assert with_mark.tobytes() != plain.tobytes()
    assert pipeline.recipe(pipeline.settle(Request(prompt="cats", mark=True)))["mark"] is True
