"""A checkpoint in one `.safetensors` file, under the names of the latent diffusion code: read and written.

What other programs wrote is recognised by its keys and shapes (`kinds`); what we write says its configurations in the
header too, where other programs pass over them, and its tokenizer where that is not CLIP's. What a file holds beyond
the components (an average of the weights, the table of a schedule, OpenCLIP's last layer) is kept apart as the
`rest`, and comes back when a single file is written again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import MezzotintError
from ..nets import CLIPTextConfig, UNetConfig, VAEConfig
from .checkpoint import Checkpoint, Configs, Parts, assemble
from .clip_tokenizer import OPEN_CLIP_PAD, clip_tokenizer
from .kinds import (
    FAMILIES,
    UNET,
    V_MARK,
    VAE,
    ZERO_SNR_MARK,
    configs_of,
    family_of,
    family_to_write,
    plan_of,
)
from .names import from_single, to_single
from .pickled import read_pickled
from .scheduler import from_config, to_config
from .tensors import PICKLED, read_metadata, read_tensors, write_tensors
from .tokenizer import EOS, Tokenizer, read_tokenizer

HEADER = "mezzotint"  # the key in the header under which our own files say their configurations
Tensors = Mapping[str, Tensor]


def read_single(
    path: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    prediction: str | None = None,
) -> Checkpoint:
    """Open a single file; its nets come in evaluation mode, their weights as `dtype` on `device`.

    `prediction` ("epsilon", "v_prediction") outranks what the file says. Raises MezzotintError naming the file if it
    is damaged, or is no Stable Diffusion checkpoint: then also what it is.
    """
    return assemble(single_parts(path, prediction=prediction), dtype=dtype, device=device)


def single_parts(path: Path | str, *, prediction: str | None = None, allow_pickle: bool = False) -> Parts:
    """What a single file holds, under our names, not built yet; with `allow_pickle` also of a .ckpt. Raises as
    `read_single` does."""
    path = Path(path)
    if allow_pickle and path.suffix in PICKLED:
        tensors, metadata = read_pickled(path), dict[str, str]()
    else:
        tensors, metadata = read_tensors(path), read_metadata(path)
    where = str(path)
    key = family_of(tensors, where)
    prefixes = {"unet": UNET, "vae": VAE, **FAMILIES[key].encoders}
    theirs: dict[str, dict[str, Tensor]] = {name: {} for name in prefixes}
    rest = {}
    for name, tensor in tensors.items():
        for part, prefix in prefixes.items():
            if name.startswith(prefix):
                theirs[part][name.removeprefix(prefix)] = tensor
                break
        else:
            rest[name] = tensor
    configs = _said(metadata, where)
    if configs is None:
        configs = configs_of(key, theirs, plan_of(key, tensors, metadata, path, prediction), where)
    configs.check(where)
    ours = {}
    for part, config in _configs(configs).items():
        ours[part], spare = from_single(theirs[part], config)
        rest |= {prefixes[part] + name: tensor for name, tensor in spare.items()}
    rest = {name: t for name, t in rest.items() if name not in (V_MARK, ZERO_SNR_MARK) or t.numel()}
    tokenizers, card = _tokenizers(metadata, configs, where), read_card(metadata, where)
    return Parts(configs, ours, tokenizers, dict.fromkeys(ours, where), rest, card)


def read_card(metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    """What the header of a file that we wrote says beyond the format: steps, guidance."""
    card = (_own(metadata, where) or {}).get("card", {})
    return card if isinstance(card, dict) else {}


def write_single(
    path: Path | str,
    checkpoint: Checkpoint | Parts,
    *,
    dtype: torch.dtype | None = None,
    replace: bool = False,
) -> None:
    """Write a checkpoint as one file, whole or not at all; weights as `dtype`, as they are if None.

    Raises MezzotintError if the components do not fit together, if a weight overflows `dtype`, and as
    `atomic.new_file` does.
    """
    parts = checkpoint.parts if isinstance(checkpoint, Checkpoint) else checkpoint
    configs = parts.configs
    configs.check(str(path))
    key = family_to_write(configs)
    prefixes = {"unet": UNET, "vae": VAE, **FAMILIES[key].encoders}
    tensors = dict(parts.rest)
    for part, config in _configs(configs).items():
        open_clip = prefixes[part].endswith(".model.")
        named = to_single(parts.tensors[part], config, open_clip=open_clip)
        tensors |= {prefixes[part] + name: tensor for name, tensor in named.items()}
    if key.startswith("sdxl"):  # where other programs look for such marks
        marks = {
            V_MARK: configs.plan.prediction == "v_prediction",
            ZERO_SNR_MARK: getattr(configs.plan.process, "zero_snr", False),
        }
        tensors |= {mark: torch.zeros(0) for mark, holds in marks.items() if holds and mark not in tensors}
    write_tensors(path, tensors, dtype=dtype, metadata=_header(key, parts), replace=replace)


def _configs(configs: Configs) -> dict[str, UNetConfig | VAEConfig | CLIPTextConfig]:
    return {"unet": configs.unet, "vae": configs.vae, **configs.encoders}


def _header(key: str, parts: Parts) -> dict[str, str]:
    """What the file says of itself: for other programs by the model spec of Stability AI, and all of it for us."""
    configs = parts.configs
    v = configs.plan.prediction == "v_prediction"
    architecture = {
        "sd1": "stable-diffusion-v1",
        "sd2": "stable-diffusion-v2-768-v" if v else "stable-diffusion-v2-512",
        "sdxl": "stable-diffusion-xl-v1-base",
        "sdxl-refiner": "stable-diffusion-xl-v1-refiner",
    }[key] + "-inpainting" * configs.inpainting
    said: dict[str, Any] = {"unet": configs.unet.to_dict(), "vae": configs.vae.to_dict()}
    said |= {name: config.to_dict() for name, config in configs.encoders.items()}
    said |= {"scheduler": to_config(configs.plan), "force_zeros_for_empty_prompt": configs.zeros_for_empty}
    own = {name: tokenizer for name, tokenizer in parts.tokenizers.items() if not _is_clips(tokenizer)}
    said["tokenizers"] = {
        name: {file: content.decode() for file, content in tokenizer.files().items()}
        for name, tokenizer in own.items()
    }
    said["card"] = dict(parts.card)
    said["pads"] = {name: tokenizer.special["pad_token"] for name, tokenizer in parts.tokenizers.items()}
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
        "modelspec.prediction_type": "v" if v else "epsilon",
        HEADER: json.dumps(said, ensure_ascii=False, sort_keys=True),
    }


def _said(metadata: Mapping[str, str], where: str) -> Configs | None:
    """The configurations in the header of a file that we wrote."""
    said = _own(metadata, where)
    if said is None:
        return None
    try:
        texts = [
            CLIPTextConfig.from_dict(said[name])
            for name in ("text_encoder", "text_encoder_2")
            if name in said
        ]
        return Configs(
            UNetConfig.from_dict(said["unet"]),
            VAEConfig.from_dict(said["vae"]),
            texts[0],
            from_config(said["scheduler"]),
            {"force_zeros_for_empty_prompt": bool(said.get("force_zeros_for_empty_prompt"))},
            texts[1] if len(texts) > 1 else None,
        )
    except (KeyError, IndexError) as error:
        raise MezzotintError(f"{where}: its header lacks {error}; convert the model again") from error
    except MezzotintError as error:
        raise MezzotintError(f"{where}: {error}") from error


def _own(metadata: Mapping[str, str], where: str) -> dict[str, Any] | None:
    if HEADER not in metadata:
        return None
    try:
        said = json.loads(metadata[HEADER])
    except ValueError as error:
        raise MezzotintError(f"{where}: its header is damaged ({error}); convert the model again") from error
    if not isinstance(said, dict):
        raise MezzotintError(f"{where}: its header is damaged; convert the model again")
    return said


def _tokenizers(metadata: Mapping[str, str], configs: Configs, where: str) -> dict[str, Tokenizer]:
    """One for each text encoder: the header's, or CLIP's."""
    said = _own(metadata, where) or {}
    given, pads = said.get("tokenizers", {}), said.get("pads", {})
    made = {}
    for name, config in configs.encoders.items():
        if name in given:
            made[name] = _tokenizer(given[name], config.max_position_embeddings, where)
        else:
            pad = pads.get(name) or (OPEN_CLIP_PAD if config.hidden_act == "gelu" else EOS)
            made[name] = clip_tokenizer(pad=pad, max_length=config.max_position_embeddings)
        if len(made[name]) > config.vocab_size:
            raise MezzotintError(
                f"{where}: the text encoder knows {config.vocab_size} tokens, CLIP's tokenizer has {len(made[name])}; "
                "a file of this kind needs a tokenizer, so convert it from its folder again"
            )
    return made


def _tokenizer(files: Mapping[str, str], length: int, where: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, Path(name).name).write_text(content, encoding="utf-8", newline="")
        try:
            return read_tokenizer(folder, max_length=length)
        except MezzotintError as error:
            raise MezzotintError(f"{where}: {str(error).replace(folder, 'its tokenizer')}") from error


def _is_clips(tokenizer: Tokenizer) -> bool:
    clips = clip_tokenizer(pad=tokenizer.special["pad_token"], max_length=tokenizer.max_length)
    return (tokenizer.vocab, tokenizer.merges, tokenizer.special, tokenizer.added.keys()) == (
        clips.vocab,
        clips.merges,
        clips.special,
        clips.added.keys(),
    )
