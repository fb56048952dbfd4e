"""Requests from a file: each line is what the plain command makes of it, once; what is wrong is told by its number."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mezzotint.bulk import Line, draw_line, picture_name, read_lines, request_of
from mezzotint.cli import run
from mezzotint.errors import UsageError
from mezzotint.formats.image import read_recipe
from mezzotint.pipeline import Pipeline
from tiny import write_tiny

LINES = [
    '{"prompt": "a red apple", "seed": 3, "num_images": 3}',
    "",
    '{"prompt": "an owl", "num_inference_steps": 3}',
    '{"prompt": "a cat", "stepz": 3}',
    "no json",
    '{"prompt": "a dog", "seed": 5}',
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(LINES) + "\n")
    return path


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def drawn(out):
    return {path.name: path.read_bytes() for path in out.glob("*.png")}


def test_a_file_is_drawn_line_by_line_and_only_once(model, file, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["generate", "--prompts", str(file), "-m", str(model), "-o", str(out), "--steps", "2"]
    assert run(command) == 1
    said, error = capsys.readouterr()
    assert len(said.split()) == 5
    assert f"{file}:4: unknown field of a request 'stepz'" in error
    assert f"{file}:5: not JSON" in error
    assert "2 of the 5 lines" in error
    first = drawn(out)
    plain = Pipeline.load(model)("a red apple", seed=3, num_images=3, num_inference_steps=2)
    for i, image in enumerate(plain):
        (path,) = out.glob(f"a-red-apple-{3 + i}-*.png")
        assert (pixels(path) == np.asarray(image)).all()
    (owl,) = out.glob("an-owl-*.png")
    assert read_recipe(owl)["num_inference_steps"] == 3  # a line outranks the options
    gone, hurt = next(out.glob("a-red-apple-4-*.png")), next(out.glob("a-dog-*.png"))
    gone.unlink()
    hurt.write_bytes(b"")
    assert run(command) == 1
    assert "2 pictures made, 3 were there" in capsys.readouterr().err
    assert drawn(out) == first


def test_what_does_not_go_together_is_refused(file, tmp_path, capsys):
    for wrong in (["a cat"], ["--film", "x.gif"], ["--sign", "x"], ["-o", "x.png"], ["--workers", "2"]):
        assert run(["generate", "--prompts", str(file), *wrong]) == 2
    assert run(["generate", "a cat", "--engine", "ray"]) == 2
    assert run(["generate"]) == 2
    assert run(["generate", "--prompts", str(tmp_path / "none.jsonl")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 8


def test_a_line_without_a_seed_has_one_of_its_own():
    a, again, b = (request_of(json.dumps({"prompt": p}), {}) for p in ("a cat", "a cat", "a dog"))
    assert a == again
    assert a.seed != b.seed
    assert request_of('{"prompt": "a cat"}', {"seed": 7}).seed == 7
    with pytest.raises(UsageError, match="not a JSON object"):
        request_of('"a cat"', {})


def test_names_differ_where_pictures_do(model, tmp_path):
    pipeline = Pipeline.load(model)
    fields = [{}, {"num_inference_steps": 3}, {"guidance_scale": 2.0}, {"prompt": "A RED apple"}]
    recipes = [
        pipeline.recipe(pipeline.settle(request_of(json.dumps({"prompt": "a red apple"} | f), {"seed": 1})))
        for f in fields
    ]
    assert len({picture_name(recipe) for recipe in recipes}) == len(fields)
    assert picture_name(recipes[0] | {"torch": "99"}) == picture_name(recipes[0])  # made anew, in its place


@pytest.mark.ray
def test_workers_of_ray_draw_what_one_process_draws(model, file, tmp_path):
    pytest.importorskip("ray.data", reason="the extra `ray` is not installed; `make test-ray` does both")
    from mezzotint.bulk import draw_on_ray

    lines, shared = read_lines(file), {"num_inference_steps": 2}
    outcomes = list(draw_on_ray({"model": str(model)}, lines, tmp_path / "ray", shared, workers=2))
    assert sorted(o.line for o in outcomes) == [1, 3, 4, 5, 6]
    assert {o.line: o.error for o in outcomes if o.error}.keys() == {4, 5}
    pipeline = Pipeline.load(model)
    for line in lines:
        draw_line(pipeline, Line(*line), tmp_path / "here", shared)
    assert drawn(tmp_path / "ray") == drawn(tmp_path / "here")
    assert {Path(path).name for o in outcomes for path in o.paths} == drawn(tmp_path / "here").keys()
