"""Every layout of a folder gives the records that it says; what contradicts itself is refused in one line."""

import json

import pytest
from PIL import Image

from mezzotint.data.sources import find_layout, read_records
from mezzotint.errors import MezzotintError, UsageError


def put(path, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path)
    return path


def names(records, folder):
    return [record.path.relative_to(folder).as_posix() for record in records]


def test_sidecars(tmp_path):
    put(tmp_path / "b" / "cat.png")
    put(tmp_path / "dog.jpg")
    put(tmp_path / ".hidden" / "x.png")
    (tmp_path / "b" / "cat.txt").write_text("a cat\n\n  a small cat \n")
    assert find_layout(tmp_path) == "sidecar"
    records = read_records(tmp_path)
    assert names(records, tmp_path) == ["b/cat.png", "dog.jpg"]
    assert [r.captions for r in records] == [("a cat", "a small cat"), ()]
    (tmp_path / "b" / "cat.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MezzotintError, match=r"cat\.txt cannot be read .*UTF-8"):
        read_records(tmp_path)


def test_class_folders_and_plain_ones(tmp_path):
    put(tmp_path / "classes" / "tabby_cat" / "1.png")
    put(tmp_path / "classes" / "dog" / "deep" / "1.png")
    assert find_layout(tmp_path / "classes") == "classes"
    records = read_records(tmp_path / "classes")
    assert [(r.extra["class"], r.captions) for r in records] == [
        ("dog", ("dog",)),
        ("tabby_cat", ("tabby cat",)),
    ]
    put(tmp_path / "classes" / "stray.png")
    assert find_layout(tmp_path / "classes") == "plain"
    assert len(read_records(tmp_path / "classes")) == 3
    with pytest.raises(MezzotintError, match=r"stray\.png lies in no class folder"):
        read_records(tmp_path / "classes", "classes")


def test_coco_has_several_captions_a_picture(tmp_path):
    put(tmp_path / "val2017" / "7.jpg")
    put(tmp_path / "val2017" / "3.jpg")
    content = {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 3, "file_name": "3.jpg"}],
        "annotations": [
            {"image_id": 7, "caption": "a dog"},
            {"image_id": 3, "caption": "a  cat\n"},
            {"image_id": 7, "caption": "two dogs"},
        ],
    }
    file = tmp_path / "annotations" / "captions_val2017.json"
    file.parent.mkdir()
    file.write_text(json.dumps(content))
    assert find_layout(tmp_path) == "coco"
    records = read_records(tmp_path)
    assert names(records, tmp_path) == ["val2017/3.jpg", "val2017/7.jpg"]
    assert [r.captions for r in records] == [("a cat",), ("a dog", "two dogs")]
    for broken, message in (
        ({**content, "images": content["images"][:1]}, "picture 3, which is not listed"),
        ({**content, "images": [{"id": 7, "file_name": "../7.jpg"}, content["images"][1]]}, "outside"),
        ({**content, "images": [{"id": 7, "file_name": "8.jpg"}, content["images"][1]]}, "8.jpg is missing"),
        ({"images": []}, "is no COCO caption file"),
        ({**content, "annotations": [{"caption": "x"}]}, "lacks id"),
    ):
        file.write_text(json.dumps(broken))
        with pytest.raises(MezzotintError, match=message):
            read_records(tmp_path)


def test_metadata_goes_first(tmp_path):
    put(tmp_path / "cat.png")
    (tmp_path / "cat.txt").write_text("from the text file")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "cat.png", "text": "from the metadata"}\n')
    assert read_records(tmp_path)[0].captions == ("from the metadata",)
    assert read_records(tmp_path, "sidecar")[0].captions == ("from the text file",)


def test_refusals(tmp_path):
    with pytest.raises(UsageError, match="is no folder"):
        read_records(tmp_path / "none")
    with pytest.raises(UsageError, match="unknown layout of pictures 'sidecars'; did you mean 'sidecar'"):
        read_records(tmp_path, "sidecars")
    with pytest.raises(MezzotintError, match="holds no pictures"):
        read_records(tmp_path)
