"""SIGKILL at random moments: every kind of training ends in the bits of an undisturbed run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_autoencoder import EYES
from test_autoencoder import settings as of_pictures
from test_denoising import DIT, config, places  # noqa: F401 - a fixture
from test_loop import final_state
from test_textual_inversion import word

from mezzotint.training.watch import run

KILLS = 20
EVERY = {"run": {"checkpoint": 1, "pictures": 5, "log": 1}}


def embedding(places, out, steps):  # noqa: F811
    return word(places, out, optim={"steps": steps, "lr": 1e-2}, **EVERY)


def transformer(places, out, steps):  # noqa: F811
    model = {"condition": "class"}
    return config(out, places / "classes", model, net=DIT, optim={"steps": steps}, **EVERY)


def lora(places, out, steps):  # noqa: F811
    model, data = {"start": str(places / "tiny")}, places / "captions"
    return config(out, data, model, stage="lora", optim={"steps": steps, "accumulate": 2}, **EVERY)


def eyes(places, out, steps):  # noqa: F811
    return of_pictures(places, out, "features", EYES, optim={"steps": steps}, **EVERY)


def autoencoder(places, out, steps):  # noqa: F811
    vae = {"adversarial": 0.5, "critic": 8, "adversarial_from": 0.3}
    return of_pictures(places, out, optim={"steps": steps}, vae=vae, **EVERY)


def killed(settings, kills):
    """How many attempts at a run were killed; after them it went on to its end."""
    file = settings.out / "settings.json"
    file.parent.mkdir(parents=True)
    file.write_text(settings.model_dump_json(exclude_unset=True))
    script = Path(__file__).with_name("killing.py")
    command = [sys.executable, str(script), str(file), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


def compare(kind, places, out, kills):  # noqa: F811
    steps = 3 * kills + 4
    assert killed(kind(places, out / "killed", steps), kills) == kills
    for _ in run(kind(places, out / "whole", steps)):
        pass
    (expected, step), (found, last) = final_state(out / "whole"), final_state(out / "killed")
    assert step == last == steps
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("kind", [embedding, autoencoder])
def test_two_kills(places, tmp_path, kind):  # noqa: F811
    compare(kind, places, tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [embedding, transformer, lora, eyes, autoencoder])
def test_twenty_kills(places, tmp_path, kind):  # noqa: F811
    compare(kind, places, tmp_path, KILLS)
