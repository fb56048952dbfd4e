"""A diffusers folder: a Stable Diffusion checkpoint as the nets, the tokenizer and the plan that it holds.

`model_index.json` names the components; each has a folder with its `config.json` and its weights. Configurations are
read strictly (an unknown key is an error), weights key by key; the names that other programs and older files give
to the same weights are brought to one form here. What is written, all at once, `diffusers` opens as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import MezzotintError, unknown
from ..nets import CLIPTextConfig, UNetConfig, VAEConfig
from .atomic import new_folder, read_json, write_file, write_json
from .checkpoint import SCORE, Checkpoint, Configs, Parts, assemble
from .names import text_today, vae_today
from .scheduler import Plan, from_config, to_config
from .tensors import read_tensors, read_weights, write_tensors
from .tokenizer import read_tokenizer, write_tokenizer

T = TypeVar("T")
SD = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
SDXL = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
PIPELINES = (*SD, *SDXL)
PLAIN, PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": (PLAIN,),
    "tokenizer": TOKENIZERS,
}
SECOND = {"text_encoder_2": (PROJECTED,), "tokenizer_2": TOKENIZERS}  # of SDXL
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # no part of drawing a picture
# The diffusers whose file format this is; it takes files without a number for very old ones.
WRITTEN_FOR = "0.36.0"
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
CORRECTED = {
    "steps_offset": 1,
    "clip_sample": False,
}  # by diffusers' pipelines, whatever a file says; not SDXL's
CARD = "mezzotint.json"  # what we say of a model beyond the format
REST = "single_file_rest.safetensors"  # what a converted single file held and no component uses


def read_configs(path: Path | str) -> Configs:
    """The configurations of a folder, without its weights. Raises MezzotintError as `read_folder` does."""
    path = Path(path)
    index = _index(path)

    def encoder(name: str) -> CLIPTextConfig | None:
        if name not in _present(index):
            return None
        return _config(path / name / "config.json", CLIPTextConfig.from_dict)

    first, second = encoder("text_encoder"), encoder("text_encoder_2")
    only = first or second
    assert only is not None, "_index saw to it"
    configs = Configs(
        _config(path / "unet" / "config.json", UNetConfig.from_dict),
        _config(path / "vae" / "config.json", VAEConfig.from_dict),
        only,
        _config(
            path / "scheduler" / "scheduler_config.json", _plan if index["_class_name"] in SD else from_config
        ),
        index,
        second if first is not None else None,
    )
    configs.check(str(path))
    return configs


def read_folder(
    path: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Open a diffusers folder; its nets come in evaluation mode, their weights as `dtype` on `device`.

    Raises MezzotintError naming the file and the remedy if something is missing, damaged, unknown or misfitting.
    """
    return assemble(folder_parts(path), dtype=dtype, device=device)


def folder_parts(path: Path | str, *, variant: str | None = None, allow_pickle: bool = False) -> Parts:
    """What a diffusers folder holds, not built yet; knobs as in `tensors.find_weights`. Raises as `read_folder`."""
    path = Path(path)
    configs = read_configs(path)
    tokenizers = {}
    for name, encoder in configs.encoders.items():
        folder = path / name.replace("text_encoder", "tokenizer")
        tokenizers[name] = read_tokenizer(folder, max_length=encoder.max_position_embeddings)
        if len(tokenizers[name]) > encoder.vocab_size:
            raise MezzotintError(
                f"{folder}: {len(tokenizers[name])} tokens, but the text encoder knows {encoder.vocab_size}; they "
                "are of different checkpoints"
            )
    tensors, where = {}, {}
    for name in ("unet", "vae", *configs.encoders):
        stored, where[name] = read_weights(
            path / name, STEMS[name], variant=variant, allow_pickle=allow_pickle
        )
        tensors[name] = _NAMES.get(name, dict)(stored)
    rest = read_tensors(path / REST) if (path / REST).exists() else {}
    card = read_json(path / CARD) if (path / CARD).exists() else {}
    return Parts(configs, tensors, tokenizers, where, rest, card)


def write_folder(
    path: Path | str,
    checkpoint: Checkpoint | Parts,
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
    parts = checkpoint.parts if isinstance(checkpoint, Checkpoint) else checkpoint
    of = parts.configs
    of.check(str(path))
    configs = {"unet": of.unet.to_dict(), "vae": of.vae.to_dict()}
    configs |= {name: _opened_wide(encoder.to_dict()) for name, encoder in of.encoders.items()}
    scheduler = to_config(of.plan)
    if not of.sized and _plan(scheduler) != of.plan:
        raise MezzotintError(
            f"{path}: diffusers' pipelines take steps_offset 1; plan with that to write a folder"
        )
    with new_folder(path, replace=replace) as part:
        write_json(part / "model_index.json", dict(sorted(_written_index(of, scheduler).items())))
        write_json(part / "scheduler" / "scheduler_config.json", _versioned(scheduler))
        for name, tokenizer in parts.tokenizers.items():
            write_tokenizer(part / name.replace("text_encoder", "tokenizer"), tokenizer)
        for name, config in configs.items():
            write_json(part / name / "config.json", _versioned(config))
            write_tensors(part / name / f"{STEMS[name]}.safetensors", parts.tensors[name], dtype=dtype)
        if parts.card:
            write_json(part / CARD, parts.card)
        if parts.rest:
            write_tensors(part / REST, parts.rest, dtype=dtype)
        for name, content in (files or {}).items():
            write_file(part / name, content)


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
    classes = CLASSES | SECOND if name in SDXL else CLASSES
    for part, named in index.items():
        if part.startswith("_") or not isinstance(named, list) or named == [None, None] or part in UNUSED:
            continue
        if part != "scheduler" and part not in classes:
            raise MezzotintError(f"{file}: {unknown('component', part, ['scheduler', *classes])}")
        if part in classes and (len(named) != 2 or named[1] not in classes[part]):
            raise MezzotintError(
                f"{file}: {part} is {named[-1]!r}, and {classes[part][0]} is what can be read"
            )
    refiner = name in SDXL and "text_encoder" not in _present(index)
    needed = classes.keys() - {"text_encoder", "tokenizer"} if refiner else classes.keys()
    for part in sorted({"scheduler", *needed}):
        if part not in _present(index):
            raise MezzotintError(f"{file}: the component '{part}' is missing; the checkpoint is incomplete")
    return index


def _present(index: Mapping[str, Any]) -> set[str]:
    """The components that a model_index.json names."""
    return {part for part, named in index.items() if isinstance(named, list) and named != [None, None]}


def _config(file: Path, parse: Callable[[dict[str, Any]], T]) -> T:
    raw = read_json(file)
    try:
        return parse(raw)
    except MezzotintError as error:
        raise MezzotintError(f"{file}: {error}") from error


def _plan(raw: Mapping[str, Any]) -> Plan:
    """The plan of a Stable Diffusion pipeline."""
    return from_config(dict(raw) | CORRECTED)


def _written_index(configs: Configs, scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """model_index.json: each component's library and class."""
    index: dict[str, Any] = {"_class_name": _pipeline(configs), "_diffusers_version": WRITTEN_FOR}
    index |= {name: [None, None] for name in UNUSED}
    if configs.sized:
        del index["safety_checker"]
        index |= {name: [None, None] for name in ("text_encoder", "tokenizer")}
        index["force_zeros_for_empty_prompt"] = configs.zeros_for_empty
        if configs.sized == SCORE:
            index["requires_aesthetics_score"] = True
    else:
        index["requires_safety_checker"] = False
    for name, encoder in configs.encoders.items():
        index[name] = ["transformers", PROJECTED if encoder.projected else PLAIN]
        index[name.replace("text_encoder", "tokenizer")] = ["transformers", TOKENIZERS[0]]
    index |= {name: ["diffusers", CLASSES[name][0]] for name in ("unet", "vae")}
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    return index


def _pipeline(configs: Configs) -> str:
    """The class whose folder it is; the refiner goes on from a picture."""
    family = SDXL if configs.sized else SD
    return family[2 if configs.inpainting else 1 if configs.sized == SCORE else 0]


def _opened_wide(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers opens half precision as such unless told otherwise; diffusers opens its own nets as float32."""
    return dict(config) | {"dtype": "float32", "torch_dtype": "float32"}


def _versioned(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config) | ({"_diffusers_version": WRITTEN_FOR} if "_class_name" in config else {})


_NAMES: Mapping[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {
    "vae": vae_today,
    "text_encoder": text_today,
    "text_encoder_2": text_today,
}
