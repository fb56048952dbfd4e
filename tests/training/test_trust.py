"""What a run does on bad days: steps that are not finite, spikes, damaged checkpoints, full disks, killed workers."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from line import CPU, Line, config, same, shifted, train

from mezzotint.errors import MezzotintError, UsageError
from mezzotint.formats import atomic
from mezzotint.training import checkpoint
from mezzotint.training.loop import Loss, Trainer
from mezzotint.training.world import WHOLE

SCRIPT = Path(__file__).with_name("line.py")


def begin(out, stop, stage=None):
    """A run that was killed in the step after `stop`."""
    trainer = Trainer(stage or Line(), config(out), CPU)
    trainer.resume()
    steps = trainer.steps()
    while trainer.step <= stop:
        next(steps)


def test_a_step_that_is_not_finite_changes_nothing(tmp_path):
    before, _ = train(tmp_path / "before", steps=12, optim={"decay": 0.0})
    stats, _ = train(tmp_path / "broken", Line(broken=[5]), optim={"decay": 0.0})
    assert [s.notes for s in stats if s.notes] == [
        ("step 6 was skipped: the loss of 'line' is nan, its gradient's norm nan",)
    ]
    assert stats[4].loss == before[4].loss
    trainer = Trainer(Line(broken=[5]), config(tmp_path / "other"), CPU)
    steps = trainer.steps()
    for _ in range(5):
        next(steps)
    weights = trainer.stage.net.weight.detach().clone()
    next(steps)
    assert torch.equal(trainer.stage.net.weight, weights)
    next(steps)
    assert not torch.equal(trainer.stage.net.weight, weights)


def test_killed_at_twenty_random_moments_it_ends_in_the_same_bits(tmp_path):
    """With the averages, accumulation and workers; wherever the kill falls: in a step, in a file that is written."""
    changes = {"steps": 60, "optim": {"accumulate": 2, "posthoc": (0.05, 0.1)}}
    changes |= {"run": {"checkpoint": 1, "snapshots": 5, "workers": 2}}
    begun = time.perf_counter()
    _, expected = train(tmp_path / "whole", **changes)
    longest = (time.perf_counter() - begun) / 20  # so that most come before the end
    draw, kills = random.Random(7), 0
    for _ in range(20):
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)  # a pool of threads does not survive a fork
            try:
                train(tmp_path / "killed", **changes)
            finally:
                os._exit(0)
        time.sleep(draw.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert kills > 10
    assert same(train(tmp_path / "killed", **changes)[1], expected)
    whole, killed = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "snapshots").glob("[!.]*")}
        for name in ("whole", "killed")
    )
    assert len(whole) == 24
    assert whole == killed


def test_the_player_and_the_part_that_broke_are_named(tmp_path):
    class Two(Line):
        """A sound player beside one whose second part breaks."""

        def __init__(self):
            super().__init__()
            self.other = torch.nn.Linear(3, 2)
            self.players |= {"other": self.other}

        def losses(self, batch, step):
            yield from super().losses(batch, step)
            good = self.other(batch[1]).square().mean()
            bad = good * (float("inf") if step == 2 else 1)
            yield Loss("other", good + bad, {"good": good.detach(), "bad": bad.detach()})

    stats, _ = train(tmp_path, Two())
    assert stats[2].notes == (
        "step 3 was skipped: the loss of 'other' is inf (of its parts, not finite: bad), its gradient's norm nan",
    )
    assert stats[1].loss == pytest.approx(
        stats[1].parts["error"] + stats[1].parts["good"] + stats[1].parts["bad"]
    )


def test_after_three_in_a_row_the_run_goes_back_and_takes_other_data(tmp_path):
    stats, end = train(tmp_path, Line(broken=[7, 8, 9]))
    assert [s.step for s in stats] == [*range(1, 11), *range(7, 13)]  # nothing is kept of a bad time
    note = stats[10].notes[0]
    assert "3 steps in a row" in note
    assert "back to step 6" in note
    _, other = train(tmp_path / "other", Line(broken=[7, 8, 9]))
    assert same(end, other)
    with pytest.raises(MezzotintError, match=r"3 steps in a row were skipped.*is nan.*Lower optim\.lr"):
        train(tmp_path / "hopeless", Line(broken=[7, 8, 9, *map(shifted, (6, 7, 8))]), run={"retreats": 1})
    with pytest.raises(MezzotintError, match=r"3 steps in a row"):
        train(tmp_path / "at once", Line(broken=range(3)), run={"checkpoint": 50})


def test_a_run_that_went_back_resumes_to_the_same_bits(tmp_path):
    _, expected = train(tmp_path / "whole", Line(broken=[7, 8, 9]))
    settings = config(tmp_path / "stopped")
    for stop in (3, 6, 2):  # killed before, while and after it went back
        trainer = Trainer(Line(broken=[7, 8, 9]), settings, CPU)
        trainer.resume()
        steps = trainer.steps()
        for _ in range(stop):
            next(steps, None)
    assert same(train(tmp_path / "stopped", Line(broken=[7, 8, 9]))[1], expected)


def test_what_began_after_the_checkpoint_begins_anew_when_the_run_goes_back(tmp_path):
    class Late(Line):
        """A second player that joins, as a critic does, after the step that the run goes back to."""

        def __init__(self):
            super().__init__(broken=[7, 8, 9])
            self.late = torch.nn.Linear(3, 2)
            self.players |= {"late": self.late}

        def losses(self, batch, step):
            yield from super().losses(batch, step)
            if step >= 6:
                yield Loss("late", self.late(batch[1]).square().mean())

    _, expected = train(tmp_path / "whole", Late())
    settings = config(tmp_path / "stopped")
    steps = Trainer(Late(), settings, CPU).steps()
    for _ in range(11):  # it went back, and is killed before the next checkpoint
        next(steps)
    restarted = Trainer(Late(), settings, CPU)
    restarted.resume()
    list(restarted.steps())
    assert same(checkpoint.load_newest(settings.out / "checkpoints")[0], expected)
    assert float(expected["optim.late.step.weight"]) == 6  # of the steps 7 to 12, once


def test_what_a_part_of_the_batch_does_not_say_is_not_counted_as_nothing(tmp_path):
    class Some(Line):
        """Names a part in the first half of each batch alone; remembers the largest share that it was asked for."""

        most = 0

        def batch(self, step, share=WHOLE):
            found = super().batch(step, share)
            self.most = max(self.most, len(found[1]))
            return *found, share.part

        def losses(self, batch, step):
            *rest, part = batch
            for loss in super().losses(rest, step):
                yield loss._replace(parts={"first": torch.tensor(3.0)} if part == 0 else {})

    stage = Some()
    stats, _ = train(tmp_path, stage, optim={"accumulate": 2}, run={"precision": "auto"})
    assert {s.parts["first"] for s in stats} == {3.0}
    assert stage.most == 4  # nor is a whole batch computed to choose a precision


def test_spikes_are_skipped_where_that_is_asked_for(tmp_path):
    many = {"steps": 40, "optim": {"spike": 20.0}}
    stats, _ = train(tmp_path / "a", Line(big=[30]), **many)
    assert "times the median" in stats[30].notes[0]
    assert not any(s.notes for s in train(tmp_path / "b", Line(big=[30]), steps=40)[0])
    _, expected = train(tmp_path / "c", Line(big=[36]), **many)
    settings = config(tmp_path / "d", steps=40, optim={"spike": 20.0})
    steps = Trainer(Line(big=[36]), settings, CPU).steps()
    for _ in range(33):
        next(steps)
    assert same(train(tmp_path / "d", Line(big=[36]), **many)[1], expected)  # the median is part of the state


@pytest.mark.parametrize("accumulate", [2, 4])
def test_parts_of_a_batch_make_the_batch(tmp_path, accumulate):
    whole, expected = train(tmp_path / "whole")
    parts, found = train(tmp_path / "parts", optim={"accumulate": accumulate}, run={"workers": 3})
    assert [s.loss for s in parts] == pytest.approx([s.loss for s in whole], rel=1e-5)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-6)
    with pytest.raises(UsageError, match=r"optim\.batch 8 cannot be cut into 3 equal parts"):
        train(tmp_path / "odd", optim={"accumulate": 3})


def test_a_damaged_checkpoint_is_put_aside(tmp_path):
    _, expected = train(tmp_path / "whole")
    begin(tmp_path / "hurt", 8)
    newest = tmp_path / "hurt" / "checkpoints" / "step-00000008"
    content = bytearray((newest / checkpoint.WEIGHTS).read_bytes())
    content[-3] ^= 1  # a single bit, which no format would notice
    (newest / checkpoint.WEIGHTS).write_bytes(content)
    stats, found = train(tmp_path / "hurt")
    assert stats[0].step == 7
    assert "is damaged" in stats[0].notes[0]
    assert "going on from step 6" in stats[0].notes[0]
    assert same(found, expected)
    assert (newest.parent / "damaged-step-00000008").exists()
    for path in newest.parent.glob("step-*"):
        (path / checkpoint.WEIGHTS).write_bytes(b"")
    with pytest.raises(MezzotintError, match="no checkpoint is sound"):
        train(tmp_path / "hurt")


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    begin(tmp_path, 4)
    real = atomic._sync

    def full(path):
        if path.name == checkpoint.STATE:
            raise OSError(28, "No space left on device", str(path))
        real(path)

    monkeypatch.setattr(atomic, "_sync", full)
    with pytest.raises(MezzotintError, match="the disk is full"):
        train(tmp_path)
    monkeypatch.undo()
    assert checkpoint.load_newest(tmp_path / "checkpoints")[1]["step"] == 4
    assert same(train(tmp_path)[1], train(tmp_path / "undisturbed")[1])


def test_a_configuration_of_before_new_keys_still_resumes(tmp_path):
    begin(tmp_path, 4)
    state = tmp_path / "checkpoints" / "step-00000004" / checkpoint.STATE
    facts = atomic.read_json(state)
    for key in ("spike", "accumulate"):
        del facts["config"]["optim"][key]
    atomic.write_json(state, facts, replace=True)
    assert train(tmp_path)[0][0].step == 5


def launched(out, processes, *arguments):
    """The last checkpoint of `line.py` under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["--max-restarts=3", "--monitor-interval=0.1", str(SCRIPT), str(out), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return checkpoint.load_newest(out / "checkpoints")[0]


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """To rounding (1e-6 here, in float32): only the order of sums differs. A killed worker changes not a bit."""
    _, alone = train(tmp_path / "alone")
    together = launched(tmp_path / "together", 2, 12, 1)
    for key in alone:
        torch.testing.assert_close(together[key], alone[key], rtol=1e-5, atol=1e-6)
    assert same(launched(tmp_path / "killed", 2, 12, 1, 7), together)
    assert (tmp_path / "killed" / "died").exists()
    accumulated = launched(tmp_path / "accumulated", 2, 12, 2)
    for key in alone:
        torch.testing.assert_close(accumulated[key], alone[key], rtol=1e-5, atol=1e-6)
