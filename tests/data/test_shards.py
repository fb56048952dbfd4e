"""Tar shards give the records that were put into them; damage is found where it is; nothing is fetched unasked."""

import http.client
import io
import json
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mezzotint.cli import run
from mezzotint.data.remote import Shelf, address, open_url
from mezzotint.data.shards import Access, DamagedData, expanded, read_shards, said_of, sample_key
from mezzotint.data.sources import find_layout, read_records
from mezzotint.data.split import split
from mezzotint.errors import MezzotintError, UsageError
from shards import encoded, write_shard, write_shards


def colours(records):
    return [int(np.asarray(Image.open(io.BytesIO(r.read())))[0, 0, 0]) for r in records]


def test_braces():
    assert expanded("a{000..010..5}.tar") == ["a000.tar", "a005.tar", "a010.tar"]
    assert expanded("{x,y}/{8..10}") == ["x/8", "x/9", "x/10", "y/8", "y/9", "y/10"]
    assert expanded("plain.tar") == ["plain.tar"]
    for wrong, message in (("{3..1}", "is empty"), ("{a}", "neither a range")):
        with pytest.raises(UsageError, match=message):
            expanded(wrong)


def test_what_belongs_together():
    assert sample_key("a/b.c.jpg") == ("a/b", "c.jpg")
    assert sample_key("./0001.PNG") == ("0001", "png")
    assert said_of({"txt": "a cat\n\n the  cat \n", "json": '{"caption": "a dog"}'}) == (
        ("a cat", "the cat"),
        None,
    )
    assert said_of({"txt": " ", "json": '{"captions": ["a", "b", ""], "label": 3}'}) == (("a", "b"), "3")
    assert said_of({"json": '{"caption": "a dog", "class": "x"}', "cls": "7\n"}) == (("a dog",), "7")
    assert said_of({"json": "[1]"}) == ((), None)
    assert said_of({"json": '{"caption": 7}'}) == said_of({"json": '{"text": {"en": "x"}}'}) == ((), None)


def test_samples_of_every_kind(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    shard = write_shard(
        tmp_path / "data.tar",
        [
            ("set/1.jpg", encoded(10, (30, 20), "JPEG")),
            ("set/1.json", b'{"caption": "one"}'),
            ("set/2.json", b'{"status": "failed"}'),  # its picture was not fetched by who wrote the shard
            ("set/3.cls", b"cat"),
            ("set/3.webp", encoded(20, (12, 7), "WEBP", lossless=True)),
            ("._3.jpg", b"of a Mac"),
            ("set/4.jpg", encoded(30, (40, 10), "JPEG", exif=turned)),
            ("set/4.txt", "ein Bär".encode()),
        ],
    )
    records = read_records(shard)
    assert [r.inside for r in records] == ["set/1.jpg", "set/3.webp", "set/4.jpg"]
    assert [r.captions for r in records] == [("one",), (), ("ein Bär",)]
    assert [r.extra.get("class") for r in records] == [None, "cat", None]
    assert [r.size for r in records] == [(30, 20), (12, 7), (10, 40)]  # the last one lies on its side
    assert colours(records) == [10, 20, 30]
    assert records[1].name == f"{shard}: set/3.webp"


def test_patterns_folders_and_what_is_missing(tmp_path):
    pattern = write_shards(tmp_path)
    by_pattern = read_records(pattern)
    assert find_layout(pattern) == find_layout(tmp_path) == "shards"
    assert [r.captions[0] for r in by_pattern] == [f"picture {i}" for i in range(15)]
    assert colours(by_pattern) == list(range(15))
    for other in (tmp_path, tmp_path / "shard-*.tar", tmp_path / "shard-{000,001,002}.tar"):
        assert [r.name for r in read_records(other)] == [r.name for r in by_pattern]
    for wrong, message in (
        (tmp_path / "shard-{000..003}.tar", r"shard-003\.tar is missing"),
        (tmp_path / "none-*.tar", r"none-\*\.tar is missing"),
        (tmp_path / "x.tar.gz", "unpack it"),
        (Path("pipe:cat x.tar"), "no command is run"),
        (Path("https://example.org/a-{0..3}.tar?key=secret"), r"a-0\.tar.*set dataset\.download = true"),
    ):
        with pytest.raises(UsageError, match=message):
            read_records(wrong)
    (tmp_path / "._shard-000.tar").write_bytes(b"of a Mac")
    assert len(read_records(tmp_path)) == 15
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no shards"):
        read_records(tmp_path / "empty", "shards")
    fetching = Access(opener=open_url, shelf=tmp_path / "shelf")
    with pytest.raises(UsageError, match="before the '\\?'"):
        read_records(Path("http://localhost/get?part={0..1}"), access=fetching)
    with pytest.raises(MezzotintError, match="no pictures in 1 shards"):
        read_records(write_shard(tmp_path / "texts" / "t.tar", [("1.txt", b"a")]))


def test_the_index_is_kept_until_the_shard_changes(tmp_path, monkeypatch):
    pattern = write_shards(tmp_path)
    access = Access(index=tmp_path / "index")
    first = read_shards(pattern, access)
    with monkeypatch.context() as patched:
        patched.setattr(tarfile, "open", None)
        again = read_shards(pattern, access)
    assert again == first
    assert [r.size for r in again] == [(8, 6)] * 15
    assert colours(again) == list(range(15))
    write_shard(tmp_path / "shard-001.tar", [("new.png", encoded(99))])
    assert colours(read_shards(pattern, access)) == [0, 1, 2, 3, 4, 99, 10, 11, 12, 13, 14]


def damage(shard, kind):
    content = bytearray(shard.read_bytes())
    if kind == "header":  # of the third member, the second sample's picture
        with tarfile.open(shard) as tar:
            at = tar.getmembers()[2].offset
        content[at : at + 512] = b"\xff" * 512
    elif kind == "picture":
        with tarfile.open(shard) as tar:
            at = tar.getmembers()[2].offset_data
        content[at : at + 40] = b"\0" * 40
    elif kind == "cut":
        with tarfile.open(shard) as tar:
            content = content[: tar.getmembers()[2].offset_data + 20]
    elif kind == "no tar":
        content = bytearray(b"<html>no such bucket</html>" * 100)
    shard.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "left", "message"),
    [
        ("header", 1, r"shard-001\.tar is damaged \d+ bytes in"),
        ("picture", 4, r"shard-001\.tar: sample 0006 cannot be read"),
        ("cut", 1, r"shard-001\.tar is cut short"),
        ("no tar", 0, r"shard-001\.tar is cut short or no tar archive"),
    ],
)
def test_damage_is_one_line_or_left_out(tmp_path, capsys, kind, left, message):
    pattern = write_shards(tmp_path)
    damage(tmp_path / "shard-001.tar", kind)
    with pytest.raises(MezzotintError, match=message + r'.*dataset\.damaged = "skip"') as told:
        read_shards(pattern)
    assert "\n" not in str(told.value)
    with pytest.warns(DamagedData, match=message):
        records = read_shards(pattern, Access(damaged="skip"))
    assert len([r for r in records if r.path.name == "shard-001.tar"]) == left
    assert len(records) == 10 + left
    assert run(["data", "check", str(pattern), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["layout"], found["findings"]["corrupt"]["count"]) == ("shards", 1)
    assert sum(bucket["pictures"] for bucket in found["buckets"]) == 10 + left


def test_what_is_held_out_is_the_same_wherever_the_shards_lie(tmp_path):
    names = []
    for place in ("here", "there"):
        records = read_shards(write_shards(tmp_path / place, 4, 25))
        names.append({records[i].inside for i in split(records, 0.3).held_out})
    assert names[0] == names[1]
    assert 15 < len(names[0]) < 50


# --- at a URL ---


class Quiet(SimpleHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012 - of one test

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.asked.append(self.path)
        super().do_GET()


@pytest.fixture
def served(tmp_path):
    """Shards at a URL; which of them were asked for."""
    write_shards(tmp_path / "www")
    Quiet.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "www"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Path(f"http://127.0.0.1:{server.server_port}/shard-{{000..002}}.tar"), Quiet.asked
    server.shutdown()
    server.server_close()


def test_shards_at_a_url_are_fetched_once_if_they_have_room(served, tmp_path):
    url, asked = served
    access = Access(index=tmp_path / "index", opener=open_url, shelf=tmp_path / "shelf")
    records = read_records(url, access=access)
    assert colours(records) == list(range(15))
    assert colours(reversed(records)) == list(range(14, -1, -1))
    assert sorted(asked) == [f"/shard-00{i}.tar" for i in range(3)]
    assert read_records(url, access=access) == records
    assert len(asked) == 3  # another run knows what is where
    assert address(url) == str(url).replace("http:/", "http://")
    assert address(Path("/a/b.tar")) is None


def test_a_small_shelf_fetches_again(served, tmp_path):
    url, asked = served
    size = (tmp_path / "www" / "shard-000.tar").stat().st_size
    access = Access(
        index=tmp_path / "index", opener=open_url, shelf=tmp_path / "shelf", room=1.5 * size / 2**30
    )
    records = read_records(url, access=access)
    assert colours(records) == list(range(15))
    assert len(asked) == 6  # once to look, once to read: in order, no shard is fetched for every picture
    assert len(list((tmp_path / "shelf").iterdir())) == 1


def test_a_broken_connection_is_tried_again_and_then_told(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    content = write_shards(tmp_path, 1).parent.joinpath("shard-000.tar").read_bytes()
    tried = []

    class Short(io.BytesIO):
        length = 7  # bytes that do not come

    def opener(url, good):
        tried.append(url)
        if len(tried) == 1:
            raise OSError("connection refused")
        if len(tried) == 2:
            raise http.client.IncompleteRead(b"")
        return io.BytesIO(content) if len(tried) == good else Short(content[:-7])

    with Shelf(tmp_path / "shelf", partial(opener, good=3), 2**30).open("s3://b/a.tar?key=1") as file:
        assert file.read() == content
    tried.clear()
    with pytest.raises(
        MezzotintError, match=r"s3://b/b\.tar cannot be fetched \(7 bytes are missing"
    ) as told:
        Shelf(tmp_path / "shelf", partial(opener, good=0), 2**30).open("s3://b/b.tar?key=1")
    assert "key=1" not in str(told.value)
    assert len(tried) == 3
    assert len(list((tmp_path / "shelf").iterdir())) == 1  # nothing half-fetched
    with pytest.raises(UsageError, match="cannot be opened"):
        open_url("nonsense://x/y.tar")
