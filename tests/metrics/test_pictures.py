"""Colours, distances and PSNR against values known from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import shapes
import torch

from mezzotint.data.captions import BESIDE, PALETTE, STACKED, Thing, compose, pair, single
from mezzotint.metrics.pictures import (
    background_colours,
    half,
    lab,
    named_colours,
    nearest_two,
    psnr,
    small,
    stack,
)


def test_lab_of_the_primaries() -> None:
    """Values of the CIE formulae for sRGB under D65, as printed in colour handbooks."""
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]])
    expected = torch.tensor(
        [[53.24, 80.09, 67.20], [87.73, -86.18, 83.18], [32.30, 79.19, -107.86], [100, 0, 0], [0, 0, 0]]
    )
    assert torch.allclose(lab(colours), expected, atol=0.05)


def test_backgrounds_are_named_behind_every_glyph() -> None:
    rng = np.random.default_rng(0)
    things, glyphs = [Thing(i, str(i)) for i in range(10)], shapes.glyphs()
    asked = list(PALETTE) * 3
    scenes = [single(things[i % 10], "thing", background=colour, rng=rng) for i, colour in enumerate(asked)]
    pictures = stack([np.asarray(compose(scene, glyphs)) for scene in scenes])
    assert named_colours(background_colours(pictures), PALETTE) == asked
    dimmed = (pictures.float() * 0.95 + 4 * torch.randn(pictures.shape)).clamp(0, 255).to(torch.uint8)
    assert named_colours(background_colours(dimmed), PALETTE) == asked


def test_the_border_alone_counts() -> None:
    picture = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    picture[:, 0] = 200
    picture[:, :, 4:-4, 4:-4] = 77
    assert background_colours(picture).tolist() == [[200, 0, 0]]


@pytest.mark.parametrize("form", BESIDE + STACKED)
def test_the_half_of_a_thing_shows_it_and_not_the_other(form: str) -> None:
    things, glyphs = [Thing(0, "red"), Thing(6, "blue")], shapes.glyphs()
    for seed in range(5):
        scene = pair(things[0], "red", things[1], "blue", form, rng=np.random.default_rng(seed))
        picture = stack([np.asarray(compose(scene, glyphs))])
        ends = ("top", "bottom") if form in STACKED else ("left", "right")
        red, blue = (half(picture, end)[0].float() for end in ends)
        reds, blues = (((part[0] - part[2]) > 60, (part[2] - part[0]) > 60) for part in (red, blue))
        assert reds[0].sum() > 1000
        assert blues[1].sum() > 1000
        assert reds[1].sum() < 0.15 * reds[0].sum()
        assert blues[0].sum() < 0.15 * blues[1].sum()


def test_distances_are_root_mean_squares() -> None:
    grey = torch.tensor([0, 51, 255]).view(3, 1, 1, 1).expand(3, 3, 128, 128).to(torch.uint8)
    found = nearest_two(small(grey[:2]), small(grey[[0, 2]]))
    assert found == pytest.approx(np.array([[0, 1], [0.2, 0.8]]), abs=1e-5)


def test_psnr_of_a_known_error() -> None:
    a = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    b = a.clone()
    b[1] += 16
    assert psnr(a, b) == pytest.approx([99, 20 * np.log10(255 / 16)])
