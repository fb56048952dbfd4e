"""Weights in parts: two processes are one, and any number of processes goes on from what any other number wrote."""

import pytest
import torch
from line import CPU, config, same
from several import BlocksStage, blocks_config, train_alone, train_together
from torch import nn

from mezzotint.errors import MezzotintError, UsageError
from mezzotint.training import checkpoint, sharding
from mezzotint.training.loop import Trainer
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
