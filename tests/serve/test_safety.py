"""The word list: what it refuses, and that the language of prompts is no way around it."""

import pytest

from mezzotint.request import Request
from mezzotint.serve.safety import WordList


@pytest.mark.parametrize(
    "prompt",
    [
        "a gun",
        "A GÜN, please".replace("Ü", "U"),
        "a (gun:1.3)",
        "a g(u)n",
        "a g[]un",
        r"a g\un",
        "a [cat:gun:0.5]",
        "a [cat|gun]",
        "a g<lora:x:1>un",
        "a ((machine BREAK gun",
    ],
)
def test_words_are_found_however_they_are_written(prompt):
    words = WordList(("gun",))
    assert words.check_request(Request(prompt=prompt))
    assert words.check_request(Request(task="interpolate", prompt="a cat", prompt_to=prompt))


def test_other_words_pass():
    words = WordList(("gun",))
    for prompt in ("a gunman", "a [cat:dog:0.5]", "begun", ""):
        assert words.check_request(Request(prompt=prompt)) is None
