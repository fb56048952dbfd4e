"""What is told of a run is what the run then does, and telling it leaves no trace."""

import json

import pytest
from PIL import Image

from mezzotint.cli import run
from mezzotint.training.config import TrainConfig
from mezzotint.training.explain import explain
from mezzotint.training.watch import session
from tiny import write_tiny


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Pictures of two shapes with captions, and a tiny model."""
    root = tmp_path_factory.mktemp("explain")
    (root / "data").mkdir()
    for i in range(12):
        size = (16, 16) if i < 9 else (24, 12)
        Image.new("RGB", size, (i * 20, 0, 99)).save(root / "data" / f"{i}.png")
        (root / "data" / f"{i}.txt").write_text(f"picture {i}\nnumber {i}" if i else "word " * 300)
    write_tiny(root / "tiny")
    return root


def config(places, out, **changes):
    keys = {
        "stage": "lora",
        "data": places / "data",
        "out": out,
        "dataset": {"resolution": 16, "held_out": 0.0, "flip": True},
        "model": {"start": str(places / "tiny"), "steps": 2, "weight": "simple"},
        "optim": {"steps": 60, "batch": 4, "lr": 1e-3, "warmup": 1},
        "run": {"precision": "float32", "device": "cpu", "checkpoint": 2, "keep": 3},
    }
    return TrainConfig.model_validate(keys | changes)


def test_what_is_told_is_what_is_done(places, tmp_path):
    settings = config(places, tmp_path / "run")
    told = explain(settings)
    assert list(tmp_path.iterdir()) == []
    assert (told.data.pictures, told.data.held_out, told.data.captions) == (12, 0, 23)
    assert told.data.layout == "sidecar"
    assert sum(bucket.pictures for bucket in told.data.buckets) == 12
    assert (told.steps.steps, told.steps.done, told.steps.epochs) == (60, 0, 20.0)
    assert told.times.training == pytest.approx(60 * told.times.step)
    assert told.times.preparing > 0
    assert any("1 of 23 captions are longer" in warning for warning in told.warnings)
    with session(settings) as here:
        list(here.prepare())
        steps = here.steps()
        for _ in range(3):
            next(steps)
        steps.close()
        trained = sum(p.numel() for net in here.stage.players.values() for p in net.parameters())
    assert told.nets.trained == trained < told.nets.parameters
    kept = sum(f.stat().st_size for f in (settings.out / "cache" / "latents").iterdir())
    assert told.bytes.latents == pytest.approx(kept, rel=0.5)  # headers beside very small tensors
    checkpoint = next((settings.out / "checkpoints").glob("step-*/state.safetensors")).stat().st_size
    assert told.bytes.checkpoints == pytest.approx(4 * checkpoint, rel=0.3)
    again = explain(settings)
    assert again.steps.done == 2
    assert again.times.training == pytest.approx(58 * again.times.step)


def test_the_command(places, tmp_path, capsys):
    file = tmp_path / "run.toml"
    given = config(places, tmp_path / "run", prior={"prompt": "a word", "pictures": 7})
    whole = given.model_dump(mode="json", exclude_unset=True)
    lines = [f"{key} = {json.dumps(whole.pop(key))}" for key in ("stage", "data", "out")]
    for section, values in whole.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    file.write_text("\n".join(lines))
    assert run(["train", str(file), "--explain", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["event"] == "explain"
    assert told["data"]["drawn"] == 7
    assert told["steps"]["batch"] == 4
    assert not (tmp_path / "run").exists()
    assert run(["train", str(file), "--explain"]) == 0
    text = capsys.readouterr().out
    assert "pictures a second" in text
    assert "16 x 16" in text
    assert "captions are longer" in text
