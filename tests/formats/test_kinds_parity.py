"""Every kind of checkpoint against diffusers and transformers: the same states, the same nets, the same pictures."""

import inspect

import diffusers
import numpy as np
import pytest
import torch

from kinds import KINDS, saved
from mezzotint import Pipeline
from mezzotint.diffusion.noise import INITIAL, image_noise
from mezzotint.diffusion.types import Cond
from mezzotint.formats.folder import read_folder
from mezzotint.nets import text_time

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
PROMPT, NEGATIVE = "a red apple", "two CATS"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, remembered = tmp_path_factory.mktemp("kinds"), {}

    def get(kind):
        if kind not in remembered:
            remembered[kind] = saved(kind, folder)
        return remembered[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_nets(made, kind):
    folder, theirs = made(kind)
    ours = read_folder(folder)
    torch.manual_seed(1)
    for name, (net, tokenizer) in ours.encoders.items():
        ids = torch.tensor([tokenizer.encode(text).ids for text in (PROMPT, NEGATIVE, "")])
        their_tokenizer = getattr(theirs, name.replace("text_encoder", "tokenizer"))
        told = their_tokenizer([PROMPT, NEGATIVE, ""], padding="max_length", return_tensors="pt").input_ids
        assert torch.equal(ids, told)
        expected = getattr(theirs, name)(ids, output_hidden_states=True)
        states = net(ids)
        for a, b in zip(states.hidden, expected.hidden_states, strict=True):
            torch.testing.assert_close(a, b, **CLOSE)
        pooled = expected.text_embeds if net.config.projected else expected.pooler_output
        torch.testing.assert_close(states.pooled, pooled, **CLOSE)
    config = ours.unet.config
    z, t = torch.randn(2, config.in_channels, 8, 8), torch.tensor([7.0, 900.0])
    text = torch.randn(2, LENGTH_OF_TEXT, config.levels()[0].context_dim)
    added, pooled = None, None
    if ours.configs.sized:
        vector, ids = torch.randn(2, 128), torch.tensor([[64.0, 48, 1, 2, 64, 48], [9, 8, 7, 6, 5, 4]])
        ids = ids[:, : ours.configs.sized]
        added = {"text_embeds": vector, "time_ids": ids}
        pooled = text_time(vector, ids, config.addition_time_embed_dim)
    expected = theirs.unet(z, t, text, added_cond_kwargs=added).sample
    torch.testing.assert_close(ours.unet(z, t, Cond(text=text, pooled=pooled)), expected, **CLOSE)
    image = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(ours.vae.encode(image)[0], theirs.vae.encode(image).latent_dist.mean, **CLOSE)
    torch.testing.assert_close(ours.vae.decode(z[:, :4]), theirs.vae.decode(z[:, :4]).sample, **CLOSE)


LENGTH_OF_TEXT = 12
SAMPLERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
}


def differ(left, right):
    return abs(np.asarray(left).astype(int) - np.asarray(right).astype(int)).max()


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sd2-v", "sdxl"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pictures(made, tmp_path, kind, sampler):
    _, theirs = made(kind)
    swapped = type(theirs)(**theirs.components)
    cls = getattr(diffusers, SAMPLERS[sampler])
    known = {"clip_sample": False, "skip_prk_steps": True}.items()
    knobs = {key: value for key, value in known if key in inspect.signature(cls).parameters}
    swapped.scheduler = cls.from_config(theirs.scheduler.config, **knobs)
    swapped.set_progress_bar_config(disable=True)
    swapped.save_pretrained(tmp_path / "model")
    ours = Pipeline.load(tmp_path / "model", device="cpu")
    assert ours.plan.sampler == sampler
    size = ours.defaults.width
    for negative in (None, NEGATIVE):
        fields = {"num_inference_steps": 5, "guidance_scale": 4.0}
        drawn = ours(PROMPT, seed=3, negative_prompt=negative or "", **fields)[0]
        latents = image_noise(3, INITIAL, (4, size // 2, size // 2))[None]
        expected = swapped(PROMPT, negative_prompt=negative, latents=latents, **fields).images[0]
        assert np.asarray(expected).std() > 5
        assert differ(drawn, expected) <= 1


def test_sizes_are_told(made):
    folder, theirs = made("sdxl")
    ours = Pipeline.load(folder, device="cpu")
    fields = {"num_inference_steps": 3, "guidance_scale": 4.0}
    drawn = ours(PROMPT, seed=3, original_width=640, original_height=48, crop_top=5, crop_left=90, **fields)[
        0
    ]
    latents = image_noise(3, INITIAL, (4, 8, 8))[None]
    told = {"original_size": (48, 640), "crops_coords_top_left": (5, 90)}
    assert differ(drawn, theirs(PROMPT, latents=latents, **told, **fields).images[0]) <= 1
    assert differ(drawn, ours(PROMPT, seed=3, **fields)[0]) > 1
