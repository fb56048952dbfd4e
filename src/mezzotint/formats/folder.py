"""A diffusers folder: a Stable Diffusion checkpoint as the nets, the tokenizer and the plan that it holds.

`model_index.json` names the components; each has a folder with its `config.json` and its weights. Configurations are
read strictly (an unknown key is an error), weights key by key; the names that other programs and older files give
to the same weights are brought to one form here. What is written, all at once, `diffusers` opens as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..diffusion.process import VariancePreserving
from ..errors import MezzotintError, unknown
from ..nets import AutoencoderKL, CLIPTextConfig, CLIPTextModel, UNet, UNetConfig, VAEConfig
from .atomic import new_folder, read_json, write_file, write_json
from .scheduler import Plan, from_config, to_config
from .tensors import build, read_weights, write_tensors
from .tokenizer import Tokenizer, read_tokenizer, write_tokenizer

T = TypeVar("T")
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
}
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # no part of drawing a picture
WRITTEN_FOR = (
    "0.36.0"  # the diffusers whose file format this is; it takes files without a number for very old ones
)
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@dataclass(frozen=True)
class Configs:
    """What a folder says of itself, weights aside."""

    unet: UNetConfig
    vae: VAEConfig
    text_encoder: CLIPTextConfig
    plan: Plan
    index: Mapping[str, Any] = field(default_factory=dict)  # model_index.json


@dataclass(frozen=True)
class Checkpoint:
    """A text-to-image model in the layout of Stable Diffusion."""

    unet: UNet
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: Tokenizer
    plan: Plan
    index: Mapping[str, Any] = field(default_factory=dict)  # model_index.json, as it was read

    @property
    def process(self) -> VariancePreserving:
        return self.plan.process

    @property
    def prediction(self) -> str:
        return self.plan.prediction


def read_configs(path: Path | str) -> Configs:
    """The configurations of a folder, without its weights. Raises MezzotintError as `read_folder` does."""
    path = Path(path)
    index = _index(path)
    configs = Configs(
        _config(path / "unet" / "config.json", UNetConfig.from_dict),
        _config(path / "vae" / "config.json", VAEConfig.from_dict),
        _config(path / "text_encoder" / "config.json", CLIPTextConfig.from_dict),
        _config(path / "scheduler" / "scheduler_config.json", _plan),
        index,
    )
    _check(path, configs.unet, configs.vae, configs.text_encoder)
    return configs


def read_folder(
    path: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Open a diffusers folder; its nets come in evaluation mode, their weights as `dtype` on `device`.

    Raises MezzotintError naming the file and the remedy if something is missing, damaged, unknown or misfitting.
    """
    path = Path(path)
    configs = read_configs(path)
    tokenizer = read_tokenizer(path / "tokenizer", max_length=configs.text_encoder.max_position_embeddings)
    if len(tokenizer) > configs.text_encoder.vocab_size:
        raise MezzotintError(
            f"{path / 'tokenizer'}: {len(tokenizer)} tokens, but the text encoder knows "
            f"{configs.text_encoder.vocab_size}; they are of different checkpoints"
        )

    def weights(
        name: str, make: Callable[[], Any], rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    ) -> Any:
        tensors, where = read_weights(path / name, STEMS[name])
        return build(make, rename(tensors), where=where, dtype=dtype, device=device)

    return Checkpoint(
        weights("unet", lambda: UNet(configs.unet), dict),
        weights("vae", lambda: AutoencoderKL(configs.vae), vae_names),
        weights("text_encoder", lambda: CLIPTextModel(configs.text_encoder), text_names),
        tokenizer,
        configs.plan,
        configs.index,
    )


def write_folder(
    path: Path | str,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    files: Mapping[str, str | bytes] | None = None,
    replace: bool = False,
) -> None:
    """Write a checkpoint as a diffusers folder, whole or not at all; weights as `dtype`, as they are if None.

    `files` (a model card, a licence) join it under their names. Raises MezzotintError if the components do not fit
    together, if diffusers could not sample as planned, if a weight overflows `dtype`, and as `atomic.new_folder`.
    """
    path = Path(path)
    nets = {"unet": checkpoint.unet, "vae": checkpoint.vae, "text_encoder": checkpoint.text_encoder}
    unet, vae, text = checkpoint.unet.config, checkpoint.vae.config, checkpoint.text_encoder.config
    _check(path, unet, vae, text)
    configs = {"unet": unet.to_dict(), "vae": vae.to_dict(), "text_encoder": _opened_wide(text.to_dict())}
    scheduler = to_config(checkpoint.plan)
    if _plan(scheduler) != checkpoint.plan:
        raise MezzotintError(
            f"{path}: diffusers' pipelines take steps_offset 1; plan with that to write a folder"
        )
    index: dict[str, Any] = {"_class_name": _pipeline(unet, vae), "_diffusers_version": WRITTEN_FOR}
    index |= {name: ["diffusers", configs[name]["_class_name"]] for name in ("unet", "vae")}
    index |= {name: ["transformers", CLASSES[name][0]] for name in ("text_encoder", "tokenizer")}
    index |= {"scheduler": ["diffusers", scheduler["_class_name"]], "requires_safety_checker": False}
    index |= {name: [None, None] for name in UNUSED}
    with new_folder(path, replace=replace) as part:
        write_json(part / "model_index.json", dict(sorted(index.items())))
        write_json(part / "scheduler" / "scheduler_config.json", _versioned(scheduler))
        write_tokenizer(part / "tokenizer", checkpoint.tokenizer)
        for name, net in nets.items():
            write_json(part / name / "config.json", _versioned(configs[name]))
            write_tensors(part / name / f"{STEMS[name]}.safetensors", net.state_dict(), dtype=dtype)
        for name, content in (files or {}).items():
            write_file(part / name, content)


def text_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP text encoder's weights under their prefixed names.

    transformers from 5.6 on leaves the prefix `text_model.` out; before 4.31 it stored a table of positions.
    """
    known = ("text_model.", "text_projection.")
    return {
        name if name.startswith(known) else f"text_model.{name}": tensor
        for name, tensor in tensors.items()
        if not name.endswith("position_ids")
    }


def vae_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder's weights under today's names: its attention had others before 2023, and 1 x 1 convolutions."""
    new = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    old = re.compile(rf"(attentions\.\d+\.)({'|'.join(new)})\.")
    renamed = {old.sub(lambda match: f"{match[1]}{new[match[2]]}.", name): t for name, t in tensors.items()}
    linear = re.compile(r"attentions\.\d+\.to_(q|k|v|out\.0)\.weight$")
    return {
        name: t.flatten(1) if linear.search(name) and t.shape[2:] == (1, 1) else t
        for name, t in renamed.items()
    }


def _index(path: Path) -> dict[str, Any]:
    """model_index.json, if it is that of a pipeline that we know."""
    file = path / "model_index.json"
    if not path.exists():
        raise MezzotintError(f"{path}: there is no such folder; give the path of a diffusers folder")
    if path.is_file():
        raise MezzotintError(f"{path} is a file; give the path of a diffusers folder")
    if not file.exists():
        raise MezzotintError(f"{path} is not a diffusers folder: it has no model_index.json")
    index = read_json(file)
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise MezzotintError(f"{file}: {unknown('pipeline', str(name), PIPELINES)}")
    for part, named in index.items():
        if part.startswith("_") or not isinstance(named, list) or named == [None, None] or part in UNUSED:
            continue
        if part != "scheduler" and part not in CLASSES:
            raise MezzotintError(f"{file}: {unknown('component', part, ['scheduler', *CLASSES])}")
        if part in CLASSES and (len(named) != 2 or named[1] not in CLASSES[part]):
            raise MezzotintError(
                f"{file}: {part} is {named[-1]!r}, and {CLASSES[part][0]} is what can be read"
            )
    for part in ("scheduler", *CLASSES):
        if not isinstance(index.get(part), list) or index[part] == [None, None]:
            raise MezzotintError(f"{file}: the component '{part}' is missing; the checkpoint is incomplete")
    return index


def _config(file: Path, parse: Callable[[dict[str, Any]], T]) -> T:
    raw = read_json(file)
    try:
        return parse(raw)
    except MezzotintError as error:
        raise MezzotintError(f"{file}: {error}") from error


def _plan(raw: Mapping[str, Any]) -> Plan:
    """The plan of a Stable Diffusion pipeline: diffusers' take steps_offset for 1, whatever the file says."""
    return from_config(dict(raw) | {"steps_offset": 1})


def _check(path: Path, unet: UNetConfig, vae: VAEConfig, text: CLIPTextConfig) -> None:
    """Raises MezzotintError unless the components are made for each other."""
    if unet.num_class_embeds or not unet.takes_text:
        raise MezzotintError(
            f"{path}: the U-Net looks at no text, or at a class; such a model has no text encoder"
        )
    widths = {level.context_dim for level in unet.levels()}
    if widths != {text.hidden_size}:
        raise MezzotintError(
            f"{path}: the U-Net looks at texts of width {min(widths)}, the text encoder's is {text.hidden_size}; "
            "they are of different checkpoints"
        )
    latents = vae.latent_channels
    if unet.out_channels != latents or unet.in_channels not in (latents, 2 * latents + 1):
        raise MezzotintError(
            f"{path}: the U-Net maps {unet.in_channels} channels to {unet.out_channels}, the autoencoder's latents "
            f"have {latents}; they are of different checkpoints"
        )


def _pipeline(unet: UNetConfig, vae: VAEConfig) -> str:
    return PIPELINES[0] if unet.in_channels == vae.latent_channels else PIPELINES[2]


def _opened_wide(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers opens half precision as such unless told otherwise; diffusers opens its own nets as float32."""
    return dict(config) | {"dtype": "float32", "torch_dtype": "float32"}


def _versioned(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config) | ({"_diffusers_version": WRITTEN_FOR} if "_class_name" in config else {})
