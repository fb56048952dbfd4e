"""Which Stable Diffusion a single file is: found from its keys, and its configurations from the shapes.

The text encoder and its place tell the family; the numbers of blocks and their widths are in the tensors, so that
pruned, widened and tiny models open like the released ones. What no shape tells (heads, activation, latent scale, how
to sample) is the family's. Whether a net predicts v stands in the header, in a marker, in a `.yaml` beside the file,
or, for Stable Diffusion 2, shows in one bias.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..diffusion.process import VariancePreserving
from ..errors import MezzotintError
from ..nets import CLIPTextConfig, UNetConfig, VAEConfig
from .checkpoint import SCORE, SIZES, Configs
from .names import text_today
from .scheduler import Plan

UNET, VAE = "model.diffusion_model.", "first_stage_model."
V_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"  # tensors without content that say so
HEAD = 64  # channels of an attention head, but in Stable Diffusion 1, where there are 8 heads
PROJECTION_AND_LAST = ("text_projection", "logit_scale")  # of OpenCLIP as it was trained, with its last layer
SIGMA_MIN = VariancePreserving().sigma_min


@dataclass(frozen=True)
class Family:
    """One of the architectures that were released as Stable Diffusion."""

    title: str
    encoders: Mapping[str, str]  # the folder's name for a text encoder -> where it is in a single file
    size: int  # pixels
    plan: Plan  # how diffusers samples it if nothing is said
    scaling_factor: float = 0.18215
    heads: int | None = None  # channels / HEAD if None


FAMILIES = {
    "sdxl": Family(
        "Stable Diffusion XL",
        {
            "text_encoder": "conditioner.embedders.0.transformer.",
            "text_encoder_2": "conditioner.embedders.1.model.",
        },
        1024,
        Plan(sampler="euler", grid="leading", grid_knobs={"steps_offset": 1}),
        0.13025,
    ),
    "sdxl-refiner": Family(
        "Stable Diffusion XL refiner",
        {"text_encoder_2": "conditioner.embedders.0.model."},
        1024,
        Plan(sampler="euler", grid="leading", grid_knobs={"steps_offset": 1}),
        0.13025,
    ),
    "sd2": Family(
        "Stable Diffusion 2",
        {"text_encoder": "cond_stage_model.model."},
        512,
        Plan(sampler="ddim", grid="leading", grid_knobs={"steps_offset": 1, "final": SIGMA_MIN}),
    ),
    "sd1": Family(
        "Stable Diffusion 1",
        {"text_encoder": "cond_stage_model.transformer."},
        512,
        Plan(sampler="pndm", grid="leading", grid_knobs={"steps_offset": 1, "final": SIGMA_MIN}),
        heads=8,
    ),
}
V_SIZE = 768  # pixels of Stable Diffusion 2 where it predicts v

OTHERS = {  # what else people have: a key's beginning or part -> what that is
    "lora_": "a LoRA; load it beside a checkpoint",
    ".lora_A.": "a LoRA; load it beside a checkpoint",
    ".lora_down.": "a LoRA; load it beside a checkpoint",
    "emb_params": "a textual inversion embedding",
    "clip_g": "a textual inversion embedding for SDXL",
    "double_blocks.": "Flux or a relative of it",
    "joint_blocks.": "Stable Diffusion 3",
    "control_model.": "a ControlNet",
    "controlnet_": "a ControlNet",
    "edm_mean": "Playground 2.5",
    "motion_modules.": "AnimateDiff",
    "layers.0.adaLN_modulation": "a diffusion transformer",
    "transformer_blocks.0.norm1.linear": "a diffusion transformer",
    "down_blocks.": "the weights of one component of a diffusers folder; give the whole folder",
    "text_model.": "a text encoder alone",
    "embeddings.token_embedding": "a text encoder alone",
    "encoder.down.": "an autoencoder alone",
}


def family_of(names: Iterable[str], where: str) -> str:
    """The key in `FAMILIES` of a file with tensors of these names; MezzotintError says what else it is."""
    names = list(names)
    for key, family in FAMILIES.items():
        needed = (UNET, VAE, *family.encoders.values())
        if all(any(name.startswith(prefix) for name in names) for prefix in needed):
            if (other := _other(names)) and "Playground" in other:
                break
            return key
    raise MezzotintError(f"{where} is no Stable Diffusion checkpoint: {_found(names)}")


def configs_of(key: str, parts: Mapping[str, Mapping[str, Tensor]], plan: Plan, where: str) -> Configs:
    """The configurations of a file of that family: `parts` by component, under the names of single files.

    Raises MezzotintError if something that tells them is missing.
    """
    family = FAMILIES[key]
    try:
        unet, vae = _unet(parts["unet"]), _vae(parts["vae"])
        texts = [_text(parts[name], name) for name in family.encoders]
    except KeyError as error:
        raise MezzotintError(f"{where}: {error.args[0]} is missing, which {family.title} has") from error
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    v = plan.prediction == "v_prediction"
    size = V_SIZE if v and key == "sd2" else family.size
    unet |= {"sample_size": size // factor, "upcast_attention": v and key == "sd2"}
    unet["attention_head_dim"] = family.heads or _same([c // HEAD or 1 for c in unet["block_out_channels"]])
    projected = texts[-1].projection_dim
    if told := unet["projection_class_embeddings_input_dim"]:
        numbers = SCORE if key == "sdxl-refiner" else SIZES
        unet |= {"addition_embed_type": "text_time", "addition_time_embed_dim": (told - projected) // numbers}
    return Configs(
        UNetConfig(**unet),
        VAEConfig(**vae, sample_size=size, scaling_factor=family.scaling_factor),
        texts[0],
        plan,
        {"force_zeros_for_empty_prompt": key == "sdxl"},
        texts[1] if len(texts) > 1 else None,
    )


def plan_of(
    key: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path, prediction: str | None
) -> Plan:
    """How a single file is meant to be sampled; `prediction`, if given, outranks what is found."""
    found = prediction or ("v_prediction" if _predicts_v(key, tensors, metadata, path) else "epsilon")
    plan = FAMILIES[key].plan
    if ZERO_SNR_MARK in tensors:
        sampler = "ddim" if plan.sampler == "pndm" else plan.sampler  # diffusers' PNDM has no such schedule
        return Plan(VariancePreserving(zero_snr=True), found, sampler, {}, "trailing", {})
    return Plan(plan.process, found, plan.sampler, plan.sampler_knobs, plan.grid, plan.grid_knobs)


def title(configs: Configs) -> str:
    """What a checkpoint is, for people."""
    encoder = configs.text_encoder
    if configs.sized:
        name = FAMILIES["sdxl-refiner" if configs.sized == SCORE else "sdxl"].title
    elif (encoder.hidden_size, encoder.hidden_act) == (1024, "gelu"):
        name = FAMILIES["sd2"].title
    elif encoder.hidden_size == 768:
        name = FAMILIES["sd1"].title
    else:
        name = "Latent diffusion in Stable Diffusion's layout"
    more = ["inpainting"] * configs.inpainting + ["v-prediction"] * (
        configs.plan.prediction == "v_prediction"
    )
    return ", ".join([name, *more])


def family_to_write(configs: Configs) -> str:
    """The family whose names a checkpoint is written under: by what its text encoders and its U-Net are."""
    if configs.sized:
        return "sdxl-refiner" if configs.sized == SCORE else "sdxl"
    return "sd2" if configs.text_encoder.hidden_act == "gelu" else "sd1"


def _predicts_v(key: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> bool:
    said = metadata.get("modelspec.prediction_type", "")
    if said in ("v", "v_prediction", "epsilon"):
        return said != "epsilon"
    if V_MARK in tensors:
        return True
    beside = path.with_suffix(".yaml")
    if beside.is_file() and beside.stat().st_size < 1 << 20:
        text = beside.read_text(encoding="utf-8", errors="replace")
        return re.search(r"^\s*parameterization:\s*[\"']?v[\"']?\s*$", text, re.MULTILINE) is not None
    if key != "sd2" or tensors[f"{UNET}input_blocks.0.0.weight"].shape[1] != 4:
        return False
    # The released models of both sorts were told apart by the spread of this bias (ComfyUI's finding).
    bias = tensors.get(f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias")
    return bias is not None and float(bias.float().std(unbiased=False)) > 0.09


def _unet(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The keys of `UNetConfig` that names and shapes tell."""
    widths, layers, depths = [0], [0], [0]
    context, linear, i = 0, False, 1
    while any(f"input_blocks.{i}.0.{end}" in tensors for end in ("op.weight", "out_layers.3.weight")):
        if f"input_blocks.{i}.0.op.weight" in tensors:  # half the size: the next resolution
            widths, layers, depths = [*widths, 0], [*layers, 0], [*depths, 0]
        else:
            widths[-1] = tensors[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0]
            layers[-1] += 1
            depths[-1] = max(depths[-1], _count(tensors, f"input_blocks.{i}.1.transformer_blocks"))
            if depths[-1]:
                context = tensors[f"input_blocks.{i}.1.transformer_blocks.0.attn2.to_k.weight"].shape[1]
                linear = tensors[f"input_blocks.{i}.1.proj_in.weight"].ndim == 2
        i += 1
    known = {depth for depth in depths if depth}
    fill = known.pop() if len(known) == 1 else 1
    label = tensors.get("label_emb.0.0.weight")
    return {
        "in_channels": tensors["input_blocks.0.0.weight"].shape[1],
        "out_channels": tensors["out.2.weight"].shape[0],
        "block_out_channels": tuple(widths),
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)),
        "layers_per_block": _same(layers),
        "transformer_layers_per_block": _same([depth or fill for depth in depths]),
        "cross_attention_dim": context,
        "use_linear_projection": linear,
        "projection_class_embeddings_input_dim": None if label is None else label.shape[1],
    }


def _vae(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    levels = _count(tensors, "encoder.down")
    widths = tuple(tensors[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels))
    return {
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": _count(tensors, "encoder.down.0.block"),
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
    }


def _text(tensors: Mapping[str, Tensor], place: str) -> CLIPTextConfig:
    """A text encoder's, told by its tensors: OpenAI's CLIP under transformers' names, or OpenCLIP's."""
    if "positional_embedding" in tensors:
        layers = _count(tensors, "transformer.resblocks")
        projected = place == "text_encoder_2"
        # Stable Diffusion 2 looks at the states before the last layer, and its folders leave that layer out.
        unused = 0 if projected or not any(name in tensors for name in PROJECTION_AND_LAST) else 1
        positions, width = tensors["positional_embedding"].shape
        return CLIPTextConfig(
            vocab_size=tensors["token_embedding.weight"].shape[0],
            hidden_size=width,
            intermediate_size=tensors["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            projection_dim=tensors["text_projection"].shape[1] if projected else 512,
            num_hidden_layers=layers - unused,
            num_attention_heads=max(width // HEAD, 1),
            max_position_embeddings=positions,
            hidden_act="gelu",
            projected=projected,
        )
    tensors = text_today(tensors)
    positions, width = tensors["text_model.embeddings.position_embedding.weight"].shape
    return CLIPTextConfig(
        vocab_size=tensors["text_model.embeddings.token_embedding.weight"].shape[0],
        hidden_size=width,
        intermediate_size=tensors["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        projection_dim=width,
        num_hidden_layers=_count(tensors, "text_model.encoder.layers"),
        num_attention_heads=max(width // HEAD, 1),
        max_position_embeddings=positions,
    )


def _count(tensors: Mapping[str, Tensor], beginning: str) -> int:
    """How many of `beginning.0`, `beginning.1`, ... there are."""
    start = f"{beginning}."
    return len({name[len(start) :].partition(".")[0] for name in tensors if name.startswith(start)})


def _same(values: list[int]) -> Any:
    """One number if all are the same."""
    return values[0] if len(set(values)) == 1 else tuple(values)


def _other(names: list[str]) -> str | None:
    for mark, what in OTHERS.items():
        if any(mark in name for name in names):
            return what
    return None


def _found(names: list[str]) -> str:
    """What a file holds, in a few words."""
    inside = [
        what
        for prefix, what in ((UNET, "a U-Net"), (VAE, "an autoencoder"))
        if any(n.startswith(prefix) for n in names)
    ]
    if inside:
        lacking = {"a U-Net", "an autoencoder"} - set(inside)
        lacks = " and ".join([*sorted(lacking), *(() if _has_text(names) else ("a text encoder",))])
        if lacks:
            return f"it holds {' and '.join(inside)}, but not {lacks}; take the full file, not a pruned one"
    guess = _other(names)
    if guess:
        return f"it looks like {guess}"
    shown = ", ".join(sorted(names)[:3])
    return f"it holds {len(names)} tensors of no kind that we know ({shown}, ...)"


def _has_text(names: list[str]) -> bool:
    prefixes = {prefix for family in FAMILIES.values() for prefix in family.encoders.values()}
    return any(name.startswith(tuple(prefixes)) for name in names)
