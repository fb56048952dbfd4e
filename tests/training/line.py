"""A stage that takes no time: a line through points, in parts as small as you like. Breaks where it is told to."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import nn

from mezzotint.diffusion.noise import generator
from mezzotint.training import checkpoint
from mezzotint.training.config import TrainConfig
from mezzotint.training.loop import SHIFT, Loss, Trainer
from mezzotint.training.world import WHOLE, joined

CPU = torch.device("cpu")


class Line:
    """y = W x learned from points that are functions of (step, row)."""

    def __init__(self, batch=8, broken=(), big=()):
        torch.manual_seed(0)
        self.net = nn.Linear(3, 2)
        self.players = {"line": self.net}
        self.size, self.broken, self.big = batch, broken, big

    def batch(self, step, share=WHOLE):
        rows = [torch.randn(3, generator=generator("x", step, row)) for row in share.rows(self.size)]
        return step, torch.stack(rows)

    def losses(self, batch, step):
        data_step, x = batch
        error = (self.net(x) - x[:, :2] * 3).square().mean()
        scale = float("nan") if data_step in self.broken else 1e4 if data_step in self.big else 1
        yield Loss("line", error * scale, {"error": error.detach()})

    def picture(self):
        return None

    def export(self, folder):
        pass


def config(out, steps=12, **changes):
    optim = {"steps": steps, "batch": 8, "lr": 1e-2, "warmup": 2} | changes.pop("optim", {})
    run = {"precision": "float32", "checkpoint": 2, "device": "cpu"} | changes.pop("run", {})
    return TrainConfig.model_validate(
        {"stage": "vae", "data": "d", "out": out, "optim": optim, "run": run} | changes
    )


def train(out, stage=None, **changes):
    """(the steps' stats, the last checkpoint's tensors) of a run to its end, gone on with if there is one."""
    settings = config(out, **changes)
    trainer = Trainer(stage or Line(settings.optim.batch), settings, CPU)
    trainer.resume()
    stats = list(trainer.steps())
    return stats, checkpoint.load_newest(settings.out / "checkpoints")[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def shifted(step):
    """The step whose data takes the place of `step` after a run went back once."""
    return step + SHIFT


if (
    __name__ == "__main__"
):  # one of several processes: python line.py OUT STEPS ACCUMULATE [die at step, once]
    out, steps, accumulate, *die = sys.argv[1:]
    with joined(CPU) as world:
        settings = config(Path(out), int(steps), optim={"accumulate": int(accumulate)})
        trainer = Trainer(Line(settings.optim.batch), settings, CPU, world)
        trainer.resume()
        for stats in trainer.steps():
            mark = Path(out) / "died"
            if die and world.rank == 1 and stats.step == int(die[0]) and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), 9)
