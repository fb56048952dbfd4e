"""`mezzotint info`: what a model, a LoRA or a learnt word is, read from its files without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Download, Json, Variant
from .show import Show

if TYPE_CHECKING:
    from torch import Tensor

    from ..formats.scheduler import Plan


def info(
    model: Annotated[
        str,
        typer.Argument(
            help="A model's name, its folder, or a .safetensors file: a model, a LoRA, learnt words."
        ),
    ] = "emoji",
    variant: Variant = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Say what a model is: kind, components, parameters, precision, memory, and what it draws with by default; of a
    LoRA its kind, rank and targets, of learnt words how many vectors they are."""
    from ..catalog import content_hash, find_model

    show = Show(as_json)
    path = find_model(model, download=download)
    facts = _facts(path, variant) | {"hash": content_hash(path), "path": str(path)}
    width = max(map(len, facts)) + 2
    lines = [f"{key.replace('_', ' '):{width}}{_spelled(value)}" for key, value in facts.items()]
    show.result("\n".join(lines), **facts)


def _facts(path: Path, variant: str | None) -> dict[str, Any]:
    from ..formats.about import about
    from ..formats.native import is_native
    from ..formats.tensors import PICKLED

    if path.is_dir():
        return _native(path) if is_native(path) else _checkpoint(path, variant)
    found = about(path) if path.suffix not in PICKLED else None
    return found or _checkpoint(path, variant)


def _checkpoint(path: Path, variant: str | None) -> dict[str, Any]:
    """A model in Stable Diffusion's layout."""
    from ..catalog import model_name, read_defaults
    from ..formats.kinds import title
    from ..formats.opened import read_parts

    parts = read_parts(path, variant=variant)
    configs = parts.configs
    defaults = read_defaults(path, configs.unet, configs.vae, configs.plan)
    facts: dict[str, Any] = {"model": model_name(path), "kind": title(configs)}
    facts["form"] = "a single file" if path.is_file() else "a diffusers folder"
    facts |= _components(parts.tensors)
    if parts.rest:
        size = sum(tensor.nbytes for tensor in parts.rest.values())
        facts["beside_the_components"] = f"{len(parts.rest)} tensors, {size / 1e6:,.1f} MB, not used"
    return (
        facts
        | _totals(parts.tensors)
        | {
            "size": f"{defaults.width}x{defaults.height}",
            "latents": f"{configs.vae.latent_channels} channels, {configs.vae.factor} times smaller",
            "tokens": configs.text_encoder.max_position_embeddings - 2,
        }
        | _drawing(configs.plan, defaults)
    )


def _native(path: Path) -> dict[str, Any]:
    """A model that Stable Diffusion's layout has no words for."""
    from ..catalog import read_defaults
    from ..codec import Pixels
    from ..formats.atomic import read_json
    from ..formats.native import backbone, native_tensors, read_plan
    from ..nets import CLIPTextConfig, VAEConfig

    def config(name: str) -> dict[str, Any]:
        return read_json(path / name / "config.json")

    tensors = native_tensors(path)
    vae = VAEConfig.from_dict(config("vae")) if "vae" in tensors else None
    plan = read_plan(path)
    defaults = read_defaults(path, backbone(path)[0], vae or Pixels(), plan)
    classes = read_json(path / "model_index.json").get("id2label", {})
    facts: dict[str, Any] = {"model": path.name, "kind": "a diffusion model of mezzotint's own"}
    facts |= {"form": "a mezzotint folder"} | _components(tensors) | _totals(tensors)
    facts["size"] = f"{defaults.width}x{defaults.height}"
    facts["latents"] = (
        f"{vae.latent_channels} channels, {vae.factor} times smaller" if vae else "none: works on pixels"
    )
    if "text_encoder" in tensors:
        facts["tokens"] = CLIPTextConfig.from_dict(config("text_encoder")).max_position_embeddings - 2
    if classes:
        facts["classes"] = len(classes)
    return facts | _drawing(plan, defaults)


def _components(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    from ..formats.about import sizes

    return {part: sizes(each) for part, each in tensors.items()}


def _totals(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    every = [tensor for each in tensors.values() for tensor in each.values()]
    total = sum(tensor.numel() for tensor in every)
    return {
        "parameters": total,
        "megabytes_on_disk": round(sum(tensor.nbytes for tensor in every) / 1e6, 1),
        "megabytes_of_weights_in_memory": round(total * 4 / 1e6, 1),
    }


def _drawing(plan: Plan, defaults: Any) -> dict[str, Any]:
    """What it draws with."""
    process = plan.process
    steps = getattr(process, "steps", None)
    schedule = (
        f"{getattr(process, 'schedule', '')}, {steps} steps, " if steps else f"{type(process).__name__}, "
    )
    return {
        "prediction": plan.prediction,
        "noise_schedule": f"{schedule}sigma {process.sigma_min:.3g} to {process.sigma_max:.3g}",
        "sampler": defaults.sampler,
        "grid": defaults.grid,
        "num_inference_steps": defaults.num_inference_steps,
        "guidance_scale": defaults.guidance_scale,
        "license": defaults.license or "not told",
    }


def _spelled(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{_spelled(v)} {k}" if isinstance(v, int | float) else _spelled(v) for k, v in value.items()
        )
    if isinstance(value, list):
        return " and ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
