"""What clients of AUTOMATIC1111's API ask for when they start: lists of what there is, flags, memory.

What is not served is an empty list, what is not known is not told: no file's place on the operator's disk is.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from fastapi import APIRouter, Request
from PIL import Image
from pydantic import BaseModel

from ..diffusion.grids import GRIDS
from ..diffusion.samplers import SAMPLERS
from ..errors import MezzotintError
from ..formats.embedding import read_embedding
from ..formats.recipe import TITLES
from .http import Asking, Serving
from .native import PROBLEMS


class Trouble(BaseModel):
    """A failure, in that program's form."""

    error: str
    detail: str
    body: str
    errors: str


TROUBLES: dict[int | str, dict[str, Any]] = {
    status: {**told, "model": Trouble} for status, told in PROBLEMS.items()
}
AUTOMATIC = "Automatic"
UPSCALERS = {"None": None, "Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
router = APIRouter(prefix="/sdapi/v1", tags=["automatic1111"], responses=TROUBLES)


@router.get("/samplers")
def samplers(caller: Asking) -> list[dict[str, Any]]:
    return [{"name": TITLES.get(name, name), "aliases": [name], "options": {}} for name in SAMPLERS]


@router.get("/schedulers")
def schedulers(caller: Asking) -> list[dict[str, Any]]:
    names = {AUTOMATIC.lower(): AUTOMATIC} | {name: TITLES.get(name, name) for name in GRIDS}
    return [
        {"name": name, "label": label, "aliases": None, "default_rho": -1, "need_inner_model": False}
        for name, label in names.items()
    ]


@router.get("/sd-models")
def sd_models(service: Serving, caller: Asking) -> list[dict[str, Any]]:
    told = []
    for name in service.models.names:
        full = service.models.fingerprint(name)
        told.append(
            {"title": f"{name} [{full[:10]}]", "model_name": name, "hash": full[:10], "sha256": full, "filename": name,
             "config": None}
        )  # fmt: skip
    return told


@router.get("/upscalers")
def upscalers(caller: Asking) -> list[dict[str, Any]]:
    return [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4}
        for name in UPSCALERS
    ]


@router.get("/loras")
def loras(service: Serving, caller: Asking) -> list[dict[str, Any]]:
    """Those of the operator's folders; a prompt wears one as <lora:name:weight>."""
    return [
        {"name": name, "alias": name, "path": f"{name}.safetensors", "metadata": dict(header)}
        for name, header in service.shelf.loras().items()
    ]


@router.get("/embeddings")
def embeddings(request: Request, service: Serving, caller: Asking) -> dict[str, Any]:
    """Words that were learnt: those that the caller's model can read, and those made for another kind of model."""
    told: dict[str, Any] = {"loaded": {}, "skipped": {}}
    chosen: dict[str, str] = request.app.state.chosen_models
    with service.models.use(service.models.check(chosen.get(caller.name))) as pipeline:
        widths = {name: net.config.hidden_size for name, net in pipeline.wardrobe.texts.items()}
    for word, path in service.shelf.words().items():
        embedding = next(each for each in read_embedding(path) if each.word.lower() == word)
        vectors, width = next(iter(embedding.vectors.values())).shape
        about = {
            "step": None,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
            "shape": width,
            "vectors": vectors,
        }
        try:
            told["loaded" if widths and embedding.for_encoders(widths) else "skipped"][embedding.word] = about
        except MezzotintError:
            told["skipped"][embedding.word] = about
    return told


@router.get("/sd-vae")
@router.get("/sd-modules")
@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/realesrgan-models")
@router.get("/prompt-styles")
@router.get("/latent-upscale-modes")
@router.get("/script-info")
@router.get("/extensions")
def none(caller: Asking) -> list[Any]:
    """Nothing of this kind is served."""
    return []


@router.get("/scripts")
def scripts(caller: Asking) -> dict[str, Any]:
    return {"txt2img": [], "img2img": []}


@router.get("/cmd-flags")
def flags(service: Serving, caller: Asking) -> dict[str, Any]:
    """Those of that program's flags that say something true of this one."""
    settings = service.settings
    return {
        "api": True, "listen": not settings.local, "port": settings.port, "api_auth": None, "nowebui": False,
        "cors_allow_origins": ",".join(settings.origins) or None, "api_server_stop": False,
    }  # fmt: skip


@router.post("/refresh-loras")
@router.post("/refresh-embeddings")
@router.post("/refresh-checkpoints")
@router.post("/refresh-vae")
def refreshed(caller: Asking) -> None:
    """Folders are looked at whenever somebody asks; models are those that the operator named at the start."""


@router.get("/memory")
def memory(caller: Asking) -> dict[str, Any]:
    """In bytes: what this process holds of the machine, and of an accelerator if there is one."""
    told: dict[str, Any] = {"ram": {"error": "this system does not tell"}, "cuda": {"error": "there is none"}}
    try:
        page, total = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[1]) * page
        told["ram"] = {"free": total - used, "used": used, "total": total}
    except (OSError, ValueError, AttributeError):
        pass
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        told["cuda"] = {"system": {"free": free, "used": total - free, "total": total}}
    return told
