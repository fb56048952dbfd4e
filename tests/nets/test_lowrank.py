"""Low-rank changes: what they add, by the definition of each layer, and that the first net is never touched."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mezzotint.nets.blocks import channels_last
from mezzotint.nets.lowrank import LowRank, changed


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float32)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_a_linear_layer_gains_a_side_branch():
    layer, x = nn.Linear(6, 5), randn(3, 6)
    change = LowRank(randn(2, 6), randn(5, 2), alpha=3.0)
    other = changed(nn.Sequential(layer), {"0": [(change, 0.7)]})
    expected = layer(x) + 0.7 * (3.0 / 2) * (x @ change.down.T) @ change.up.T
    torch.testing.assert_close(other(x), expected)
    assert change.fits(layer.weight.shape)
    assert not change.fits((6, 5))


def test_a_convolution_gains_a_branch_of_two_or_three():
    x, layer = randn(2, 6, 8, 8), nn.Conv2d(6, 5, 3, padding=1)
    two = LowRank(randn(2, 6, 3, 3), randn(5, 2, 1, 1))
    branch = F.conv2d(F.conv2d(x, two.down, padding=1), two.up)
    torch.testing.assert_close(changed(layer, {"": [(two, 1.0)]})(x), layer(x) + branch, rtol=1e-4, atol=1e-4)
    three = LowRank(randn(2, 6, 1, 1), randn(5, 2, 1, 1), mid=randn(2, 2, 3, 3), alpha=1.0)
    branch = F.conv2d(F.conv2d(F.conv2d(x, three.down), three.mid, padding=1), three.up)
    torch.testing.assert_close(
        changed(layer, {"": [(three, 1.0)]})(x), layer(x) + branch / 2, rtol=1e-4, atol=1e-4
    )
    assert all(change.fits(layer.weight.shape) and not change.fits((5, 6)) for change in (two, three))


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(6, 5, 3)])
def test_dora_sets_lengths(layer, rows):
    """Whatever A and B are, each row (or column) ends with the length that was learnt."""
    magnitude = torch.rand(5, 1) + 1 if rows else torch.rand(1, 6) + 1
    kernel = layer.weight.shape[2:]
    change = LowRank(randn(2, 6, *kernel), randn(5, 2), magnitude=magnitude)
    weight = changed(layer, {"": [(change, 1.0)]}).weight
    by = weight.flatten(1) if rows else weight.transpose(0, 1).flatten(1)
    torch.testing.assert_close(by.norm(dim=1), magnitude.flatten())
    half = changed(layer, {"": [(change, 0.5)]}).weight
    torch.testing.assert_close(half, (weight + layer.weight) / 2)


def test_several_add_up_and_none_is_the_net_itself():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    one, two = (LowRank(randn(2, 6), randn(6, 2)) for _ in range(2))
    both = changed(net, {"1": [(one, 0.5), (two, -2.0)]})
    expected = net[1].weight + 0.5 * one.up @ one.down - 2.0 * two.up @ two.down
    torch.testing.assert_close(both[1].weight.data, expected)
    assert changed(net, {}) is net


def test_the_first_net_is_never_touched_and_shares_what_is_not_changed():
    net = channels_last(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    other = changed(net, {"2": [(LowRank(randn(2, 8, 3, 3), randn(8, 2, 1, 1)), 1.0)]})
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert other[0].weight is net[0].weight
    assert other[1].running_mean is net[1].running_mean
    assert not torch.equal(other[2].weight, net[2].weight)
    assert other[2].weight.stride() == net[2].weight.stride()
    assert other[2].bias is net[2].bias
    assert list(other.state_dict()) == list(net.state_dict())


def test_half_precision_is_rounded_once():
    layer = nn.Linear(64, 64).bfloat16()
    changes = [(LowRank(randn(4, 64).bfloat16(), randn(64, 4).bfloat16()), 0.1) for _ in range(3)]
    total = layer.weight.float() + sum(0.1 * c.up.float() @ c.down.float() for c, _ in changes)
    weight = changed(layer, {"": changes}).weight
    assert weight.dtype == torch.bfloat16
    assert (weight.float() - total).abs().max() <= total.abs().max() * 2**-8
