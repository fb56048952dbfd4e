"""Image to image against its definition and against diffusers."""

import numpy as np
import pytest
import torch

from drawing import apart, drawn, steps
from mezzotint import Pipeline, Request
from mezzotint.diffusion.noise import INITIAL, image_noise
from mezzotint.diffusion.process import VariancePreserving
from mezzotint.formats.image import to_tensor
from mezzotint.formats.scheduler import Plan
from mezzotint.tasks import TASKS
from tiny import tiny_checkpoint, write_tiny

EDIT = {"task": "img2img", "prompt": "a red apple", "seed": 3}


def test_a_batch_is_its_seeds_alone(pipe, photo):
    batch = drawn(pipe, **EDIT, image=photo, num_images=3)
    alone = [drawn(pipe, **EDIT | {"seed": 3 + i}, image=photo)[0] for i in range(3)]
    assert [apart(a, b) for a, b in zip(batch, alone, strict=True)] == [0, 0, 0]
    assert apart(*batch[:2]) > 0


@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
def test_as_many_steps_as_asked_for_from_as_high_as_asked_for(pipe, photo, strength):
    taken = steps(pipe, **EDIT, image=photo, strength=strength, num_inference_steps=7)
    assert [event.step for event in taken] == list(range(1, 8))
    full = steps(pipe, prompt="cats", num_inference_steps=round(7 / strength))
    levels = [full[0].start, *(event.sigma for event in full)]
    assert [taken[0].start, *(event.sigma for event in taken)] == levels[-8:]


def test_the_picture_sinks_into_its_seed_s_noise(pipe, photo):
    request = pipe.settle(Request.parse(EDIT | {"image": photo, "num_images": 2, "strength": 0.4}))
    with torch.no_grad():
        problem = TASKS["img2img"].state(pipe, request)
        x0 = pipe.codec.encode(to_tensor(photo)[None])
    noise = torch.stack([image_noise(3 + i, INITIAL, (4, 8, 8)) for i in range(2)])
    assert torch.allclose(problem.x, x0 + float(problem.sigmas[0]) * noise)


@pytest.mark.parametrize(("sampler", "grid"), [("ddim", "trailing"), ("dpmpp_2m", "trailing")])
def test_diffusers_draws_the_same(tmp_path, monkeypatch, photo, sampler, grid):
    from diffusers import StableDiffusionImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as module

    plan = Plan(VariancePreserving(), "v_prediction", sampler, {}, grid, {})
    folder = write_tiny(tmp_path / "model", tiny_checkpoint(plan))
    pipe = Pipeline.load(folder, device="cpu")
    ours = drawn(pipe, **EDIT, image=photo, strength=0.5, num_inference_steps=6)[0]
    theirs = StableDiffusionImg2ImgPipeline.from_pretrained(folder, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: image_noise(3, INITIAL, (4, 8, 8))[None])
    with torch.no_grad():
        x0 = pipe.codec.encode(to_tensor(photo)[None])  # theirs would draw from the autoencoder's posterior
    there = theirs(EDIT["prompt"], image=x0, strength=0.5, num_inference_steps=12, guidance_scale=3.0).images[
        0
    ]
    assert np.asarray(there).shape == (16, 16, 3)
    assert apart(ours, there) <= 1


def test_a_photo_is_brought_near_the_model_s_size_in_its_proportions(pipe, photo):
    [made] = drawn(pipe, **EDIT, image=photo.resize((300, 150)))
    assert made.image.size == (22, 12)
    assert drawn(pipe, **EDIT, image=photo.resize((300, 150)), width=16, height=16)[0].image.size == (16, 16)
