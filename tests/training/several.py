"""One of several processes: `python several.py OUT CHANGES [DIE AT STEP, ONCE]`; what to change is given as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from line import CPU, Line, config
from torch import nn

from mezzotint.training import checkpoint
from mezzotint.training.loop import Trainer
from mezzotint.training.world import joined


class Blocks(nn.Module):
    """What there is to cut: a list of convolutions, a part with parts, rows that are fewer than the processes."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1, bias=False)])
        self.middle = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 3))
        self.last = nn.Linear(3, 2)
        self.register_buffer("scale", torch.ones(2))

    def forward(self, x):
        x = x[:, None, :, None].expand(-1, 1, -1, 3)
        for conv in self.convs:
            x = torch.tanh(conv(x))
        return self.last(self.middle(x.mean((2, 3)))) * self.scale


class BlocksStage(Line):
    """`Line`'s lesson, learned by a net of blocks, its convolutions in channels_last."""

    def __init__(self, batch=8):
        super().__init__(batch)
        torch.manual_seed(0)
        self.net = Blocks().to(memory_format=torch.channels_last)
        self.players = {"line": self.net}


def blocks_config(out, **changes):
    return config(Path(out), changes.pop("steps", 12), **changes)


def train_alone(out, **changes):
    """The last checkpoint of a run in this process, whatever the world is."""
    settings = blocks_config(out, **changes)
    trainer = Trainer(BlocksStage(settings.optim.batch), settings, CPU)
    trainer.resume()
    for _ in trainer.steps():
        pass
    return checkpoint.load_newest(settings.out / "checkpoints")[0]


def train_together(out, processes, *, die=None, **changes):
    """The last checkpoint of a run under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [
        f"--max-restarts={0 if die is None else 3}",
        "--monitor-interval=0.1",
        __file__,
        str(out),
        json.dumps(changes),
    ]
    command += [] if die is None else [str(die)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return checkpoint.load_newest(Path(out) / "checkpoints")[0]


if __name__ == "__main__":
    out, changes, *die = sys.argv[1:]
    with joined(CPU) as world:
        settings = blocks_config(out, **json.loads(changes))
        trainer = Trainer(BlocksStage(settings.optim.batch), settings, CPU, world)
        trainer.resume()
        for stats in trainer.steps():
            mark = Path(out) / "died"
            if die and world.rank == 1 and stats.step == int(die[0]) and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), 9)
