"""What is trained goes out again: other programs open it and draw the same pictures; dialects there and back."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from test_denoising import TEXT_NET, config, places  # noqa: F401 - a fixture

import kinds
from mezzotint.cli import run as command
from mezzotint.diffusion.noise import INITIAL, image_noise
from mezzotint.diffusion.types import Cond
from mezzotint.formats.tensors import read_tensors, write_tensors
from mezzotint.pipeline import Pipeline
from mezzotint.training.watch import run

PROMPT = "a red wall"
FIELDS = {"num_inference_steps": 3, "guidance_scale": 4.0}
LAYERS = {"unet": ["to_q", "to_v", "conv1", "ff.net.2"], "text_encoder": ["q_proj", "fc1"]}


def finished(settings):
    for _ in run(settings):
        pass
    return settings.out / settings.stage


def same_pictures(ours, theirs, **fields):
    """Both draw the same from the same noise, to 1/255; what ours drew."""
    theirs.set_progress_bar_config(disable=True)
    size = ours.defaults.width // ours.codec.factor
    latents = image_noise(3, INITIAL, (ours.codec.channels, size, size))[None]
    drawn = np.asarray(ours(PROMPT, seed=3, **FIELDS, **fields)[0])
    expected = np.asarray(theirs(PROMPT, latents=latents, **FIELDS).images[0])
    assert expected.std() > 3
    assert np.abs(drawn.astype(int) - expected).max() <= 1
    return drawn


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    return kinds.saved("sd1", tmp_path_factory.mktemp("sd1"))[0]


def test_a_fine_tuned_model_in_diffusers(places, sd1, tmp_path):  # noqa: F811
    settings = config(tmp_path, places / "captions", {"start": str(sd1), "guidance": 2.0}, optim={"lr": 1e-3})
    folder = finished(settings)
    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    drawn = same_pictures(Pipeline.load(folder, device="cpu"), theirs)
    before = Pipeline.load(sd1, device="cpu")(PROMPT, seed=3, **FIELDS)[0]
    assert not np.array_equal(drawn, np.asarray(before))


def test_a_model_from_nothing_in_diffusers(places, sd1, tmp_path):  # noqa: F811
    model = {"vae": str(sd1), "text": str(sd1), "sampler": "ddim", "grid": "trailing"}
    folder = finished(config(tmp_path, places / "captions", model, net=TEXT_NET, optim={"lr": 3e-2}))
    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    same_pictures(Pipeline.load(folder, device="cpu"), theirs)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_lora_in_diffusers_in_peft_and_in_kohyas_dialect(places, tmp_path, kind):  # noqa: F811
    folder, _ = kinds.saved(kind, tmp_path)
    model = {"start": str(folder), "guidance": 2.0}
    lora = {"rank": 3, "alpha": 6.0, **LAYERS}
    settings = config(
        tmp_path / "run", places / "captions", model, stage="lora", lora=lora, optim={"lr": 5e-2}
    )
    file = finished(settings) / "lora.safetensors"
    cls = StableDiffusionPipeline if kind == "sd1" else StableDiffusionXLPipeline
    ours = Pipeline.load(folder, device="cpu")
    plain = np.asarray(ours(PROMPT, seed=3, **FIELDS)[0])

    theirs = cls.from_pretrained(folder, local_files_only=True)
    theirs.load_lora_weights(file.parent, weight_name=file.name)
    drawn = same_pictures(ours, theirs, loras=[str(file)])
    assert not np.array_equal(drawn, plain)

    other, back = tmp_path / "kohya.safetensors", tmp_path / "back.safetensors"
    assert command(["convert", str(file), str(other), "--to", "kohya", "-m", str(folder)]) == 0
    assert command(["convert", str(other), str(back), "--to", "diffusers", "-m", str(folder)]) == 0
    first, last = read_tensors(file), read_tensors(back)
    assert first.keys() == last.keys()
    assert all(torch.equal(first[key], last[key]) for key in first)
    spelled = read_tensors(other)
    assert all(key.startswith(("lora_unet_", "lora_te")) for key in spelled)
    assert {float(t) for key, t in spelled.items() if key.endswith(".alpha")} == {6.0}
    again = np.asarray(ours(PROMPT, seed=3, loras=[str(other)], **FIELDS)[0])
    assert np.array_equal(again, drawn)
    if kind == "sd1":
        alone = tmp_path / "unet.safetensors"  # diffusers 0.42 loses parts of kohya's text encoders
        unet = {key: t.clone() for key, t in spelled.items() if key.startswith("lora_unet_")}
        write_tensors(alone, unet)
        plainly = cls.from_pretrained(folder, local_files_only=True)
        plainly.load_lora_weights(tmp_path, weight_name=alone.name)
        same_pictures(ours, plainly, loras=[str(alone)])
        _in_peft(folder, file, ours)


def _in_peft(folder, file, ours):
    """PEFT alone, without diffusers' loader, makes the same net of the U-Net's part."""
    net = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", local_files_only=True)
    tensors = {k.removeprefix("unet."): v for k, v in read_tensors(file).items() if k.startswith("unet.")}
    net = inject_adapter_in_model(LoraConfig(r=3, lora_alpha=6, target_modules=LAYERS["unet"]), net)
    wrong = set_peft_model_state_dict(net, tensors)
    assert not wrong.unexpected_keys
    worn = ours.wardrobe.wear(ours.settle(_request(file)).loras, ())
    z, t, text = torch.randn(1, 4, 8, 8), torch.tensor([300.0]), torch.randn(1, 12, 64)
    with torch.no_grad():
        expected = net(z, t, text).sample
        torch.testing.assert_close(worn.net(z, t, Cond(text=text)), expected, rtol=1e-4, atol=1e-5)


def _request(file):
    from mezzotint.request import Request

    return Request.parse({"prompt": PROMPT, "loras": [str(file)]})


def test_wrong_conversions(places, tmp_path, capsys):  # noqa: F811
    (tmp_path / "x.safetensors").write_bytes(b"")
    for arguments, message in (
        ([tmp_path / "x.safetensors", tmp_path / "out", "--to", "kohya"], "a LoRA is one file"),
        ([tmp_path / "none.safetensors", tmp_path / "y.safetensors", "--to", "kohya"], "none.safetensors"),
    ):
        assert command(["convert", *map(str, arguments), "-m", str(places / "tiny")]) != 0
        assert message in capsys.readouterr().err
    model = {"condition": "none"}
    from test_denoising import NET

    pixels = finished(config(tmp_path / "run", places / "captions", model, net=NET, optim={"steps": 2}))
    assert json.loads((pixels / "model_index.json").read_text())["_class_name"] == "MezzotintPipeline"
    assert command(["convert", "x.safetensors", "y.safetensors", "--to", "kohya", "-m", str(pixels)]) != 0
    assert "Stable Diffusion's layout" in capsys.readouterr().err
