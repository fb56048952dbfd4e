"""Shards are read near-sequentially, by each process its own; a run killed on them ends in the same bits."""

import os
import signal
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from test_loop import final_state

from mezzotint.training.config import TrainConfig
from mezzotint.training.order import ShardOrder
from mezzotint.training.watch import run
from mezzotint.training.world import Share
from shards import encoded, write_shard

SHARDS, EACH = 16, 100
WHERE = [shard for shard in range(SHARDS) for _ in range(EACH)]  # the shard of each picture


def order(batch=32, seed=0, buckets=None, lanes=8, window=64, shards=WHERE):
    return ShardOrder(buckets or ["one"] * len(shards), shards, batch, seed, lanes=lanes, window=window)


@pytest.mark.parametrize("kinds", [["a"], ["a", "b", "b", "c"]])
def test_an_epoch_has_every_picture_once(kinds):
    buckets = [kinds[i % len(kinds)] for i in range(len(WHERE))]
    one = order(buckets=buckets)
    epochs = [[one(e * one.steps_per_epoch + i) for i in range(one.steps_per_epoch)] for e in range(2)]
    for epoch in epochs:
        seen = [i for batch in epoch for i in batch]
        assert len(seen) == len(set(seen)) == sum(buckets.count(k) // 32 * 32 for k in set(kinds))
        assert all(len({buckets[i] for i in batch}) == 1 for batch in epoch)
    assert epochs[0] != epochs[1]
    assert epochs[0] != [order(buckets=buckets, seed=1)(i) for i in range(one.steps_per_epoch)]
    assert [order(buckets=buckets)(i) for i in range(one.steps_per_epoch)] == epochs[0]


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_processes_read_shards_of_their_own(processes):
    one = order()
    mine = [
        {
            WHERE[one(step)[row]]
            for step in range(one.steps_per_epoch)
            for row in Share(rank, processes).rows(32)
        }
        for rank in range(processes)
    ]
    assert sum(map(len, mine)) == SHARDS == len(set.union(*mine))


def test_a_lane_goes_through_its_shards_and_does_not_jump():
    one = order(window=64)
    rows = range(4)  # of the first lane of eight
    read = [[one(step)[row] for row in rows] for step in range(one.steps_per_epoch)]
    shards = [{WHERE[i] for i in step} for step in read]
    changes = sum(a != b for a, b in pairwise(shards))
    assert len(set.union(*shards)) == 2
    assert changes <= 2 * 64 / 8 / 4 + 1  # only while the window lies on the border of two shards
    first = [i % EACH for step in read[:5] for i in step]  # places in a shard
    assert first != sorted(first)
    assert max(first) < 20 + 64 / 8  # of 20 that were read: none is further away than the window


def test_few_pictures_fill_a_batch():
    few = order(batch=8, shards=[0, 0, 1], lanes=3)
    assert few.steps_per_epoch == 1
    assert few.lanes == 1  # 3 do not divide 8
    assert sorted(map(few(5).count, range(3))) == [2, 3, 3]


# --- a run ---

NET = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}
SCRIPT = """
import os, signal, sys
from mezzotint.training.config import TrainConfig
from mezzotint.training.watch import run
for now in run(TrainConfig.model_validate_json(sys.argv[1])):
    if now.stats.step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def config(out, data):
    return TrainConfig.model_validate(
        {
            "stage": "model",
            "data": data,
            "out": out,
            "net": NET,
            "model": {"condition": "class", "steps": 2, "weight": "simple"},
            "dataset": {"resolution": 8, "held_out": 0.1, "flip": True, "lanes": 2, "window": 6},
            "optim": {"steps": 8, "batch": 4, "lr": 1e-3, "warmup": 1},
            "run": {"precision": "float32", "checkpoint": 2, "workers": 3, "device": "cpu"},
        }
    )


def test_killed_on_shards_a_run_ends_in_the_same_bits(tmp_path):
    for shard in range(3):
        members = [
            (f"{shard}{i}.{kind}", encoded(shard * 70 + i) if kind == "png" else str(i % 2).encode())
            for i in range(7)
            for kind in ("cls", "png")
        ]
        write_shard(tmp_path / f"s-{shard}.tar", members)
    data = tmp_path / "s-{0..2}.tar"
    list(run(config(tmp_path / "whole", data)))
    killed = config(tmp_path / "killed", data)
    done = subprocess.run([sys.executable, "-c", SCRIPT, killed.model_dump_json()], env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    assert [now.stats.step for now in run(killed)] == [5, 6, 7, 8]
    one, other = (final_state(tmp_path / name)[0] for name in ("whole", "killed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
