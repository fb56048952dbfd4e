"""Inpainting: nothing outside the mask changes by a bit, every way of doing it runs, diffusers does the same."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from drawing import apart, drawn, steps
from mezzotint import Pipeline
from mezzotint.diffusion.noise import INITIAL, image_noise
from mezzotint.diffusion.process import VariancePreserving
from mezzotint.errors import MezzotintError
from mezzotint.formats.scheduler import Plan
from mezzotint.nets import UNet
from mezzotint.tasks.canvas import Canvas, made_up
from tiny import STEPS, tiny_checkpoint, write_tiny

ASKED = {"task": "inpaint", "prompt": "a red apple", "seed": 3}


def circle(size=16, radius=4, colour=255):
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).ellipse(
        (size // 2 - radius, size // 2 - radius, size // 2 + radius, size // 2 + radius), colour
    )
    return mask


def large(photo):
    return photo.resize((200, 120), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("method", ["langevin", "repaint", "guide", "replace"])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral"])
def test_outside_the_mask_not_a_bit_changes(pipe, photo, method, sampler):
    mask = circle()
    batch = drawn(
        pipe, **ASKED, image=photo, mask=mask, method=method, sampler=sampler, num_images=2, feather=2
    )
    alone = drawn(
        pipe, **ASKED | {"seed": 4}, image=photo, mask=mask, method=method, sampler=sampler, feather=2
    )[0]
    inside = np.asarray(mask) > 0
    old, new = np.asarray(photo), np.asarray(batch[0].image)
    assert np.array_equal(new[~inside], old[~inside])
    assert (new[inside] != old[inside]).any()
    assert apart(batch[1], alone) == 0


def test_the_mask_s_own_surroundings_at_full_size(pipe, photo):
    picture, mask = large(photo), Image.new("L", (200, 120))
    mask.paste(255, (100, 50, 120, 64))
    [image] = [one.image for one in drawn(pipe, **ASKED, image=picture, mask=mask, crop=6)]
    assert image.size == (200, 120)
    changed = (np.asarray(image) != np.asarray(picture)).any(-1)
    assert changed[56:58, 108:112].all()
    assert not changed[np.asarray(mask) == 0].any()
    [event] = drawn(pipe, **ASKED, image=picture, mask=mask, crop=6)
    assert (event.recipe["width"], event.recipe["height"]) == (
        18,
        14,
    )  # 32 x 26, as many pixels as the model's 16 x 16
    [whole] = drawn(pipe, **ASKED, image=picture, mask=mask)
    assert whole.image.size == (200, 120)
    assert not (np.asarray(whole.image) != np.asarray(picture)).any(-1)[np.asarray(mask) == 0].any()


def test_transparency_is_a_mask(pipe, photo):
    clear = photo.copy()
    clear.putalpha(Image.eval(circle(), lambda value: 255 - value))
    [with_mask] = drawn(pipe, **ASKED, image=clear, mask=circle(), feather=0)
    [without] = drawn(pipe, **ASKED, image=clear, feather=0)
    assert apart(with_mask, without) == 0
    kept = np.asarray(circle()) == 0
    assert np.array_equal(np.asarray(without.image)[kept], np.asarray(photo)[kept])


def test_what_lies_in_a_hole_does_not_matter(pipe, photo):
    """Only what is made up from its rim is ever looked at."""
    hole = circle()
    other = photo.copy()
    other.paste((0, 255, 0), (0, 0), hole)
    assert apart(made_up(photo, hole), made_up(other, hole)) == 0
    flat = Image.new("RGB", (16, 16), (10, 200, 30))
    assert apart(made_up(flat, hole), flat) <= 1


def test_feathers_fade_inwards(pipe, photo):
    hard, soft = (
        np.asarray(drawn(pipe, **ASKED, image=photo, mask=circle(radius=7), feather=f)[0].image).astype(int)
        for f in (0, 4)
    )
    old = np.asarray(photo).astype(int)
    middle = (slice(7, 9), slice(7, 9))
    assert np.array_equal(hard[middle], soft[middle])
    rim = (np.asarray(circle(radius=7)) > 0) & ~(np.asarray(circle(radius=6)) > 0)
    assert abs(soft - old)[rim].mean() < abs(hard - old)[rim].mean() / 2


def test_a_change_of_hue_makes_no_seam(photo):
    """What was drawn lies off everywhere alike: inside the mask it is brought back, and nothing else is changed."""
    mask, shifted = circle(), Image.eval(photo, lambda value: max(0, value - 20))
    canvas = Canvas(photo, mask, (0, 0, 16, 16))
    inside = np.asarray(mask) > 0
    old = np.asarray(photo).astype(int)
    for level, off in ((True, 1), (False, 20)):
        new = np.asarray(canvas.laid(0, level=level)(shifted)).astype(int)
        assert np.array_equal(new[~inside], old[~inside])
        assert abs(new - old)[inside].max() <= off
        assert abs(new - old)[inside].mean() >= (0 if level else 10)


def test_outpaint_grows_and_keeps(pipe, photo):
    asked = ASKED | {"task": "outpaint", "image": photo}
    [image] = [one.image for one in drawn(pipe, **asked, left=8, bottom=4)]
    assert image.size == (24, 20)
    assert apart(image.crop((8, 0, 24, 16)), photo) == 0
    assert len(np.unique(np.asarray(image)[:, :8].reshape(-1, 3), axis=0)) > 8
    [one] = drawn(pipe, **asked, left=8, bottom=4)  # worked at in the model's own proportions, and cut out
    assert (one.recipe["width"], one.recipe["height"]) == (16, 16)
    assert one.recipe["guidance_scale"] == 1.5
    assert drawn(pipe, **asked, left=8, bottom=4, guidance_scale=3.0)[0].recipe["guidance_scale"] == 3.0
    [long] = drawn(pipe, **asked, left=16, width=32, height=16)
    assert (long.image.size, long.recipe["width"]) == ((32, 16), 32)
    assert apart(long.image.crop((16, 0, 32, 16)), photo) == 0


def test_as_many_steps_as_asked_for(pipe, photo):
    assert len(steps(pipe, **ASKED, image=photo, mask=circle())) == STEPS


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "inpaint needs to know where: give a --mask"),
        ({"mask": circle(20)}, "the mask has 20 x 20 pixels, the picture 16 x 16"),
        ({"mask": Image.new("L", (16, 16))}, "the mask is empty"),
        ({"mask": Image.new("L", (16, 16), 255)}, "the mask covers the whole picture"),
        ({"mask": circle(), "method": "langevine"}, "did you mean 'langevin'"),
        ({"mask": circle(), "left": 3}, "inpaint takes no left (--left); what does: outpaint"),
        ({"mask": b"nonsense"}, "is not a picture"),
    ],
)
def test_one_line_for_what_cannot_be(pipe, photo, fields, says):
    with pytest.raises(MezzotintError) as caught:
        drawn(pipe, **ASKED, image=photo, **fields)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert drawn(pipe, **ASKED, image=photo, mask=circle(20), fit_mask=True)
    with pytest.raises(MezzotintError, match="outpaint needs to know where to"):
        pipe.outpaint(photo, "cats")
    with pytest.raises(MezzotintError, match="grow the picture by less"):
        pipe.outpaint(photo, "cats", left=10_000)


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    """The folder of a model that is told masks."""
    checkpoint = tiny_checkpoint(
        Plan(VariancePreserving(), "epsilon", "ddim", {}, "leading", {"steps_offset": 1})
    )
    torch.manual_seed(1)
    unet = UNet(dataclasses.replace(checkpoint.unet.config, in_channels=9)).eval()
    return write_tiny(tmp_path_factory.mktemp("nine") / "nine", dataclasses.replace(checkpoint, unet=unet))


def test_nine_channels_as_diffusers(nine, photo, monkeypatch):
    from diffusers import StableDiffusionInpaintPipeline
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint as module

    from mezzotint.formats.image import to_tensor

    pipe, mask = Pipeline.load(nine, device="cpu"), circle()
    [ours] = drawn(pipe, **ASKED, image=photo, mask=mask, feather=0, num_inference_steps=6)
    theirs = StableDiffusionInpaintPipeline.from_pretrained(nine, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: image_noise(3, INITIAL, (4, 8, 8))[None])
    anew = torch.from_numpy(np.asarray(mask) > 0).float()[None, None]
    with torch.no_grad():
        rest = pipe.codec.encode(to_tensor(photo)[None] * (1 - anew))
    there = theirs(
        ASKED["prompt"], image=photo, mask_image=mask, masked_image_latents=rest, height=16, width=16,
        num_inference_steps=6, guidance_scale=3.0,
    ).images[0]  # fmt: skip
    inside = np.asarray(mask) > 0
    assert apart(np.asarray(ours.image)[inside], np.asarray(there)[inside]) <= 1
    assert np.array_equal(np.asarray(ours.image)[~inside], np.asarray(photo)[~inside])


def test_nine_channels_take_no_method_and_draw_nothing_from_words(nine, photo):
    pipe = Pipeline.load(nine, device="cpu")
    with pytest.raises(MezzotintError, match="made for inpainting and takes no method"):
        drawn(pipe, **ASKED, image=photo, mask=circle(), method="repaint")
    with pytest.raises(MezzotintError, match="takes 9 channels"):
        drawn(pipe, prompt="cats")
