"""Weights survive the disk to the last bit; damage, misfits and pickled code are named in one line."""

import hashlib
import json
import struct
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

from mezzotint.errors import MezzotintError
from mezzotint.formats import tensors as ours
from mezzotint.formats.tensors import (
    build,
    find_weights,
    load,
    read_metadata,
    read_tensors,
    read_weights,
    write_tensors,
)


def mixed():
    g = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(4, 8, generator=g),
        "a": torch.randn(3, generator=g).half(),
        "c": torch.randn(5, 2, generator=g).bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "ids": torch.arange(7),
        "flag": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
        "turned": torch.randn(4, 6, generator=g).T,
    }


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Linear(8, 4))


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert torch.equal(left[name], right[name])


def test_round_trip_with_the_library_between(tmp_path):
    write_tensors(tmp_path / "a.safetensors", mixed(), metadata={"kind": "ü"})
    same(safetensors.torch.load_file(tmp_path / "a.safetensors"), mixed())
    same(read_tensors(tmp_path / "a.safetensors"), mixed())
    assert read_metadata(tmp_path / "a.safetensors") == {"format": "pt", "kind": "ü"}
    safetensors.torch.save_file({k: v.contiguous() for k, v in mixed().items()}, tmp_path / "b.safetensors")
    same(read_tensors(tmp_path / "b.safetensors"), mixed())


def test_equal_input_gives_equal_bytes(tmp_path):
    metadata = {name: name for name in "abcdef"}
    write_tensors(tmp_path / "a", mixed(), metadata=metadata)
    write_tensors(tmp_path / "b", dict(reversed(mixed().items())), metadata=metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_dtype_for_shipping(tmp_path):
    write_tensors(tmp_path / "a", mixed(), dtype=torch.float16)
    back = read_tensors(tmp_path / "a")
    assert back["ids"].dtype == torch.int64
    assert back["b.weight"].dtype == back["scalar"].dtype == torch.float16
    assert torch.equal(back["b.weight"], mixed()["b.weight"].half())


def test_overflow_is_refused(tmp_path):
    with pytest.raises(
        MezzotintError, match=r"tensor 'big' has values too great for torch.float16; write it as"
    ):
        write_tensors(tmp_path / "a", {"big": torch.tensor([1e6])}, dtype=torch.float16)
    with pytest.raises(MezzotintError, match=r"type torch\.complex64"):
        write_tensors(tmp_path / "a", {"c": torch.zeros(1, dtype=torch.complex64)})
    assert list(tmp_path.iterdir()) == []
    write_tensors(tmp_path / "a", {"inf": torch.tensor([torch.inf])}, dtype=torch.float16)  # was so before


def test_full_disk_while_writing(tmp_path):
    code = (
        "import resource, sys, torch; from mezzotint.formats.tensors import write_tensors\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "try: write_tensors(sys.argv[1], {'a': torch.zeros(100, 100)})\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == f"MezzotintError cannot write {tmp_path / 'a'}: file too large"
    assert list(tmp_path.iterdir()) == []


def test_build_equals_the_net_that_was_written(tmp_path):
    made = net()
    write_tensors(tmp_path / "a", made.state_dict())
    state = torch.get_rng_state()
    built = build(net, read_tensors(tmp_path / "a"), where="a")
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    same(built.state_dict(), made.state_dict())
    assert not built.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in built.parameters())
    assert all(p.data_ptr() % 64 == 0 for p in built.parameters())
    x = torch.randn(1, 3, 4, 4)
    made.to(memory_format=torch.channels_last)  # as what is built
    assert torch.equal(built[:2](x), made[:2](x))


def test_build_widens_half_precision(tmp_path):
    made = net().half()
    write_tensors(tmp_path / "a", made.state_dict())
    built = build(net, read_tensors(tmp_path / "a"), where="a")
    same(built.state_dict(), made.float().state_dict())
    half = build(net, read_tensors(tmp_path / "a"), where="a", dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_training_a_built_net_leaves_the_file_alone(tmp_path):
    write_tensors(tmp_path / "a", net().state_dict())
    before = hashlib.sha256((tmp_path / "a").read_bytes()).digest()
    built = build(net, read_tensors(tmp_path / "a"), where="a")
    with torch.no_grad():
        for p in built.parameters():
            p.add_(1)
    assert hashlib.sha256((tmp_path / "a").read_bytes()).digest() == before


def test_init_runs_again_afterwards():
    with pytest.raises(MezzotintError):
        build(net, {}, where="nowhere")
    assert nn.Linear(4, 4).weight.abs().sum() > 0
    assert torch.equal(nn.GroupNorm(2, 4).weight, torch.ones(4))


def test_every_misfit_is_reported():
    given = net().state_dict()
    given["2.wieght"] = given.pop("2.weight")
    given["0.bias"] = torch.zeros(9)
    given["1.weight"] = torch.zeros(8, dtype=torch.int8)
    target = net()
    before = {name: t.clone() for name, t in target.state_dict().items()}
    with pytest.raises(MezzotintError) as caught:
        load(target, given, where="unet/x.safetensors")
    assert str(caught.value) == (
        "unet/x.safetensors: the weights do not fit the net that config.json describes: "
        "1 missing (2.weight); 1 unknown (2.wieght, nearest 2.weight); "
        "1 of another shape (0.bias [9] instead of [8]); "
        "1 of a type that is not supported (1.weight torch.int8)"
    )
    same(target.state_dict(), before)
    with pytest.raises(MezzotintError, match=r"6 missing \(0.weight, 0.bias, 1.weight, ...\)$"):
        load(target, {}, where="x")


def header(content):
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


WHOLE = safetensors.torch.save({"a": torch.zeros(64)})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "damaged or cut short"),
        (WHOLE[:5], "damaged or cut short"),
        (WHOLE[:40], "damaged or cut short"),
        (WHOLE[:-1], "damaged or cut short .*not fully covered"),
        (WHOLE + b"x", "damaged or cut short"),
        (b"\0" * 100, "damaged or cut short"),
        (b"<html>" * 20, "damaged or cut short"),
        (header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}) + b"1234", "damaged"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}) + b"12345678", "damaged"),
        (header([1, 2]), "damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
@pytest.mark.parametrize("read", [read_tensors, read_metadata])
def test_damaged_file(tmp_path, content, says, read):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(MezzotintError, match=f"x.safetensors is .*{says}") as caught:
        read(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stem", "there"),
    [
        ("diffusion_pytorch_model", "diffusion_pytorch_model.bin"),
        ("model", "pytorch_model.bin"),
        ("sd15", "sd15.ckpt"),
        ("sd15", "sd15.pt"),
    ],
)
def test_pickled_code_is_named_and_never_opened(tmp_path, stem, there):
    (tmp_path / there).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(
        MezzotintError, match=f"{there} beside it is pickled code.*mezzotint convert --allow-pickle"
    ):
        find_weights(tmp_path, stem)
    with pytest.raises(MezzotintError, match=f"{there} is pickled code, which is never opened"):
        read_tensors(tmp_path / there)


def test_missing_and_unreadable(tmp_path):
    with pytest.raises(MezzotintError, match=r"model.safetensors is missing; the checkpoint is incomplete"):
        read_weights(tmp_path, "model")
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(MezzotintError, match=r"model.safetensors is missing"):
        read_tensors(tmp_path / "model.safetensors")


def test_half_precision_variant_and_shards(tmp_path):
    write_tensors(tmp_path / "m.fp16.safetensors", {"a": torch.ones(2)})
    assert read_weights(tmp_path, "m")[0].keys() == {"a"}
    write_tensors(tmp_path / "m.safetensors", {"b": torch.ones(2)})
    assert read_weights(tmp_path, "m")[0].keys() == {"b"}
    for i in (1, 2):
        write_tensors(tmp_path / f"s-{i}-of-2.safetensors", {f"t{i}": torch.ones(2)})
    index = {"weight_map": {"t1": "s-1-of-2.safetensors", "t2": "s-2-of-2.safetensors"}}
    (tmp_path / "s.safetensors.index.json").write_text(json.dumps(index))
    tensors, where = read_weights(tmp_path, "s")
    assert tensors.keys() == {"t1", "t2"}
    assert where.endswith("s-1-of-2.safetensors and 1 more")
    (tmp_path / "s.safetensors.index.json").write_text('{"weight_map": {"t1": "../s-1-of-2.safetensors"}}')
    with pytest.raises(MezzotintError, match="lies outside of its folder"):
        read_weights(tmp_path, "s")


def test_building_imports_nothing_heavy(tmp_path):
    """The meta device would import sympy and more: a second."""
    write_tensors(tmp_path / "a", net().state_dict())
    code = (
        "import sys; from torch import nn; from mezzotint.formats.tensors import build, read_tensors\n"
        "make = lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Linear(8, 4))\n"
        "build(make, read_tensors(sys.argv[1]), where='a'); print('sympy' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"


def test_dtypes_by_name():
    assert set(ours.DTYPES) == {"float32", "float16", "bfloat16"}
