"""Batches that are held to the last bit: what is tried, and what happens when the trial fails."""

import pytest
import torch

from mezzotint.diffusion.denoiser import Denoiser
from mezzotint.diffusion.guidance import cfg
from mezzotint.diffusion.process import VariancePreserving
from mezzotint.diffusion.types import Cond
from mezzotint.exact import tried
from mezzotint.nets import UNet, UNetConfig
from mezzotint.nets.blocks import channels_last
from mezzotint.nets.layers import frozen


def counted(error):
    """A denoiser with a rounding error that depends on the size of the batch, and the sizes it was called with."""
    sizes = []

    def denoise(x, sigma, cond):
        sizes.append(len(x))
        return x / 2 + (error * len(x))

    return denoise, sizes


@pytest.mark.parametrize(("error", "calls"), [(0.0, [4, 1, 1, 4]), (1e-6, [4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])])
def test_batches_are_used_if_they_are_equal_and_dropped_if_not(error, calls):
    denoise, sizes = counted(error)
    x, sigma, cond = torch.randn(4, 2, 3, 3), torch.ones(4), Cond(text=torch.randn(4, 5, 2))
    held = tried(denoise, {})
    for _ in range(2):
        together = held(x, sigma, cond)
        alone = [x[i : i + 1] / 2 + error for i in range(4)]
        assert torch.equal(together, torch.cat(alone))
    assert sizes == calls


def test_another_shape_or_kind_is_tried_anew_and_the_same_is_not():
    denoise, sizes = counted(0.0)
    trials = {}
    for rows in (1, 3, 3, 2):
        tried(denoise, trials, "plain")(torch.randn(rows, 1, 2, 2), torch.ones(rows), Cond())
    assert sizes == [1, 3, 1, 1, 3, 2, 1, 1]
    tried(denoise, trials, "guided")(torch.randn(3, 1, 2, 2), torch.ones(3), Cond())
    assert sizes[-3:] == [3, 1, 1]
    assert trials == {("plain", 3, 1, 2, 2): True, ("plain", 2, 1, 2, 2): True, ("guided", 3, 1, 2, 2): True}


def test_a_net_of_the_size_of_the_embedded_one():
    torch.manual_seed(0)
    config = UNetConfig(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(96, 160, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=256,
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text",
        addition_embed_type_num_heads=8,
        resnet_time_scale_shift="scale_shift",
    )
    net = frozen(channels_last(UNet(config).eval()))
    null, text = torch.randn(1, 32, 256), torch.randn(1, 32, 256)
    trials: dict = {}
    denoise = tried(cfg(Denoiser(net, VariancePreserving(), "v_prediction"), 3.0, Cond(text=null)), trials)
    x = torch.randn(5, 8, 16, 16).contiguous(memory_format=torch.channels_last)

    def at(rows):
        return denoise(
            x[rows].clone(), torch.full((len(rows),), 2.0), Cond(text=text.expand(len(rows), -1, -1))
        )

    with torch.inference_mode():
        together = at(list(range(5)))
        for i in range(5):
            assert torch.equal(at([i])[0], together[i])
    if (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
    ):  # where it was found; elsewhere it may be one by one
        assert trials
        assert all(trials.values())
