"""The packaged tokenizer is CLIP's: ids as published, and as transformers reads the same files."""

import pytest
import transformers

from mezzotint.formats.clip_tokenizer import OPEN_CLIP_PAD, clip_tokenizer
from mezzotint.formats.tokenizer import write_tokenizer


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("hello world!", [3306, 1002, 256]),
        ("a diagram", [320, 22697]),
    ],
)
def test_published_ids(text, ids):
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == 49408
    encoding = tokenizer.encode(text)
    assert encoding.ids == (49406, *ids, *[49407] * (76 - len(ids)))


def test_padding_of_open_clip():
    assert clip_tokenizer(pad=OPEN_CLIP_PAD).encode("a cat").ids == (49406, 320, 2368, 49407, *[0] * 73)


@pytest.mark.parametrize("pad", ["<|endoftext|>", OPEN_CLIP_PAD])
def test_transformers_gives_the_same(tmp_path, pad):
    ours = clip_tokenizer(pad=pad)
    write_tokenizer(tmp_path / "tokenizer", ours)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    for text in [
        "",
        "Ein Mädchen mit dem Perlenohrring, 1665!",
        "🦊🦊 it's   two foxes\n(highly detailed:1.3)",
        "猫",
        "x" * 400,
    ]:
        expected = theirs(text, padding="max_length", truncation=True, max_length=77).input_ids
        assert list(ours.encode(text).ids) == expected
