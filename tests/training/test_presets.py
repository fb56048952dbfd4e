"""Presets are whole configurations but for what only the user knows; what the user says goes before them."""

import json
import tomllib

import pytest

from mezzotint.cli import run
from mezzotint.errors import UsageError
from mezzotint.training.config import read_config
from mezzotint.training.presets import PRESETS, with_preset

OWN = {"data": "d", "out": "o"}


def overrides(needs):
    return [f"{key}={value}" for key, value in (OWN | dict.fromkeys(needs, "x")).items()]


@pytest.mark.parametrize("name", PRESETS)
def test_each_is_a_configuration_with_what_it_asks_for(name):
    preset = PRESETS[name]
    config = read_config(None, overrides(preset.needs), preset=name)
    assert config.stage == preset.settings["stage"]
    for missing in preset.needs:
        with pytest.raises(UsageError, match=f"preset '{name}' needs {missing}: "):
            read_config(None, overrides(set(preset.needs) - {missing}), preset=name)


def test_the_users_keys_go_first(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('preset = "lora"\ndata = "d"\nout = "o"\n[model]\nstart = "emoji"\n[optim]\nlr = 0.5\n')
    config = read_config(file, ["lora.rank=3"])
    assert (config.optim.lr, config.lora.rank, config.optim.steps) == (0.5, 3, 1500)
    assert read_config(file, preset="consistency").stage == "consistency"
    assert "preset" not in config.model_dump()  # a checkpoint is known by what was done
    both = with_preset(tomllib.loads("[a]\nb = 1\n"), "scratch-small")
    assert both["a"] == {"b": 1}
    assert PRESETS["lora"].settings["optim"]["lr"] == 1e-4  # and a preset stays as it is


def test_refusals(tmp_path):
    with pytest.raises(UsageError, match="unknown preset 'lroa'; did you mean 'lora'"):
        read_config(None, preset="lroa")
    with pytest.raises(UsageError, match="name a configuration, or a preset"):
        read_config(None)
    with pytest.raises(UsageError, match="preset 'class-conditional': data: field required"):
        read_config(None, ["out=o"], preset="class-conditional")
    file = tmp_path / "run.toml"
    file.write_text('prest = "vae"\n')
    with pytest.raises(UsageError, match=r"run\.toml: unknown key 'prest'; did you mean 'preset'"):
        read_config(file, ["stage=vae", "data=d", "out=o", "optim.steps=1", "optim.batch=1", "optim.lr=1"])


def test_the_list(capsys):
    assert run(["train", "--presets", "--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["name"] for one in listed] == list(PRESETS)
    assert run(["train", "--preset", "lora"]) == 2
    assert "preset 'lora' needs model.start" in capsys.readouterr().err
