"""WordNet: the words of English, and what each of them means in a sentence.

A sentence encoder knows a rare word only by its spelling: 'foal' lands anywhere. Its dictionary entry says what it
is ('a kind of young mammal, ...: a young horse'), and of sentences the encoder knows much. Files and format:
Fellbaum 1998 and wndb(5WN); Debian's package `wordnet-base` carries them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import MezzotintError

LONGEST_ENTRY = 24  # characters of a dictionary entry
KINDS = 3  # steps up from a word to what it is a kind of


def dictionary(folder: Path, everyday: set[str]) -> tuple[list[str], list[str]]:
    """Everyday words and compounds of them, and rarer single words: WordNet's nouns and adjectives.

    MezzotintError if WordNet is not there.
    """
    common: dict[str, None] = dict.fromkeys(sorted(everyday))
    rare: dict[str, None] = {}
    for kind in ("noun", "adj"):
        for line in _lines(folder / f"index.{kind}"):
            entry = line.split(" ", 1)[0].replace("_", " ")
            parts = entry.split()
            if len(entry) > LONGEST_ENTRY or not all(p.isalpha() for p in parts) or len(entry) < 3:
                continue
            if all(p in everyday for p in parts):
                common[entry] = None
            elif len(parts) == 1:
                rare[entry] = None
    return list(common), list(rare)


def definitions(folder: Path) -> dict[str, str]:
    """Each noun's most frequent sense in a sentence: its synonyms, what it is a kind of, its gloss.

    MezzotintError if WordNet is not there.
    """
    senses: dict[
        str, tuple[list[str], str, str]
    ] = {}  # offset -> (words, offset of what it is a kind of, gloss)
    for line in _lines(folder / "data.noun"):
        facts, gloss = line.split("|", 1)
        fields = facts.split()
        count = int(fields[3], 16)
        words = [word.replace("_", " ").lower() for word in fields[4 : 4 + 2 * count : 2]]
        pointers = fields[5 + 2 * count :]  # (symbol, offset, part of speech, source and target) each
        kinds = [at for mark, at in zip(pointers[0::4], pointers[1::4], strict=False) if mark in ("@", "@i")]
        senses[fields[0]] = (words, kinds[0] if kinds else "", gloss.split(";")[0].strip())
    found: dict[str, str] = {}
    for line in _lines(folder / "index.noun"):
        fields = line.split()
        word, first = fields[0].replace("_", " "), fields[-int(fields[2])]
        synonyms, above, gloss = senses[first]
        kinds = []
        while above and len(kinds) < KINDS:
            kinds.append(senses[above][0][0])
            above = senses[above][1]
        same = [synonym for synonym in synonyms[:3] if synonym != word]
        found[word] = (
            ", ".join([word, *same]) + (f": a kind of {', '.join(kinds)}. " if kinds else ": ") + gloss
        )
    return found


def entry_of(text: str, entries: dict[str, str]) -> str | None:
    """The entry under which a text stands, plurals under their singular; None if it has none."""
    text = text.lower()
    for ending, instead in (("", ""), ("ies", "y"), ("es", ""), ("s", "")):
        if text.endswith(ending) and text[: len(text) - len(ending)] + instead in entries:
            return entries[text[: len(text) - len(ending)] + instead]
    return None


def _lines(path: Path) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError as error:
        raise MezzotintError(
            f"{path} cannot be read; install WordNet (Debian: wordnet-base) or set text.dictionary to its folder"
        ) from error
    yield from (line for line in lines if not line.startswith(" "))  # the licence is indented
