"""The folder of a model that Stable Diffusion's layout has no words for: of pixels, of classes, of other processes.

    model_index.json    {"_class_name": "MezzotintPipeline", "unet": [...], "vae": [...], "id2label": {"0": "cat", ...}}
    unet/ or transformer/, vae/, text_encoder/, tokenizer/    as in a diffusers folder, of the classes named there
    scheduler/plan.json    process, prediction, sampler, grid

Components that a model does not have are left out: without `vae` it works on pixels, without `id2label` and
`text_encoder` it is told nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diffusion.grids import GRIDS
from ..diffusion.prediction import PREDICTIONS
from ..diffusion.process import EDM, Flow, VarianceExploding, VariancePreserving
from ..diffusion.samplers import SAMPLERS
from ..errors import MezzotintError, unknown
from ..nets import (
    AutoencoderKL,
    Backbone,
    BackboneConfig,
    CLIPTextConfig,
    CLIPTextModel,
    DiT,
    DiTConfig,
    PixArt,
    PixArtConfig,
    UNet,
    UNetConfig,
    VAEConfig,
)
from .atomic import new_folder, read_json, write_file, write_json
from .folder import STEMS, WRITTEN_FOR
from .scheduler import Plan
from .tensors import build, read_weights, write_tensors
from .tokenizer import Tokenizer, read_tokenizer, write_tokenizer

CLASS_NAME = "MezzotintPipeline"
PLAN = "plan.json"
# the net that takes noise off: class -> folder, configuration, net
BACKBONES: dict[str, tuple[str, type[BackboneConfig], Callable[[Any], Backbone]]] = {
    "UNet2DConditionModel": ("unet", UNetConfig, UNet),
    "DiTTransformer2DModel": ("transformer", DiTConfig, DiT),
    "PixArtTransformer2DModel": ("transformer", PixArtConfig, PixArt),
}
CLASSES = {
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
}
PROCESSES: dict[str, type] = {
    "variance_preserving": VariancePreserving,
    "variance_exploding": VarianceExploding,
    "edm": EDM,
    "flow": Flow,
}


@dataclass(frozen=True)
class NativeConfigs:
    """What tasks ask of a model's configurations; see `checkpoint.Configs`."""

    unet: BackboneConfig  # of whichever net it is
    plan: Plan
    sized: int = 0
    inpainting: bool = False


@dataclass(frozen=True)
class NativeModel:
    """A net that takes noise off and what goes with it."""

    unet: Backbone  # a transformer goes by that name too
    plan: Plan
    vae: AutoencoderKL | None = None  # None: diffusion works on pixels
    text_encoder: CLIPTextModel | None = None
    tokenizer: Tokenizer | None = None
    classes: tuple[str, ...] = ()

    @property
    def configs(self) -> NativeConfigs:
        return NativeConfigs(self.unet.config, self.plan)


def is_native(folder: Path) -> bool:
    """Whether a folder is of this kind."""
    index = folder / "model_index.json"
    return index.is_file() and read_json(index).get("_class_name") == CLASS_NAME


def native_tensors(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of each component, still on the disk."""
    return {
        name: dict(read_weights(folder / name, STEMS.get(name, STEMS["unet"]))[0])
        for name in dict.fromkeys([*(place for place, _, _ in BACKBONES.values()), *CLASSES])
        if (folder / name).is_dir()
    }


def write_native(
    path: Path,
    model: NativeModel,
    *,
    dtype: torch.dtype | None = None,
    files: Mapping[str, str | bytes] | None = None,
    replace: bool = False,
) -> None:
    """Write a model as such a folder, whole or not at all; raises as `folder.write_folder`."""
    name_of_net = model.unet.config.to_dict()["_class_name"]
    first = BACKBONES[name_of_net][0]
    nets: dict[str, Any] = {first: model.unet, "vae": model.vae, "text_encoder": model.text_encoder}
    nets = {name: net for name, net in nets.items() if net is not None}
    index: dict[str, Any] = {"_class_name": CLASS_NAME, "_diffusers_version": WRITTEN_FOR}
    index |= {name: list(CLASSES.get(name, ("diffusers", name_of_net))) for name in nets}
    if model.classes:
        index["id2label"] = {str(i): name for i, name in enumerate(model.classes)}
    with new_folder(path, replace=replace) as part:
        write_json(part / "model_index.json", index)
        write_json(part / "scheduler" / PLAN, plan_to_json(model.plan))
        if model.tokenizer is not None:
            write_tokenizer(part / "tokenizer", model.tokenizer)
        for name, net in nets.items():
            write_json(part / name / "config.json", net.config.to_dict())
            stem = STEMS.get(name, STEMS["unet"])
            write_tensors(part / name / f"{stem}.safetensors", net.state_dict(), dtype=dtype)
        for name, content in (files or {}).items():
            write_file(part / name, content)


def read_native(folder: Path, *, device: torch.device | str = "cpu") -> NativeModel:
    """The model in such a folder, its nets in evaluation mode. Raises MezzotintError naming what does not fit."""
    index = read_json(folder / "model_index.json")

    def net(name: str, config: Any, make: Any) -> Any:
        if not (folder / name).is_dir():
            return None
        keys = config(read_json(folder / name / "config.json"))
        tensors, where = read_weights(folder / name, STEMS[name])
        return build(lambda: make(keys), tensors, where=where, device=device)

    keys, make = backbone(folder)
    tensors, where = read_weights(folder / BACKBONES[keys.to_dict()["_class_name"]][0], STEMS["unet"])
    unet = build(lambda: make(keys), tensors, where=where, device=device)
    text = net("text_encoder", CLIPTextConfig.from_dict, CLIPTextModel)
    longest = text.config.max_position_embeddings if text is not None else 0
    tokenizer = read_tokenizer(folder / "tokenizer", max_length=longest) if text is not None else None
    names = index.get("id2label", {})
    model = NativeModel(
        unet,
        read_plan(folder),
        net("vae", VAEConfig.from_dict, AutoencoderKL),
        text,
        tokenizer,
        tuple(names[str(i)] for i in range(len(names))),
    )
    if (unet.config.num_class_embeds or 1) != len(model.classes) + 1 or unet.config.takes_text != (
        text is not None
    ):
        raise MezzotintError(f"{folder}: the U-Net is told other things than the folder has names for")
    return model


def backbone(folder: Path) -> tuple[BackboneConfig, Callable[[Any], Backbone]]:
    """The configuration and the class of the net that takes noise off, without its weights."""
    for place in dict.fromkeys(place for place, _, _ in BACKBONES.values()):
        if (folder / place).is_dir():
            raw = read_json(folder / place / "config.json")
            name = raw.get("_class_name", next(iter(BACKBONES)))
            if name not in BACKBONES:
                raise MezzotintError(f"{folder / place}: {unknown('net', str(name), BACKBONES)}")
            _, config, net = BACKBONES[name]
            return config.from_dict(raw), net
    raise MezzotintError(f"{folder}: the component 'unet' is missing; the checkpoint is incomplete")


def read_plan(folder: Path) -> Plan:
    """How a model of this layout adds noise and is sampled, without a look at its weights."""
    path = folder / "scheduler" / PLAN
    return plan_from_json(read_json(path), str(path))


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """A plan as JSON; `plan_from_json` reads it back."""
    kinds = {cls: name for name, cls in PROCESSES.items()}
    process = {"kind": kinds[type(plan.process)]} | asdict(plan.process)  # type: ignore[call-overload]
    rest = {f.name: getattr(plan, f.name) for f in fields(plan) if f.name != "process"}
    return {"process": process} | {k: dict(v) if isinstance(v, Mapping) else v for k, v in rest.items()}


def plan_from_json(raw: Mapping[str, Any], where: str) -> Plan:
    """The plan in a `plan.json`; raises UsageError for a name that is unknown, MezzotintError for a missing key."""
    try:
        values = dict(raw)
        process = dict(values.pop("process"))
        kind = process.pop("kind")
        if kind not in PROCESSES:
            raise unknown("process", kind, PROCESSES)
        keys = {k: tuple(v) if isinstance(v, list) else v for k, v in process.items()}
        plan = Plan(PROCESSES[kind](**keys), **values)
    except (KeyError, TypeError) as error:
        raise MezzotintError(f"{where} is no plan of ours ({error})") from error
    for what, name, known in (
        ("prediction", plan.prediction, PREDICTIONS),
        ("sampler", plan.sampler, SAMPLERS),
        ("grid", plan.grid, GRIDS),
    ):
        if name not in known:
            raise unknown(what, name, known)
    return plan
