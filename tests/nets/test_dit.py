"""Transformers on patches: diffusers' numbers under the same state dict, adaLN-Zero at the start, what is refused."""

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed

from mezzotint.diffusion.types import Cond
from mezzotint.errors import UsageError
from mezzotint.nets import DiT, DiTConfig, PixArt, PixArtConfig

KEYS = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def shaken(net):
    """No weight at 0 or 1, where a mistake would not be seen."""
    torch.manual_seed(0)
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return net.eval()


@pytest.fixture(scope="module")
def classes():
    theirs = shaken(DiTTransformer2DModel(**KEYS, num_embeds_ada_norm=5))
    ours = DiT(DiTConfig.from_dict(theirs.config))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours.eval()


@pytest.fixture(scope="module")
def texts():
    theirs = shaken(PixArtTransformer2DModel(**KEYS, cross_attention_dim=24, caption_channels=10))
    ours = PixArt(PixArtConfig.from_dict(theirs.config))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours.eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (16, 16)])
def test_classes_as_diffusers_has_them(classes, size):
    theirs, ours = classes
    torch.manual_seed(1)
    z, t, label = torch.randn(3, 4, *size), torch.tensor([3.0, 500.0, 999.0]), torch.tensor([0, 4, 5])
    if size == (8, 8):
        expected = theirs(z, t, label).sample
    else:  # positions of theirs are those of its own size alone; ours stretch from where they were made
        other = DiTTransformer2DModel(**KEYS | {"sample_size": 16}, num_embeds_ada_norm=5).eval()
        other.load_state_dict(theirs.state_dict())
        places = get_2d_sincos_pos_embed(24, 8, base_size=4, output_type="pt")
        other.pos_embed.pos_embed = places.float()[None]
        expected = other(z, t, label).sample
    torch.testing.assert_close(ours(z, t, Cond(label=label)), expected, **CLOSE)
    torch.testing.assert_close(ours(z, t, Cond())[2:], expected[2:], **CLOSE)  # none is any, the last class


@torch.no_grad()
def test_texts_as_diffusers_has_them(texts):
    theirs, ours = texts
    torch.manual_seed(1)
    z, t, text = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 500.0]), torch.randn(2, 6, 10)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    for seen in (None, mask):
        expected = theirs(z, text, t, encoder_attention_mask=seen).sample
        torch.testing.assert_close(ours(z, t, Cond(text=text, mask=seen)), expected, **CLOSE)
    # of maps that are not square positions are counted for each side
    assert ours(torch.randn(1, 4, 4, 12), t[:1], Cond(text=text[:1])).shape == (1, 4, 4, 12)


def test_configurations_there_and_back(classes, texts, tmp_path):
    for (theirs, ours), cls in ((classes, DiTTransformer2DModel), (texts, PixArtTransformer2DModel)):
        again = cls.from_config(ours.config.to_dict())
        assert set(again.state_dict()) == set(theirs.state_dict())
        assert type(ours.config).from_dict(ours.config.to_dict()) == ours.config
        assert ours.config.num_class_embeds == (6 if cls is DiTTransformer2DModel else None)
        assert ours.config.multiple == 2


@torch.no_grad()
def test_a_new_net_is_zero_and_its_blocks_are_nothing():
    torch.manual_seed(0)
    net = DiT(DiTConfig(**KEYS, num_embeds_ada_norm=3))
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([1.0, 2.0])
    assert torch.equal(net(z, t, Cond(label=torch.tensor([0, 1]))), torch.zeros(2, 4, 8, 8))
    x = torch.randn(2, 16, 24)
    assert torch.equal(net.transformer_blocks[0](x, torch.randn(2, 256), torch.tensor([0, 3])), x)
    other = PixArt(PixArtConfig(**KEYS, cross_attention_dim=24, caption_channels=10))
    assert torch.equal(other(z, t, Cond(text=torch.randn(2, 3, 10))), torch.zeros(2, 4, 8, 8))


def test_refusals(classes, texts):
    z, t = torch.randn(1, 4, 8, 8), torch.tensor([1.0])
    for net, wrong, message in (
        (classes[1], {"z": torch.randn(1, 3, 8, 8)}, "takes 4 channels and was given 3"),
        (classes[1], {"z": torch.randn(1, 4, 7, 8)}, "squares of 2, which 7 x 8 is no multiple of"),
        (classes[1], {"cond": Cond(text=torch.randn(1, 2, 10))}, "told a class or nothing"),
        (texts[1], {}, "looks at a text and at nothing else"),
    ):
        with pytest.raises(UsageError, match=message):
            net(wrong.get("z", z), t, wrong.get("cond", Cond()))
    with pytest.raises(UsageError, match="cannot be divided into four waves"):
        DiTConfig(**KEYS | {"attention_head_dim": 3})
    with pytest.raises(UsageError, match="cross_attention_dim 10 is not the width 24"):
        PixArtConfig(**KEYS, cross_attention_dim=10, caption_channels=10)
    with pytest.raises(UsageError, match="told sizes too"):
        PixArtConfig.from_dict({"sample_size": 128, "use_additional_conditions": None})
    with pytest.raises(UsageError, match="'norm_type' = 'layer_norm' is not supported"):
        DiTConfig.from_dict({"norm_type": "layer_norm"})
