"""Buckets hold what they promise; a view shows the window that it names."""

import math

import numpy as np
import pytest
from PIL import Image

from mezzotint.data.views import View, bucket_rows, bucket_table, buckets, cut_off, nearest, seen


@pytest.mark.parametrize(("resolution", "step"), [(512, 64), (1024, 64), (128, 8), (32, 1)])
def test_buckets_are_as_large_as_they_may_be(resolution, step):
    found = buckets(resolution, step)
    assert (resolution, resolution) in found
    for width, height in found:
        assert width % step == height % step == 0
        assert width * height <= resolution**2
        assert max(width, height) <= 2 * min(width, height)
        assert (height, width) in found
        assert (width + step) * (height + step) > resolution**2
    assert buckets(resolution, step, 1.0) == [(resolution, resolution)]


def test_the_nearest_shape_loses_least():
    choices = buckets(512, 64)
    assert nearest((4000, 4000), choices) == (512, 512)
    assert nearest((300, 100), choices) == max(choices, key=lambda b: b[0] / b[1])
    for size in ((640, 480), (480, 640), (1000, 999), (123, 200)):
        best = nearest(size, choices)
        distance = abs(math.log(best[0] / best[1]) - math.log(size[0] / size[1]))
        assert all(
            distance <= abs(math.log(b[0] / b[1]) - math.log(size[0] / size[1])) + 1e-9 for b in choices
        )
    assert cut_off((640, 320), (512, 256)) == pytest.approx(0)
    assert cut_off((640, 320), (256, 256)) == pytest.approx(0.5)


def test_windows_and_mirrors():
    ramp = np.zeros((10, 30, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(30), np.arange(10)[:, None]
    picture = Image.fromarray(ramp)
    for left, expected in ((0.0, 0), (0.5, 10), (1.0, 20)):
        view = seen(picture, View((10, 10), left=left))
        assert np.array_equal(view.pixels, ramp[:, expected : expected + 10])
        assert (view.original, view.corner) == ((30, 10), (expected, 0))
    assert np.array_equal(seen(picture, View((30, 10), mirrored=True)).pixels, ramp[:, ::-1])
    assert seen(picture, View((60, 16))).pixels.shape == (16, 60, 3)
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (seen(clear, View((4, 4)), (1, 2, 3)).pixels == [1, 2, 3]).all()


def test_the_table_counts():
    table = bucket_table(bucket_rows([(64, 64), (640, 320), (80, 40)], [(64, 64), (88, 44), (88, 44)]))
    assert table.splitlines()[1:] == [
        "64 x 64             1    0.0%         0",
        "88 x 44             2    0.0%         1",
    ]
