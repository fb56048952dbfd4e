"""CLIP's own tokenizer, which single files do not hold: its merges ship with this package (clip/, MIT licence).

49,408 ids: 256 byte letters, the same with the mark of a word's end, one for each merge, begin and end (Radford et al.
2021). Texts are filled up with the end by OpenAI's CLIP and with id 0, "!", by OpenCLIP's.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

from .tokenizer import BOS, END_OF_WORD, EOS, Merges, Tokenizer, byte_letters

MERGES = Path(__file__).parent / "clip" / "merges.txt.gz"
OPEN_CLIP_PAD = "!"


def clip_tokenizer(*, pad: str = EOS, max_length: int = 77) -> Tokenizer:
    """CLIP's tokenizer: text -> `max_length` ids, filled up with `pad`."""
    letters = byte_letters()
    merges = _merges()
    names = [
        *letters,
        *(letter + END_OF_WORD for letter in letters),
        *("".join(pair) for pair in merges),
        BOS,
        EOS,
    ]
    vocab = {name: i for i, name in enumerate(names)}
    return Tokenizer(vocab, merges, max_length=max_length, special={"pad_token": pad})


@cache
def _merges() -> Merges:
    lines = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    return [(left, right) for left, right in map(str.split, lines)]
