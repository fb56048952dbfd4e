"""Reading captioned folders: what is kept, and that every broken line is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mezzotint.data.folder import Record, read_folder
from mezzotint.errors import MezzotintError, UsageError


def folder(tmp_path: Path, *lines: str, pictures: tuple[str, ...] = ("a.png", "b.png")) -> Path:
    for name in pictures:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGBA", (4, 3), (9, 8, 7, 255)).save(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def test_records_keep_order_captions_and_what_else_is_said(tmp_path: Path) -> None:
    lines = [
        json.dumps({"file_name": "sub/b.png", "text": ["a cat", " a pet "], "skin_tone": True, "n": 3}),
        "",
        json.dumps({"file_name": "a.png", "text": "one\u2028line"}, ensure_ascii=False),
    ]
    first, second = read_folder(folder(tmp_path, *lines, pictures=("a.png", "sub/b.png")))
    assert first == Record(tmp_path / "sub/b.png", ("a cat", "a pet"))
    assert first.text == "a cat"
    assert first.extra == {"skin_tone": True, "n": 3}
    assert second.captions == ("one\u2028line",)
    picture = first.open()
    assert (picture.mode, picture.size, picture.getpixel((0, 0))) == ("RGBA", (4, 3), (9, 8, 7, 255))


def test_a_record_cannot_be_changed(tmp_path: Path) -> None:
    record = Record(tmp_path, ("a",))
    with pytest.raises(AttributeError):
        record.captions = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"file_name": "b.png"', "line 2 is not valid JSON"),
        ('["b.png"]', "line 2 is no JSON object"),
        ('{"text": "b"}', "line 2 has no file_name"),
        ('{"file_name": "c.png", "text": "c"}', "line 2: the picture c.png is missing"),
        ('{"file_name": "../b.png", "text": "b"}', "line 2: ../b.png lies outside"),
        ('{"file_name": "/etc/b.png", "text": "b"}', "line 2: /etc/b.png lies outside"),
        ('{"file_name": "b.png"}', "line 2 has no caption"),
        ('{"file_name": "b.png", "text": " "}', "line 2 has no caption"),
        ('{"file_name": "b.png", "text": []}', "line 2 has no caption"),
        ('{"file_name": "b.png", "text": ["b", 7]}', "line 2 has no caption"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(MezzotintError, match=says) as raised:
        read_folder(folder(tmp_path, '{"file_name": "a.png", "text": "a"}', line))
    assert "\n" not in str(raised.value)


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere is no folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"metadata\.jsonl is missing; write one line"):
        read_folder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text("\n \n")
    with pytest.raises(MezzotintError, match="is empty"):
        read_folder(tmp_path)
    (tmp_path / "metadata.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(MezzotintError, match="must be UTF-8"):
        read_folder(tmp_path)


def test_a_damaged_picture_is_named_when_it_is_opened(tmp_path: Path) -> None:
    (record,) = read_folder(folder(tmp_path, '{"file_name": "a.png", "text": "a"}'))
    record.path.write_bytes(record.path.read_bytes()[:40])
    with pytest.raises(MezzotintError, match=r"a\.png cannot be decoded"):
        record.open()
