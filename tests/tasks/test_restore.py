"""Restoring, inverting, rewriting: what is known of the damage holds afterwards; what nothing asks to change stays."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from drawing import apart, drawn
from mezzotint import Request
from mezzotint.codec import Pixels
from mezzotint.errors import MezzotintError
from mezzotint.formats.image import to_image, to_tensor
from mezzotint.tasks.restore import blurred, grey, smaller

RESTORE = {"task": "restore", "prompt": "a red apple", "seed": 3}


@pytest.fixture(scope="module")
def pixels(pipe):
    """The tiny model with pixels of unit variance, independent of each other, in the place of its latents."""

    def denoise(x, sigma, cond):
        return 0.2 * x / (0.2 + sigma.reshape(-1, 1, 1, 1) ** 2)

    return dataclasses.replace(pipe, codec=Pixels(), denoiser=denoise)


@pytest.mark.parametrize("part", [grey, smaller(4, (16, 16)), blurred(1.0, (16, 16))])
def test_what_is_left_is_a_projection(part):
    x, y = torch.randn(2, 1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(part(part(x)), part(x), atol=1e-5)
    assert torch.allclose((part(x) * y).sum(), (x * part(y)).sum(), atol=1e-3)
    assert not torch.allclose(part(x), x, atol=1e-2)


@pytest.mark.parametrize("method", ["ddnm", "langevin"])
@pytest.mark.parametrize("damage", ["grey", "smaller:4", "blur:1"])
def test_what_is_left_stays(pixels, photo, method, damage):
    kind = damage.partition(":")[0]
    part = {"grey": grey, "smaller": smaller(4, (16, 16)), "blur": blurred(1.0, (16, 16))}[kind]
    left = to_image((0.5 * part(to_tensor(photo)[None]))[0])
    batch = drawn(pixels, **RESTORE, image=left, damage=damage, method=method, num_images=2)
    alone = drawn(pixels, **RESTORE | {"seed": 4}, image=left, damage=damage, method=method)[0]
    assert apart(batch[1], alone) == 0
    # pictures are clipped to the range that files have, so only nearly
    kept = part(to_tensor(batch[0].image)[None]) - part(to_tensor(left)[None])
    assert kept.abs().mean() < 0.05
    assert apart(batch[0], left) > 20


def test_a_small_picture_is_what_the_means_of_the_restored_one_are(pixels, photo):
    small = photo.resize((4, 4), Image.Resampling.BOX)
    [image] = drawn(pixels, **RESTORE, image=small, damage="smaller:4", width=16, height=16)
    assert image.image.size == (16, 16)
    assert abs(to_tensor(image.image.resize((4, 4), Image.Resampling.BOX)) - to_tensor(small)).mean() < 0.15


def test_holes_and_latents(pipe, photo):
    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 10, 10))
    [image] = drawn(pipe, **RESTORE, image=photo, damage="mask", mask=mask)
    assert image.image.size == (16, 16)
    assert drawn(pipe, **RESTORE, image=photo.resize((8, 8)), damage="smaller:2")[0].image.size == (16, 16)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"damage": "smudge"}, "unknown damage 'smudge'"),
        ({"damage": "smaller"}, "damage smaller needs a number"),
        ({"damage": "smaller:3"}, "needs a whole number that divides 16 x 16"),
        ({"damage": "blur:-1"}, "radius above 0"),
        ({"damage": "grey", "method": "langevin"}, "draws latents, in which damage is not linear"),
        ({"damage": "grey", "method": "dps"}, "unknown method of restoring 'dps'"),
        ({}, "restore needs a damage"),
    ],
)
def test_one_line_for_what_cannot_be(pipe, photo, fields, says):
    with pytest.raises(MezzotintError) as caught:
        drawn(pipe, **RESTORE, image=photo, **fields)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def seen(pipe, photo):
    """The picture as the autoencoder has it."""
    with torch.no_grad():
        return to_image(pipe.codec.decode(pipe.codec.encode(to_tensor(photo)[None]))[0])


def test_an_inverted_picture_returns(pipe, photo):
    asked = {"task": "invert", "image": photo, "prompt": "a red apple", "seed": 1, "num_inference_steps": 20}
    [back] = drawn(pipe, **asked)
    [ddim] = drawn(pipe, **asked, method="ddim")
    assert apart(back, seen(pipe, photo)) <= 1
    *_, again = pipe.generate(pipe.settle(Request.parse(asked)))  # settled once more
    assert apart(again, back) == 0
    assert apart(ddim, seen(pipe, photo)) > 1
    [other] = drawn(pipe, **asked, prompt_to="two green cats")
    assert apart(other, back) > 1
    with pytest.raises(MezzotintError, match="at least 2 steps"):
        drawn(pipe, **asked | {"num_inference_steps": 1})


def test_rewriting_to_the_same_changes_nothing_and_to_another_something(pipe, photo):
    asked = {
        "task": "rewrite",
        "image": photo,
        "seed": 1,
        "source_prompt": "a red apple",
        "guidance_scale": 3.0,
    }
    [same] = drawn(pipe, **asked, prompt="a red apple", source_guidance=3.0)
    assert apart(same, seen(pipe, photo)) <= 1
    batch = drawn(pipe, **asked, prompt="two green cats", num_images=2)
    [alone] = drawn(pipe, **asked | {"seed": 2}, prompt="two green cats")
    assert apart(batch[0], same) > 1
    assert apart(batch[1], alone) == 0
    assert not np.array_equal(batch[0].image, batch[1].image)
