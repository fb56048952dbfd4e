"""Single files: written as other programs write them, read as what they are, and back to the same bytes."""

import json
import struct

import numpy as np
import pytest
import safetensors.torch
import torch

from kinds import KINDS, saved
from mezzotint import Pipeline
from mezzotint.errors import MezzotintError
from mezzotint.formats.folder import folder_parts, read_folder, write_folder
from mezzotint.formats.kinds import FAMILIES, family_of, title
from mezzotint.formats.single import read_single, single_parts, write_single
from mezzotint.formats.tensors import read_metadata, read_tensors


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, remembered = tmp_path_factory.mktemp("single"), {}

    def get(kind):
        if kind not in remembered:
            path, pipeline = saved(kind, folder)
            single = folder / f"{kind}.safetensors"
            write_single(single, folder_parts(path))
            remembered[kind] = path, pipeline, single
        return remembered[kind]

    return get


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(made, kind, tmp_path):
    folder, _, single = made(kind)
    write_folder(tmp_path / "folder", single_parts(single))
    write_single(tmp_path / "again.safetensors", folder_parts(tmp_path / "folder"))
    assert (tmp_path / "again.safetensors").read_bytes() == single.read_bytes()
    there, back = folder_parts(folder), folder_parts(tmp_path / "folder")
    for part in there.tensors:
        same(there.tensors[part], back.tensors[part])
    assert there.configs.plan == back.configs.plan
    assert (there.configs.unet, there.configs.vae) == (back.configs.unet, back.configs.vae)
    assert there.configs.encoders == back.configs.encoders


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_reads_what_we_write(made, kind):
    folder, theirs, single = made(kind)
    again = type(theirs).from_single_file(
        single, config=str(folder), local_files_only=True, torch_dtype=torch.float32
    )
    for name in again.components:
        net = getattr(theirs, name)
        if isinstance(net, torch.nn.Module):
            same(dict(getattr(again, name).state_dict()), dict(net.state_dict()))


def bare(single, path, **more):
    """As other programs write it: without our header, and with what their files hold beyond the nets."""
    tensors = read_tensors(single)
    vocabulary = next(t for name, t in tensors.items() if name.endswith("token_embedding.weight")).shape[0]
    safetensors.torch.save_file({k: t.contiguous() for k, t in (tensors | more).items()}, path)
    return vocabulary


@pytest.mark.parametrize("kind", KINDS)
def test_kind_and_configurations_are_found_from_keys_and_shapes(made, kind, tmp_path, monkeypatch):
    folder, _, single = made(kind)
    marks = {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(3)}
    marks |= {"v_pred": torch.zeros(0)} if kind == "sd2-v" else {}
    bare(single, tmp_path / "foreign.safetensors", **marks)
    tokenizers = folder_parts(folder).tokenizers
    monkeypatch.setattr("mezzotint.formats.single._tokenizers", lambda *_: tokenizers)  # ours are small
    found, expected = single_parts(tmp_path / "foreign.safetensors"), folder_parts(folder)
    for part in expected.tensors:
        same(expected.tensors[part], found.tensors[part])
    assert found.rest.keys() == {"model_ema.decay", "model_ema.num_updates"}
    a, b = found.configs, expected.configs
    assert (a.sized, a.inpainting, a.zeros_for_empty) == (b.sized, b.inpainting, b.zeros_for_empty)
    assert a.plan == b.plan
    assert title(a).split(",")[1:] == title(b).split(",")[1:]
    for field in (
        "levels",
        "addition_embed_type",
        "addition_time_embed_dim",
        "use_linear_projection",
        "in_channels",
    ):
        left, right = getattr(a.unet, field), getattr(b.unet, field)
        if field == "levels":
            depths = [
                [
                    level.depth
                    for level, name in zip(each(), a.unet.down_block_types, strict=True)
                    if "Attn" in name
                ]
                for each in (left, right)
            ]
            assert depths[0] == depths[1]
            assert [level.heads for level in left()] == [level.heads for level in right()]
        else:
            assert left == right
    assert a.vae.scaling_factor == b.vae.scaling_factor
    assert {n: e.hidden_act for n, e in a.encoders.items()} == {
        n: e.hidden_act for n, e in b.encoders.items()
    }


@pytest.mark.parametrize("kind", ["sd1", "sd2-v", "sdxl"])
def test_same_picture_from_either_form(made, kind):
    folder, _, single = made(kind)
    fields = {"seed": 1, "num_inference_steps": 2, "guidance_scale": 3.0}
    left, right = (Pipeline.load(path, device="cpu")("a red apple", **fields)[0] for path in (folder, single))
    assert np.array_equal(np.asarray(left), np.asarray(right))


def test_open_clip_as_it_was_trained(made, tmp_path, monkeypatch):
    """Released files of Stable Diffusion 2 hold a last layer, a projection and a scale that it does not look at."""
    folder, _, single = made("sd2")
    at = "cond_stage_model.model."
    more = {f"{at}text_projection": torch.randn(64, 64), f"{at}logit_scale": torch.tensor(4.6)}
    for name, tensor in read_tensors(single).items():
        if name.startswith(f"{at}transformer.resblocks.1."):
            more[name.replace("resblocks.1.", "resblocks.2.")] = torch.randn_like(tensor)
    bare(single, tmp_path / "trained.safetensors", **more)
    tokenizers = folder_parts(folder).tokenizers
    monkeypatch.setattr("mezzotint.formats.single._tokenizers", lambda *_: tokenizers)
    parts = single_parts(tmp_path / "trained.safetensors")
    assert parts.configs.text_encoder.num_hidden_layers == 2
    assert parts.rest.keys() == more.keys()
    same(parts.tensors["text_encoder"], folder_parts(folder).tensors["text_encoder"])
    write_folder(tmp_path / "folder", parts)
    read_folder(tmp_path / "folder")
    write_single(tmp_path / "again.safetensors", folder_parts(tmp_path / "folder"))
    same(read_tensors(tmp_path / "again.safetensors"), read_tensors(tmp_path / "trained.safetensors"))


def test_older_names_of_clip(made, tmp_path, monkeypatch):
    folder, _, single = made("sd1")
    at = "cond_stage_model.transformer."
    old = {name.replace(f"{at}text_model.", at): t.contiguous() for name, t in read_tensors(single).items()}
    old[f"{at}embeddings.position_ids"] = torch.arange(12)[None]
    safetensors.torch.save_file(old, tmp_path / "old.safetensors")
    tokenizers = folder_parts(folder).tokenizers
    monkeypatch.setattr("mezzotint.formats.single._tokenizers", lambda *_: tokenizers)
    ours = read_single(tmp_path / "old.safetensors")
    same(ours.text_encoder.state_dict(), read_folder(folder).text_encoder.state_dict())


def test_prediction(made, tmp_path, monkeypatch):
    folder, _, single = made("sdxl")
    tokenizers = folder_parts(folder).tokenizers
    monkeypatch.setattr("mezzotint.formats.single._tokenizers", lambda *_: tokenizers)
    path = tmp_path / "m.safetensors"
    bare(single, path)
    assert single_parts(path).configs.plan.prediction == "epsilon"
    assert single_parts(path, prediction="v_prediction").configs.plan.prediction == "v_prediction"
    (tmp_path / "m.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    assert single_parts(path).configs.plan.prediction == "v_prediction"
    bare(single, path, v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    plan = single_parts(path).configs.plan
    assert (plan.prediction, plan.process.zero_snr, plan.grid) == ("v_prediction", True, "trailing")
    write_single(tmp_path / "again.safetensors", single_parts(path))
    assert {"v_pred", "ztsnr"} <= read_tensors(tmp_path / "again.safetensors").keys()
    assert read_metadata(tmp_path / "again.safetensors")["modelspec.prediction_type"] == "v"
    assert single_parts(tmp_path / "again.safetensors").configs.plan == plan


def test_families():
    assert (
        family_of(["model.diffusion_model.a", "first_stage_model.b", "cond_stage_model.transformer.c"], "x")
        == "sd1"
    )
    assert set(FAMILIES) == {"sd1", "sd2", "sdxl", "sdxl-refiner"}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["lora_unet_down_blocks_0.lora_down.weight"], "looks like a LoRA"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "looks like Flux"),
        (["joint_blocks.0.context_block.adaLN_modulation.1.bias"], "Stable Diffusion 3"),
        (
            ["down_blocks.0.resnets.0.conv1.weight"],
            "one component of a diffusers folder; give the whole folder",
        ),
        (["encoder.down.0.block.0.conv1.weight"], "an autoencoder alone"),
        (
            ["model.diffusion_model.input_blocks.0.0.weight"],
            "it holds a U-Net, but not an autoencoder and a text encoder",
        ),
        (["a", "b", "c", "d"], r"4 tensors of no kind that we know \(a, b, c, ...\)"),
    ],
)
def test_what_it_is_instead(names, says, tmp_path):
    safetensors.torch.save_file({name: torch.zeros(1) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(MezzotintError, match=says) as caught:
        single_parts(tmp_path / "x.safetensors")
    assert "x.safetensors is no Stable Diffusion checkpoint" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_mean_nothing_are_refused(made, tmp_path):
    _, _, single = made("sd1")
    tensors, metadata = read_tensors(single), read_metadata(single)
    wrong = {k: t.contiguous() for k, t in tensors.items()} | {
        "model.diffusion_model.middle_block.7.x": torch.zeros(1)
    }
    safetensors.torch.save_file(wrong, tmp_path / "x.safetensors", metadata)
    with pytest.raises(MezzotintError, match=r"1 unknown \(middle_block.7.x"):
        read_single(tmp_path / "x.safetensors")


def test_header_that_lies(made, tmp_path):
    """The net that a header describes is not reserved before the weights are seen to be as large."""
    _, _, single = made("sd1")
    metadata = read_metadata(single)
    said = json.loads(metadata["mezzotint"])
    said["unet"]["block_out_channels"] = [64 * 4096, 128 * 4096]
    tensors = {k: t.contiguous() for k, t in read_tensors(single).items()}
    safetensors.torch.save_file(
        tensors, tmp_path / "x.safetensors", metadata | {"mezzotint": json.dumps(said)}
    )
    with pytest.raises(MezzotintError, match="more than twice as large as these weights"):
        read_single(tmp_path / "x.safetensors")


def raw(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


FLOAT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**62) + b"{}",  # a huge header
        struct.pack("<Q", 90 * 2**20) + b"{}",
        raw({"a": FLOAT, "b": FLOAT}, bytes(8)),  # overlapping
        raw({"a": FLOAT | {"shape": [2**40]}}, bytes(8)),  # a shape of other size
        raw({"a": FLOAT | {"data_offsets": [0, 2**40], "shape": [2**38]}}, bytes(8)),  # beyond the end
        raw({"a": FLOAT | {"shape": [2**62, 2**62]}}, bytes(8)),
        raw({"a": FLOAT | {"dtype": "F31"}}, bytes(8)),
        raw({"a": FLOAT}, bytes(4)),  # cut short
        raw(b"[" * 100_000),
        raw(b"\xff\xfe"),
        b"",
        b"PK\x03\x04" + bytes(100),  # pickled, under another name
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_hostile_files(content, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(MezzotintError, match=r"x.safetensors is (damaged|a Git LFS)") as caught:
        single_parts(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


def test_pickled_files_are_refused_with_the_remedy(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"PK")
    with pytest.raises(MezzotintError, match="never opened; `mezzotint convert --allow-pickle"):
        single_parts(tmp_path / "x.ckpt")
