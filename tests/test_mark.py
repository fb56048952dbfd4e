"""The invisible mark: found after what happens to pictures, and not where it never was."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint.mark import LEAST, STRENGTH, SURE, find, marked


def scene(seed, size=(128, 128)):
    """Something between an emoji and a photograph: flat shapes, soft shading, some grain."""
    random = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[:height, :width]
    picture = np.zeros((height, width, 3)) + random.integers(60, 256, 3)
    for _ in range(6):
        cx, cy, r = random.uniform(0, width), random.uniform(0, height), random.uniform(0.1, 0.4) * min(size)
        inside = (x - cx) ** 2 + (y - cy) ** 2 < r**2
        shade = 1 - 0.4 * np.clip((x - cx + y - cy) / (2 * r), -1, 1)
        picture[inside] = (random.integers(0, 256, 3) * shade[..., None])[inside]
    picture += random.normal(0, random.uniform(0, 6), picture.shape)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def jpeg(image, quality=75):
    held = io.BytesIO()
    image.save(held, "JPEG", quality=quality)
    return Image.open(held)


def cut(image, share=0.8):
    """A fifth off each side's length, from a corner that is no multiple of anything."""
    width, height = (round(side * share) for side in image.size)
    left, top = image.width // 9, image.height // 7
    return image.crop((left, top, left + width, top + height))


def scaled(image, by):
    return image.resize((round(image.width * by), round(image.height * by)), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(128, 128), (200, 320), (512, 512)])
@pytest.mark.parametrize(
    "change",
    [
        lambda image: image,
        jpeg,
        cut,
        lambda image: jpeg(cut(image)),
        lambda image: scaled(image, 0.75),
        lambda image: scaled(image, 1.37),
        lambda image: jpeg(scaled(image, 2)),
    ],
    ids=["as it is", "jpeg 75", "cut", "cut and jpeg", "smaller", "larger", "twice and jpeg"],
)
def test_it_is_found_after(change, size):
    assert find(change(marked(scene(size[0], size)))).sure


def test_the_scale_is_told():
    assert find(scaled(marked(scene(1)), 1.5)).scale == pytest.approx(1.5, rel=0.02)


def test_it_is_faint():
    before, after = np.asarray(scene(3)).astype(float), np.asarray(marked(scene(3))).astype(float)
    error = np.sqrt(((before - after) ** 2).mean())
    assert 20 * np.log10(255 / error) > 41
    assert abs(before - after).max() < 5 * STRENGTH


def test_small_pictures_have_no_room():
    small = scene(0, (LEAST - 1, 200))
    assert marked(small) is small
    assert not find(Image.new("RGB", (8, 8))).sure


def test_it_is_not_found_where_it_never_was():
    """What is called chance is chance: the smallest of n is about 1/n, and none is sure."""
    chances = [find(scene(100 + seed)).chance for seed in range(8)]
    chances += [find(jpeg(scene(300 + seed, (160, 100)))).chance for seed in range(3)]
    assert min(chances) > 1e-3
    for flat in (Image.new("RGB", (128, 128), "white"), Image.new("RGB", (300, 200))):
        assert not find(flat).sure


def test_noise_does_not_fool_the_bound():
    torch.manual_seed(0)
    noise = [Image.fromarray((torch.rand(128, 128, 3) * 255).byte().numpy()) for _ in range(4)]
    assert min(find(image).chance for image in noise) > SURE * 1000
