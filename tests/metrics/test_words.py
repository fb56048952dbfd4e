"""The word list: long enough, free of slips, and in no caption."""

from __future__ import annotations

import os
from pathlib import Path

import emoji
import pytest

from mezzotint.data.emoji import clean_word, plain
from mezzotint.data.folder import Record
from mezzotint.errors import MezzotintError
from mezzotint.metrics.words import Word, held_out_words, leaks, read_words

KEYWORDS = Path(
    os.environ.get(
        "MEZZOTINT_KEYWORDS", Path(__file__).parents[3] / "shared" / "data" / "emojilib-en-US.json"
    )
)


def record(name: str, *keywords: str, aliases: tuple[str, ...] = (), skin_tone: bool = False) -> Record:
    extra = {"aliases": list(aliases), "keywords": list(keywords), "skin_tone": skin_tone}
    return Record(Path(f"{name}.png"), (name,), extra)


def unicode_names() -> dict[str, tuple[str, ...]]:
    """Name -> name and aliases, of every emoji that Unicode names."""
    return {
        plain(entry["en"]): (plain(entry["en"]), *filter(None, map(clean_word, entry.get("alias", []))))
        for entry in emoji.EMOJI_DATA.values()
    }


def test_the_list_is_long_and_asks_for_emoji_that_there_are() -> None:
    words, names = read_words(), unicode_names()
    assert len(words) >= 80
    assert len({word.text for word in words}) == len(words)
    assert all(word.accepted for word in words)
    assert [name for word in words for name in word.accepted if name not in names] == []
    assert {"doggy", "sedan", "jumbo jet"} <= {word.text for word in words}


def test_no_word_stands_in_a_name_or_an_alias() -> None:
    assert leaks(read_words(), unicode_names()) == {}


@pytest.mark.skipif(not KEYWORDS.exists(), reason="no keyword file; name one in MEZZOTINT_KEYWORDS")
def test_no_word_stands_in_a_keyword() -> None:
    import json

    texts = {f"keywords of {key}": tuple(words) for key, words in json.loads(KEYWORDS.read_text()).items()}
    assert leaks(read_words(), texts) == {}


def test_words_that_were_in_captions_are_refused() -> None:
    records = [record("dog", "pet", "big Hound"), record("train", "steam"), record("cat", aliases=("kitty",))]
    assert held_out_words([Word("doggy", ("dog", "dog face"))], records) == [Word("doggy", ("dog",))]
    assert held_out_words([Word("ape", ("gorilla",))], records) == []
    for text, name in [("hound", "dog"), ("Kitty", "cat"), ("cat", "dog"), ("steam engine", "train")]:
        with pytest.raises(MezzotintError, match=f"evaluation word '{text}' stands in"):
            held_out_words([Word(text, (name,))], records)
    # "steam" names the train, not the dog; "do" is no whole word of "dog"; skin tones are in no caption
    assert held_out_words([Word("steam bath", ("dog",)), Word("do", ("dog",))], records)
    assert held_out_words([Word("hand", ("dog",))], [*records, record("hand", skin_tone=True)])
