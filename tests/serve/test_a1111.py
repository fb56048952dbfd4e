"""AUTOMATIC1111's API, by a client that was written for that program."""

import base64
import io
import threading
import time

import numpy as np
import pytest
import webuiapi
from PIL import Image

from mezzotint import Pipeline
from mezzotint.formats.embedding import Embedding, write_embedding
from mezzotint.formats.lora import Lora, write_lora
from mezzotint.formats.recipe import parse_infotext
from mezzotint.nets.lowrank import LowRank
from tiny import WIDTH


@pytest.fixture
def api(shared):
    return webuiapi.WebUIApi(host="127.0.0.1", port=shared.port, sampler="Euler a", steps=6)


def test_txt2img(api, model):
    told = api.txt2img(
        prompt="a red apple", negative_prompt="cats", seed=4, batch_size=2, n_iter=2, width=16, height=16, cfg_scale=5,
        scheduler="Karras",
    )  # fmt: skip
    assert len(told.images) == 4
    assert told.info["all_seeds"] == [4, 5, 6, 7]
    assert told.info["sampler_name"] == "Euler a"
    recipe = parse_infotext(told.info["infotexts"][1])
    assert (recipe["seed"], recipe["sampler"], recipe["grid"]) == (5, "euler_ancestral", "karras")
    alone = Pipeline.load(model, device="cpu")(
        "a red apple", negative_prompt="cats", seed=5, sampler="euler_ancestral", grid="karras",
        num_inference_steps=6, guidance_scale=5.0,
    )[0]  # fmt: skip
    assert np.array_equal(np.asarray(told.images[1]), np.asarray(alone))


def test_clip_skip(api, model):
    fields = {"prompt": "a red apple", "seed": 4, "width": 16, "height": 16}
    pictures = []
    for layer in (1, 2):
        told = api.txt2img(**fields, override_settings={"CLIP_stop_at_last_layers": layer})
        assert told.info["clip_skip"] == layer
        assert parse_infotext(told.info["infotexts"][0]).get("clip_skip") == (None if layer == 1 else 2)
        pictures.append(np.asarray(told.image))
    assert not np.array_equal(*pictures)
    alone = Pipeline.load(model, device="cpu")(
        "a red apple",
        seed=4,
        clip_skip=2,
        sampler="euler_ancestral",
        num_inference_steps=6,
        guidance_scale=7.0,
    )
    assert np.array_equal(pictures[1], np.asarray(alone[0]))


def test_img2img(api, model):
    given = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    told = api.img2img(
        images=[given],
        prompt="cats",
        seed=3,
        width=16,
        height=16,
        denoising_strength=0.5,
        sampler_name="DPM++ 2M",
    )
    alone = Pipeline.load(model, device="cpu").img2img(
        given, "cats", seed=3, strength=0.5, sampler="dpmpp_2m", num_inference_steps=6, guidance_scale=7.0
    )[0]
    assert np.array_equal(np.asarray(told.image), np.asarray(alone))


@pytest.mark.parametrize("knobs", [{}, {"inpainting_fill": 1, "inpaint_full_res": False}])
def test_inpainting(api, knobs):
    given = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    mask = Image.new("L", (16, 16))
    mask.paste(255, (8, 0, 16, 16))
    told = api.img2img(
        images=[Image.fromarray(given)],
        mask_image=mask,
        mask_blur=0,
        prompt="cats",
        width=16,
        height=16,
        **knobs,
    )
    made = np.asarray(told.image)
    assert np.array_equal(made[:, :8], given[:, :8])
    assert not np.array_equal(made[:, 8:], given[:, 8:])


def test_lists(api):
    assert {"Euler a", "DPM++ 2M", "DDIM"} <= {sampler["name"] for sampler in api.get_samplers()}
    assert {"Automatic", "Karras"} <= {scheduler["label"] for scheduler in api.get_schedulers()}
    title = api.get_sd_models()[0]["title"]
    assert title.startswith("tiny [")
    api.set_options({"sd_model_checkpoint": title})
    assert api.util_get_current_model() == "tiny"
    assert api.util_get_model_names() == [title]
    assert (api.get_loras(), api.get_embeddings()["loaded"]) == ([], {})
    assert api.get_memory()["ram"]["used"] > 0


def test_png_info_and_upscaling(api, shared):
    told = api.txt2img(prompt="two green cats", seed=9, width=16, height=16)
    assert "two green cats" in api.png_info(told.image).info
    assert api.png_info(Image.new("RGB", (8, 8))).info == ""
    assert api.extra_single_image(told.image, upscaler_1="Lanczos", upscaling_resize=3).image.size == (48, 48)
    held = io.BytesIO()
    told.image.save(held, "PNG")
    body = {"image": base64.b64encode(held.getvalue()).decode(), "upscaler_1": "Lanczos"}
    for size in ({"upscaling_resize": -2}, {"upscaling_resize": 0}, {"upscaling_resize": 1e9}):
        answer = shared.client.post("/sdapi/v1/extra-single-image", json=body | size)
        assert (answer.status_code, "pixels" in answer.json()["detail"]) == (400, True)


def test_progress_and_interrupt(api):
    answers = []
    drawing = threading.Thread(
        target=lambda: answers.append(api.txt2img(prompt="cats", steps=200, n_iter=4, width=16, height=16))
    )
    drawing.start()
    until = time.monotonic() + 10
    while (told := api.get_progress())["progress"] == 0:
        assert time.monotonic() < until
    assert 0 < told["progress"] < 1
    assert told["state"]["sampling_steps"] == 200
    api.interrupt()
    drawing.join(10)
    assert not drawing.is_alive()
    assert len(answers[0].images) < 4
    assert api.get_progress()["progress"] == 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"restore_faces": True}, "restore_faces is True"),
        ({"enable_hr": True}, "enable_hr is True"),
        ({"subseed_strength": 0.3}, "subseed_strength is 0.3"),
        ({"alwayson_scripts": {"ControlNet": {"args": [1]}}}, "alwayson_scripts"),
        ({"sampler_name": "Euler b"}, "unknown sampler 'Euler b'; did you mean 'Euler"),
        ({"width": 17}, "not a multiple"),
        ({"no_such_field": 1}, "unknown field 'no_such_field'"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 0}}, "CLIP_stop_at_last_layers is 0"),
        (
            {"override_settings": {"CLIP_stop_at_last_layers": 9}},
            "clip_skip (--clip-skip) is 9; the text encoder",
        ),
        ({"mask": "iVBO"}, "mask: txt2img works on no picture"),
        ({"override_settings": ["eta"]}, "override_settings: an object"),
        ({"override_settings": {"eta_noise_seed_delta": 2}}, "'eta_noise_seed_delta' cannot be set here"),
        ({"override_settings": {"sd_model_checkpoint": "/etc/passwd"}}, "unknown model"),
        ({"steps": "many"}, "num_inference_steps"),
    ],
)
def test_what_cannot_be_honoured_is_named(shared, fields, says):
    body = {"prompt": "cats", "width": 16, "height": 16, "steps": 3} | fields
    answer = shared.client.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 400
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("picture", ["/etc/passwd", "http://127.0.0.1/a.png", "file:///etc/passwd"])
def test_a_path_is_never_opened(shared, picture):
    answer = shared.client.post("/sdapi/v1/img2img", json={"init_images": [picture], "prompt": "cats"})
    assert answer.status_code == 400
    assert "base64" in answer.json()["detail"]


@pytest.fixture
def shelf(tmp_path, model):
    """A folder with a LoRA and learnt words, one of them for another kind of model."""
    import torch

    pipeline = Pipeline.load(model, device="cpu")
    torch.manual_seed(0)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    outs, ins = pipeline.wardrobe.unet.get_submodule(layer).weight.shape
    change = LowRank(torch.randn(2, ins), torch.randn(outs, 2))
    write_lora(tmp_path / "loras/ink.safetensors", Lora({"unet": {layer: change}}, {"made": "here"}))
    write_embedding(tmp_path / "thing.safetensors", Embedding("thing", {"": torch.randn(2, WIDTH)}))
    write_embedding(tmp_path / "other.safetensors", Embedding("alien", {"": torch.randn(1, 999)}))
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    return tmp_path


def test_loras_and_learnt_words_by_name(start, shelf, model):
    running = start(extras=(shelf,))
    api = webuiapi.WebUIApi(host="127.0.0.1", port=running.port, sampler="DDIM", steps=4)
    assert [(each["name"], each["metadata"]["made"]) for each in api.get_loras()] == [("ink", "here")]
    told = api.get_embeddings()
    assert told["loaded"]["thing"]["vectors"] == 2
    assert list(told["skipped"]) == ["alien"]
    assert str(shelf) not in str(api.get_loras()) + str(told)

    asked = {"seed": 3, "sampler": "ddim", "num_inference_steps": 4, "guidance_scale": 7.0}
    alone = Pipeline.load(model, device="cpu", extras=[shelf])(
        "a red thing", loras=["ink:0.5"], embeddings=["thing"], **asked
    )[0]
    told = api.txt2img(prompt="a red Thing <lora:ink:0.5>", seed=3, cfg_scale=7, width=16, height=16)
    assert not np.array_equal(
        np.asarray(told.image), np.asarray(Pipeline.load(model, device="cpu")("a red thing", **asked)[0])
    )
    assert np.array_equal(np.asarray(told.image), np.asarray(alone))
    assert "<lora:ink:0.5>" in told.info["infotexts"][0]

    (shelf / "loras/ink.safetensors").rename(shelf / "loras/chalk.safetensors")
    assert running.client.post("/sdapi/v1/refresh-loras").status_code == 200
    assert [each["name"] for each in api.get_loras()] == ["chalk"]


@pytest.mark.parametrize("name", ["{0}/loras/ink.safetensors", "../loras/ink", "ink.safetensors", "nothing"])
def test_a_lora_is_never_given_by_path(start, shelf, name):
    prompt = f"cats <lora:{name.format(shelf)}:1>"
    answer = start(extras=(shelf,)).client.post(
        "/sdapi/v1/txt2img", json={"prompt": prompt, "width": 16, "height": 16}
    )
    assert answer.status_code == 400
    assert "is a path" in answer.json()["detail"] or "unknown LoRA" in answer.json()["detail"]


def test_what_clients_ask_for_when_they_start(api, shared):
    told = api.get_memory()["ram"]
    assert 0 < told["used"] < told["total"]
    assert told["free"] == told["total"] - told["used"]
    assert api.get_cmd_flags()["api"] is True
    assert api.get_cmd_flags()["listen"] is False
    assert api.refresh_checkpoints() is None
    for name in ("scripts", "script-info", "extensions", "sd-modules", "latent-upscale-modes", "upscalers"):
        assert shared.client.get(f"/sdapi/v1/{name}").status_code == 200
    pictures = [Image.new("RGB", (8, 8), color) for color in ("red", "teal")]
    made = api.extra_batch_images(pictures, upscaler_1="Nearest", upscaling_resize=2).images
    assert [(one.size, one.getpixel((3, 3))) for one in made] == [
        ((16, 16), one.getpixel((1, 1))) for one in pictures
    ]
