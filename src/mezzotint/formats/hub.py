"""The Hugging Face Hub's cache: what other programs have fetched is found there, without a look at the network.

A repository `owner/name` lies in `models--owner--name`: `refs/main` holds the commit, `snapshots/<commit>` the files
(as links to `blobs`). Fetching is another package's business (huggingface_hub), and is done only where it is asked for.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import MezzotintError, UsageError

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FETCHED = (
    "*.json",
    "*.txt",
    "*.safetensors",
)  # a folder's configurations, tokenizer and weights; nothing pickled
PASSED_OVER = (
    "*.fp16.safetensors",
    "*.non_ema.safetensors",
    "safety_checker/*",
    "image_encoder/*",
    "*/flax_*",
)


def is_repository(name: str) -> bool:
    """Whether `name` could be that of a repository: owner/name."""
    return REPOSITORY.fullmatch(name) is not None and ".." not in name and not name.endswith(".safetensors")


def cache() -> Path:
    """Where the Hub's programs keep what they fetch, by the variables that they heed."""
    if there := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(there).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{caches}/huggingface").expanduser() / "hub"


def find(repository: str, *, revision: str = "main", download: bool = False) -> Path:
    """The snapshot of a repository in the cache; fetched first if `download` and it is not there.

    Raises UsageError saying where was looked, and how it can be had.
    """
    if found := cached(repository, revision=revision):
        return found
    if download:
        return _fetched(repository, revision)
    raise UsageError(
        f"'{repository}' is no folder here, nor in the Hugging Face cache ({cache()}) at revision '{revision}'; give a "
        "path, or allow the download (--download, which needs `pip install mezzotint[hub]`)"
    )


def cached(repository: str, *, revision: str = "main") -> Path | None:
    """The snapshot of a repository in the cache, if it is there: by branch, tag or commit."""
    home = cache() / f"models--{repository.replace('/', '--')}"
    if Path(revision).is_absolute() or ".." in Path(revision).parts:
        raise UsageError(f"revision '{revision}' is no branch, tag or commit")
    ref = home / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    snapshot = home / "snapshots" / commit
    return snapshot if commit and snapshot.parent == home / "snapshots" and snapshot.is_dir() else None


def repository_of(path: Path) -> str | None:
    """The repository whose snapshot `path` is, if it is one."""
    home = path.parent.parent
    if path.parent.name != "snapshots" or not home.name.startswith("models--"):
        return None
    return home.name.removeprefix("models--").replace("--", "/", 1)


def _fetched(repository: str, revision: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UsageError(
            f"fetching '{repository}' needs huggingface_hub; install it with `pip install mezzotint[hub]`"
        ) from error
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache(),
                allow_patterns=list(FETCHED),
                ignore_patterns=list(PASSED_OVER),
            )
        )
    except Exception as error:  # its errors have no common root: those of HTTP, of the system, and its own
        reason = " ".join(str(error).split())[:200]
        raise MezzotintError(f"'{repository}' could not be fetched: {reason}") from error
