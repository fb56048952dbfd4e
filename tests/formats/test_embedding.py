"""Textual inversion files: what diffusers makes of ours and of the same file, A1111's forms, and what is wrong."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

import kinds
from mezzotint.errors import MezzotintError
from mezzotint.formats.embedding import Embedding, read_embedding, write_embedding
from mezzotint.formats.folder import read_folder
from mezzotint.text import TextEncoder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder, _ = kinds.saved("sd1", tmp_path_factory.mktemp("sd1"))
    return folder


@pytest.mark.parametrize("count", [1, 3])
def test_diffusers_hears_the_same(model, tmp_path, count):
    torch.manual_seed(0)
    vectors = torch.randn(count, 64)
    write_embedding(tmp_path / "learned_embeds.safetensors", Embedding("<thing>", {"": vectors}))
    (embedding,) = read_embedding(tmp_path / "learned_embeds.safetensors")
    assert embedding.word == "<thing>"
    theirs = StableDiffusionPipeline.from_pretrained(model, local_files_only=True)
    theirs.load_textual_inversion(tmp_path, weight_name="learned_embeds.safetensors")
    encoder = list(read_folder(model).encoders.values())
    learnt = {embedding.word: list(embedding.for_encoders({"text_encoder": 64}).values())}
    ours = TextEncoder(encoder, torch.device("cpu"), learnt=learnt)
    for prompt in ("a red <thing>", "<thing>, two <thing>"):
        with torch.no_grad():
            expected, _ = theirs.encode_prompt(prompt, "cpu", 1, False)
        torch.testing.assert_close(ours(prompt).text, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(ours(prompt).text, ours(prompt.replace("<thing>", "cat")).text)


def test_forms_of_a1111_and_of_sdxl(tmp_path):
    one, small, large = torch.randn(2, 64), torch.randn(2, 64), torch.randn(2, 128)
    write_embedding(tmp_path / "thing.safetensors", Embedding("thing", {"": one}), dialect="a1111")
    assert list(load_file(tmp_path / "thing.safetensors")) == ["emb_params"]
    (read,) = read_embedding(tmp_path / "thing.safetensors")
    assert read.word == "thing"
    assert torch.equal(read.vectors[""], one)
    pair = Embedding("pair", {"text_encoder": small, "text_encoder_2": large})
    write_embedding(tmp_path / "pair.safetensors", pair)
    assert set(load_file(tmp_path / "pair.safetensors")) == {"clip_l", "clip_g"}
    (read,) = read_embedding(tmp_path / "pair.safetensors")
    both = read.for_encoders({"text_encoder": 64, "text_encoder_2": 128})
    assert torch.equal(both["text_encoder"], small)
    assert torch.equal(read.for_encoders({"text_encoder_2": 128})["text_encoder_2"], large)
    save_file({"<a>": torch.randn(64), "<b>": torch.randn(3, 64)}, tmp_path / "two.safetensors")
    assert [(e.word, len(e.vectors[""])) for e in read_embedding(tmp_path / "two.safetensors")] == [
        ("<a>", 1),
        ("<b>", 3),
    ]


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"a": torch.randn(2, 3, 4)}, "'a' is no list of vectors"),
        ({"a": torch.zeros(2, 3, dtype=torch.int64)}, "'a' is no list of vectors"),
        ({}, "it is empty"),
        ({"clip_l": torch.randn(1, 64)}, "an SDXL embedding has clip_g and clip_l"),
        ({"clip_l": torch.randn(1, 64), "clip_g": torch.randn(2, 64)}, "as many vectors for one"),
    ],
)
def test_wrong_files(tmp_path, tensors, says):
    save_file(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(MezzotintError, match=says) as caught:
        read_embedding(tmp_path / "wrong.safetensors")
    assert "wrong.safetensors" in str(caught.value)


def test_pickled_ones_are_refused_and_others_do_not_fit(tmp_path):
    (tmp_path / "old.pt").write_bytes(b"\x80\x02")
    with pytest.raises(MezzotintError, match=r"old.pt is pickled code, which is never opened; .*convert"):
        read_embedding(tmp_path / "old.pt")
    with pytest.raises(MezzotintError, match="width 768, this model's text encoders take 64 and 128"):
        Embedding("x", {"": torch.randn(1, 768)}).for_encoders({"text_encoder": 64, "text_encoder_2": 128})
