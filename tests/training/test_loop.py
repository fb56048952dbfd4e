"""Exact resume, the schedule of the rate, and what stops a run."""

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from mezzotint.errors import MezzotintError
from mezzotint.training import checkpoint
from mezzotint.training.config import Optim, TrainConfig
from mezzotint.training.loop import learning_rate
from mezzotint.training.watch import run

NET = {
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}


def config(data, out, **changes):
    optim = {"steps": 8, "batch": 4, "lr": 1e-3, "warmup": 2} | changes.pop("optim", {})
    keys = {"stage": "vae", "data": data, "out": out, "net": NET, "optim": optim}
    keys |= {"run": {"precision": "float32", "checkpoint": 1, "pictures": 4}, "vae": {"crop": 16}} | changes
    return TrainConfig.model_validate(keys)


def final_state(folder):
    tensors, facts = checkpoint.load_newest(folder / "checkpoints")
    return tensors, facts["step"]


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_run_stopped_anywhere_ends_in_the_same_bits(glyph_folder, tmp_path, optimiser):
    optim = {"optim": {"optimiser": optimiser}}
    for _ in run(config(glyph_folder, tmp_path / "whole", **optim)):
        pass
    expected, step = final_state(tmp_path / "whole")
    assert step == 8
    for stop in (1, 4, 7):
        out = tmp_path / f"stopped-{stop}"
        for _ in itertools.islice(run(config(glyph_folder, out, **optim)), stop):
            pass  # dropped in the middle, as by a kill: nothing is saved on the way out
        for _ in run(config(glyph_folder, out, **optim)):
            pass
        found, step = final_state(out)
        assert step == 8
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], expected[k]) for k in expected)
    assert (tmp_path / "whole" / "vae" / "config.json").exists()
    assert (tmp_path / "whole" / "pictures" / "00000004.png").exists()


def test_killed_from_outside(glyph_folder, tmp_path):
    script = (
        "import sys; sys.path.insert(0, 'tests/training'); from pathlib import Path\n"
        "from test_loop import config; from mezzotint.training.watch import run\n"
        f"for p in run(config(Path({str(glyph_folder)!r}), Path(sys.argv[1]), optim={{'steps': 60}})):\n"
        "    print(p.stats.step, flush=True)\n"
    )
    victim, whole = tmp_path / "victim", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, "-c", script, victim], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) == 5:
            time.sleep(0.013)  # somewhere within a later step or the writing of a checkpoint
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert final_state(victim)[1] < 60
    for out in (victim, whole):
        subprocess.run([sys.executable, "-c", script, out], check=True, stdout=subprocess.DEVNULL)
    expected, found = final_state(whole)[0], final_state(victim)[0]
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_another_configuration_does_not_resume(glyph_folder, tmp_path):
    for _ in itertools.islice(run(config(glyph_folder, tmp_path)), 2):
        pass
    with pytest.raises(MezzotintError, match=r"another configuration .*seed"):
        next(run(config(glyph_folder, tmp_path, seed=1)))
    longer = run(config(glyph_folder, tmp_path, optim={"steps": 9}))
    assert next(longer).stats.step > 1


def test_keeps_the_newest_checkpoints(glyph_folder, tmp_path):
    for _ in run(config(glyph_folder, tmp_path)):
        pass
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000007",
        "step-00000008",
    ]


def test_learning_rate_rises_stays_and_falls():
    optim = Optim(steps=1000, batch=1, lr=2.0, warmup=10, decay=0.4)
    rates = [learning_rate(optim, step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.2)
    assert set(rates[10:599]) == {2.0}
    assert rates[999] == 0
    assert rates[600 + 99] == pytest.approx(2 * (1 - 0.5), rel=1e-9)  # a quarter of the way: 1 - sqrt(1/4)


def test_precision_is_chosen_once_and_kept(glyph_folder, tmp_path):
    settings = config(glyph_folder, tmp_path, run={"precision": "auto", "checkpoint": 1, "pictures": 100})
    first = next(iter(run(settings))).precision
    assert first in ("float32", "bfloat16")
    *_, last = itertools.islice(run(settings), 3)
    assert last.precision == checkpoint.load_newest(tmp_path / "checkpoints")[1]["precision"]
