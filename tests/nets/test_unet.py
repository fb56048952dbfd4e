"""The U-Net against diffusers' UNet2DConditionModel: same names, same weights, same numbers."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from diffusers import UNet2DConditionModel

from mezzotint.diffusion.types import Cond
from mezzotint.errors import UsageError
from mezzotint.nets.blocks import attend
from mezzotint.nets.unet import UNet, UNetConfig, text_time

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"
SMALL = {"norm_num_groups": 8, "cross_attention_dim": 24, "sample_size": 8}

CONFIGS = {
    "sd1": {
        "block_out_channels": (32, 64, 64),
        "down_block_types": (CROSS, CROSS, PLAIN),
        "up_block_types": (PLAIN_UP, CROSS_UP, CROSS_UP),
        "attention_head_dim": 4,
    },
    "sd1_inpainting": {
        "in_channels": 9,
        "block_out_channels": (32, 64),
        "down_block_types": (CROSS, PLAIN),
        "up_block_types": (PLAIN_UP, CROSS_UP),
        "attention_head_dim": 8,
    },
    "sd2": {
        "block_out_channels": (32, 64, 64),
        "down_block_types": (CROSS, CROSS, PLAIN),
        "up_block_types": (PLAIN_UP, CROSS_UP, CROSS_UP),
        "attention_head_dim": (2, 4, 8),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": {
        "block_out_channels": (32, 64, 64),
        "down_block_types": (PLAIN, CROSS, CROSS),
        "up_block_types": (CROSS_UP, CROSS_UP, PLAIN_UP),
        "attention_head_dim": (2, 4, 8),
        "transformer_layers_per_block": (1, 2, 3),
        "use_linear_projection": True,
        "upcast_attention": None,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    },
    "pooled_text": {  # the text told beside the time, and the time scaling the maps
        "block_out_channels": (32, 64),
        "down_block_types": (PLAIN, CROSS),
        "up_block_types": (CROSS_UP, PLAIN_UP),
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 6,
        "resnet_time_scale_shift": "scale_shift",
    },
    "classes": {  # told a class, and looking at no text
        "block_out_channels": (32, 64),
        "down_block_types": (PLAIN, "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", PLAIN_UP),
        "mid_block_type": "UNetMidBlock2D",
        "attention_head_dim": 16,
        "num_class_embeds": 11,
    },
    "odd_one_out": {  # what only few files use: all values away from their defaults
        "block_out_channels": (16, 32),
        "down_block_types": (PLAIN, CROSS),
        "up_block_types": (CROSS_UP, PLAIN_UP),
        "layers_per_block": (1, 2),
        "cross_attention_dim": (24, 24),
        "norm_eps": 1e-3,
        "downsample_padding": 0,
        "mid_block_scale_factor": 1.5,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
}


def pair(name: str) -> tuple[UNet2DConditionModel, UNet]:
    """diffusers' net with random weights that leave no term near zero, and ours with the same."""
    torch.manual_seed(0)
    theirs = UNet2DConditionModel(**(SMALL | CONFIGS[name])).eval()
    for p in theirs.parameters():
        p.data += 0.1 * torch.randn_like(p)
    ours = UNet(UNetConfig.from_dict(dict(theirs.config))).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def inputs(config: UNetConfig, size: tuple[int, int] = (8, 8)) -> tuple[torch.Tensor, torch.Tensor, Cond]:
    torch.manual_seed(1)
    text = torch.randn(2, 5, 24)
    concat = torch.randn(2, config.in_channels - 4, *size) if config.in_channels > 4 else None
    label = torch.tensor([3, 10]) if config.num_class_embeds else None
    cond = Cond(text=None if config.num_class_embeds else text, label=label, concat=concat)
    return torch.randn(2, 4, *size), torch.tensor([17.0, 803.25]), cond


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_agrees_with_diffusers(name: str, channels_last: bool) -> None:
    theirs, ours = pair(name)
    z, t, cond = inputs(ours.config)
    joined = z if cond.concat is None else torch.cat([z, cond.concat], 1)
    added = None
    if ours.config.addition_embed_type == "text_time":
        pooled, ids = (
            torch.randn(2, 16),
            torch.tensor([[512.0, 768, 0, 64, 512, 512], [1024, 1024, 3, 0, 256, 1]]),
        )
        added = {"text_embeds": pooled, "time_ids": ids}
        cond = cond._replace(pooled=text_time(pooled, ids, 8))
    told = {"added_cond_kwargs": added, "class_labels": cond.label}
    expected = theirs(joined, t, cond.text, **told).sample
    if channels_last:
        ours, z = ours.to(memory_format=torch.channels_last), z.to(memory_format=torch.channels_last)
    torch.testing.assert_close(ours(z, t, cond), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_agrees_on_odd_sizes_and_masked_text() -> None:
    theirs, ours = pair("sd1")
    z, t, cond = inputs(ours.config, (7, 9))
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)
    expected = theirs(z, t, cond.text, encoder_attention_mask=mask).sample
    torch.testing.assert_close(ours(z, t, cond._replace(mask=mask)), expected, rtol=1e-4, atol=1e-5)
    changed = cond.text.clone()
    changed[0, 2:] = 7  # behind the mask
    same = ours(z, t, Cond(text=changed, mask=mask))
    torch.testing.assert_close(same, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_state_dict_has_the_same_keys_in_the_same_order_and_shapes(name: str) -> None:
    theirs, ours = pair(name)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }


@torch.no_grad()
def test_layout_stays_channels_last() -> None:
    _, ours = pair("sd1")
    z, t, cond = inputs(ours.config)
    ours.to(memory_format=torch.channels_last)
    seen = []
    for module in ours.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.GroupNorm):
            module.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    ours(z.to(memory_format=torch.channels_last), t, cond)
    assert len(seen) > 50
    assert all(x.is_contiguous(memory_format=torch.channels_last) for pair_ in seen for x in pair_)


@torch.no_grad()
def test_one_time_for_all_is_that_time_for_each() -> None:
    _, ours = pair("sd1")
    z, _, cond = inputs(ours.config)
    assert torch.equal(ours(z, torch.tensor(40.0), cond), ours(z, torch.tensor([40.0, 40.0]), cond))


def test_builds_on_the_meta_device() -> None:
    _, ours = pair("sdxl")
    with torch.device("meta"):
        empty = UNet(ours.config)
    assert all(p.is_meta for p in empty.parameters())
    empty.load_state_dict(ours.state_dict(), strict=True, assign=True)
    assert not any(p.is_meta for p in (*empty.parameters(), *empty.buffers()))


@pytest.mark.parametrize("name", CONFIGS)
def test_config_goes_out_and_comes_back(name: str) -> None:
    theirs = UNet2DConditionModel(**(SMALL | CONFIGS[name]))
    config = UNetConfig.from_dict(dict(theirs.config))
    assert UNetConfig.from_dict(config.to_dict()) == config
    again = UNet2DConditionModel.from_config(config.to_dict())
    written, wanted = (json.loads(net.to_json_string()) for net in (again, theirs))  # tuples become lists
    assert written == wanted
    assert config.to_dict() == {k: v for k, v in wanted.items() if k != "_diffusers_version"}


def test_reads_a_config_of_2022() -> None:
    """The keys of Stable Diffusion 1.5's unet/config.json, and no others."""
    old = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": [CROSS, CROSS, CROSS, PLAIN],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": [PLAIN_UP, CROSS_UP, CROSS_UP, CROSS_UP],
    }
    with torch.device("meta"):
        net = UNet(UNetConfig.from_dict(old))
    assert sum(p.numel() for p in net.parameters()) == 859_520_964  # of SD 1.5, as published


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"atention_head_dim": 8}, "did you mean 'attention_head_dim'"),
        ({"class_embed_type": "timestep"}, "'class_embed_type' = 'timestep' is not supported"),
        ({"only_cross_attention": [True, False]}, "only_cross_attention"),
        ({"num_attention_heads": 8}, "num_attention_heads"),
        ({"block_out_channels": "wide"}, "'block_out_channels' is 'wide'"),
        ({"in_channels": True}, "'in_channels' is True"),
        ({"norm_eps": None}, "norm_eps"),
        ({"_class_name": "UNet2DModel"}, "did you mean 'UNet2DConditionModel'"),
        ({"down_block_types": [*[CROSS] * 3, "DownBlock2d"]}, "did you mean 'DownBlock2D'"),
        ({"up_block_types": ["SkipUpBlock2D"] * 4}, "SkipUpBlock2D"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "did you mean 'UNetMidBlock2DCrossAttn'"),
        ({"block_out_channels": [320, 640]}, "as many of each"),
        ({"layers_per_block": [1, 2]}, "layers_per_block"),
        ({"attention_head_dim": 7}, "attention_head_dim = 7"),
        ({"norm_num_groups": 33}, "norm_num_groups = 33"),
        ({"addition_embed_type": "image"}, "did you mean|known: text"),
        ({"addition_embed_type": "text", "addition_embed_type_num_heads": 100}, "num_heads = 100"),
        ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim"),
        ({"block_out_channels": []}, "empty"),
    ],
)
def test_refuses(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        UNetConfig.from_dict(UNetConfig().to_dict() | change)


def test_refuses_conditions_that_do_not_fit() -> None:
    config = UNetConfig.from_dict(SMALL | CONFIGS["sd1"])
    net = UNet(config)
    z, t, cond = inputs(config)
    with pytest.raises(UsageError, match=r"cond.text"):
        net(z, t, Cond())
    with pytest.raises(UsageError, match=r"4 channels and was given 4 \+ 5"):
        net(z, t, cond._replace(concat=torch.zeros(2, 5, 8, 8)))
    with pytest.raises(UsageError, match="takes no pooled"):
        net(z, t, cond._replace(pooled=torch.zeros(2, 8)))
    with pytest.raises(UsageError, match="class labels"):
        net(z, t, cond._replace(label=torch.zeros(2)))
    classes = UNet(UNetConfig.from_dict(SMALL | CONFIGS["classes"]))
    with pytest.raises(UsageError, match=r"told a class.*cond\.label"):
        classes(z, t, Cond())
    with pytest.raises(UsageError, match="looks at no text"):
        classes(z, t, cond)


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        UNetConfig().in_channels = 3  # type: ignore[misc]


def test_bfloat16_training_is_float32_training_with_less_precision() -> None:
    """The CPU's bfloat16 paths (explicit attention, float32 normalisation) compute the same function."""
    _, net = pair("sd1")
    z, t, cond = inputs(net.config)
    grads = []
    for low in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = net(z, t, cond).float()
        out.square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            again = net(z, t, cond).float()
        assert (again - out).norm() < 0.02 * out.norm()  # the same without gradients, by another kernel
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.99


@torch.no_grad()
@pytest.mark.parametrize("name", ["sd1", "pooled_text"])
def test_hidden_text_is_as_good_as_absent(name: str) -> None:
    _, net = pair(name)
    z, t, cond = inputs(net.config)
    mask = torch.ones(cond.text.shape[:2], dtype=torch.bool)
    more = torch.nn.functional.pad(cond.text, (0, 0, 0, 4), value=9.0)
    hidden = cond._replace(text=more, mask=torch.nn.functional.pad(mask, (0, 4)))
    torch.testing.assert_close(net(z, t, hidden), net(z, t, cond), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net(z, t, cond._replace(text=more)), net(z, t, cond), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_runs_in_bfloat16_throughout() -> None:
    _, net = pair("sdxl")
    z, t, cond = inputs(net.config)
    cond = cond._replace(pooled=torch.randn(2, 64))
    expected = net(z, t, cond)
    out = net.bfloat16()(z.bfloat16(), t, cond.map(lambda x: x.bfloat16()))
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).norm() < 0.05 * expected.norm()


def test_attention_can_be_seen_and_changed():
    config = UNetConfig(**SMALL, **CONFIGS["sd1"])
    torch.manual_seed(0)
    net = UNet(config).eval()
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 500.0])
    cond = Cond(text=torch.randn(2, 5, 24))
    seen = []

    def watched(place, q, k, v, heads, mask):
        seen.append((place.number, place.cross, k.shape[1]))
        return attend(q, k, v, heads, mask)

    with torch.no_grad():
        assert torch.equal(net(z, t, cond, control=watched), net(z, t, cond))
        blind = net(z, t, cond, control=lambda place, q, k, v, heads, mask: torch.zeros_like(q))
    assert [number for number, _, _ in seen] == list(range(len(seen)))  # numbered as they run
    assert {(cross, count) for _, cross, count in seen} == {(False, 64), (False, 16), (False, 4), (True, 5)}
    assert not torch.allclose(blind, net(z, t, cond), atol=1e-3)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "pooled_text"])
@torch.no_grad()
def test_what_is_made_of_the_text_once_is_what_is_made_at_every_step(name: str) -> None:
    _, net = pair(name)
    z, t, cond = inputs(net.config)
    if net.config.addition_embed_type == "text_time":
        cond = cond._replace(pooled=torch.randn(2, 64))
    prepared = net.prepared(cond)
    assert prepared.keys is not None
    assert (prepared.told is None) == (net.add_embedding is None)
    torch.testing.assert_close(net(z, t, prepared), net(z, t, cond), rtol=1e-4, atol=1e-5)
    # it is indeed not made again: of another text nothing is seen
    other = prepared._replace(text=torch.randn_like(cond.text))
    assert torch.equal(net(z, t, other), net(z, t, prepared))


@torch.no_grad()
def test_what_is_made_of_a_row_does_not_depend_on_the_others() -> None:
    _, net = pair("pooled_text")
    *_, cond = inputs(net.config)
    both = net.prepared(cond)
    for i in range(2):
        alone = net.prepared(cond.map(lambda field, i=i: field[i : i + 1]))
        assert torch.equal(alone.keys, both.keys[i : i + 1])
        assert torch.equal(alone.told, both.told[i : i + 1])
    spread = net.prepared(cond.map(lambda field: field[:1].expand(5, *field.shape[1:])))
    assert spread.keys.stride(0) == 0
    assert torch.equal(spread.keys[4], both.keys[0])
