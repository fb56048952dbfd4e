"""The Hub's cache is read without a look at the network; nothing is fetched unless it is allowed."""

import socket

import pytest

from mezzotint import Pipeline
from mezzotint.catalog import find_model, model_name
from mezzotint.errors import MezzotintError, UsageError
from mezzotint.formats import hub
from tiny import write_tiny

COMMIT = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"


@pytest.fixture
def no_network(monkeypatch):
    def refused(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hub"


def put(cache, repository="someone/tiny-model"):
    home = cache / f"models--{repository.replace('/', '--')}"
    write_tiny(home / "snapshots" / COMMIT)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    return home / "snapshots" / COMMIT


def test_a_model_of_the_cache_draws(no_network, cache):
    snapshot = put(cache)
    assert find_model("someone/tiny-model") == snapshot
    assert find_model("someone/tiny-model", revision=COMMIT) == snapshot
    assert model_name(snapshot) == "someone/tiny-model"
    pipeline = Pipeline.load("someone/tiny-model", device="cpu")
    assert pipeline.name == "someone/tiny-model"
    assert pipeline("a red apple", seed=1)[0].size == (16, 16)


def test_the_same_place_as_huggingface_hub(cache):
    from huggingface_hub import snapshot_download

    snapshot = put(cache)
    there = snapshot_download("someone/tiny-model", local_files_only=True, cache_dir=hub.cache())
    assert there == str(snapshot)


@pytest.mark.parametrize(
    ("variables", "there"),
    [
        ({"HF_HUB_CACHE": "/a/b"}, "/a/b"),
        ({"HF_HOME": "/a"}, "/a/hub"),
        ({"HF_HOME": "", "XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
    ],
)
def test_where_the_cache_is(cache, monkeypatch, variables, there):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(hub.cache()) == there


def test_nothing_is_fetched_unasked(no_network, cache):
    with pytest.raises(
        UsageError, match=r"'someone/else' is no folder here, nor in the .* cache .*--download"
    ) as caught:
        Pipeline.load("someone/else")
    assert "\n" not in str(caught.value)
    for revision in ("../../x", "/etc"):
        with pytest.raises(UsageError, match="is no branch, tag or commit"):
            hub.cached("someone/else", revision=revision)


def test_a_download_is_asked_of_huggingface_hub(cache, monkeypatch):
    import huggingface_hub

    asked = {}

    def fetched(repository, **knobs):
        asked.update(knobs, repository=repository)
        return str(put(cache, repository))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    assert find_model("someone/new", download=True) == cache / "models--someone--new" / "snapshots" / COMMIT
    assert asked["repository"] == "someone/new"
    assert not any("bin" in pattern or "ckpt" in pattern for pattern in asked["allow_patterns"])


def test_a_download_that_fails_is_one_line(cache, monkeypatch):
    import huggingface_hub

    def fails(*_, **__):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(MezzotintError, match="'someone/new' could not be fetched: no route to host"):
        find_model("someone/new", download=True)


def test_every_file_and_folder_opens_without_the_network(no_network, cache, tmp_path):
    from mezzotint.formats.folder import folder_parts
    from mezzotint.formats.single import write_single

    write_single(tmp_path / "tiny.safetensors", folder_parts(write_tiny(tmp_path / "tiny")))
    for path in (tmp_path / "tiny", tmp_path / "tiny.safetensors", "emoji"):
        assert Pipeline.load(path, device="cpu").name in ("tiny", "emoji")
