"""The OpenAI Images API: what its clients send is honoured, or refused by name.

    client = OpenAI(base_url="http://127.0.0.1:7860/v1", api_key="mz-...")
    client.images.generate(model="emoji", prompt="a red apple", size="128x128", extra_body={"seed": 1})

Fields of its own are put into ours; whatever it does not know (`seed`, `sampler`, `negative_prompt`, ... by
`extra_body`) is a field of a request. Streams carry partial pictures, evenly spread over the steps.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile

from ..errors import UsageError
from ..formats.image import encode_image, open_image
from ..pipeline import Progress
from ..text import TextEncoder
from .http import (
    Asking,
    Refused,
    Serving,
    base64_of,
    events,
    explained,
    fields_of,
    finished,
    line,
    raise_unless_done,
)
from .keys import Caller
from .live import never
from .native import PROBLEMS, body_of
from .service import Service
from .store import Job

FORMATS = {"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "webp": "webp"}
EFFORT = {
    "low": 0.5,
    "medium": 1.0,
    "high": 2.0,
    "xhigh": 3.0,
    "max": 4.0,
}  # quality -> share of the model's own steps
ONLY = {  # fields of which this service can do one thing: what that is
    "background": ("auto", "opaque"),
    "moderation": ("auto",),
    "response_format": ("b64_json",),
    "input_fidelity": (),
    "style": (),
    "markup": (),
}
MOST_PARTIAL = 3
router = APIRouter(prefix="/v1", tags=["openai"], responses=PROBLEMS)


class Generation(BaseModel):
    """What the client sends; further fields are those of a request."""

    model_config = ConfigDict(extra="allow", strict=True)

    prompt: str
    model: str | None = None
    n: Annotated[int | None, Field(ge=1, le=10)] = None
    size: Annotated[
        str | None, Field(description="WxH or auto", pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$")
    ] = None
    quality: Annotated[str | None, Field(description="auto, low, medium, high: how many steps are taken")] = (
        None
    )
    output_format: Annotated[str | None, Field(description="png, jpeg or webp")] = None
    output_compression: Annotated[int | None, Field(ge=0, le=100)] = None
    stream: bool | None = None
    partial_images: Annotated[int | None, Field(ge=0, le=MOST_PARTIAL)] = None
    user: str | None = None
    safety_identifier: str | None = None


@dataclass(frozen=True)
class Wish:
    """How the answer is to look; what is to be drawn stands in `fields`."""

    fields: dict[str, Any]
    model: str | None
    kind: str
    quality: int
    size: str
    effort: str
    stream: bool
    partial: int
    user: str | None


@router.get("/models")
def models(service: Serving, caller: Asking) -> dict[str, Any]:
    """The models that are served."""
    return {"object": "list", "data": [_model(name) for name in service.models.names]}


@router.get("/models/{model}")
def model(model: str, service: Serving, caller: Asking) -> dict[str, Any]:
    """One of them."""
    if model not in service.models.names:
        raise Refused(404, f"the model '{model}' does not exist", code="model_not_found", param="model")
    return _model(model)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "mezzotint"}


@router.post("/images/generations", openapi_extra=body_of(Generation))
async def generations(request: Request, service: Serving, caller: Asking) -> Response:
    """Pictures from words."""
    return await _answer(request, service, caller, await fields_of(request), {}, "image_generation")


class Edit(Generation):
    """As a form; a second picture, as `image[]`, lends its manner to the first."""

    image: Annotated[str, Field(json_schema_extra={"format": "binary"})]
    mask: Annotated[str | None, Field(json_schema_extra={"format": "binary"})] = None


@router.post("/images/edits", openapi_extra=body_of(Edit, "multipart/form-data"))
async def edits(request: Request, service: Serving, caller: Asking) -> Response:
    """A picture drawn anew under a prompt: all of it, or where the mask is transparent.

    Of two pictures the first is drawn anew, in the manner of the second: its colours, its strokes, its light.
    """
    given: dict[str, Any] = {}
    pictures: list[bytes] = []
    mask: bytes | None = None
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refused(400, "send a form (multipart/form-data) with `image` and `prompt`")
    async with request.form(max_part_size=service.settings.limits.upload_bytes) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                data = await value.read()
                if name in ("image", "image[]"):
                    pictures.append(data)
                elif name == "mask":
                    mask = data
                else:
                    raise Refused(400, f"'{name}' is no file that an edit takes", param=name)
            else:
                given[name] = _plain(value)
    if not pictures:
        raise Refused(400, "image is missing", code="missing_required_parameter", param="image")
    task = await run_in_threadpool(_task, pictures, mask, service.settings.limits.upload_pixels)
    return await _answer(request, service, caller, given, task, "image_edit")


def _task(pictures: Sequence[bytes], mask: bytes | None, most: int) -> dict[str, Any]:
    """The task of an edit: drawing all anew, in the manner of another picture, or where a mask is transparent."""
    picture, *others = pictures
    if len(others) > 1:
        raise Refused(
            400,
            f"image: {len(pictures)} pictures; two at most: one to edit, one for its manner",
            param="image",
        )
    if others and mask is not None:
        raise Refused(400, "mask: a part of a picture cannot be drawn in another's manner here", param="mask")
    if others:
        return {"task": "stylize", "image": picture, "style_image": others[0]}
    if mask is None:
        return {"task": "img2img", "image": picture}
    image = open_image(mask, max_pixels=most, name="mask")
    if image.mode != "RGBA":
        raise Refused(
            400,
            "mask has no transparency: it is transparent where to draw",
            param="mask",
        )
    held = io.BytesIO()  # ours is white where to draw
    image.getchannel("A").point(lambda alpha: 255 - alpha).save(held, "PNG")
    return {"task": "inpaint", "image": picture, "mask": held.getvalue()}


def _plain(text: str) -> Any:
    """A form's text as what it would be in JSON, where it is a number or a truth."""
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"-?\d{1,18}", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?\d*\.\d+", text) else text


def wish(service: Service, given: Mapping[str, Any], task: Mapping[str, Any]) -> Wish:
    """What a client wishes. Raises UsageError, or Refused naming the field that cannot be honoured."""
    if isinstance(given.get("prompt"), int | float):  # of a form
        given = {**given, "prompt": str(given["prompt"])}
    try:
        asked = Generation.model_validate(given)
    except ValueError as error:
        first = error.errors()[0]  # type: ignore[attr-defined]
        name = str(first["loc"][0]) if first["loc"] else None
        code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
        raise Refused(400, f"{name}: {first['msg']}", code=code, param=name) from error
    ours = dict(asked.model_extra or {})
    for name, able in ONLY.items():
        if (value := ours.pop(name, None)) is not None and value not in able:
            known = f"; it can do {' or '.join(able)}" if able else ""
            raise Refused(
                400,
                f"{name} is '{value}', which this service cannot do{known}",
                param=name,
            )
    kind = FORMATS.get(asked.output_format or "png")
    if kind is None:
        raise Refused(400, f"output_format '{asked.output_format}' is not one of png, jpeg, webp",
                      param="output_format")  # fmt: skip
    if kind == "png" and asked.output_compression not in (None, 100):
        raise Refused(400, "output_compression is for jpeg and webp", param="output_compression")
    effort = asked.quality or "auto"
    if effort not in ("auto", "standard", *EFFORT):
        raise Refused(
            400,
            f"quality '{effort}' is not one of auto, {', '.join(EFFORT)}",
            param="quality",
        )
    if asked.partial_images and not asked.stream:
        raise Refused(400, "partial_images needs stream", param="partial_images")
    name = service.models.check(asked.model)
    fields = ours | dict(task) | {"prompt": asked.prompt, "num_images": asked.n or 1}
    if asked.size not in (None, "auto"):
        fields["width"], fields["height"] = map(int, str(asked.size).split("x"))
    if effort in EFFORT and "num_inference_steps" not in fields:
        with service.models.use(name) as pipeline:
            fields["num_inference_steps"] = max(
                1, round(pipeline.defaults.num_inference_steps * EFFORT[effort])
            )
    compression = 90 if asked.output_compression is None else asked.output_compression
    return Wish(
        fields, name, kind, compression, asked.size or "auto", effort if effort in EFFORT else "medium",
        bool(asked.stream), asked.partial_images or 0, asked.safety_identifier or asked.user,
    )  # fmt: skip


async def _answer(
    request: Request,
    service: Service,
    caller: Caller,
    given: Mapping[str, Any],
    task: Mapping[str, Any],
    kind: str,
) -> Response:
    """A job, and its pictures in the API's form: at once when all are there, or as they come."""

    def accepted() -> tuple[Wish, Job]:
        wished = wish(service, given, task)
        job = service.submit(
            caller,
            wished.fields,
            model=wished.model,
            api="openai",
            request_id=request.state.request_id,
            user=wished.user,
        )
        return wished, job

    try:
        wished, job = await run_in_threadpool(accepted)
    except UsageError as error:
        if str(error).startswith("unknown model"):
            raise Refused(400, str(error), code="model_not_found", param="model") from error
        raise
    if wished.stream:
        told_as = _streamed(request, service, job, wished, kind)
        return StreamingResponse(
            told_as, media_type="text/event-stream", headers={"cache-control": "no-store"}
        )
    job = await finished(service, request, job)
    pictures = await run_in_threadpool(lambda: [_encoded(service, job, i, wished) for i in range(job.count)])
    return JSONResponse(
        {
            "created": int(job.created), "data": [{"b64_json": picture} for picture in pictures],
            "usage": await run_in_threadpool(usage, service, job, job.count), **_looks(job, wished),
        }
    )  # fmt: skip


async def _streamed(
    request: Request, service: Service, job: Job, wished: Wish, kind: str
) -> AsyncIterator[bytes]:
    ended, index = False, [0] * job.count
    try:
        async for event in events(service, job.id, evenly(wished.partial)):
            name = event["event"]
            if name == "alive":
                yield b": alive\n\n"
            elif name == "preview":
                number = event["number"]
                data = await run_in_threadpool(_partial, event["png"], job, wished)
                yield line(f"{kind}.partial_image", _event(job, wished, f"{kind}.partial_image", data)
                           | {"partial_image_index": index[number]})  # fmt: skip
                index[number] += 1
            elif name == "picture":
                data = await run_in_threadpool(_encoded, service, job, event["number"], wished)
                counted = await run_in_threadpool(usage, service, job, 1)
                yield line(
                    f"{kind}.completed", _event(job, wished, f"{kind}.completed", data) | {"usage": counted}
                )
            elif name == "end":
                ended = True
                yield _ending(request, event)
    finally:
        if not ended:
            service.cancel(job.id, "its client went away")


def _ending(request: Request, end: Mapping[str, Any]) -> bytes:
    """The last words of a stream: that it is done, or what went wrong."""
    try:
        raise_unless_done(end)
    except Exception as error:
        return line("error", _json(explained(request, error)))
    return b"data: [DONE]\n\n"


def _json(answer: Response) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(bytes(answer.body))
    return content


def evenly(count: int) -> Callable[[int, Progress], bool]:
    """Looks at `count` steps, evenly spread between the first and the last."""
    if not count:
        return never

    def looks(number: int, progress: Progress) -> bool:
        return progress.step in {round(progress.steps * (k + 1) / (count + 1)) for k in range(count)}

    return looks


def _event(job: Job, wished: Wish, kind: str, data: str) -> dict[str, Any]:
    return {"type": kind, "b64_json": data, "created_at": int(time.time()), **_looks(job, wished)}


def _looks(job: Job, wished: Wish) -> dict[str, Any]:
    return {
        "size": f"{job.request['width']}x{job.request['height']}", "quality": wished.effort, "background": "opaque",
        "output_format": wished.kind,
    }  # fmt: skip


def _partial(png: bytes, job: Job, wished: Wish) -> str:
    image = Image.open(io.BytesIO(png))
    return base64_of(encode_image(image, job.request, kind=wished.kind, quality=wished.quality))


def _encoded(service: Service, job: Job, number: int, wished: Wish) -> str:
    data = service.store.path(job.id, number).read_bytes()
    if wished.kind != "png":
        image = open_image(data)
        recipe = next(made.recipe for made in service.store.made(job.id) if made.number == number)
        data = encode_image(image, recipe, kind=wished.kind, quality=wished.quality, signing=service.signing)
    return base64_of(data)


def usage(service: Service, job: Job, pictures: int) -> dict[str, Any]:
    """Tokens: of the prompt, those of the text encoder; of a picture, the places of its latents."""
    with service.models.use(job.model) as pipeline:
        encoder = pipeline.encoder
        chunks = encoder.chunks(job.request["prompt"]) if isinstance(encoder, TextEncoder) else []
        text = sum(len(chunk) for chunk in chunks)
        factor = pipeline.codec.factor
    places = (job.request["width"] // factor) * (job.request["height"] // factor)
    seen = places * sum(bool(job.request.get(name)) for name in ("image", "style_image"))
    return {
        "input_tokens": text + seen, "output_tokens": places * pictures,
        "total_tokens": text + seen + places * pictures,
        "input_tokens_details": {"text_tokens": text, "image_tokens": seen},
    }  # fmt: skip
