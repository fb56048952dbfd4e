"""Who is told of a run: TensorBoard's events, Weights & Biases (a stand-in for it), and scores in the log."""

import json
import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_denoising import NET, config

from mezzotint.errors import UsageError
from mezzotint.training.boards import boards
from mezzotint.training.history import read_history
from mezzotint.training.score import score
from mezzotint.training.watch import run


@pytest.fixture(scope="module")
def walls(tmp_path_factory):
    """Sixty pictures of two classes."""
    root = tmp_path_factory.mktemp("walls")
    rng = np.random.default_rng(0)
    for name, colour in {"red": (220, 30, 30), "blue": (30, 30, 220)}.items():
        (root / name).mkdir()
        for i in range(30):
            pixels = np.clip(np.array(colour) + rng.integers(-25, 25, (16, 16, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def test_everything_is_told_and_scored(walls, tmp_path, monkeypatch):
    told = []
    wandb = ModuleType("wandb")
    fake = SimpleNamespace(
        log=told.append, define_metric=lambda *a, **k: None, finish=lambda: told.append("finished")
    )
    given = {}
    wandb.init = lambda **keys: given.update(keys) or fake
    wandb.Image = lambda picture: picture.size
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    settings = config(
        tmp_path,
        walls,
        {"condition": "class"},
        net=NET,
        dataset={"held_out": 0.4},
        run={"score": 16, "wandb": "prints", "log": 1},
    )
    for _ in run(settings):
        pass
    scores = read_history(tmp_path).scores
    assert [entry["step"] for entry in scores] == [2, 4]
    last = scores[-1]["score"]
    assert last["n"] == 16
    assert last["low"] < last["value"] < last["high"]
    assert last["floor"] < last["low"]  # four steps have taught it nothing
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert {"loss", "lr", "grad_norm", "validation/gap", "score/value"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]
    assert events.Tags()["images"] == ["samples"]
    assert given["project"] == "prints"
    assert (given["resume"], given["config"]["stage"]) == ("allow", "model")
    assert told[-1] == "finished"
    assert [d["step"] for d in told[:-1] if "loss" in d] == [1, 2, 3, 4]
    assert any(d.get("score/value") == last["value"] for d in told[:-1])
    assert "Distance to held-out pictures" in (tmp_path / "report.html").read_text()
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Distance of 16 samples to held-out pictures after step 4" in card


def test_a_board_that_is_missing_is_said(walls, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    settings = config(tmp_path, walls, {"condition": "class"}, net=NET, run={"wandb": "prints"})
    with pytest.raises(UsageError, match=r"run\.wandb needs the package 'wandb'"), boards(settings, 0):
        pass


def test_pictures_of_one_kind_are_near_and_others_far():
    rng = np.random.default_rng(1)

    def some(count, colour, side=(20, 24)):
        return [
            np.clip(np.array(colour) + rng.integers(-40, 40, (*side, 3)), 0, 255).astype(np.uint8)
            for _ in range(count)
        ]

    held, trained = some(20, (200, 60, 60)), some(20, (200, 60, 60))
    near = score(held, some(20, (200, 60, 60)), trained)
    far = score(held, some(20, (60, 60, 200), side=(16, 16)), trained)
    assert far.low > near.high
    assert near.low < 0.05
    assert math.isfinite(near.floor)
    json.dumps(vars(far))


def test_too_few_are_no_score(walls, tmp_path):
    settings = config(
        tmp_path, walls, {"condition": "class"}, net=NET, dataset={"held_out": 0.1}, run={"score": 16}
    )
    for _ in run(settings):
        pass
    assert read_history(tmp_path).scores == []
