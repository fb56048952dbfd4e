"""Captioned emoji: the same pictures whichever source they come from, names in plain words, clear refusals."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mezzotint.data import emoji as emoji_module
from mezzotint.data.emoji import clean_word, emoji_set, find_font, plain, write_emoji
from mezzotint.data.folder import read_folder
from mezzotint.errors import MezzotintError, UsageError

# glyph name -> code points; the last two have no name in Unicode
GLYPHS = {
    "apple": (0x1F34E,),
    "heart": (0x2764,),
    "wave": (0x1F44B,),
    "wave_dark": (0x1F44B, 0x1F3FF),
    "farmer": (0x1F468, 0x200D, 0x1F33E),
    "flag": (0x1F1EF, 0x1F1F5),
    "private": (0xFE82B,),
    "odd": (0x1F34E, 0x200D, 0x2764),
}
JUNK = ["101", ":D", "¯\\", "XD", "+1", "-_-", "12:30", "clock1230", "dog2", "u6708", "7a7a", "1st"]
JUNK += ["blue-square", "of", "lock_with", "x"]
LINE_METRICS = (
    *("ascender", "descender", "widthMax", "caretSlopeNumerator", "caretSlopeDenominator", "caretOffset"),
    *("minOriginSB", "minAdvanceSB", "maxBeforeBL", "minAfterBL", "pad1", "pad2"),
)
NAMED = [glyph for glyph in GLYPHS if glyph not in ("private", "odd")]


def bitmap(glyph: str) -> Image.Image:
    """A picture 136 wide whose outer four columns are empty, as in the font."""
    pixels = np.random.default_rng(sorted(GLYPHS).index(glyph)).integers(
        0, 256, (128, 136, 4), dtype=np.uint8
    )
    pixels[:, :4] = pixels[:, -4:] = 0
    pixels[..., 3] = np.where(pixels[..., 3] < 128, 0, 255)
    return Image.fromarray(pixels)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def make_font(path: Path, bitmaps: bool = True) -> Path:
    """A font of eight glyphs with bitmaps (CBDT format 17) and ligatures."""
    from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
    from fontTools.fontBuilder import FontBuilder
    from fontTools.ttLib import newTable
    from fontTools.ttLib.tables import C_B_D_T_, E_B_L_C_, BitmapGlyphMetrics

    singles = {point for points in GLYPHS.values() for point in points}
    names = {point: next((g for g, p in GLYPHS.items() if p == (point,)), f"u{point:X}") for point in singles}
    order = [".notdef", *sorted({*names.values(), *GLYPHS})]
    builder = FontBuilder(1024)
    builder.setupGlyphOrder(order)
    builder.setupCharacterMap(names)
    builder.setupHorizontalMetrics(dict.fromkeys(order, (1275, 0)))
    builder.setupHorizontalHeader()
    builder.setupPost()
    rules = [
        f"sub {' '.join(names[p] for p in points)} by {glyph};"
        for glyph, points in GLYPHS.items()
        if len(points) > 1
    ]
    addOpenTypeFeaturesFromString(builder.font, f"feature ccmp {{ {' '.join(rules)} }} ccmp;")
    if bitmaps:
        data, location = newTable("CBDT"), newTable("CBLC")
        data.version = location.version = 3.0
        strike = E_B_L_C_.Strike()
        table = strike.bitmapSizeTable
        for direction in ("hori", "vert"):
            metrics = E_B_L_C_.SbitLineMetrics()
            vars(metrics).update(dict.fromkeys(LINE_METRICS, 0))
            setattr(table, direction, metrics)
        table.colorRef, table.flags, table.bitDepth = 0, 1, 32
        table.ppemX = table.ppemY = 109
        index = E_B_L_C_.eblc_index_sub_table_1(None, builder.font)
        index.names = [glyph for glyph in order if glyph in GLYPHS]
        index.indexFormat, index.imageFormat = 1, 17
        strike.indexSubTables = [index]
        glyphs = {}
        for glyph in index.names:
            picture = C_B_D_T_.cbdt_bitmap_format_17(None, builder.font)
            picture.metrics = BitmapGlyphMetrics.SmallGlyphMetrics()
            vars(picture.metrics).update(height=128, width=136, BearingX=0, BearingY=101, Advance=136)
            picture.imageData = png(bitmap(glyph))
            glyphs[glyph] = picture
        data.strikeData, location.strikes = [glyphs], [strike]
        builder.font["CBDT"], builder.font["CBLC"] = data, location
    builder.save(path)
    return path


def make_pictures(folder: Path) -> Path:
    folder.mkdir()
    for glyph, points in GLYPHS.items():
        name = "_".join(f"{p:04x}" for p in points)
        bitmap(glyph).crop((4, 0, 132, 128)).save(folder / f"emoji_u{name}.png")
    (folder / "LICENSE").write_text("not a picture")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_font_folder_and_tar_give_the_same_bytes(tmp_path: Path) -> None:
    font, images = make_font(tmp_path / "f.ttf"), make_pictures(tmp_path / "png")
    with tarfile.open(tmp_path / "png.tar.gz", "w:gz") as archive:
        archive.add(images, "some/where")
    written = []
    for number, source in enumerate(
        [{"font": font}, {"images": images}, {"images": tmp_path / "png.tar.gz"}, {"font": font}]
    ):
        emoji = emoji_set(**source)
        assert (len(emoji), emoji.unnamed) == (len(NAMED), 2)
        records = list(write_emoji(emoji, tmp_path / f"out{number}"))
        assert len(records) == len(NAMED)
        written.append(files(tmp_path / f"out{number}"))
    assert written[0] == written[1] == written[2] == written[3]

    with Image.open(tmp_path / "out0/emoji_u1f34e.png") as picture:
        pixels = np.array(picture)
    expected = np.array(bitmap("apple"))[:, 4:132]
    visible = expected[..., 3] > 0
    assert pixels.shape == (128, 128, 4)
    assert (pixels[visible] == expected[visible]).all()
    assert not pixels[~visible].any()


def test_metadata_says_what_each_picture_is(tmp_path: Path) -> None:
    words = tmp_path / "words.json"
    words.write_text(
        json.dumps(
            {"👋": ["waving_hand", "hello\u00a0there", "hello-there", "101", "palm"], "❤️": ["love", "❤ red"]}
        )
    )
    emoji = emoji_set(images=make_pictures(tmp_path / "png"), keywords=words)
    list(write_emoji(emoji, tmp_path / "out"))
    records = {record.extra["codepoints"]: record for record in read_folder(tmp_path / "out")}
    assert list(records) == ["2764", "1f1ef_1f1f5", "1f34e", "1f44b", "1f44b_1f3ff", "1f468_200d_1f33e"]
    dark = records["1f44b_1f3ff"]
    assert dark.captions == ("waving hand dark skin tone",)
    assert dark.extra["skin_tone"] is True
    assert dark.extra["keywords"] == ["hello there", "palm"]  # those of the hand without a tone
    heart = records["2764"]
    assert heart.captions == ("red heart",)
    assert heart.extra["emoji"] == "❤️"
    assert heart.extra["aliases"] == ["heart"]
    assert heart.extra["keywords"] == ["love", "red"]
    assert heart.extra["skin_tone"] is False
    assert records["1f468_200d_1f33e"].captions == ("man farmer",)
    assert "flag for japan" in records["1f1ef_1f1f5"].extra["aliases"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (":man’s_shoe:", "man's shoe"),
        (":Japanese_“acceptable”_button:", "japanese 'acceptable' button"),
        (":T-Rex:", "t-rex"),
        (":piñata:", "piñata"),
    ],
)
def test_names_become_plain_words(name: str, words: str) -> None:
    assert plain(name) == words


@pytest.mark.parametrize(
    ("word", "clean"),
    [
        ("spiral\u00a0eyes", "spiral eyes"),
        ("ice_cream", "ice cream"),
        ("UFO", "ufo"),
        ("🚓\u00a0cop", "cop"),
        ("“here”", "here"),
        ("e-mail", "e-mail"),
        ("o’clock", "o'clock"),
        ("24 hours", "24 hours"),
        *((junk, None) for junk in JUNK),
    ],
)
def test_keywords_that_say_nothing_are_dropped(word: str, clean: str | None) -> None:
    assert clean_word(word) == clean


def test_other_sizes_are_brought_to_128(tmp_path: Path) -> None:
    for height, width in [(512, 544), (64, 60)]:
        folder = tmp_path / str(height)
        folder.mkdir()
        Image.new("RGBA", (width, height), (200, 10, 10, 255)).save(folder / "emoji_u1f34e.png")
        (picture,) = emoji_set(images=folder).pictures
        pixels = np.array(picture.open())
        assert pixels.shape == (128, 128, 4)
        assert (pixels[:, :, 3].max(0) > 0).sum() == min(128, width * 128 // height)
        assert (pixels[64, 64] == (200, 10, 10, 255)).all()


def test_refusals_name_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji_module, "_FONT_FOLDERS", (str(tmp_path),))
    with pytest.raises(MezzotintError, match=r"apt install fonts-noto-color-emoji.*--images"):
        emoji_set()
    (tmp_path / "deep").mkdir()
    font = make_font(tmp_path / "deep/NotoColorEmoji.ttf")
    assert find_font() == font

    with pytest.raises(UsageError, match="not both"):
        emoji_set(font=font, images=tmp_path)
    with pytest.raises(UsageError, match=r"no\.ttf cannot be read"):
        emoji_set(font=tmp_path / "no.ttf")
    with pytest.raises(UsageError, match="no does not exist"):
        emoji_set(images=tmp_path / "no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MezzotintError, match="holds no emoji"):
        emoji_set(images=tmp_path / "empty")
    (tmp_path / "text.ttf").write_text("not a font")
    with pytest.raises(MezzotintError, match=r"text\.ttf is no font"):
        emoji_set(font=tmp_path / "text.ttf")
    with pytest.raises(MezzotintError, match=r"text\.ttf is no tar archive"):
        emoji_set(images=tmp_path / "text.ttf")
    with pytest.raises(MezzotintError, match="holds no colour bitmaps"):
        emoji_set(font=make_font(tmp_path / "outline.ttf", bitmaps=False))


def test_a_damaged_picture_leaves_no_folder(tmp_path: Path) -> None:
    images = make_pictures(tmp_path / "png")
    broken = images / "emoji_u1f44b.png"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(MezzotintError, match=r"emoji_u1f44b\.png is a damaged picture"):
        list(write_emoji(emoji_set(images=images), tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["png"]
