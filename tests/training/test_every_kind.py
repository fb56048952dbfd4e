"""Every kind of training by the command line, for a few steps, and what comes of it is used."""

import json

import numpy as np
import pytest
from PIL import Image
from test_autoencoder import EYES, VAE
from test_denoising import DIT, NET, TEXT_NET, places  # noqa: F401 - a fixture
from test_loop import NET as GLYPH_VAE

from mezzotint.cli import run
from mezzotint.formats.tensors import read_tensors
from mezzotint.nets.vae import VAEConfig

STEPS = 2
COMMON = {
    "optim": {"steps": STEPS, "batch": 4, "lr": 1e-3, "warmup": 1},
    "run": {"precision": "float32", "checkpoint": 2, "pictures": 100, "validate_every": 100},
    "dataset": {"resolution": 16, "held_out": 0.2, "aspect": 1.0},
}


def toml(keys):
    """A configuration as TOML: strings, numbers, lists of them, and tables."""
    lines = [f"{k} = {json.dumps(v)}" for k, v in keys.items() if not isinstance(v, dict)]
    for name, table in keys.items():
        if isinstance(table, dict):
            lines += [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


@pytest.fixture
def work(places, tmp_path, capsys):  # noqa: F811
    """train(stage, data, **sections) -> what was written; draw(*arguments) -> pixels."""

    class Work:
        tiny = str(places / "tiny")
        root = tmp_path

        def train(self, stage, data, name=None, **sections):
            out = tmp_path / (name or stage)
            keys = {"stage": stage, "data": str(places / data), "out": str(out)} | COMMON
            for section, values in sections.items():
                nested = isinstance(values, dict) and section in keys
                keys[section] = keys[section] | values if nested else values
            file = tmp_path / f"{name or stage}.toml"
            file.write_text(toml(keys))
            assert run(["train", str(file)]) == 0, capsys.readouterr().err
            assert str(out / stage) in capsys.readouterr().out
            return out / stage

        def draw(self, model, prompt, *arguments):
            file = tmp_path / "drawn.png"
            command = ["generate", prompt, "-m", str(model), "--steps", "2", "--seed", "1", "-o", str(file)]
            assert run([*command, "--force", *map(str, arguments)]) == 0, capsys.readouterr().err
            with Image.open(file) as picture:
                return np.asarray(picture.convert("RGB"))

    return Work()


@pytest.mark.parametrize("net", [NET, DIT], ids=["unet", "dit"])
def test_nothing_told_and_classes_in_pixels_and_latents(work, capsys, net):
    model = {"condition": "none", "process": "flow", "prediction": "flow", "weight": "simple"}
    nothing = work.train("model", "captions", "nothing", net=net, model=model)
    assert work.draw(nothing, "").shape == (16, 16, 3)
    model = {"condition": "class", "vae": work.tiny, "prediction": "epsilon"}
    classes = work.train("model", "classes", "classes", net=net, model=model)
    assert work.draw(classes, "red").shape == (16, 16, 3)
    capsys.readouterr()
    assert run(["info", str(classes), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["classes"] == 3
    assert ("transformer" if net is DIT else "unet") in told


@pytest.mark.parametrize("net", [TEXT_NET, DIT], ids=["unet", "dit"])
def test_texts_in_pixels_and_latents(work, net):
    model = {"text": work.tiny, "process": "edm", "prediction": "edm", "weight": "edm"}
    pixels = work.train("model", "captions", "pixels", net=net, model=model)
    assert work.draw(pixels, "a red wall").shape == (16, 16, 3)
    latents = work.train("model", "captions", "latents", net=net, model={"text": work.tiny, "vae": work.tiny})
    assert work.draw(latents, "a red wall").shape == (16, 16, 3)


def test_on_from_a_model_in_every_way(work):
    start = {"model": {"start": work.tiny}, "optim": COMMON["optim"] | {"lr": 1e-1}}
    plain = work.draw(work.tiny, "a red wall")
    tuned = work.train("model", "captions", "tuned", **start)
    assert not np.array_equal(work.draw(tuned, "a red wall"), plain)
    few = work.train("consistency", "captions", **start)
    assert work.draw(few, "a red wall").shape == plain.shape
    lora = work.train("lora", "captions", lora={"rank": 2, "text_encoder": ["q_proj"]}, **start)
    worn = work.draw(work.tiny, "a red wall", "--lora", lora / "lora.safetensors")
    assert not np.array_equal(worn, plain)
    prior = {"prompt": "a wall", "pictures": 4}
    dreambooth = work.train("lora", "captions", "dreambooth", prior=prior, **start)
    assert work.draw(work.tiny, "a red wall", "--lora", dreambooth / "lora.safetensors").shape == plain.shape
    settings = {"word": "<zig>", "start": "apple", "templates": ["a {}"]}
    word = work.train("embedding", "captions", embedding=settings, **start)
    said = work.draw(work.tiny, "a <zig>", "--embedding", word / "learned_embeds.safetensors")
    assert not np.array_equal(said, work.draw(work.tiny, "a <zig>"))


def test_autoencoders(work, glyph_folder):
    eyes = work.train("features", "classes", net=EYES)
    vae = {"features": str(eyes), "adversarial": 0.5, "critic": 8}
    autoencoder = work.train("autoencoder", "classes", net=VAE, vae=vae)
    model = {"condition": "class", "vae": str(autoencoder)}
    assert work.draw(work.train("model", "classes", net=NET, model=model), "red").shape == (16, 16, 3)
    scenes = work.train("vae", glyph_folder, net=GLYPH_VAE, vae={"crop": 16})
    config = VAEConfig.from_dict(json.loads((scenes / "config.json").read_text()))
    assert config.latent_channels == GLYPH_VAE["latent_channels"]
    assert read_tensors(scenes / "diffusion_pytorch_model.safetensors")
