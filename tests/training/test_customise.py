"""From pictures to a name in one command: what is written is found by that name and changes what is drawn."""

import numpy as np
import pytest
from PIL import Image

from drawing import apart
from mezzotint.cli import run
from mezzotint.errors import UsageError
from mezzotint.pipeline import Pipeline
from mezzotint.training.customise import custom
from tiny import write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        Image.fromarray(rng.integers(0, 90, (20, 24, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.mark.parametrize("way", ["lora", "embedding"])
def test_one_command_then_the_name(folder, pictures, tmp_path, capsys, way):
    out, model = tmp_path / "customs", ["-m", str(folder)]
    words = ["customise", *map(str, pictures), "--name", "Zor ple", "--way", way, "--steps", "2"]
    assert run([*words, "-o", str(out), *model]) == 0
    assert capsys.readouterr().out.split() == [str(out / "zor-ple.safetensors")]
    prompt = "a Zor ple <lora:zor-ple:1>" if way == "lora" else "a Zor ple"
    use = {} if way == "lora" else {"embeddings": ["zor-ple"]}
    pipe = Pipeline.load(folder, device="cpu", extras=[out])
    [with_it] = pipe(prompt, seed=1, num_inference_steps=3, **use)
    [without] = pipe("a Zor ple", seed=1, num_inference_steps=3)
    assert apart(with_it, without) > 0
    assert pipe.img2img(with_it, prompt, seed=1, num_inference_steps=2, **use)
    assert run([*words, "-o", str(out), *model]) == 0  # it is done already


def test_the_run_is_that_of_its_pictures(pictures, tmp_path):
    one, other = (custom(paths, "dog", tmp_path) for paths in (pictures, pictures[:2]))
    assert one.work != other.work
    assert one.work == custom(pictures, " dog ", tmp_path).work
    assert one.file == other.file
    assert one.example == f'mezzotint generate "a dog <lora:dog:1>" --lora-dir {tmp_path}'
    assert one.config("emoji", 128).dataset.caption == "a dog"


@pytest.mark.parametrize(
    ("name", "count", "says"), [("...", 3, "has no letters"), ("dog", 0, "takes 1 to 100 pictures")]
)
def test_one_line_for_what_cannot_be(pictures, tmp_path, name, count, says):
    with pytest.raises(UsageError, match=says):
        custom(pictures[:count], name, tmp_path)
