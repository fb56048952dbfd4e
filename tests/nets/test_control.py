"""Attention under control: nothing happens where nothing is asked for, and what is lent is the old picture's."""

import pytest
import torch

from mezzotint.nets.blocks import Place, attend
from mezzotint.nets.control import aligned, alignment, lent, looks, styled

SELF, CROSS = Place(0, cross=False), Place(1, cross=True)


def rows(n, tokens=9, seed=0):
    return torch.randn(n, tokens, 8, generator=torch.Generator().manual_seed(seed))


def test_looks_are_what_attention_sums_with():
    q, k, v = rows(2), rows(2, 5, 1), rows(2, 5, 2)
    mask = torch.arange(5).expand(2, 1, 1, 5) < 4
    share = looks(q, k, 2, mask)
    by_hand = (share @ v.unflatten(-1, (2, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)
    assert torch.allclose(by_hand, attend(q, k, v, 2, mask), atol=1e-6)


@pytest.mark.parametrize("guidance_rows", [1, 2])
def test_style_zero_is_no_style_and_the_others_see_themselves(guidance_rows):
    q, k, v = (rows(2 * guidance_rows, seed=seed) for seed in range(3))
    plain = attend(q, k, v, 2)
    assert torch.equal(styled(0.0)(SELF, q, k, v, 2, None), plain)
    assert torch.equal(styled(1.0)(CROSS, q, k, v, 2, None), plain)
    some, much = (styled(s)(SELF, q, k, v, 2, None) for s in (1e-6, 1.0))
    assert torch.allclose(some[guidance_rows:], plain[guidance_rows:], atol=1e-6)
    only = attend(aligned(q[:guidance_rows], q[guidance_rows:]), k[guidance_rows:], v[guidance_rows:], 2)
    assert torch.allclose(much[:guidance_rows], only, atol=1e-5)
    assert not torch.allclose(much[:guidance_rows], plain[:guidance_rows], atol=1e-2)


def test_aligned_has_the_other_s_mean_and_spread():
    x, other = rows(2), 3 + 2 * rows(2, seed=1)
    y = aligned(x, other)
    assert torch.allclose(y.mean(1), other.mean(1), atol=1e-4)
    assert torch.allclose(y.std(1), other.std(1), atol=1e-3)
    assert torch.allclose(aligned(x[:, :1], other[:, :1]), other[:, :1])  # of one token there is no spread


def test_words_that_stay_and_words_that_are_replaced_have_counterparts():
    moved, common = alignment([0, 5, 6, 7, 1], [0, 5, 9, 7, 1])  # replaced
    assert torch.equal(moved, torch.eye(5))
    assert common.all()
    moved, common = alignment([0, 5, 7, 1], [0, 5, 9, 8, 7, 1])  # refined
    assert common.tolist() == [True, True, False, False, True, True]
    assert moved.nonzero().tolist() == [[0, 0], [1, 1], [2, 4], [3, 5]]
    moved, common = alignment([0, 5, 1], [0, 9, 8, 1])  # replaced by more
    assert common.all()
    assert moved[1].tolist() == [0, 0.5, 0.5, 0]


@pytest.mark.parametrize("half", [1, 2])
def test_what_is_lent_is_the_old_picture_s_looks_on_the_new_picture_s_values(half):
    q, k, v = rows(2 * half), rows(2 * half, 4, 1), rows(2 * half, 4, 2)
    plain = attend(q, k, v, 2)
    seen = lent([0, 5, 6, 1], [0, 5, 9, 1])(CROSS, q, k, v, 2, None)
    old, new = 2 * half - 1, half - 1  # the prompts' rows
    assert torch.allclose(seen[new], attend(q[old:], k[old:], v[new : new + 1], 2)[0], atol=1e-6)
    unchanged = [i for i in range(2 * half) if i != new]
    assert torch.allclose(seen[unchanged], plain[unchanged], atol=1e-6)
    own = lent([], [7, 7, 7, 7, 7])(CROSS, q, k, v, 2, None)  # nothing in common
    assert torch.allclose(own, plain, atol=1e-6)
    assert torch.equal(lent([0], [0], words=False)(CROSS, q, k, v, 2, None), plain)
    layout = lent([0], [0])(SELF, q, q, q, 2, None)
    assert torch.allclose(layout[new], attend(q[old:], q[old:], q[new : new + 1], 2)[0], atol=1e-6)
    assert torch.allclose(layout[unchanged], attend(q, q, q, 2)[unchanged], atol=1e-6)


def test_words_count_as_much_as_is_said():
    q, k, v = rows(4), rows(4, 4, 1), rows(4, 4, 2)
    ids = [0, 5, 6, 1]
    plain, none, twice = (
        lent(ids, ids, weights=weights)(CROSS, q, k, v, 2, None)
        for weights in ([1.0] * 4, [1.0, 0.0, 1.0, 1.0], [1.0, 2.0, 1.0, 1.0])
    )
    assert torch.equal(lent(ids, ids)(CROSS, q, k, v, 2, None), plain)
    assert torch.allclose(twice - plain, plain - none, atol=1e-6)
    assert not torch.allclose(twice[1], plain[1], atol=1e-3)
    assert torch.equal(twice[[0, 2, 3]], plain[[0, 2, 3]])  # guidance's row, and the old picture's
