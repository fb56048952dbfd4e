"""The kernel distance: its closed form, its bias and its interval; what it says of spoilt pictures."""

import pytest
import torch
import torch.nn.functional as F

from mezzotint.metrics.kernel import features, kernel_distance


def rows(n, d, shift=0.0, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def test_of_shifted_normals_it_is_what_theory_says_and_the_interval_covers_it():
    """For one dimension, with x.y = xy: E (xy + 1)^3 = E x^3 E y^3 + 3 E x^2 E y^2 + 3 E x E y + 1."""
    shift = 0.5
    moments = {0: (0, 1, 0), shift: (shift, shift**2 + 1, shift**3 + 3 * shift)}

    def mean(p, q):
        (a1, a2, a3), (b1, b2, b3) = moments[p], moments[q]
        return a3 * b3 + 3 * a2 * b2 + 3 * a1 * b1 + 1

    expected = mean(0, 0) + mean(shift, shift) - 2 * mean(0, shift)
    fixed = rows(10_000, 1)
    fixed = (fixed - fixed.mean()) / fixed.std()  # so that standardising changes nothing
    assert kernel_distance(fixed[:3000], rows(3000, 1, shift, 1)).value == pytest.approx(expected, rel=0.2)
    same = [kernel_distance(rows(60, 12, seed=i), rows(60, 12, seed=500 + i)) for i in range(100)]
    values = torch.tensor([one.value for one in same])
    assert abs(float(values.mean())) < 4 * float(values.std()) / 10  # unbiased, to what standardising does
    assert sum(one.low <= 0 <= one.high for one in same) > 85
    far = [kernel_distance(rows(60, 12, seed=i), rows(60, 12, 0.5, 500 + i)) for i in range(30)]
    assert sum(one.low > 0 for one in far) > 25


def test_it_is_symmetric_in_what_it_counts_and_refuses_too_little():
    a, b = rows(40, 5), rows(30, 5, 0.3, 1)
    both = kernel_distance(a, b)
    assert both.low < both.value < both.high
    assert both.n == 30
    shuffled = kernel_distance(a[torch.randperm(40)], b[torch.randperm(30)])
    assert shuffled.value == pytest.approx(both.value, rel=1e-9)
    with pytest.raises(ValueError, match="too small"):
        kernel_distance(a[:2], b)


def scenes(n, seed, kinds=4):
    """uint8 [n, 3, 32, 32]: discs and bars of a few colours at random places."""
    draw = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    made = torch.full((n, 3, 32, 32), 230.0)
    colours = torch.tensor([[200, 40, 40], [40, 60, 200], [40, 160, 60], [230, 180, 40]]).float()
    for i in range(n):
        kind = int(torch.randint(kinds, (), generator=draw))
        cy, cx = torch.randint(8, 24, (2,), generator=draw).tolist()
        reach = int(torch.randint(4, 9, (), generator=draw))
        inside = (y - cy) ** 2 + (x - cx) ** 2 < reach**2 if kind % 2 else (y - cy).abs() < reach // 2
        made[i] = torch.where(inside, colours[kind][:, None, None], made[i])
    return made.byte()


def test_spoilt_pictures_are_farther_the_more_they_are_spoilt():
    real = features(scenes(96, 0))
    noise = torch.randn(96, 3, 32, 32, generator=torch.Generator().manual_seed(9))

    def distance(pictures):
        return kernel_distance(real, features(pictures))

    fresh = scenes(96, 1)
    assert distance(fresh).low < 0.02
    noisy = [distance((fresh + s * noise).clamp(0, 255).byte()) for s in (8, 25, 80)]
    blurred = [distance(F.avg_pool2d(fresh.float(), w, 1, w // 2).byte()) for w in (3, 7, 15)]
    for spoilt in (noisy, blurred):
        values = [one.value for one in spoilt]
        assert values == sorted(values)
        assert values[0] > distance(fresh).value
        assert spoilt[1].low > distance(fresh).value
    assert distance(scenes(96, 2, kinds=1)).low > distance(fresh).high  # kinds that are missing
    assert torch.equal(features(fresh[:3]), features(fresh)[:3])
