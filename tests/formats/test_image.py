"""Pictures of others are opened with bounds; ours carry their recipe, and give it back."""

import io
import json
import struct
import zlib
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mezzotint.errors import MezzotintError
from mezzotint.formats.image import flatten, open_image, read_recipe, save_image, to_image, to_tensor
from mezzotint.formats.recipe import COMPOSITE, infotext, parse_infotext

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
RECIPE = {
    "prompt": 'a cat, (red:1.3) hat: "quoted"\nsecond line 😀 é',
    "negative_prompt": "blurry, low quality",
    "seed": 123,
    "num_inference_steps": 20,
    "guidance_scale": 7.0,
    "sampler": "dpmpp_2m",
    "grid": "karras",
    "width": 128,
    "height": 96,
    "model": "emoji, version: 2",
    "loras": [{"name": "x", "weight": 0.5}],
}


def picture(mode="RGB", size=(40, 30)):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def data(image, **how):
    file = io.BytesIO()
    image.save(file, **({"format": "PNG"} | how))
    return file.getvalue()


def test_conversion_is_that_of_diffusers():
    from diffusers.image_processor import VaeImageProcessor

    processor = VaeImageProcessor(vae_scale_factor=1)
    torch.manual_seed(0)
    batch = torch.cat([torch.randn(1, 3, 20, 30), torch.linspace(-1.1, 1.1, 1800).reshape(1, 3, 20, 30)])
    for ours, theirs in zip(
        map(to_image, batch), processor.postprocess(batch, output_type="pil"), strict=True
    ):
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    image = picture()
    assert torch.equal(to_tensor(image), processor.preprocess(image)[0])


def test_every_level_survives_the_round_trip():
    levels = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
    assert np.array_equal(np.asarray(to_image(to_tensor(levels))), np.asarray(levels))
    assert to_tensor(levels).shape == (3, 16, 16)
    assert (to_tensor(levels).min(), to_tensor(levels).max()) == (-1, 1)


def test_half_precision_tensor():
    assert to_image(torch.zeros(3, 4, 4, dtype=torch.bfloat16)).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("image", "mode"),
    [
        (picture("RGB"), "RGB"),
        (picture("L"), "RGB"),
        (picture("1"), "RGB"),
        (picture("P"), "RGB"),
        (picture("RGBA"), "RGBA"),
        (picture("LA"), "RGBA"),
    ],
    ids=lambda value: getattr(value, "mode", value),
)
def test_colour_modes(image, mode):
    opened = open_image(data(image))
    assert opened.mode == mode
    assert np.array_equal(np.asarray(opened), np.asarray(image.convert(mode)))


def test_transparent_palette():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    opened = open_image(data(image, transparency=0))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0, 0), (0, 255, 0, 255)]
    assert flatten(opened).getpixel((0, 0)) == (255, 255, 255)
    assert flatten(opened, (0, 0, 9)).getpixel((0, 0)) == (0, 0, 9)


def test_sixteen_bits_are_scaled_not_clipped():
    levels = np.array([[0, 257 * 100, 65535, 128, 129]], dtype=np.uint16)
    opened = open_image(data(Image.fromarray(levels)))
    assert [opened.getpixel((x, 0))[0] for x in range(5)] == [0, 100, 255, 0, 1]


def test_camera_turn_is_applied():
    image = picture(size=(40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    opened = open_image(data(image, exif=exif))
    assert opened.size == (30, 40)
    assert np.array_equal(np.asarray(opened), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF", "BMP"])
def test_formats(form, tmp_path):
    picture().save(tmp_path / "a", format=form)
    assert open_image(tmp_path / "a").size == (40, 30)


def bomb(width=60000, height=60000):
    """A PNG of few bytes that says it has many pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 10000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


WHOLE = data(picture())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a picture; PNG, JPEG"),
        (b"%PDF-1.4 nothing", "is not a picture"),
        (WHOLE[: len(WHOLE) // 2], "is damaged or cut short"),
        (WHOLE[:30], "is damaged or cut short|is not a picture"),
        (WHOLE[:60] + b"\xff" * 40 + WHOLE[100:], "is damaged or cut short"),
        (data(picture(), format="JPEG")[:400], "is damaged or cut short"),
        (bomb(), "pixels"),
        (bomb(10000, 6000), "has 10000 x 6000 pixels, more than 50,000,000 are not opened"),
        (data(picture(), format="TIFF"), "is not a picture"),
    ],
    ids=range(9),
)
@pytest.mark.parametrize("read", [open_image, read_recipe])
def test_what_is_not_opened(content, says, read, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(MezzotintError, match=f"x.png .*({says})") as caught:
        read(tmp_path / "x.png")
    assert "\n" not in str(caught.value)
    with pytest.raises(MezzotintError, match=r"^the upload .*"):
        read(content, name="the upload")


def test_missing_picture(tmp_path):
    with pytest.raises(MezzotintError, match="there is no such file"):
        open_image(tmp_path / "nothing.png")
    with pytest.raises(MezzotintError, match=r"cannot be read \(is a directory\)"):
        open_image(tmp_path)


def test_bounds_are_the_callers(tmp_path):
    with pytest.raises(MezzotintError, match="more than 1,000 are not opened"):
        open_image(WHOLE, max_pixels=1000)


def test_recipe_comes_back(tmp_path):
    path = save_image(tmp_path / "a.png", picture(), RECIPE)
    assert read_recipe(path) == RECIPE
    assert np.array_equal(np.asarray(open_image(path)), np.asarray(picture()))


@pytest.mark.parametrize(
    "prompt", ["", "é" * 5000, "a\0b", "half \udc80 a pair", "日本語\r\n\t😀", '"', "Steps: 1, A: 2, B: 3"]
)
def test_odd_prompts(tmp_path, prompt):
    assert read_recipe(save_image(tmp_path / "a.png", picture(), {"prompt": prompt})) == {"prompt": prompt}


def test_every_picture_says_that_a_machine_made_it(tmp_path):
    kind = "http://cv.iptc.org/newscodes/digitalsourcetype/"
    for source, name in (
        (None, "trainedAlgorithmicMedia"),
        (COMPOSITE, "compositeWithTrainedAlgorithmicMedia"),
    ):
        how = {} if source is None else {"source": source}
        path = save_image(tmp_path / f"{name}.png", picture(), {"prompt": "x"}, **how)
        with Image.open(path) as image:
            (described,) = ElementTree.fromstring(image.info["xmp"]).iter(f"{{{RDF}}}Description")
        assert described.get(f"{{{IPTC}}}DigitalSourceType") == kind + name
        assert described.get("{http://ns.adobe.com/xap/1.0/}CreatorTool").startswith("mezzotint ")


def test_only_png_is_written(tmp_path):
    with pytest.raises(MezzotintError, match=r"give a name that ends in .png"):
        save_image(tmp_path / "a.jpg", picture(), {})
    save_image(tmp_path / "a.png", picture(), {})
    with pytest.raises(MezzotintError, match="exists"):
        save_image(tmp_path / "a.png", picture(), {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_infotext_is_what_other_tools_write():
    text = infotext(RECIPE | {"version": "v1"})
    assert text == (
        'a cat, (red:1.3) hat: "quoted"\nsecond line 😀 é <lora:x:0.5>\n'
        "Negative prompt: blurry, low quality\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 123, Size: 128x96, "
        'Model: "emoji, version: 2", RNG: mezzotint, Version: v1'
    )
    back = parse_infotext(text)
    told = {k: v for k, v in RECIPE.items() if k != "loras"}
    told["prompt"] += " <lora:x:0.5>"  # what a request reads as the LoRA
    assert {key: back[key] for key in RECIPE if key in back} == told


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("a dog", {"prompt": "a dog", "negative_prompt": ""}),
        ("a dog\nNegative prompt: a\nb", {"prompt": "a dog", "negative_prompt": "a\nb"}),
        ("a dog\nnot: the, last", {"prompt": "a dog\nnot: the, last", "negative_prompt": ""}),
        (
            "x\nSteps: 30, Sampler: Euler a, CFG scale: 7.5, Seed: 99, Size: 512x768, Model hash: abcdef0123, "
            'Lora hashes: "one: 1a, two: 2b", Clip skip: 2, Version: v1.10',
            {"prompt": "x", "negative_prompt": "", "num_inference_steps": 30, "sampler": "euler_ancestral",
             "guidance_scale": 7.5, "seed": 99, "width": 512, "height": 768, "model_hash": "abcdef0123",
             "lora_hashes": "one: 1a, two: 2b", "clip_skip": 2, "version": "v1.10"},
        ),
        (
            "Steps: x, Sampler: Unheard Of, Seed: -1, Size: big",
            {"prompt": "", "negative_prompt": "", "num_inference_steps": "x", "sampler": "Unheard Of", "seed": -1,
             "size": "big"},
        ),
        ('x\nAA: "un\\closed, BB: 2, CC: 3',
         {"prompt": "x", "negative_prompt": "", "AA": '"un\\closed', "BB": "2", "CC": "3"}),
    ],
    ids=range(6),
)  # fmt: skip
def test_texts_of_other_tools(text, recipe, tmp_path):
    assert parse_infotext(text) == recipe
    chunks = PngInfo()
    chunks.add_text("parameters", text)
    picture().save(tmp_path / "a.png", pnginfo=chunks)
    assert read_recipe(tmp_path / "a.png") == recipe


def test_pictures_without_a_whole_recipe(tmp_path):
    picture().save(tmp_path / "a.png")
    with pytest.raises(MezzotintError, match=r"a.png carries no recipe"):
        read_recipe(tmp_path / "a.png")
    picture().save(tmp_path / "a.jpg")
    with pytest.raises(MezzotintError, match=r"a.jpg carries no recipe"):
        read_recipe(tmp_path / "a.jpg")
    for content in ("{", "[]"):
        chunks = PngInfo()
        chunks.add_text("mezzotint", content)
        picture().save(tmp_path / "a.png", pnginfo=chunks)
        with pytest.raises(MezzotintError, match="its recipe is damaged"):
            read_recipe(tmp_path / "a.png")


def test_recipe_stands_before_the_pixels_as_plain_text(tmp_path):
    """Other programs find it without our help, and without decoding."""
    content = save_image(tmp_path / "a.png", picture(), RECIPE).read_bytes()
    kinds, recipes, at = [], [], 8
    while at < len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        body = content[at + 8 : at + 8 + length]
        kinds.append(kind)
        if body.startswith(b"mezzotint\0"):
            recipes.append(json.loads(body.partition(b"\0")[2]))
        at += 12 + length
    assert recipes == [RECIPE]
    assert kinds == [b"IHDR", b"iTXt", b"tEXt", b"iTXt", b"IDAT", b"IEND"]
