"""AUTOMATIC1111's API, as its clients speak it: names of samplers, pictures in base64, `info` as a JSON text.

Many fields of that program say how it goes about its work. Where one has the value that changes nothing, it is passed
over; with any other value it is refused by name, never ignored.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from ..diffusion.grids import GRIDS
from ..diffusion.samplers import SAMPLERS
from ..errors import MezzotintError, unknown
from ..formats.image import encode_plain, open_image, read_recipe
from ..formats.recipe import TITLES, infotext
from .a1111_lists import AUTOMATIC, TROUBLES, UPSCALERS
from .http import Asking, Refused, Serving, base64_of, fields_of, finished
from .keys import Caller
from .service import Service
from .store import Job

router = APIRouter(prefix="/sdapi/v1", tags=["automatic1111"], responses=TROUBLES)
NAMES = {title.lower(): name for name, title in TITLES.items()}
SKIP = "CLIP_stop_at_last_layers"  # 1, that program's default, is the model's own
GLANCE = 1.5  # seconds that `progress` waits for a picture of how things stand

# Values that change nothing; any other cannot be honoured. None and "" never change anything.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "enable_hr": (False,), "styles": ([],), "subseed_strength": (0,), "seed_resize_from_h": (0, -1),
    "seed_resize_from_w": (0, -1), "restore_faces": (False,), "tiling": (False,), "s_churn": (0,), "s_tmin": (0,),
    "s_tmax": (0,), "s_noise": (1,), "script_args": ([],), "alwayson_scripts": ({},), "refiner_switch_at": (0, 1),
    "disable_extra_networks": (False,), "firstphase_width": (0,), "firstphase_height": (0,), "send_images": (True,),
    "save_images": (False,), "comments": ({},), "script_name": (), "refiner_checkpoint": (),
    "initial_noise_multiplier": (0, 1), "image_cfg_scale": (0, 1.5), "include_init_images": (False,), "latent_mask": (),
}  # fmt: skip
PASSED = {  # say nothing about the picture, or only together with something that is refused above
    "subseed", "do_not_save_samples", "do_not_save_grid", "override_settings_restore_afterwards", "sampler_index",
    "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name",
    "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt", "force_task_id", "infotext", "hr_cfg",
    "hr_additional_modules", "hr_distilled_cfg", "distilled_cfg_scale",
}  # fmt: skip
MASKS = {"mask_blur", "mask_blur_x", "mask_blur_y", "inpainting_fill", "inpaint_full_res", "inpaint_full_res_padding",
         "inpainting_mask_invert", "mask_round", "resize_mode", "mask", "init_images"}  # fmt: skip


@router.post("/txt2img")
async def txt2img(request: Request, service: Serving, caller: Asking) -> dict[str, Any]:
    """Pictures from words."""
    given = await fields_of(request)
    for name in ("init_images", "mask"):
        if given.get(name):
            raise Refused(400, f"{name}: txt2img works on no picture; img2img does", param=name)
    fields = _common(given)
    for name in ("denoising_strength",):  # of the second pass, which is refused
        given.pop(name, None)
    return await _drawn(request, service, caller, given, fields)


@router.post("/img2img")
async def img2img(request: Request, service: Serving, caller: Asking) -> dict[str, Any]:
    """A picture drawn anew under a prompt."""
    given = await fields_of(request)
    pictures = given.get("init_images") or []
    if not isinstance(pictures, list) or len(pictures) != 1:
        raise Refused(400, "init_images: give one picture", param="init_images")
    strength = given.pop("denoising_strength", None)
    fields = _common(given) | {
        "task": "img2img",
        "image": picture_of(pictures[0], "init_images"),
        "strength": 0.75 if strength is None else strength,
    }
    if given.get("resize_mode") not in (None, 0):
        raise Refused(400, "resize_mode: only 0, just resize, can be done", param="resize_mode")
    if given.get("mask"):
        mask, most = picture_of(given["mask"], "mask"), service.settings.limits.upload_pixels
        fields |= await run_in_threadpool(_masked, given, fields["image"], mask, most)
    return await _drawn(request, service, caller, given, fields)


def _masked(given: Mapping[str, Any], image: bytes, mask: bytes, most: int) -> dict[str, Any]:
    """Inpainting: what lies under the mask is made up from around it (fill 0) or stays as it is (1)."""
    where = open_image(mask, max_pixels=most, name="mask").convert("L")
    if given.get("inpainting_mask_invert"):
        where = where.point(lambda value: 255 - value)
    fill = given.get("inpainting_fill") or 0
    if fill not in (0, 1):
        raise Refused(400, "inpainting_fill: 0 (fill) and 1 (original) can be done", param="inpainting_fill")
    if fill == 0:
        hollow = open_image(image, max_pixels=most, name="init_images").convert("RGBA")
        if hollow.size == where.size:
            hollow.putalpha(where.point(lambda value: 0 if value else 255))
        image = encode_plain(hollow)
    fields = {
        "task": "inpaint",
        "image": image,
        "mask": encode_plain(where),
        "feather": given.get("mask_blur", 4),
    }
    if given.get("inpaint_full_res", True):  # as that program has it: the part alone, at full size
        fields["crop"] = given.get("inpaint_full_res_padding") or 0
    return fields


def picture_of(text: Any, name: str) -> bytes:
    """The bytes of a picture in base64, with or without a data URL's head; a path or a URL is never opened."""
    try:
        return base64.b64decode(str(text).rpartition("base64,")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"{name}: give the file's bytes in base64", param=name) from error


def _common(given: dict[str, Any]) -> dict[str, Any]:
    """Our fields for theirs, which are taken out of `given`."""
    fields: dict[str, Any] = {}
    for theirs, ours in (
        ("prompt", "prompt"), ("negative_prompt", "negative_prompt"), ("steps", "num_inference_steps"),
        ("cfg_scale", "guidance_scale"), ("width", "width"), ("height", "height"),
    ):  # fmt: skip
        value = given.pop(theirs, None)
        if value is not None:
            fields[ours] = value
    seed, eta = given.pop("seed", None), given.pop("eta", None)
    if seed not in (None, -1):
        fields["seed"] = seed
    if eta not in (None, 1, 1.0):  # 1 is what ancestral samplers do anyway, and others do not hear
        fields["eta"] = eta
    counts = given.pop("batch_size", None), given.pop("n_iter", None)
    if not all(count is None or (isinstance(count, int) and 1 <= count <= 10_000) for count in counts):
        raise Refused(400, "batch_size and n_iter are numbers from 1", param="batch_size")
    fields["num_images"] = math.prod(count or 1 for count in counts)
    name = given.pop("sampler_name", None) or given.pop("sampler_index", None)
    title = str(name or "")
    if name:
        for suffix in GRIDS:  # "DPM++ 2M Karras", as older clients say
            if title.lower().endswith(f" {suffix}"):
                title, fields["grid"] = title[: -len(suffix) - 1], suffix
        fields["sampler"] = named("sampler", title, SAMPLERS)
    scheduler = given.pop("scheduler", None)
    if scheduler and str(scheduler).lower() != AUTOMATIC.lower():
        fields["grid"] = named("scheduler", str(scheduler), GRIDS)
    return fields


def _skipping(value: Any) -> dict[str, Any]:
    """`clip_skip` for that program's setting."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Refused(400, f"{SKIP} is {value!r}; it is a number from 1", param="override_settings")
    return {"clip_skip": value} if value > 1 else {}


def named(kind: str, title: str, known: Any) -> str:
    """Our name for theirs, or for ours."""
    name = NAMES.get(title.lower(), title.lower().replace(" ", "_"))
    if name not in known:
        raise unknown(kind, title, [TITLES.get(one, one) for one in known])
    return name


async def _drawn(
    request: Request, service: Service, caller: Caller, given: dict[str, Any], fields: dict[str, Any]
) -> dict[str, Any]:
    settings = given.pop("override_settings", None) or {}
    if not isinstance(settings, dict):
        raise Refused(400, "override_settings: an object, name -> value", param="override_settings")
    for name, value in given.items():
        if name in PASSED or name in MASKS or value is None or value == "":
            continue
        if name not in NEUTRAL:
            raise unknown("field", name, [*NEUTRAL, *PASSED, "prompt", "steps", "cfg_scale", "sampler_name"])
        if value not in NEUTRAL[name]:
            raise Refused(400, f"{name} is {value!r}, which this service cannot do", param=name)
    model = _chosen(request, caller)
    for name, value in settings.items():
        if name == SKIP:
            fields |= _skipping(value)
            continue
        if name != "sd_model_checkpoint":
            raise Refused(400, f"override_settings: '{name}' cannot be set here", param="override_settings")
        model = _model(service, value)
    fields |= await run_in_threadpool(_worn, service, fields)
    job = await run_in_threadpool(
        service.submit, caller, fields, model=model, api="a1111", request_id=request.state.request_id
    )
    try:
        job = await finished(service, request, job)
    except Refused as error:
        if error.code != "cancelled":  # interrupted: what was finished until then
            raise
    return await run_in_threadpool(_answer, service, job)


def _worn(service: Service, fields: Mapping[str, Any]) -> dict[str, Any]:
    """As that program has it, a learnt word needs no more than to be said."""
    texts = [text for name in ("prompt", "negative_prompt") if isinstance(text := fields.get(name), str)]
    names = service.shelf.worn(*texts)
    return {"embeddings": tuple(names)} if names else {}


def _answer(service: Service, job: Job) -> dict[str, Any]:
    made = service.store.made(job.id)
    recipes = [one.recipe for one in made]
    asked = job.request
    seeds = [recipe["seed"] for recipe in recipes]
    told = {
        "prompt": asked["prompt"], "all_prompts": [asked["prompt"]] * len(made),
        "negative_prompt": asked["negative_prompt"], "all_negative_prompts": [asked["negative_prompt"]] * len(made),
        "seed": asked["seed"], "all_seeds": seeds, "subseed": 0, "all_subseeds": [0] * len(made), "subseed_strength": 0,
        "width": asked["width"], "height": asked["height"],
        "sampler_name": TITLES.get(asked["sampler"], asked["sampler"]),
        "cfg_scale": asked["guidance_scale"], "steps": asked["num_inference_steps"], "batch_size": len(made),
        "restore_faces": False, "face_restoration_model": None, "sd_model_name": job.model,
        "sd_model_hash": recipes[0]["model_hash"][:10] if recipes else None, "sd_vae_name": None, "sd_vae_hash": None,
        "seed_resize_from_w": -1, "seed_resize_from_h": -1, "denoising_strength": asked.get("strength"),
        "extra_generation_params": {}, "index_of_first_image": 0, "infotexts": [infotext(recipe) for recipe in recipes],
        "styles": [], "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.created)),
        "clip_skip": asked.get("clip_skip") or 1,
        "is_using_inpainting_conditioning": False, "version": recipes[0]["version"] if recipes else None,
    }  # fmt: skip
    images = [base64_of(service.store.path(job.id, one.number).read_bytes()) for one in made]
    return {"images": images, "parameters": asked, "info": json.dumps(told)}


@router.get("/progress")
async def progress(service: Serving, caller: Asking, skip_current_image: bool = False) -> dict[str, Any]:
    """How the caller's oldest running job stands, with a picture of it."""
    jobs = service.running_jobs(caller.name)
    told: dict[str, Any] = {
        "progress": 0.0, "eta_relative": 0.0, "current_image": None, "textinfo": None,
        "state": {"skipped": False, "interrupted": False, "stopping_generation": False, "job": "",
                  "job_count": len(jobs), "job_timestamp": "0", "job_no": 0, "sampling_step": 0, "sampling_steps": 0},
    }  # fmt: skip
    if not jobs:
        return told
    job, steps = jobs[0]
    total = job.count * job.request["num_inference_steps"]
    made = len(await run_in_threadpool(service.store.made, job.id))
    done = made * job.request["num_inference_steps"] + sum(event["step"] for event in steps.values())
    share = min(0.999, done / total)
    spent = time.time() - (job.started or time.time())
    told |= {"progress": share, "eta_relative": spent * (1 - share) / share if share else 0.0}
    told["state"] |= {
        "job": job.id, "job_no": made, "sampling_steps": job.request["num_inference_steps"],
        "sampling_step": max((event["step"] for event in steps.values()), default=0),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.created)),
    }  # fmt: skip
    if not skip_current_image:
        told["current_image"] = await _glance(service, job.id)
    return told


async def _glance(service: Service, job: str) -> str | None:
    """The next preview, if one comes soon."""
    watcher = service.watch(job, lambda number, progress: True)
    try:
        async with asyncio.timeout(GLANCE):
            while (event := await watcher.events.get())["event"] != "end":
                if event["event"] == "preview":
                    return base64_of(event["png"])
    except TimeoutError:
        pass
    finally:
        service.leave(job, watcher)
    return None


@router.post("/interrupt")
@router.post("/skip")
def interrupt(service: Serving, caller: Asking) -> dict[str, Any]:
    """Stop the caller's oldest running job of this API; its finished pictures are given out."""
    for job, _ in service.running_jobs(caller.name):
        if job.api == "a1111":
            service.cancel(job.id, "interrupted")
            break
    return {}


def _chosen(request: Request, caller: Caller) -> str | None:
    """The model that a caller chose under options, if they did."""
    chosen: dict[str, str] = request.app.state.chosen_models
    return chosen.get(caller.name)


def _model(service: Service, title: Any) -> str:
    """A model by its name, or by `name [hash]`, which is what lists say."""
    return service.models.check(str(title).split(" [")[0])


@router.get("/options")
def options(request: Request, service: Serving, caller: Asking) -> dict[str, Any]:
    """The few that there are."""
    return {"sd_model_checkpoint": service.models.check(_chosen(request, caller)), "samples_format": "png"}


@router.post("/options")
async def set_options(request: Request, service: Serving, caller: Asking) -> dict[str, Any]:
    """Choose a model for what this caller asks for from now on."""
    for name, value in (await fields_of(request)).items():
        if name != "sd_model_checkpoint":
            raise Refused(400, f"the option '{name}' cannot be set here", param=name)
        request.app.state.chosen_models[caller.name] = _model(service, value)
    return {}


@router.post("/png-info")
async def info(request: Request, service: Serving, caller: Asking) -> dict[str, Any]:
    """The text inside a picture."""
    image = picture_of((await fields_of(request)).get("image"), "image")
    try:
        recipe = await run_in_threadpool(read_recipe, image)
    except MezzotintError as error:
        if "carries no recipe" not in str(error):
            raise
        return {"info": "", "items": {}, "parameters": {}}
    text = infotext(recipe)
    return {"info": text, "items": {"parameters": text}, "parameters": recipe}


@router.post("/extra-single-image")
async def extra_single_image(request: Request, service: Serving, caller: Asking) -> dict[str, Any]:
    """A picture at another size, by a filter."""
    return {"html_info": "", "image": await _resized(service, await fields_of(request))}


async def _resized(service: Service, given: Mapping[str, Any]) -> str:
    data = picture_of(given.get("image"), "image")
    for name in ("gfpgan_visibility", "codeformer_visibility", "extras_upscaler_2_visibility"):
        if given.get(name):
            raise Refused(400, f"{name} is {given[name]!r}, which this service cannot do", param=name)
    upscaler = given.get("upscaler_1") or "None"
    if upscaler not in UPSCALERS:
        raise unknown("upscaler", str(upscaler), UPSCALERS)

    def resized() -> str:
        limits = service.settings.limits
        image = open_image(data, max_pixels=limits.upload_pixels, name="image")
        width, height = _target(given, image.size)
        if min(width, height) < 1 or width * height > limits.upload_pixels:
            raise Refused(400, f"{width} x {height} pixels are not made here", param="upscaling_resize")
        method = UPSCALERS[upscaler]
        return base64_of(encode_plain(image if method is None else image.resize((width, height), method)))

    return await run_in_threadpool(resized)


@router.post("/extra-batch-images")
async def extra_batch_images(request: Request, service: Serving, caller: Asking) -> dict[str, Any]:
    """Several pictures at another size: {"imageList": [{"data": base64, "name": ...}, ...]}."""
    given = await fields_of(request)
    listed = given.pop("imageList", None)
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise Refused(400, "imageList: a list of pictures, each with its data and name", param="imageList")
    if len(listed) > service.settings.limits.images:
        raise Refused(400, f"imageList: at most {service.settings.limits.images} pictures", param="imageList")
    made = [await _resized(service, given | {"image": one.get("data")}) for one in listed]
    return {"html_info": "", "images": made}


def _target(given: Mapping[str, Any], size: tuple[int, int]) -> tuple[int, int]:
    try:
        if given.get("resize_mode", 0) == 0:
            scale = float(given.get("upscaling_resize", 2))
            return round(size[0] * scale), round(size[1] * scale)
        return int(given.get("upscaling_resize_w", 512)), int(given.get("upscaling_resize_h", 512))
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused(400, "upscaling_resize is not a number", param="upscaling_resize") from error
