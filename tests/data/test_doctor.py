"""Each fault is planted once, and found; what is sound is not blamed."""

import json

import numpy as np
import pytest
from PIL import Image

from mezzotint.cli import run
from mezzotint.data.doctor import check_folder, difference_hash, examine, report
from mezzotint.data.split import split


def scene(seed, size=(80, 72)):
    """A smooth picture unlike those of other seeds."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def sound(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(12):
        scene(i).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture of number {i}")
    return folder


def told(folder, **knobs):
    records, layout, _ = check_folder(folder)
    looks = list(examine(records, resolution=64))
    return report(records, looks, layout=layout, **knobs)


def plant(folder, name, picture, caption="something seen", **knobs):
    picture.save(folder / name, **knobs)
    (folder / name).with_suffix(".txt").write_text(caption)


def test_nothing_is_wrong(sound):
    found = told(sound)
    assert (found.pictures, found.captions, found.layout) == (12, 12, "sidecar")
    assert found.findings == {}
    assert not found.severe
    assert "nothing is wrong" in found.text()


@pytest.mark.parametrize(
    ("kind", "name", "make", "severe"),
    [
        ("tiny", "x.png", lambda: scene(50, (60, 70)), False),
        ("extreme shapes", "x.png", lambda: scene(50, (300, 100)), False),
        ("flat", "x.png", lambda: Image.new("RGB", (80, 80), "red"), False),
        ("grey", "x.png", lambda: scene(50).convert("L"), False),
        ("copies", "x.bmp", lambda: scene(3), False),
        ("near copies", "x.png", lambda: scene(3).resize((160, 144)), False),
    ],
)
def test_pictures(sound, kind, name, make, severe):
    plant(sound, name, make())
    found = told(sound)
    assert list(found.findings) == [kind]
    assert name in found.findings[kind][0] or "3.png" in found.findings[kind][0]
    assert found.severe == severe


def test_damaged_turned_and_transparent_ones(sound):
    (sound / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much more")
    (sound / "cut.txt").write_text("a damaged picture")
    exif = Image.Exif()
    exif[0x0112] = 6
    plant(sound, "turned.jpg", scene(60), exif=exif, quality=95)
    clear = scene(61).convert("RGBA")
    clear.putalpha(100)
    plant(sound, "clear.png", clear)
    found = told(sound)
    assert {kind: len(lines) for kind, lines in found.findings.items()} == {
        "corrupt": 1,
        "turned": 1,
        "transparent": 1,
    }
    assert found.severe
    assert "cut.jpg" in found.text()


def test_captions(sound):
    (sound / "0.txt").write_text("")
    (sound / "1.txt").unlink()
    (sound / "2.txt").write_text("untitled")
    (sound / "3.txt").write_text("<b>see https://example.org</b>")
    (sound / "4.txt").write_text("word " * 300)
    found = told(sound)
    assert len(found.findings["uncaptioned"]) == 2
    assert len(found.findings["odd captions"]) == 3
    assert "uncaptioned" not in told(sound, captions=False).findings
    for i in range(20):
        plant(sound, f"many-{i}.png", scene(100 + i), "the same words")
    assert told(sound).findings["same caption"] == ["20 times: the same words"]


def test_leaks_cross_the_border(sound):
    plant(sound, "again.png", scene(5))
    records, _, _ = check_folder(sound)
    looks = list(examine(records))
    names = [record.path.name for record in records]
    across = report(records, looks, [names.index("again.png")])
    assert across.severe
    assert "again.png is like" in across.findings["leaks"][0]
    both = [names.index("again.png"), names.index("5.png")]
    assert "leaks" not in report(records, looks, both).findings


def test_held_out_pictures_stay_held_out(sound):
    records, _, _ = check_folder(sound)
    before = {records[i].path.name for i in split(records, 0.5).held_out}
    assert 0 < len(before) < 12
    for i in range(30):
        plant(sound, f"new-{i}.png", scene(200 + i))
    records, _, _ = check_folder(sound)
    after = {records[i].path.name for i in split(records, 0.5).held_out}
    assert before == {name for name in after if not name.startswith("new")}
    assert split(records, 0.0).held_out == ()


def test_hashes_know_pictures_by_their_look():
    picture = scene(7)
    darker = Image.fromarray((np.asarray(picture) * 0.8 + 10).astype(np.uint8))
    assert (difference_hash(picture) ^ difference_hash(darker)).bit_count() <= 2
    others = [difference_hash(scene(i)) for i in range(20, 60)]
    assert min((difference_hash(picture) ^ other).bit_count() for other in others) > 8


def test_the_command(sound, capsys):
    assert run(["data", "check", str(sound)]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    (sound / "1.txt").unlink()
    assert run(["data", "check", str(sound), "--json"]) == 1
    line = json.loads(capsys.readouterr().out)
    assert line["findings"]["uncaptioned"]["count"] == 1
    assert line["severe"] is True
    assert run(["data", "check", str(sound / "none")]) == 2
