"""Weights in parts: two processes are one, and any number of processes goes on from what any other number wrote."""

import os
import subprocess
import sys

import pytest
import torch
from line import CPU, config, same
from several import BlocksStage, blocks_config, train_alone, train_together
from test_denoising import places  # noqa: F401 - a fixture
from torch import nn

from mezzotint.errors import MezzotintError, UsageError
from mezzotint.pipeline import Pipeline
from mezzotint.training import checkpoint, sharding
from mezzotint.training.config import read_config
from mezzotint.training.loop import Trainer
from mezzotint.training.watch import run
from mezzotint.training.world import World

FSDP = {"run": {"sharding": "fsdp"}}


def close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


def test_two_processes_of_parts_are_one(tmp_path):
    """To rounding (1e-6 in float32, 12 steps). What two wrote, one reads, whole; and goes on from."""
    together = train_together(tmp_path / "two", 2, steps=12, **FSDP)
    close(together, train_alone(tmp_path / "one", steps=12))
    files = sorted(path.name for path in (tmp_path / "two" / "checkpoints" / "step-00000012").iterdir())
    assert [name.split("-")[:2] for name in files[:2]] == [["shard", "00001"], ["shard", "00002"]]
    assert files[2:] == [checkpoint.STATE]
    trainer = Trainer(BlocksStage(), blocks_config(tmp_path / "two"), CPU)
    assert trainer.resume()
    trainer.save()
    assert same(checkpoint.load_newest(tmp_path / "two" / "checkpoints")[0], together)
    assert (tmp_path / "two" / "checkpoints" / "step-00000012" / checkpoint.WEIGHTS).exists()


def test_one_process_has_nothing_to_cut(tmp_path):
    assert same(train_alone(tmp_path / "a", **FSDP), train_alone(tmp_path / "b"))


def test_what_cannot_be_cut_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r'run\.sharding = "none"'):
        sharding.shard(nn.ModuleList([nn.Linear(2, 2)]), World(0, 2), CPU)


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_any_number_goes_on_from_any_other(tmp_path, optimiser):
    """2 -> 1 -> 4 -> 2 processes. Muon makes directions in bfloat16, so that the last bits of its steps differ."""
    out = tmp_path / "changing"
    changes = {"optim": {"optimiser": optimiser, "weight_decay": 0.1, "decay": 0.0, "posthoc": [0.1]}}
    expected = train_alone(tmp_path / "straight", steps=8, **changes)
    train_together(out, 2, steps=2, **changes, **FSDP)
    train_alone(out, steps=4, **changes)
    train_together(out, 4, steps=6, **changes, **FSDP)
    found = train_together(out, 2, steps=8, **changes, **FSDP)
    close(found, expected, **({"atol": 1e-3} if optimiser == "muon" else {}))


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tmp_path):
    expected = train_together(tmp_path / "calm", 2, **FSDP)
    found = train_together(tmp_path / "killed", 2, die=7, **FSDP)
    assert (tmp_path / "killed" / "died").exists()
    assert same(found, expected)
    newest = tmp_path / "killed" / "checkpoints" / "step-00000012"
    hurt = next(newest.glob("shard-00002*"))
    hurt.write_bytes(hurt.read_bytes()[:-1] + b"?")
    again = train_together(tmp_path / "killed", 2, **FSDP)
    assert (newest.parent / "damaged-step-00000012").exists()
    assert same(again, expected)
    for path in newest.parent.glob("step-*"):
        next(path.glob("shard-00001*")).unlink()
    with pytest.raises(MezzotintError, match="no checkpoint is sound"):
        Trainer(BlocksStage(), config(tmp_path / "killed"), CPU).resume()


@pytest.mark.slow
def test_parts_of_a_batch_and_parts_of_a_net(tmp_path):
    expected = train_alone(tmp_path / "one")
    close(train_together(tmp_path / "two", 2, optim={"accumulate": 2}, **FSDP), expected)


UNET = """
stage = "model"
data = "{data}"
out = "{out}"
optim = {{steps = 3, batch = 4, lr = 2e-3, warmup = 1, posthoc = [0.1]}}
run = {{precision = "float32", checkpoint = 2, pictures = 2, validate_every = 2, device = "cpu"}}
dataset = {{resolution = 16, held_out = 0.2}}
model = {{steps = 2, half = false, condition = "class", weight = "simple", uncertainty = true}}

[net]
block_out_channels = [8, 16]
down_block_types = ["DownBlock2D", "AttnDownBlock2D"]
up_block_types = ["AttnUpBlock2D", "UpBlock2D"]
layers_per_block = 1
attention_head_dim = 8
norm_num_groups = 4
"""


@pytest.mark.slow
def test_a_unet_in_parts_is_looked_at_and_written_whole(places, tmp_path):  # noqa: F811
    """`torchrun ... -m mezzotint train`: the weights of one process, and a result that opens."""
    file = tmp_path / "unet.toml"
    file.write_text(UNET.format(data=places / "classes", out=tmp_path / "two"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "mezzotint", "train", str(file), "--set", "run.sharding=fsdp"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    for _ in run(read_config(file, [f"out={tmp_path / 'one'}"])):
        pass
    found, expected = (checkpoint.load_newest(tmp_path / n / "checkpoints")[0] for n in ("two", "one"))
    close(found, expected, rtol=1e-3, atol=1e-5)
    pipe = Pipeline.load(tmp_path / "two" / "model", device="cpu")
    for key, value in pipe.denoiser.net.state_dict().items():
        assert torch.equal(value, found[f"ema.unet.{key}"])
    for path in ("pictures/00000003.png", "report.html", "snapshots"):
        assert (tmp_path / "two" / path).exists()
