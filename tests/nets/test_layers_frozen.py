"""Frozen layers: the same functions, the same row in any company, and no memory of weights that are gone."""

import copy

import pytest
import torch
from torch import nn

from mezzotint.nets.layers import Conv2d, Linear, frozen, gated


def net():
    torch.manual_seed(0)
    layers = [Conv2d(40, 64, 1), Conv2d(64, 64, 3, padding=1), Conv2d(64, 48, 3, stride=2, padding=1)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def test_compute_the_same():
    x = torch.randn(6, 40, 16, 16).contiguous(memory_format=torch.channels_last)
    plain, fast = net()(x), frozen(net())
    with torch.inference_mode():
        y = fast(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, plain, atol=1e-5, rtol=1e-5)
        assert fast[1].remembered
        assert not fast[0].remembered
    assert fast(x).requires_grad


def test_a_pair_of_rows_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    for bias in (True, False):
        linear = frozen(Linear(384, 640, bias=bias))
        for shape in ((16, 1, 384), (16, 64, 384), (10, 384)):
            x = torch.randn(*shape)
            with torch.inference_mode():
                together = linear(x)
                torch.testing.assert_close(together, nn.Linear.forward(linear, x))
                for i in range(0, len(x), 2):
                    assert torch.equal(linear(x[i : i + 2].clone()), together[i : i + 2])
                assert linear(x[:3]).shape == (3, *shape[1:-1], 640)


@pytest.mark.parametrize("shape", [(8, 96, 16), (160, 160, 8), (192, 48, 16), (128, 128, 32)])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_does_not_depend_on_the_batch(shape, stride):
    """Winograd's for the last shape without stride, oneDNN's for the others."""
    torch.manual_seed(0)
    c_in, c_out, side = shape
    conv = frozen(Conv2d(c_in, c_out, 3, stride=stride, padding=1))
    x = torch.randn(10, c_in, side, side).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        together = conv(x)
        torch.testing.assert_close(together, nn.Conv2d.forward(conv, x), atol=1e-4, rtol=1e-4)
        for i in range(0, len(x), 2):
            assert torch.equal(conv(x[i : i + 2].clone()), together[i : i + 2])


@pytest.mark.parametrize("change", ["write", "replace"])
def test_changed_weights_are_seen(change):
    conv = frozen(Conv2d(64, 64, 3, padding=1, bias=False))
    x = torch.randn(2, 64, 16, 16)
    with torch.no_grad():
        before = conv(x)
        if change == "write":
            conv.weight.mul_(2)
        else:
            conv.weight = nn.Parameter(2 * conv.weight)
        torch.testing.assert_close(conv(x), 2 * before)


def test_what_is_remembered_is_not_part_of_the_weights():
    conv = frozen(Conv2d(64, 64, 3, padding=1))
    with torch.no_grad():
        conv(torch.randn(2, 64, 16, 16))
    assert set(conv.state_dict()) == {"weight", "bias"}
    assert not frozen(conv).remembered


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_torchs_own(dtype):
    """Filters in another order are the same filters, at every size of the map."""
    plain, fast = net().to(dtype), frozen(net().to(dtype))
    for images, side in ((2, 16), (1, 16), (3, 10)):
        x = torch.randn(images, 40, side, side).to(dtype).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            torch.testing.assert_close(fast(x), plain(x), atol=2e-2, rtol=2e-2)
    remembered = [bool(layer.remembered) for layer in fast]
    assert all(remembered) or not any(remembered)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gated_product_in_half_precision_rounds_no_more_than_its_definition(dtype, bias):
    torch.manual_seed(0)
    exact = Linear(64, 256, bias=bias)
    plain, fast = copy.deepcopy(exact).to(dtype), frozen(copy.deepcopy(exact).to(dtype))
    x = torch.randn(2, 30, 64).to(dtype)
    with torch.inference_mode():
        a, b = nn.functional.linear(
            x.float(), plain.weight.float(), None if not bias else plain.bias.float()
        ).chunk(2, -1)
        truth = a * nn.functional.gelu(b)
        ours, theirs = (gated(layer, x).float() for layer in (fast, plain))
    assert (ours - truth).square().mean() <= 1.05 * (theirs - truth).square().mean()
    assert not torch.equal(ours, truth)
