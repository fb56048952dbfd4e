"""Memory: said before a run, and pictures in tiles are nearly the pictures."""

import warnings

import numpy as np
import pytest
import torch

from mezzotint import Pipeline, Request, memory
from mezzotint.codec import Latents, tiled
from mezzotint.diffusion.types import Cond
from mezzotint.memory import TILE, ShortOfMemory, fitting, free, need, remembered
from mezzotint.nets import AutoencoderKL, UNet, UNetConfig, VAEConfig
from mezzotint.nets.layers import Conv2d, frozen
from tiny import write_tiny


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return Pipeline.load(write_tiny(tmp_path_factory.mktemp("models") / "tiny"), device="cpu")


def test_free_memory_is_known_here():
    assert free(torch.device("cpu")) is None or free(torch.device("cpu")) > 2**20


def test_need_grows_with_rows_and_size(pipeline):
    settled = pipeline.settle(Request(prompt="a", width=32, height=32))
    one, two = need(pipeline, settled, 1), need(pipeline, settled, 2)
    assert two.drawing == 2 * one.drawing
    assert two.decoding == one.decoding
    unguided = need(pipeline, settled.model_copy(update={"guidance_scale": 1.0}), 1)
    assert 2 * unguided.drawing == one.drawing
    larger = need(pipeline, settled.model_copy(update={"width": 64}), 1)
    assert (larger.drawing, larger.decoding) == (2 * one.drawing, 2 * one.decoding)


def test_what_layers_remember_is_needed_once(tmp_path):
    pipeline = Pipeline.load(write_tiny(tmp_path / "tiny"), device="cpu", precision="bfloat16")
    settled = pipeline.settle(Request(prompt="a red apple", seed=1))
    before = need(pipeline, settled, 1).remembered
    pipeline("a red apple", seed=1)
    after = need(pipeline, settled, 1).remembered
    assert after in (0, before)  # where oneDNN is not there, nothing is remembered


@pytest.mark.parametrize(("height", "width"), [(64, 32), (16, 16), (8, 12)])
def test_filters_that_will_be_kept_are_counted_exactly(height, width):
    config = UNetConfig(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=8,
    )
    vae = VAEConfig(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    unet, decoder = frozen(UNet(config).eval()), frozen(AutoencoderKL(vae).eval().decoder)
    expected = remembered(unet, 2, height, width), remembered(decoder, 1, height, width)
    with torch.inference_mode():
        unet(torch.zeros(2, 4, height, width), torch.zeros(2), Cond(text=torch.zeros(2, 5, 8)))
        decoder(torch.zeros(1, 4, height, width))
    kept = tuple(
        sum(
            made.nbytes
            for layer in net.modules()
            if isinstance(layer, Conv2d)
            for _, made in layer.remembered.values()
        )
        for net in (unet, decoder)
    )
    assert kept == expected
    assert (remembered(unet, 2, height, width), remembered(decoder, 1, height, width)) != expected


def test_a_run_that_does_not_fit_is_said_with_what_to_change(pipeline, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: 1000)
    with pytest.warns(
        ShortOfMemory, match=r"GiB are free; draw fewer than 3 at a time, or .*smaller.*bfloat16"
    ):
        assert fitting(pipeline, pipeline.settle(Request(prompt="a")), 3) is pipeline
    monkeypatch.setattr(memory, "free", lambda device: 2**40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fitting(pipeline, pipeline.settle(Request(prompt="a")), 3) is pipeline


def test_one_picture_needs_room_for_one(pipeline, monkeypatch):
    settled = pipeline.settle(Request(prompt="a", seed=1))
    monkeypatch.setattr(memory, "DRAWING", 10_000)
    there = need(pipeline, settled, 1).total
    assert need(pipeline, settled, 2).total > there
    monkeypatch.setattr(memory, "free", lambda device: there)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(pipeline.generate(settled))


def test_decodes_in_tiles_where_only_decoding_does_not_fit(pipeline, monkeypatch):
    side = 2 * TILE * pipeline.codec.factor
    settled = Pipeline.settle(pipeline, Request(prompt="a", seed=1)).model_copy(
        update={"width": side, "height": side}
    )
    monkeypatch.setattr(memory, "DECODING", 10_000)
    monkeypatch.setattr(memory, "free", lambda device: need(pipeline, settled, 1).total // 2)
    with pytest.warns(ShortOfMemory, match="decoded in tiles"):
        made = fitting(pipeline, settled, 1)
    assert isinstance(made.codec, Latents)
    assert made.codec.tile == TILE


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (9, 50), (64, 33)])
def test_tiles_of_a_local_function_are_seamless(size):
    """A decoder that sees one latent at a time is the same in tiles, whatever the overlap."""
    z = torch.randn(1, 4, *size)

    def decode(part):
        return torch.nn.functional.interpolate(part[:, :3], scale_factor=4, mode="nearest").sin()

    torch.testing.assert_close(tiled(decode, z, 16, 4), decode(z))


def test_tiles_of_an_autoencoder_are_nearly_the_picture():
    torch.manual_seed(0)
    config = VAEConfig(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    vae, z = AutoencoderKL(config).eval(), torch.randn(1, 4, 48, 40)
    with torch.no_grad():
        whole, parts = Latents(vae).decode(z), Latents(vae, tile=32).decode(z)
    assert parts.shape == whole.shape
    assert not torch.equal(parts, whole)
    error = float((parts - whole).square().mean() / whole.var())
    assert 10 * np.log10(1 / error) > 15
