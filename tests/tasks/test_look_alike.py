"""Restyle, stylize, rewrite by words: strength 0 is the plain task, batches are their seeds alone."""

import pytest
from PIL import Image

from drawing import apart, drawn
from mezzotint.errors import MezzotintError

STYLE = Image.linear_gradient("L").resize((16, 16)).convert("RGB")


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_without_style_it_is_the_plain_task(pipe, photo, guidance):
    asked = {"prompt": "a red apple", "seed": 3, "guidance_scale": guidance}
    plain = drawn(pipe, **asked)[0]
    restyled, much = (
        drawn(pipe, **asked, task="restyle", style_image=STYLE, style_strength=s)[0] for s in (0, 1.0)
    )
    assert apart(restyled, plain) == 0
    assert apart(much, plain) > 1
    redrawn = drawn(pipe, **asked, task="img2img", image=photo, strength=0.6)[0]
    stylized, kept = (
        drawn(
            pipe,
            **asked,
            task="stylize",
            image=photo,
            style_image=STYLE,
            style_strength=s,
            content_strength=0.5,
        )[0]
        for s in (0, 1.0)
    )
    assert apart(stylized, redrawn) == 0
    assert apart(kept, redrawn) > 0


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "restyle", "style_image": STYLE, "prompt": "two green cats"},
        {"task": "stylize", "style_image": STYLE, "image": STYLE.rotate(90)},
        {
            "task": "rewrite",
            "method": "words",
            "image": STYLE,
            "source_prompt": "a red apple",
            "prompt": "a green apple",
        },
    ],
)
def test_a_batch_is_its_seeds_alone(pipe, fields):
    batch = drawn(pipe, **fields, seed=5, num_images=3)
    assert [apart(drawn(pipe, **fields, seed=5 + i)[0], batch[i]) for i in range(3)] == [0, 0, 0]
    assert apart(*batch[:2]) > 0


def test_words_that_nothing_is_lent_to_are_image_to_image(pipe, photo):
    asked = {"image": photo, "prompt": "two green cats", "seed": 3, "strength": 0.7}
    plain = drawn(pipe, **asked, task="img2img")[0]
    free, held = (
        drawn(
            pipe, **asked, task="rewrite", method="words", source_prompt="two red cats", content_strength=c
        )[0]
        for c in (0.0, 1.0)
    )
    assert apart(free, plain) == 0
    assert apart(held, plain) > 1
    long = " ".join(["two green cats"] * 6)  # in two chunks, beside one
    assert drawn(pipe, **asked | {"prompt": long}, task="rewrite", method="words", source_prompt="cats")
    with pytest.raises(MezzotintError, match="unknown method of rewriting 'word'"):
        drawn(pipe, **asked, task="rewrite", method="word")
