"""Contact sheets and films: every picture is there, where it should be."""

import json

import numpy as np
import pytest
from PIL import Image

from mezzotint.errors import MezzotintError
from mezzotint.formats.sheet import contact_sheet, save_film

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]


def squares(size=(100, 100)):
    return [Image.new("RGB", size, colour) for colour in COLOURS]


def bounds(sheet, colour):
    """(left, top, right, bottom) of what has that colour."""
    y, x = np.nonzero((np.asarray(sheet) == colour).all(axis=2))
    return (x.min(), y.min(), x.max() + 1, y.max() + 1)


def test_places():
    sheet = contact_sheet(squares(), columns=2, margin=10)
    assert sheet.size == (10 + 2 * 110, 10 + 3 * 110)
    for i, colour in enumerate(COLOURS):
        left, top = 10 + 110 * (i % 2), 10 + 110 * (i // 2)
        assert bounds(sheet, colour) == (left, top, left + 100, top + 100)
    assert sheet.getpixel((0, 0)) == (255, 255, 255)


def test_captions_stand_below_their_pictures():
    labels = ["one", "a caption that is much too long for so narrow a picture and goes on and on", ""]
    sheet = contact_sheet(squares(), labels, columns=3, margin=10)
    bare = contact_sheet(squares(), columns=3, margin=10)
    assert sheet.width == bare.width
    ink = np.asarray(sheet.convert("L")) < 128
    for colour in COLOURS:
        left, top, right, bottom = bounds(sheet, colour)
        ink[top:bottom, left:right] = False
    below = [ink[110 : bounds(sheet, COLOURS[3])[1], 10 + 110 * i : 110 + 110 * i].any() for i in range(3)]
    assert below == [True, True, False]
    assert ink.sum() == sum(
        ink[110:, 10 + 110 * i : 110 + 110 * i].sum() for i in range(3)
    )  # none outside of its cell
    assert not ink[bounds(sheet, COLOURS[3])[1] :].any()


def test_accents_are_left_out_of_captions():
    """Pillow's font has none; its box for what it lacks says less."""
    assert contact_sheet(squares()[:1], ["cafe naive"]) == contact_sheet(squares()[:1], ["café naïve"])


def test_nearly_square_by_default_and_small_pictures_get_room():
    assert contact_sheet(squares(), margin=10).size == (10 + 3 * 110, 10 + 2 * 110)
    assert contact_sheet(squares((16, 16))[:1], ["a label"]).width > 96


def test_transparent_pictures_show_white():
    sheet = contact_sheet([Image.new("RGBA", (100, 100), (0, 0, 0, 0))])
    assert sheet.getextrema() == ((255, 255),) * 3


def test_film(tmp_path):
    recipe = {"prompt": "é" * 300}
    path = save_film(tmp_path / "a.gif", squares(), recipe=recipe, seconds=0.2, hold=1)
    with Image.open(path) as film:
        assert (film.n_frames, film.info["loop"], film.info["duration"]) == (5, 0, 200)
        said = json.loads(film.info["comment"])
        for i, colour in enumerate(COLOURS):
            film.seek(i)
            assert film.convert("RGB").getpixel((50, 50)) == colour
        assert film.info["duration"] == 1000
    assert said["mezzotint"] == recipe
    assert said["DigitalSourceType"].endswith("/trainedAlgorithmicMedia")


def test_what_cannot_be_made(tmp_path):
    with pytest.raises(MezzotintError, match="at least one picture"):
        contact_sheet([])
    with pytest.raises(MezzotintError, match="at least one frame"):
        save_film(tmp_path / "a.gif", [])
    with pytest.raises(MezzotintError, match=r"ends in .gif"):
        save_film(tmp_path / "a.mp4", squares())
    assert list(tmp_path.iterdir()) == []
