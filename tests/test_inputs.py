"""Pictures that are given: whatever people have on their disks, or one line that says what is wrong."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from mezzotint.errors import MezzotintError, UsageError
from mezzotint.inputs import Input
from mezzotint.request import Request


def stored(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def colours():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8))


def test_path_bytes_pillow_and_base64_are_the_same_picture(tmp_path, colours):
    path = tmp_path / "a.png"
    path.write_bytes(stored(colours))
    data = path.read_bytes()
    of_path, of_bytes = Input.of(path), Input.of(data)
    assert of_path == of_bytes == Input.of(str(path))
    assert of_path.told() == {"path": str(path), "sha256": of_bytes.sha256}
    assert np.array_equal(Input.of(colours).image, colours)
    text = base64.b64encode(data).decode()
    for sent in (text, f"data:image/png;base64,{text}", data):
        assert Request.parse({"image": sent}, files=False).image == of_path


def test_a_request_from_afar_opens_no_file(tmp_path, colours):
    path = tmp_path / "secret.png"
    path.write_bytes(stored(colours))
    for sent in (str(path), {"path": str(path)}, "/etc/passwd"):
        for read in (Request.model_validate, lambda fields: Request.parse(fields, files=False)):
            with pytest.raises(UsageError, match="base64"):
                read({"image": sent})


def test_a_recipe_finds_its_picture_or_says_that_it_is_another(tmp_path, colours):
    path = tmp_path / "a.png"
    path.write_bytes(stored(colours))
    recipe = Request(image=path).model_dump()
    assert Request.of_recipe(recipe).image == Input.of(path)
    path.write_bytes(stored(colours.rotate(180)))
    with pytest.raises(MezzotintError, match="not the picture that the recipe means"):
        Request.of_recipe(recipe)
    path.unlink()
    with pytest.raises(MezzotintError, match=r"a\.png: there is no such file"):
        Request.of_recipe(recipe)
    with pytest.raises(MezzotintError, match="without a path"):
        Request.of_recipe(Request(image=colours).model_dump())


def test_the_camera_s_turn_is_honoured(colours):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen turned by a quarter
    turned = Input.of(stored(colours, "JPEG", exif=exif))
    assert turned.image.size == (5, 7)


@pytest.mark.parametrize(
    ("image", "kind", "mode"),
    [
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG", "RGB"),
        (Image.fromarray(np.full((4, 4), 65535, np.uint16)), "PNG", "RGB"),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG", "RGBA"),
        (Image.new("LA", (4, 4), (255, 0)), "PNG", "RGBA"),
        (Image.new("1", (4, 4)), "PNG", "RGB"),
    ],
)
def test_all_kinds_become_eight_bits_of_red_green_blue(image, kind, mode):
    assert Input.of(stored(image, kind)).image.mode == mode


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    film = stored(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Input.of(film).image.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (b"no picture", "the picture given is not a picture; PNG"),
        (stored(Image.new("RGB", (9, 9)))[:45], "damaged or cut short"),
        (stored(Image.new("1", (10_000, 6_000))), "10000 x 6000 pixels, more than 50,000,000 are not opened"),
    ],
)
def test_what_cannot_be_opened(given, says):
    with pytest.raises(MezzotintError, match=says) as caught:
        _ = Input.of(given).image
    assert "\n" not in str(caught.value)


def test_what_is_no_picture_at_all(tmp_path):
    with pytest.raises(UsageError, match="and not int"):
        Request(image=3)
    with pytest.raises(MezzotintError, match="cannot be read"):
        Request(image=tmp_path)
