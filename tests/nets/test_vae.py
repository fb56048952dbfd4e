"""The autoencoder against diffusers' AutoencoderKL: same names, same weights, same numbers."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKL as Theirs

from mezzotint.errors import UsageError
from mezzotint.nets.vae import AutoencoderKL, VAEConfig

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
CONFIGS = {
    "sd": {
        "block_out_channels": (16, 32, 32),
        "down_block_types": (DOWN,) * 3,
        "up_block_types": (UP,) * 3,
        "layers_per_block": 2,
        "norm_num_groups": 8,
    },
    "bare": {
        "block_out_channels": (16, 32),
        "down_block_types": (DOWN,) * 2,
        "up_block_types": (UP,) * 2,
        "norm_num_groups": 4,
        "latent_channels": 8,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
    },
}


def pair(name: str) -> tuple[Theirs, AutoencoderKL]:
    torch.manual_seed(0)
    theirs = Theirs(**CONFIGS[name]).eval()
    for p in theirs.parameters():
        p.data += 0.1 * torch.randn_like(p)
    ours = AutoencoderKL(VAEConfig.from_dict(dict(theirs.config))).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_agrees_with_diffusers(name: str, memory_format: torch.memory_format) -> None:
    theirs, ours = pair(name)
    image = torch.rand(2, 3, 32, 24) * 2 - 1
    ours = ours.to(memory_format=memory_format)
    expected = theirs.encode(image).latent_dist
    mean, logvar = ours.encode(image.to(memory_format=memory_format))
    torch.testing.assert_close(mean, expected.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logvar, expected.logvar, rtol=1e-4, atol=1e-5)
    assert mean.shape == (2, ours.config.latent_channels, 32 // ours.config.factor, 24 // ours.config.factor)
    z = torch.randn_like(mean)
    torch.testing.assert_close(ours.decode(z), theirs.decode(z).sample, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_logvar_is_kept_in_bounds() -> None:
    _, ours = pair("sd")
    ours.quant_conv.weight.mul_(1e4)
    _, logvar = ours.encode(torch.rand(1, 3, 16, 16))
    assert logvar.min() == -30
    assert logvar.max() == 20


@pytest.mark.parametrize("name", CONFIGS)
def test_state_dict_has_the_same_keys_and_shapes(name: str) -> None:
    theirs, ours = pair(name)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_config_goes_out_and_comes_back(name: str) -> None:
    theirs = Theirs(**CONFIGS[name])
    config = VAEConfig.from_dict(dict(theirs.config))
    assert VAEConfig.from_dict(config.to_dict()) == config
    again = Theirs.from_config(config.to_dict())
    written, wanted = (json.loads(net.to_json_string()) for net in (again, theirs))  # tuples become lists
    assert written == wanted
    assert config.to_dict() == {k: v for k, v in wanted.items() if k != "_diffusers_version"}


def test_reads_a_config_of_2022() -> None:
    """The keys of Stable Diffusion 1.5's vae/config.json: no scaling factor, which is then 0.18215."""
    old = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": [DOWN] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": [UP] * 4,
    }
    config = VAEConfig.from_dict(old)
    assert (config.scaling_factor, config.factor) == (0.18215, 8)
    with torch.device("meta"):
        net = AutoencoderKL(config)
    assert sum(p.numel() for p in net.parameters()) == 83_653_863  # of SD 1.5, as published


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_chanels": 4}, "did you mean 'latent_channels'"),
        ({"latents_mean": [0.0]}, "'latents_mean' = \\[0.0\\] is not supported"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"]}, "did you mean 'DownEncoderBlock2D'"),
        ({"up_block_types": [UP] * 2}, "as many of each"),
        ({"norm_num_groups": 48}, "norm_num_groups = 48"),
        ({"layers_per_block": "2"}, "'layers_per_block' is '2'"),
        ({"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
    ],
)
def test_refuses(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VAEConfig.from_dict(VAEConfig().to_dict() | change)


def test_refuses_a_picture_that_does_not_divide() -> None:
    _, ours = pair("sd")
    with pytest.raises(UsageError, match=r"30 x 32 .* multiples of 4"):
        ours.encode(torch.zeros(1, 3, 32, 30))
