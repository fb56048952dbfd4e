"""A write that fails leaves the old state and nothing else: a full disk, a closed folder, an interrupt."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mezzotint.errors import MezzotintError
from mezzotint.formats import atomic
from mezzotint.formats.atomic import clear_leftovers, new_file, new_folder, read_json, write_file, write_json


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fill(folder, content="new"):
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_text(content)


def test_file_appears_whole(tmp_path):
    with new_file(tmp_path / "deep" / "a.png") as part:
        part.write_bytes(b"12")
        assert part.suffix == ".png"
        assert not (tmp_path / "deep" / "a.png").exists()
    assert (tmp_path / "deep" / "a.png").read_bytes() == b"12"
    assert listing(tmp_path) == ["deep", "deep/a.png"]


def test_file_has_usual_rights(tmp_path):
    write_file(tmp_path / "a", "x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_existing_target_is_kept(tmp_path):
    write_file(tmp_path / "a", "old")
    with pytest.raises(MezzotintError, match="a exists; remove it or choose another name"):
        write_file(tmp_path / "a", "new")
    write_file(tmp_path / "a", "newer", replace=True)
    assert (tmp_path / "a").read_text() == "newer"
    assert listing(tmp_path) == ["a"]


def test_target_that_appears_meanwhile_is_kept(tmp_path):
    def write_while_another_does(writer, path, another):
        with writer(path) as part:
            another(path, part)

    def another_folder(path, _):
        path.mkdir()
        fill(path)

    def another_file(path, part):
        part.write_text("ours")
        path.write_text("theirs")

    with pytest.raises(MezzotintError, match="appeared meanwhile"):
        write_while_another_does(new_folder, tmp_path / "f", another_folder)

    with pytest.raises(MezzotintError, match="appeared meanwhile"):
        write_while_another_does(new_file, tmp_path / "a", another_file)
    assert (tmp_path / "a").read_text() == "theirs"
    assert listing(tmp_path) == ["a", "f", "f/sub", "f/sub/a.txt"]


def test_folder_appears_whole(tmp_path):
    with new_folder(tmp_path / "f") as part:
        fill(part)
        assert listing(tmp_path / "f") == []
    assert listing(tmp_path) == ["f", "f/sub", "f/sub/a.txt"]


def test_folder_over_an_empty_one(tmp_path):
    (tmp_path / "f").mkdir()
    with new_folder(tmp_path / "f") as part:
        fill(part)
    assert listing(tmp_path) == ["f", "f/sub", "f/sub/a.txt"]


@pytest.mark.parametrize("system_call", [True, False])
def test_folder_replaced(tmp_path, monkeypatch, system_call):
    if not system_call:
        monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *_, **__: object())
    for content in ("old", "new"):
        with new_folder(tmp_path / "f", replace=True) as part:
            fill(part, content)
            (part / content).touch()
    assert (tmp_path / "f" / "sub" / "a.txt").read_text() == "new"
    assert listing(tmp_path) == ["f", "f/new", "f/sub", "f/sub/a.txt"]


def test_filled_folder_is_kept(tmp_path):
    fill(tmp_path)
    with pytest.raises(MezzotintError, match="sub exists"), new_folder(tmp_path / "sub"):
        pass
    assert listing(tmp_path) == ["sub", "sub/a.txt"]


@pytest.mark.parametrize("what", [KeyboardInterrupt, ValueError, MezzotintError])
@pytest.mark.parametrize("replace", [False, True])
def test_nothing_half_written_stays(tmp_path, what, replace):
    if replace:
        write_file(tmp_path / "a", "old")
        with new_folder(tmp_path / "f") as part:
            fill(part, "old")
    before = listing(tmp_path)

    def write_half(writer, path, some):
        with writer(path, replace=replace) as part:
            some(part)
            raise what

    with pytest.raises(what):
        write_half(new_file, tmp_path / "a", lambda part: part.write_text("half"))
    with pytest.raises(what):
        write_half(new_folder, tmp_path / "f", fill)
    assert listing(tmp_path) == before
    assert all(path.read_text() == "old" for path in tmp_path.rglob("a*"))


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "may not be written to"),
        (errno.EIO, "input/output error"),
    ],
)
def test_system_refuses_at_the_last_moment(tmp_path, monkeypatch, number, says):
    """A delayed write may fail as late as in fsync."""

    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(MezzotintError, match=says) as caught:
        write_file(tmp_path / "a", "x")
    assert "\n" not in str(caught.value)
    with pytest.raises(MezzotintError, match=says), new_folder(tmp_path / "f") as part:
        fill(part)
    assert listing(tmp_path) == []


def test_really_full(tmp_path):
    """A limit on the size of files stands in for a full disk: the write itself fails, half-way."""
    code = (
        "import resource, sys; from mezzotint.formats.atomic import write_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_file(sys.argv[1], b'x' * 5000)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == f"MezzotintError cannot write {tmp_path / 'a'}: file too large"
    assert listing(tmp_path) == []


def test_closed_folder(tmp_path):
    """In a child that has given up root's rights, if we have them."""
    (tmp_path / "closed").mkdir(mode=0o500)
    code = (
        "import os, sys; from mezzotint.formats.atomic import write_file\n"
        "os.geteuid() or os.setuid(65534)\n"
        "try: write_file(sys.argv[1], b'x')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    path = tmp_path / "closed" / "a"
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"MezzotintError cannot write {path}: the folder {path.parent} may not be")


def test_error_inside_a_folder_names_the_place_that_was_meant(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MezzotintError) as caught, new_folder(tmp_path / "f") as part:
        write_file(part / "a", "x")
    said = f"cannot write {tmp_path / 'f' / 'a'}: the disk is full; free some space or choose another folder"
    assert str(caught.value) == said


def test_parent_is_a_file(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(MezzotintError, match="a is not a folder"):
        write_file(tmp_path / "a" / "b", "x")
    with pytest.raises(MezzotintError, match="is not a folder"):
        write_file(tmp_path / "a" / "b" / "c", "x")


def test_errors_of_reading_are_not_ours(tmp_path):
    with pytest.raises(FileNotFoundError), new_file(tmp_path / "a") as part:
        part.write_bytes((tmp_path / "elsewhere" / "source").read_bytes())
    assert listing(tmp_path) == []


def test_killed_writer_leaves_a_piece_that_can_be_swept(tmp_path):
    code = (
        "import sys, time; from mezzotint.formats.atomic import new_folder\n"
        "with new_folder(sys.argv[1]) as part:\n"
        "    (part / 'x').write_text('half'); print('there', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path / "f"], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"there\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "f").exists()
    (tmp_path / ".hidden").touch()
    assert len(clear_leftovers(tmp_path)) == 1
    assert listing(tmp_path) == [".hidden"]


def test_interrupted_writer_leaves_nothing(tmp_path):
    code = (
        "import sys, time; from mezzotint.formats.atomic import new_folder\n"
        "with new_folder(sys.argv[1]) as part:\n"
        "    (part / 'x').write_text('half'); print('there', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "f"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background jobs ignore it
    )
    child.stdout.readline()
    time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in child.communicate()[1]
    assert listing(tmp_path) == []


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"ü": [1, None]})
    assert read_json(tmp_path / "a.json") == {"ü": [1, None]}
    assert json.loads((tmp_path / "a.json").read_text()) == {"ü": [1, None]}
    for content, says in (
        (b'{"a', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "no JSON object"),
    ):
        (tmp_path / "b.json").write_bytes(content)
        with pytest.raises(MezzotintError, match=f"b.json .*{says}"):
            read_json(tmp_path / "b.json")
    with pytest.raises(MezzotintError, match=r"c.json is missing"):
        read_json(tmp_path / "c.json")
