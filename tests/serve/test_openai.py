"""OpenAI's own client against our service."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI, RateLimitError
from openai.types import ImageGenStreamEvent, ImagesResponse
from PIL import Image
from pydantic import TypeAdapter

from mezzotint import Pipeline
from mezzotint.serve import openai


@pytest.fixture
def client(shared):
    return OpenAI(base_url=f"{shared.url}/v1", api_key="none is needed", max_retries=0)


def image_of(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def file_of(image):
    held = io.BytesIO()
    image.save(held, "PNG")
    return ("picture.png", held.getvalue(), "image/png")


def test_pictures_are_those_of_the_seed(client, model):
    raw = client.images.with_raw_response.generate(
        model="tiny", prompt="a red apple", n=2, size="16x16", extra_body={"seed": 5, "sampler": "ddim"}
    )
    told = ImagesResponse.model_validate(raw.http_response.json())
    assert len(told.data) == 2
    assert (told.size, told.output_format, told.background) == ("16x16", "png", "opaque")
    assert told.usage.input_tokens_details.text_tokens == 3
    assert told.usage.total_tokens == told.usage.input_tokens + told.usage.output_tokens
    alone = Pipeline.load(model, device="cpu")("a red apple", seed=6, sampler="ddim")[0]
    assert np.array_equal(np.asarray(image_of(told.data[1].b64_json)), np.asarray(alone))


def test_a_picture_of_a_stream_may_come_before_those_of_lower_numbers(tmp_path, monkeypatch):
    (tmp_path / "1.png").write_bytes(file_of(Image.new("RGB", (8, 8)))[1])
    store = SimpleNamespace(
        path=lambda job, number: tmp_path / f"{number}.png",
        made=lambda job: [SimpleNamespace(number=1, recipe={"seed": 8})],
    )
    told = []
    monkeypatch.setattr(openai, "encode_image", lambda image, recipe, **knobs: told.append(recipe) or b"")
    wished = SimpleNamespace(kind="jpeg", quality=90)
    openai._encoded(SimpleNamespace(store=store, signing=None), SimpleNamespace(id="a"), 1, wished)
    assert told == [{"seed": 8}]


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats_say_where_they_come_from(client, kind):
    told = client.images.generate(prompt="cats", output_format=kind, output_compression=80)
    data = base64.b64decode(told.data[0].b64_json)
    assert Image.open(io.BytesIO(data)).format == kind.upper()
    assert b"trainedAlgorithmicMedia" in data


def test_quality_is_steps(client, shared):
    for quality, steps in (("low", 2), ("high", 8), ("auto", 4)):
        client.images.generate(prompt="cats", quality=quality)
        assert shared.client.get("/api/jobs?limit=1").json()[0]["request"]["num_inference_steps"] == steps


def test_streams_show_partial_pictures(client):
    adapter = TypeAdapter(ImageGenStreamEvent)
    stream = client.images.generate(
        prompt="cats", stream=True, partial_images=2, extra_body={"num_inference_steps": 30, "seed": 2}
    )
    events = [adapter.validate_python(event.model_dump()) for event in stream]
    assert [event.type for event in events] == [
        "image_generation.partial_image", "image_generation.partial_image", "image_generation.completed",
    ]  # fmt: skip
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert events[-1].usage.total_tokens > 0
    whole = client.images.generate(prompt="cats", extra_body={"num_inference_steps": 30, "seed": 2})
    assert events[-1].b64_json == whole.data[0].b64_json
    assert events[0].b64_json != events[-1].b64_json


def test_edits(client, model):
    given = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    extra = {"seed": 3, "strength": 0.5}
    told = client.images.edit(image=file_of(given), prompt="cats", extra_body=extra)
    alone = Pipeline.load(model, device="cpu").img2img(given, "cats", **extra)[0]
    assert np.array_equal(np.asarray(image_of(told.data[0].b64_json)), np.asarray(alone))
    stream = client.images.edit(
        image=file_of(given), prompt="cats", stream=True, partial_images=1, extra_body=extra
    )
    assert [event.type for event in stream] == ["image_edit.partial_image", "image_edit.completed"]


def test_a_second_picture_lends_its_manner(client, model):
    given, other = (
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), dtype=np.uint8))
        for i in (0, 1)
    )
    extra = {"seed": 3, "strength": 0.5}
    told = client.images.edit(image=[file_of(given), file_of(other)], prompt="cats", extra_body=extra)
    alone = Pipeline.load(model, device="cpu").stylize(given, other, prompt="cats", **extra)[0]
    assert np.array_equal(np.asarray(image_of(told.data[0].b64_json)), np.asarray(alone))
    assert told.usage.input_tokens_details.image_tokens == 2 * told.usage.output_tokens
    stream = client.images.edit(
        image=[file_of(given), file_of(other)], prompt="cats", stream=True, partial_images=1
    )
    assert [event.type for event in stream][-1] == "image_edit.completed"
    for more, param in (({"image": [file_of(given)] * 3}, "image"), ({"mask": file_of(given)}, "mask")):
        with pytest.raises(BadRequestError) as caught:
            client.images.edit(**{"image": [file_of(given), file_of(other)], "prompt": "cats"} | more)
        assert caught.value.param == param


def test_an_edit_with_a_mask_leaves_the_rest_alone(client):
    given = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    hole = Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    hole.paste((0, 0, 0, 0), (8, 0, 16, 16))
    told = client.images.edit(
        image=file_of(Image.fromarray(given)),
        mask=file_of(hole),
        prompt="cats",
        extra_body={"seed": 3, "feather": 0},
    )
    made = np.asarray(image_of(told.data[0].b64_json))
    assert np.array_equal(made[:, :8], given[:, :8])
    assert not np.array_equal(made[:, 8:], given[:, 8:])
    with pytest.raises(BadRequestError) as caught:
        client.images.edit(
            image=file_of(Image.fromarray(given)), mask=file_of(hole.convert("RGB")), prompt="cats"
        )
    assert caught.value.param == "mask"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"size": "big"}, "size"),
        ({"size": "17x17"}, None),
        ({"quality": "best"}, "quality"),
        ({"background": "transparent"}, "background"),
        ({"moderation": "low"}, "moderation"),
        ({"style": "vivid"}, "style"),
        ({"response_format": "url"}, "response_format"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 50}, "output_compression"),
        ({"partial_images": 2}, "partial_images"),
        ({"model": "dall-e-3"}, "model"),
        ({"extra_body": {"sedd": 3}}, "sedd"),
        ({"extra_body": {"seed": -3}}, "seed"),
    ],
)
def test_what_cannot_be_honoured_is_named(client, fields, param):
    with pytest.raises(BadRequestError) as caught:
        client.images.generate(**{"prompt": "cats"} | fields)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_a_prompt_is_needed(client, shared):
    answer = shared.client.post("/v1/images/generations", json={"model": "tiny"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "missing_required_parameter"
    assert shared.client.post("/v1/images/generations", content=b"{").status_code == 400


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "mezzotint"
    with pytest.raises(NotFoundError):
        client.models.retrieve("other")


def test_keys_rates_and_blocks_are_the_clients_errors(start):
    running = start(blocked=None)
    key = running.service.keys.add("ann", rate=2)
    with pytest.raises(AuthenticationError):
        OpenAI(base_url=f"{running.url}/v1", api_key="mz-wrong", max_retries=0).images.generate(prompt="cats")
    client = OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)
    with pytest.raises(BadRequestError) as caught:
        client.images.generate(prompt="a naked child")
    assert caught.value.code == "content_policy_violation"
    client.images.generate(prompt="cats")
    with pytest.raises(RateLimitError) as late:
        client.images.generate(prompt="cats")
    assert int(late.value.response.headers["retry-after"]) >= 1


def test_a_client_that_leaves_stops_its_job(start):
    import httpx2

    running = start()
    body = {"prompt": "cats", "n": 8, "num_inference_steps": 250}
    for path in ({}, {"stream": True}):
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(f"{running.url}/v1/images/generations", json=body | path, timeout=0.7)
        job = running.client.get("/api/jobs?limit=1").json()[0]["id"]
        assert running.wait(job, seconds=5)["state"] == "cancelled"
