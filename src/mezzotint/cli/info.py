"""`mezzotint info`: what a model is, read from its files without loading it."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Download, Json, Variant
from .show import Show


def info(
    model: Annotated[
        str, typer.Argument(help="A model's name, its folder, or its .safetensors file.")
    ] = "emoji",
    variant: Variant = None,
    download: Download = False,
    as_json: Json = False,
) -> None:
    """Say what a model is: kind, components, parameters, precision, memory, and what it draws with by default."""
    from ..catalog import content_hash, find_model

    show = Show(as_json)
    path = find_model(model, download=download)
    facts = _facts(path, variant) | {"hash": content_hash(path), "path": str(path)}
    width = max(map(len, facts)) + 2
    lines = [f"{key.replace('_', ' '):{width}}{_spelled(value)}" for key, value in facts.items()]
    show.result("\n".join(lines), **facts)


def _facts(path: Path, variant: str | None) -> dict[str, Any]:
    from ..catalog import model_name, read_defaults
    from ..formats.kinds import title
    from ..formats.opened import read_parts

    parts = read_parts(path, variant=variant)
    configs = parts.configs
    defaults = read_defaults(path, configs.unet, configs.vae, configs.plan)
    facts: dict[str, Any] = {"model": model_name(path), "kind": title(configs)}
    facts["form"] = "a single file" if path.is_file() else "a diffusers folder"
    total = stored = 0
    for part, tensors in parts.tensors.items():
        count = sum(prod(tensor.shape) for tensor in tensors.values())
        size = sum(tensor.nbytes for tensor in tensors.values())
        kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
        facts[part] = {"parameters": count, "megabytes": round(size / 1e6, 1), "precision": kinds}
        total, stored = total + count, stored + size
    if parts.rest:
        size = sum(tensor.nbytes for tensor in parts.rest.values())
        facts["beside_the_components"] = f"{len(parts.rest)} tensors, {size / 1e6:,.1f} MB, not used"
    process = configs.plan.process
    return facts | {
        "parameters": total,
        "megabytes_on_disk": round(stored / 1e6, 1),
        "megabytes_of_weights_in_memory": round(total * 4 / 1e6, 1),
        "size": f"{defaults.width}x{defaults.height}",
        "latents": f"{configs.vae.latent_channels} channels, {configs.vae.factor} times smaller",
        "tokens": configs.text_encoder.max_position_embeddings - 2,
        "prediction": configs.plan.prediction,
        "noise_schedule": f"{getattr(process, 'schedule', '')}, {getattr(process, 'steps', '')} steps, "
        f"sigma {process.sigma_min:.3g} to {process.sigma_max:.3g}",
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
