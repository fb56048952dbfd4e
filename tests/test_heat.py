"""Heat maps: one for each word, of the picture that is drawn anyway."""

import numpy as np
import pytest
import torch

from mezzotint import Pipeline, Request
from mezzotint.cli import run
from mezzotint.errors import UsageError
from mezzotint.formats.embedding import Embedding, write_embedding
from mezzotint.heat import Looked, heat_maps, spelled
from mezzotint.nets.blocks import Place, attend
from tiny import WIDTH, write_tiny


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return Pipeline.load(write_tiny(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


def test_each_word_has_its_map_and_the_picture_is_the_same(pipe):
    request = Request(prompt="a red apple", seed=3)
    picture, maps = heat_maps(pipe, request)
    assert list(maps) == ["a", "red", "apple"]
    [plain] = pipe("a red apple", seed=3)
    assert np.array_equal(picture.image, plain)
    assert all(image.size == plain.size for image in maps.values())
    assert not np.array_equal(maps["red"], maps["apple"])
    with pytest.raises(UsageError, match="plain prompt"):
        heat_maps(pipe, Request(prompt="a red apple " * 9))


def test_a_word_that_was_learnt_has_its_map_too(pipe, tmp_path):
    path = tmp_path / "zorple.safetensors"
    write_embedding(path, Embedding("zorple", {"": torch.randn(2, WIDTH)}))
    picture, maps = heat_maps(
        pipe, Request.parse({"prompt": "a zorple apple", "embeddings": [str(path)], "seed": 3})
    )
    assert list(maps) == ["a", "zorple", "apple"]
    [plain] = pipe("a zorple apple", embeddings=[str(path)], seed=3)
    assert np.array_equal(picture.image, plain)


def test_a_word_that_is_looked_at_in_one_corner_is_bright_there():
    looked, tokens = Looked((4, 4)), torch.zeros(1, 16, 4)
    keys = torch.zeros(1, 3, 4)
    tokens[0, 0], keys[0, 1] = 9.0, 9.0
    out = looked(Place(0, cross=True), tokens, keys, keys, 1, None)
    assert torch.equal(out, attend(tokens, keys, keys, 1))
    maps = looked.taken()
    assert maps.shape == (4, 4, 3)
    assert maps[0, 0, 1] > 0.99
    assert torch.allclose(maps[2:, 2:], torch.full((2, 2, 3), 1 / 3))
    assert looked.taken() is None


def test_words_know_their_positions(pipe):
    words = spelled(pipe, "a red a")
    assert words["a"] == (1, 3)


def test_command(pipe, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert run(["attention", "a red apple", "-o", str(out), "-m", str(pipe.folder), "--seed", "1"]) == 0
    assert out.exists()
    assert run(["attention", "a red apple", "-o", str(out), "-m", str(pipe.folder)]) == 2
    assert "exists" in capsys.readouterr().err
