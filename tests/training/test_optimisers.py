"""Muon's steps against the singular value decomposition, and every parameter in one optimiser."""

import pytest
import torch
from torch import nn

from mezzotint.training.config import Optim
from mezzotint.training.optimisers import Muon, as_matrix, optimisers, orthogonal


@pytest.mark.parametrize("shape", [(24, 24), (16, 60), (60, 16)])
def test_orthogonal_keeps_directions_and_evens_lengths(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonal(matrix).float() @ vt.T  # nearly diagonal, near to 1
    large = s > 0.1 * s[0]
    assert inner.diagonal()[large].sub(0.95).abs().max() < 0.35
    assert (inner - inner.diagonal().diag()).abs().max() < 0.05


def test_a_convolution_is_one_matrix_in_either_memory_format():
    conv = nn.Conv2d(6, 8, 3)
    assert as_matrix(conv.weight).shape == (8, 54)
    last = conv.weight.detach().to(memory_format=torch.channels_last)
    view = as_matrix(last)
    view[0, 0] = 7.0
    assert last[0, 0, 0, 0] == 7.0  # a view, so that steps arrive


def test_the_length_of_a_step_is_that_of_adam():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(64, 256))
    before = p.detach().clone()
    p.grad = torch.randn_like(p)
    Muon([p], lr=1e-2).step()
    length = (p.detach() - before).square().mean().sqrt()
    assert length == pytest.approx(0.2 * 1e-2, rel=0.15)


def test_each_trained_parameter_has_one_optimiser():
    net = nn.ModuleDict(
        {
            "conv_in": nn.Conv2d(3, 8, 3),
            "inner": nn.Conv2d(8, 8, 3),
            "norm": nn.GroupNorm(2, 8),
            "token_embedding": nn.Embedding(10, 8),
            "frozen": nn.Linear(8, 8),
        }
    )
    net["frozen"].requires_grad_(False)
    optim = Optim(steps=1, batch=1, lr=1e-3, optimiser="muon", weight_decay=0.1)
    muon, adamw = optimisers(net, optim)
    assert muon.param_groups[0]["params"] == [net["inner"].weight]
    owned = [p for o in (muon, adamw) for group in o.param_groups for p in group["params"]]
    assert sorted(map(id, owned)) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    assert all(p.ndim > 1 for p in adamw.param_groups[0]["params"])
