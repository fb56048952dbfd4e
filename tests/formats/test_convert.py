"""Converting: folder, single file, half precision and pickled files, and no byte of a tensor lost on the way."""

import json
import os
import pickle
import shutil

import pytest
import torch

from mezzotint import Pipeline
from mezzotint.cli import run
from mezzotint.errors import MezzotintError
from mezzotint.formats.folder import folder_parts
from mezzotint.formats.opened import read_parts
from mezzotint.formats.pickled import MENTIONED, read_pickled
from mezzotint.formats.tensors import read_tensors
from tiny import write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = write_tiny(tmp_path_factory.mktemp("convert") / "tiny")
    text = path / "text_encoder" / "model.safetensors"
    tensors = read_tensors(text) | {"text_model.embeddings.position_ids": torch.arange(12)[None]}
    from mezzotint.formats.tensors import write_tensors

    write_tensors(
        text, {name: t.clone() for name, t in tensors.items()}, replace=True
    )  # as older folders have it
    return path


def bytes_of(path):
    parts = read_parts(path)
    return {
        (part, name): (
            t.dtype,
            t.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b"",
        )
        for part, tensors in parts.tensors.items()
        for name, t in tensors.items()
    }


def test_there_and_back(folder, tmp_path):
    single, back = tmp_path / "a.safetensors", tmp_path / "back"
    assert run(["convert", str(folder), str(single)]) == 0
    assert run(["convert", str(single), str(back)]) == 0
    assert bytes_of(folder) == bytes_of(single) == bytes_of(back)
    assert ("text_encoder", "text_model.embeddings.position_ids") in bytes_of(back)
    for path in (folder, single, back):
        pipeline = Pipeline.load(path, device="cpu")
        assert pipeline.defaults.guidance_scale == 3.0
        assert pipeline.encoder.tokenizer.files() == folder_parts(folder).tokenizers["text_encoder"].files()


def test_half_precision(folder, tmp_path, capsys):
    assert run(["convert", str(folder), str(tmp_path / "half.safetensors"), "--precision", "float16"]) == 0
    capsys.readouterr()
    assert run(["info", str(tmp_path / "half.safetensors"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["unet"]["precision"] == ["float16"]
    assert facts["form"] == "a single file"
    assert facts["kind"] == "Latent diffusion in Stable Diffusion's layout, v-prediction"
    for name, tensor in read_parts(folder).tensors["vae"].items():
        assert torch.equal(read_parts(tmp_path / "half.safetensors").tensors["vae"][name], tensor.half())


def pickled(folder, path):
    """A folder as it was written before safetensors."""
    shutil.copytree(folder, path)
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        file = path / part / f"{stem}.safetensors"
        old = "pytorch_model" if stem == "model" else stem
        torch.save({k: t.clone() for k, t in read_tensors(file).items()}, path / part / f"{old}.bin")
        file.unlink()
    return path


def test_pickled_folder(folder, tmp_path, capsys):
    old = pickled(folder, tmp_path / "old")
    assert run(["convert", str(old), str(tmp_path / "new")]) == 1
    assert "--allow-pickle" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert run(["convert", str(old), str(tmp_path / "new"), "--allow-pickle"]) == 0
    assert bytes_of(tmp_path / "new") == bytes_of(folder)


def test_ckpt(folder, tmp_path, monkeypatch):
    import sys
    from types import ModuleType

    from kinds import saved
    from mezzotint.formats.single import write_single

    path, _ = saved("sd1", tmp_path)
    write_single(tmp_path / "sd1.safetensors", folder_parts(path))
    lightning = ModuleType(MENTIONED.rpartition(".")[0])
    lightning.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": lightning.__name__})
    with monkeypatch.context() as patched:  # the class exists where such files are written, not here
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", lightning.__name__):
            patched.setitem(sys.modules, name, lightning)
        content = {
            "state_dict": {k: t.clone() for k, t in read_tensors(tmp_path / "sd1.safetensors").items()},
            "callbacks": {lightning.ModelCheckpoint: {"best": 1.0}},
            "epoch": 3,
        }
        torch.save(content, tmp_path / "sd1.ckpt")
        torch.save(content, tmp_path / "older.ckpt", _use_new_zipfile_serialization=False)
    for name in ("sd1.ckpt", "older.ckpt"):
        tensors = read_pickled(tmp_path / name)
        assert all(torch.equal(t, tensors[k]) for k, t in read_tensors(tmp_path / "sd1.safetensors").items())


def test_pickled_loras_and_embeddings(tmp_path):
    """What is refused with `mezzotint convert --allow-pickle` as the remedy must then be taken by it."""
    from mezzotint.formats.embedding import read_embedding

    vectors = torch.randn(2, 24)
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})
    forms = {
        "a1111": ({"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "step": 100}, "a1111"),
        "first": ({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters}, "first"),
        "learned_embeds": ({"<cat>": vectors}, "<cat>"),
    }
    for name, (content, word) in forms.items():
        torch.save(content, tmp_path / f"{name}.pt")
        target = tmp_path / f"{name}.safetensors"
        assert run(["convert", "--allow-pickle", str(tmp_path / f"{name}.pt"), str(target)]) == 0
        (embedding,) = read_embedding(target)
        assert embedding.word == word
        assert torch.equal(embedding.vectors[""], vectors)
    lora = {"lora_unet_conv_in.lora_down.weight": vectors, "lora_unet_conv_in.alpha": torch.tensor(1.0)}
    torch.save(lora, tmp_path / "lora.bin")
    target = tmp_path / "lora.safetensors"
    assert run(["convert", "--allow-pickle", str(tmp_path / "lora.bin"), str(target)]) == 0
    assert read_tensors(target).keys() == lora.keys()


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "b": Evil()}, "evil.ckpt")
    with pytest.raises(
        MezzotintError,
        match=r"evil.ckpt holds more than weights, and stays closed: it wants to run \w+.system",
    ):
        read_pickled("evil.ckpt")
    with open("plain.ckpt", "wb") as file:
        pickle.dump({"b": Evil()}, file)
    with pytest.raises(MezzotintError):
        read_pickled("plain.ckpt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04cut short", b"\x80\x04no pickle"])
def test_damaged_pickles(tmp_path, content):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(MezzotintError) as caught:
        read_pickled(tmp_path / "x.ckpt")
    assert "\n" not in str(caught.value)


def test_pickles_without_weights(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    with pytest.raises(MezzotintError, match="no weights that we can find"):
        read_pickled(tmp_path / "x.pt")


def test_what_stays_as_it_is(folder, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    for target, says in (("there", "exists"), ("x.ckpt", "pickled files are not written")):
        assert run(["convert", str(folder), str(tmp_path / target)]) != 0
        assert says in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "there"]


def test_what_no_component_uses(folder, tmp_path):
    from dataclasses import replace

    from mezzotint.formats.opened import write_parts

    parts = replace(folder_parts(folder), rest={"model_ema.decay": torch.tensor(0.9)})
    write_parts(tmp_path / "full.safetensors", parts)
    assert run(["convert", str(tmp_path / "full.safetensors"), str(tmp_path / "kept")]) == 0
    assert read_parts(tmp_path / "kept").rest.keys() == {"model_ema.decay"}
    assert run(["convert", str(tmp_path / "kept"), str(tmp_path / "lean.safetensors"), "--lean"]) == 0
    assert "model_ema.decay" not in read_tensors(tmp_path / "lean.safetensors")
