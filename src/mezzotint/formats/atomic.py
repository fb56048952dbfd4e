"""Files and folders that are there whole or not at all.

What is written grows beside its place under a hidden name, is pushed to the disk, and is renamed into place
in one step; whatever happens before that step (a full disk, Ctrl-C, an error) leaves the old state, and the
hidden piece is removed. Only a kill or a power cut can leave one behind: `clear_leftovers` sweeps those.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import MezzotintError

_MARK = ".part-"
_LARGEST_JSON = 1 << 27  # bytes; a tokenizer has some millions
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def new_file(path: Path | str, *, replace: bool = False) -> Iterator[Path]:
    """Yields a path to write to; when the block ends well, the file stands at `path`.

    Missing parent folders are made. Raises MezzotintError if `path` exists (unless `replace`), if the disk is
    full, if the folder cannot be written to; nothing stays behind then, nor after any other exception.
    """
    path = Path(path)
    part = _part(path, replace)
    try:
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            _sync(part)
            if replace:
                os.replace(part, path)
            else:
                _rename_to_new(part, path)
            _sync(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


@contextmanager
def new_folder(path: Path | str, *, replace: bool = False) -> Iterator[Path]:
    """Yields an empty folder to fill; when the block ends well, it stands at `path`.

    With `replace`, a folder that stands there is exchanged in one step where the system can (Linux), else in
    three. Raises as `new_file` does.
    """
    path = Path(path)
    part = _part(path, replace)
    try:
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.mkdir()
            yield part
            for folder, _, names in os.walk(part):
                for name in [*names, "."]:
                    _sync(Path(folder, name))
            if replace and path.exists():
                _exchange(part, path)
                shutil.rmtree(part)
            else:
                os.rename(part, path)  # fails if someone else put a file or a filled folder there meanwhile
            _sync(path.parent)
    except MezzotintError as error:  # of a file inside, which it names by where it would have stood
        shutil.rmtree(part, ignore_errors=True)
        raise type(error)(str(error).replace(str(part), str(path))) from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def write_file(path: Path | str, content: bytes | str, *, replace: bool = False) -> None:
    """Write `content` (text as UTF-8) to `path` as `new_file` does."""
    with new_file(path, replace=replace) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path | str, content: Mapping[str, Any], *, replace: bool = False) -> None:
    """Write `content` as indented JSON to `path` as `new_file` does."""
    write_file(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n", replace=replace)


def read_json(path: Path | str) -> dict[str, Any]:
    """The JSON object in a file; MezzotintError naming the file if it is missing, damaged or no object."""
    try:
        if Path(path).stat().st_size > _LARGEST_JSON:
            raise MezzotintError(f"{path} is too large for what it should hold; fetch or copy it again")
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MezzotintError(
            f"{path} is missing; the folder is incomplete, fetch or copy it again"
        ) from error
    except OSError as error:
        raise MezzotintError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise MezzotintError(f"{path} is not valid JSON ({error}); fetch or copy it again") from error
    if not isinstance(content, dict):
        raise MezzotintError(f"{path} holds no JSON object; fetch or copy it again")
    return content


def clear_leftovers(folder: Path | str) -> list[Path]:
    """Remove the hidden pieces that killed writers left in `folder`, and name them.

    Only for a caller that knows that nobody else is writing there at the moment.
    """
    found = sorted(Path(folder).glob(f".*{_MARK}*"))
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return found


def _part(path: Path, replace: bool) -> Path:
    """A hidden name beside `path` with its suffix (writers guess formats from it)."""
    if not path.name:
        raise MezzotintError(f"cannot write to '{path}': it names no file or folder")
    empty_folder = os.path.isdir(path) and not os.listdir(path) if os.access(path, os.R_OK) else False
    if os.path.lexists(path) and not replace and not empty_folder:
        raise MezzotintError(f"{path} exists; remove it or choose another name")
    return path.with_name(f".{path.stem}{_MARK}{secrets.token_hex(4)}{path.suffix}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename_to_new(part: Path, path: Path) -> None:
    """A rename that fails if something stands at `path`: a plain one would overwrite what came meanwhile."""
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS) or os.path.lexists(path):
            raise
        os.rename(part, path)  # a file system without links
    else:
        part.unlink()


def _exchange(new: Path, old: Path) -> None:
    """Let `new` stand at `old` and the reverse."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename and rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
        return
    aside = new.with_name(new.name + "-old")
    os.rename(old, aside)
    os.rename(new, old)
    os.rename(aside, new)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns the system's refusals into one line about `path`."""
    try:
        yield
    except OSError as error:
        where = None if error.filename is None else os.fspath(error.filename)
        if where is not None and _MARK not in where and where not in map(str, (path, *path.parents)):
            raise  # reading something else went wrong inside of the block
        raise MezzotintError(f"cannot write {path}: {_reason(error, path)}") from error


def _reason(error: OSError, path: Path) -> str:
    if error.errno in _FULL:
        return f"{_FULL[error.errno]}; free some space or choose another folder"
    if error.errno in _CLOSED:
        return f"the folder {path.parent} may not be written to; choose another one"
    if (os.path.lexists(path.parent) and not path.parent.is_dir()) or error.errno == errno.ENOTDIR:
        return f"{path.parent} is not a folder"
    if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
        return "something of that name appeared meanwhile; choose another name"
    if error.errno == errno.ENAMETOOLONG:
        return "the name is too long; choose a shorter one"
    return (error.strerror or str(error)).lower()
