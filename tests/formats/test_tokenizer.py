"""Parity with transformers' CLIPTokenizer on odd strings, and what is said when a text does not fit."""

import json
import random
import subprocess
import sys

import pytest
from tokenizers import AddedToken

from mezzotint.errors import MezzotintError, UsageError
from mezzotint.formats.tokenizer import BOS, EOS, Tokenizer, read_tokenizer, train_bpe, write_tokenizer

CORPUS = [
    "a red apple on a blue background",
    "a cat to the left of a slice of pizza",
    "the dog's bone isn't here; they've 25 cats",
    "woman’s hat, café, naïve façade, grinning face 😀",
    "smiling cat with heart-eyes 😻 and a flag 🇩🇪",
] * 3

ODD = [
    "",
    " ",
    "A Red APPLE",
    "  leading\tand\n\nmany   blanks  ",
    "it's we'll they're I'd I'M can't 'tis rock'n'roll",
    "10,000.5 %$§ #1 &&& ---",
    "Ünïcödé CAFÉ cafe\u0301 ﬁ ß İstanbul ǅ",
    "😀😻 👨‍👩‍👧‍👦 🇩🇪 👍🏽 ☃️ ❤️‍🔥",
    "漢字かな交じり 한국어 العربية हिन्दी ไทย",
    "a\u00a0b\u2003c\u200bd\ufeffe\u0000f",
    "<|endoftext|> inside <|startoftext|>x<|ENDOFTEXT|> <|end",
    "x" * 300,
    "'s's't!'re ' '' \"quoted\"",
    "²³½ Ⅷ ①  ٣٤",
    "</w> Ġ Ċ </w></w>",
    "apple" + "\u0301" * 5,
    "line\r\nbreak\u2028sep",
]


@pytest.fixture(scope="module")
def ours():
    vocab, merges = train_bpe(CORPUS, 640)
    return Tokenizer(vocab, merges, max_length=16)


def write(tokenizer, folder):
    write_tokenizer(folder, tokenizer)
    return folder


def random_strings(count=400):
    rng = random.Random(0)
    ranges = [
        (32, 127),
        (32, 127),
        (0xA0, 0x250),
        (0x300, 0x370),
        (0x3000, 0x3100),
        (0x1F300, 0x1F700),
        (0, 32),
    ]
    for _ in range(count):
        spans = rng.choices(ranges, k=rng.randint(1, 30))
        yield "".join(chr(rng.randrange(*span)) for span in spans)


def padded(theirs, text, length):
    return theirs(text, padding="max_length", truncation=True, max_length=length).input_ids


def test_same_ids_as_transformers(ours, tmp_path):
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(write(ours, tmp_path))
    assert theirs.model_max_length == 16
    for text in [*CORPUS, *ODD, *random_strings()]:
        assert list(ours.encode(text).ids) == padded(theirs, text, 16), repr(text)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos, ours.eos, ours.pad)
    assert len(theirs) == len(ours)


def test_reads_what_transformers_saves(ours, tmp_path):
    """Newer transformers write a single tokenizer.json and, if none was set, 1e30 as the greatest length."""
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(write(ours, tmp_path / "ours"))
    theirs.add_tokens(["<my-cat>"])
    theirs.save_pretrained(tmp_path / "theirs")
    again = read_tokenizer(tmp_path / "theirs", max_length=40)
    assert again.max_length == 16
    for text in [*ODD, "a photo of <my-cat> here", "<my-cat>'s"]:
        assert list(again.encode(text).ids) == padded(theirs, text, 16), repr(text)
    theirs.model_max_length = int(1e30)
    theirs.save_pretrained(tmp_path / "theirs")
    assert read_tokenizer(tmp_path / "theirs", max_length=40).max_length == 40


def test_older_special_tokens_map(ours, tmp_path):
    """SD 1.5's way: normalised tokens in special_tokens_map.json; SD 2's: another token as padding."""
    from transformers import CLIPTokenizer

    folder = write(ours, tmp_path)
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {
        "bos_token": {"content": BOS, **flags},
        "eos_token": {"content": EOS, **flags},
        "pad_token": "!",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        '{"model_max_length": 20, "tokenizer_class": "CLIPTokenizer"}'
    )
    theirs, again = CLIPTokenizer.from_pretrained(folder), read_tokenizer(folder)
    for text in [*ODD, "hello! <|ENDOFTEXT|> you!!"]:
        assert list(again.encode(text).ids) == padded(theirs, text, 20), repr(text)


def test_round_trip_of_the_folder(ours, tmp_path):
    again = read_tokenizer(write(ours, tmp_path))
    assert again.files() == ours.files()


def test_says_what_was_cut(ours):
    text = "A Red apple,  on a BLUE background and a cat to the left of a slice of Pizza"
    encoding = ours.encode(text)
    assert encoding.length == len(encoding.ids) == 16
    assert encoding.ids[0] == ours.bos
    assert encoding.ids[-1] == ours.eos
    assert text.endswith(encoding.cut_text)
    kept = text[: len(text) - len(encoding.cut_text)]
    long = Tokenizer(ours.vocab, ours.merges, max_length=200)
    assert long.encode(kept).ids[:15] == encoding.ids[:15]
    assert long.encode(kept).length + encoding.cut == long.encode(text).length
    exact = "apple " * 14
    assert ours.encode(exact).cut == 0
    assert ours.encode(exact + "cat").cut_text == "cat"


def test_cut_text_survives_normalisation(ours):
    """Offsets point into the text as typed: before NFC, with its blanks."""
    text = "apple " * 14 + "cafe\u0301   \tend"
    assert ours.encode(text).cut_text == "cafe\u0301   \tend"


def test_what_is_no_text_is_read_as_a_question_mark(ours):
    assert ours.tokens("a \ud800 cat") == ours.tokens("a ? cat")


def test_batch_is_the_encodings(ours):
    texts = ["a cat", "", "apple " * 20]
    tokens = ours.batch(texts)
    assert tokens.ids.shape == tokens.mask.shape == (3, 16)
    for i, text in enumerate(texts):
        one = ours.encode(text)
        assert tuple(tokens.ids[i].tolist()) == one.ids
        assert tokens.mask[i].sum() == one.length
        assert (tokens.cut[i], tokens.cut_text[i]) == (one.cut, one.cut_text)
    assert ours.batch([]).ids.shape == (0, 16)


def test_decode(ours):
    long = Tokenizer(ours.vocab, ours.merges)
    assert long.decode(long.encode("A café, the dog's 😀 2nd").ids) == "a café , the dog 's 😀 2 nd"


def test_training_is_deterministic_across_processes():
    code = (
        "import json,sys,hashlib;from mezzotint.formats.tokenizer import train_bpe;"
        "texts=json.loads(sys.stdin.read());"
        "print(hashlib.sha256(json.dumps(train_bpe(texts,700,min_frequency=1)).encode()).hexdigest())"
    )
    texts = json.dumps(CORPUS + list(random_strings(200)))

    def run():
        return subprocess.run(
            [sys.executable, "-c", code], input=texts, capture_output=True, text=True, check=True
        ).stdout

    assert run() == run() != ""


def test_merges_are_learnt(ours):
    assert len(ours) <= 640
    assert len(ours) == len(ours.vocab) == len(set(ours.vocab.values()))
    assert ours.encode("apple").length == 3
    assert sorted(ours.vocab.values()) == list(range(len(ours)))


def test_vocabulary_too_small():
    with pytest.raises(UsageError, match="514"):
        train_bpe(CORPUS, 300)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("vocab.json", '{"a": 0', "vocab.json is not valid JSON"),
        ("vocab.json", "[1]", "no JSON object"),
        ("vocab.json", '{"a": 0}', "do not fit together"),
        ("merges.txt", "#version: 0.2\na b c\n", "merges.txt, line 2"),
        ("merges.txt", None, "merges.txt: cannot be read"),
        ("tokenizer_config.json", '{"tokenizer_class": "T5Tokenizer"}', "T5Tokenizer is not CLIPTokenizer"),
        ("vocab.json", None, "neither vocab.json nor tokenizer.json"),
    ],
)
def test_damaged_folder(ours, tmp_path, name, content, says):
    folder = write(ours, tmp_path)
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(MezzotintError, match=says) as caught:
        read_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_vocabulary_without_special_tokens(ours):
    vocab = {name: i for name, i in ours.vocab.items() if name != BOS}
    with pytest.raises(MezzotintError, match=r"no token '<.startoftext.>'"):
        Tokenizer(vocab, ours.merges)


def test_added_token_out_of_place(ours):
    with pytest.raises(MezzotintError, match="has id 5000"):
        Tokenizer(ours.vocab, ours.merges, added={5000: AddedToken("<x>")})
