"""States of text in the place of prompts: heard as a text's own are, told in the recipe, refused where useless."""

import numpy as np
import pytest
import torch

from mezzotint import Pipeline, Request
from mezzotint.errors import UsageError
from mezzotint.formats.image import save_image
from mezzotint.labels import LabelEncoder
from mezzotint.pipeline import Picture
from mezzotint.told import told
from tiny import LENGTH, WIDTH, write_tiny

PROMPT, NEGATIVE = "a red apple", "two cats"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return Pipeline.load(write_tiny(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


def same(left, right):
    return np.array_equal(np.asarray(left), np.asarray(right))


def test_a_texts_own_states_draw_what_the_text_draws(pipeline):
    states, negative = (pipeline.encoder(text).text for text in (PROMPT, NEGATIVE))
    expected = pipeline(PROMPT, negative_prompt=NEGATIVE, seed=1)[0]
    assert same(expected, pipeline(prompt_embeds=states, negative_prompt_embeds=negative[0], seed=1)[0])
    assert same(expected, pipeline(prompt_embeds=states, negative_prompt=NEGATIVE, seed=1)[0])
    assert same(expected, pipeline(PROMPT, negative_prompt_embeds=negative, seed=1)[0])
    assert same(
        expected,
        pipeline.hearing(prompt_embeds=states).hearing(negative_prompt_embeds=negative)("", seed=1)[0],
    )
    skipped = pipeline(PROMPT, negative_prompt=NEGATIVE, seed=1, clip_skip=2)[0]
    half = pipeline(
        prompt_embeds=pipeline.encoder.heard_at(2)(PROMPT).text, negative_prompt=NEGATIVE, seed=1, clip_skip=2
    )
    assert same(skipped, half[0])
    assert not same(skipped, expected)
    batch = pipeline(prompt_embeds=torch.cat([states, states], 1), seed=5, num_images=3)
    assert same(batch[2], pipeline(prompt_embeds=torch.cat([states, states], 1), seed=7)[0])


def test_the_recipe_says_what_it_cannot_hold(pipeline, tmp_path):
    hearing = pipeline.hearing(prompt_embeds=torch.randn(1, 3, WIDTH))
    (picture,) = [e for e in hearing.generate(Request(seed=1)) if isinstance(e, Picture)]
    assert list(picture.recipe["states"]) == ["prompt_embeds"]
    assert len(picture.recipe["states"]["prompt_embeds"]) == 64
    with pytest.raises(UsageError, match="given in Python, which no recipe holds"):
        Request.of_recipe(picture.recipe)
    save_image(tmp_path / "a.png", picture.image, picture.recipe)
    with pytest.raises(UsageError, match="given in Python, which no recipe holds"):
        pipeline.vary(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"prompt_embeds": torch.zeros(2, 3, WIDTH)},
            r"prompt_embeds is \[2, 3, 24\]; this model hears \[1, L, 24\]",
        ),
        ({"prompt_embeds": torch.zeros(WIDTH)}, "this model hears"),
        ({"prompt_embeds": torch.zeros(0, WIDTH)}, "this model hears"),
        ({"negative_prompt_embeds": torch.full((3, WIDTH), torch.nan)}, "numbers that are not finite"),
        ({"pooled_prompt_embeds": torch.zeros(WIDTH)}, "given without its states"),
        (
            {"prompt": "cats", "prompt_embeds": torch.zeros(3, WIDTH)},
            "the prompt is 'cats', and states are given",
        ),
        (
            {"negative_prompt": "cats", "negative_prompt_embeds": torch.zeros(3, WIDTH)},
            "the negative prompt is 'cats', and states",
        ),
        ({"task": "interpolate", "prompt_embeds": torch.zeros(3, WIDTH)}, "interpolate hears several texts"),
    ],
)
def test_what_the_model_cannot_hear(pipeline, given, says):
    with pytest.raises(UsageError, match=says):
        pipeline(**given)


def test_a_model_without_words_has_no_use_for_them():
    with pytest.raises(UsageError, match="reads no text"):
        told(
            LabelEncoder(["cat"], torch.device("cpu")), torch.zeros(LENGTH, WIDTH), None, what="prompt_embeds"
        )
    with pytest.raises(UsageError, match="reads no text that layers could be skipped of"):
        LabelEncoder(["cat"], torch.device("cpu")).heard_at(2)
