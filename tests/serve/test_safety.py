"""The word list: what it refuses, and that the language of prompts is no way around it."""

import base64

import pytest
from PIL import Image

from mezzotint.formats.image import save_image
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


def test_what_guidance_below_1_steers_towards_is_read():
    words = WordList(("gun",))
    assert words.check_request(Request(prompt="a cat", negative_prompt="a gun", guidance_scale=0))
    assert words.check_request(Request(prompt="a cat", negative_prompt="a gun", guidance_scale=7)) is None


def test_a_picture_brings_no_words_in(start, tmp_path):
    blocked = tmp_path / "blocked.txt"
    blocked.write_text("cats")
    recipe = {"task": "text2img", "prompt": "two green cats"}
    forged = save_image(tmp_path / "forged.png", Image.new("RGB", (16, 16), "red"), recipe)
    image = base64.b64encode(forged.read_bytes()).decode()
    answer = start(blocked=blocked).post(task="vary", prompt="", image=image)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "content_policy_violation"


def test_other_words_pass():
    words = WordList(("gun",))
    for prompt in ("a gunman", "a [cat:dog:0.5]", "begun", ""):
        assert words.check_request(Request(prompt=prompt)) is None
