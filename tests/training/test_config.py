"""A configuration is read whole or refused in one line."""

from pathlib import Path

import pytest

from mezzotint.errors import MezzotintError, UsageError
from mezzotint.training.config import read_config

GOOD = 'stage = "vae"\ndata = "d"\nout = "o"\n[optim]\nsteps = 10\nbatch = 2\nlr = 1e-3\n'


def write(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_defaults_and_overrides(tmp_path):
    config = read_config(write(tmp_path, GOOD), ["optim.lr=0.5", "seed=7", "run.device=cpu"])
    assert (config.optim.lr, config.seed, config.run.device, config.optim.ema) == (0.5, 7, "cpu", 0.999)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "wramup = 3\n", r"unknown key 'optim.wramup'; did you mean 'optim.warmup'"),
        (GOOD.replace('out = "o"', 'out = "o"\nsede = 1'), "unknown key 'sede'; did you mean 'seed'"),
        (GOOD.replace("steps = 10", "steps = 0"), "optim.steps: input should be greater than 0"),
        (GOOD.replace("vae", "vea"), "stage: input should be 'vae', 'text', "),
        (GOOD.replace("lr = 1e-3\n", ""), "optim.lr: field required"),
    ],
)
def test_refusals_name_the_key(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        read_config(write(tmp_path, text))


def test_missing_or_broken_file(tmp_path):
    with pytest.raises(UsageError, match="is missing"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(MezzotintError, match="not readable TOML"):
        read_config(write(tmp_path, "stage = "))
    with pytest.raises(UsageError, match=r"--set lr: write it as section\.key=value"):
        read_config(write(tmp_path, GOOD), ["lr"])
    with pytest.raises(UsageError, match=r"--set data\.path=x: 'data' is a value"):
        read_config(write(tmp_path, GOOD), ["data.path=x"])


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_configurations_are_valid(path):
    read_config(path)
