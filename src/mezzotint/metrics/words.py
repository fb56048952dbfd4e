"""Everyday words that no caption holds: does the model understand what it was never told?

`models/emoji/evaluation_words.txt` lists them with the emoji that a fair viewer would accept. A word counts as
held out if it stands, as whole words, in no name, alias or keyword of the training metadata, and if no part of it
stands in those of the emoji it asks for ("steam engine" would give the locomotive away).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from ..data.folder import Record
from ..errors import MezzotintError

_LIST = ("emoji", "evaluation_words.txt")


@dataclass(frozen=True)
class Word:
    """A word and the names of the emoji that answer it."""

    text: str
    accepted: tuple[str, ...]


def read_words() -> list[Word]:
    """The list that the package carries, in its order."""
    text = files("mezzotint.models").joinpath(*_LIST).read_text(encoding="utf-8")
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    parts = [line.partition(":") for line in lines]
    return [Word(word.strip(), tuple(name.strip() for name in names.split(","))) for word, _, names in parts]


def held_out_words(words: Iterable[Word], records: Sequence[Record]) -> list[Word]:
    """Those of the words whose emoji are among the records (accepted names that are not are left out).

    Raises MezzotintError if a word was in the training captions after all: it would prove nothing.
    """
    texts = caption_texts(records)
    faults = leaks(words, texts)
    if faults:
        word, text = next(iter(faults.items()))
        raise MezzotintError(
            f"evaluation word '{word}' stands in the caption text '{text}' ({len(faults)} such words); "
            "take them out of evaluation_words.txt"
        )
    present = [Word(word.text, tuple(name for name in word.accepted if name in texts)) for word in words]
    return [word for word in present if word.accepted]


def caption_texts(records: Iterable[Record]) -> dict[str, tuple[str, ...]]:
    """Name -> all that captions may call it, for every record without a skin tone."""
    return {
        record.text: (
            *record.captions,
            *record.extra.get("aliases", ()),
            *record.extra.get("keywords", ()),
        )
        for record in records
        if not record.extra.get("skin_tone")
    }


def leaks(words: Iterable[Word], texts: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Word -> a caption text that gives it away, for each word that is not held out."""
    all_texts = [(f" {_spaced(text)} ", text) for group in texts.values() for text in group]
    found: dict[str, str] = {}
    for word in words:
        whole = f" {_spaced(word.text)} "
        parts = set(whole.split())
        theirs = [text for name in word.accepted for text in texts.get(name, ())]
        holding = [text for spaced, text in all_texts if whole in spaced]
        holding += [text for text in theirs if parts & set(_spaced(text).split())]
        if holding:
            found[word.text] = holding[0]
    return found


def _spaced(text: str) -> str:
    """Words in lower case, one space apart: `T-Rex's` -> `t rex s`."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))
