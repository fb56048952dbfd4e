"""What single files call the weights of a U-Net, an autoencoder and a text encoder, and what our nets call them.

Single files have the names of the latent diffusion code (Rombach et al. 2022), which numbers the U-Net's blocks through
(`input_blocks.4.1`), and OpenCLIP's for its text encoders; ours are those of diffusers. A table is pairs of beginnings,
ours and theirs: a name changes where the longest beginning that fits does. Three things change more than names:
OpenCLIP keeps the query, key and value weights in one matrix and its projection turned over, and the autoencoder's
attention is convolutions of 1 x 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..nets import CLIPTextConfig, UNetConfig, VAEConfig
from ..nets.unet import DOWN, UP

Names = dict[str, str]  # beginning of our name -> beginning of theirs; whole parts between dots

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.attentions.0": "middle_block.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
}
PROJECTION = "text_projection.weight"
SPARE_VAE = ("loss.", "model_ema.")  # of its training
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
QKV = ("q_proj", "k_proj", "v_proj")  # as they stand in OpenCLIP's one matrix, from its top


def unet_names(config: UNetConfig) -> Names:
    """The table of a U-Net; theirs without `model.diffusion_model.`."""
    names = dict(UNET_ENDS)

    def resnet(ours: str, theirs: str) -> None:
        names.update({f"{ours}.{mine}": f"{theirs}.{other}" for mine, other in RESNET.items()})

    levels, n = config.levels(), 1  # n: input blocks so far; the first is conv_in
    for i, (level, block) in enumerate(zip(levels, config.down_block_types, strict=True)):
        for j in range(level.layers):
            resnet(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{n}.0")
            if DOWN[block]:
                names[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{n}.1"
            n += 1
        if i < len(levels) - 1:
            names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{n}.0.op"
            n += 1
    for j in range(2):
        resnet(f"mid_block.resnets.{j}", f"middle_block.{2 * j}")
    n = 0
    for i, (level, block) in enumerate(zip(reversed(levels), config.up_block_types, strict=True)):
        for j in range(level.layers + 1):
            resnet(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{n + j}.0")
            if UP[block]:
                names[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{n + j}.1"
        n += level.layers + 1
        if i < len(levels) - 1:
            names[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{n - 1}.{1 + bool(UP[block])}.conv"
    return names


def vae_names(config: VAEConfig) -> Names:
    """The table of an autoencoder; theirs without `first_stage_model.`."""
    names: Names = {}
    last = len(config.block_out_channels) - 1
    for coder in ("encoder", "decoder"):
        names |= {f"{coder}.{name}": f"{coder}.{name}" for name in ("conv_in", "conv_out")}
        names[f"{coder}.conv_norm_out"] = f"{coder}.norm_out"
        for j in range(2):
            names[f"{coder}.mid_block.resnets.{j}"] = f"{coder}.mid.block_{j + 1}"
        for mine, other in VAE_ATTENTION.items():
            names[f"{coder}.mid_block.attentions.0.{mine}"] = f"{coder}.mid.attn_1.{other}"
    for i in range(last + 1):
        for j in range(config.layers_per_block):
            _shortcut(names, f"encoder.down_blocks.{i}.resnets.{j}", f"encoder.down.{i}.block.{j}")
        for j in range(config.layers_per_block + 1):
            _shortcut(names, f"decoder.up_blocks.{i}.resnets.{j}", f"decoder.up.{last - i}.block.{j}")
        if i < last:
            names[f"encoder.down_blocks.{i}.downsamplers.0.conv"] = f"encoder.down.{i}.downsample.conv"
            names[f"decoder.up_blocks.{i}.upsamplers.0.conv"] = f"decoder.up.{last - i}.upsample.conv"
    return names | {name: name for name in ("quant_conv", "post_quant_conv")}


def open_clip_names(config: CLIPTextConfig) -> Names:
    """The table of an OpenCLIP text encoder; theirs without `cond_stage_model.model.`."""
    names = OPEN_CLIP | ({PROJECTION: "text_projection"} if config.projected else {})
    for i in range(config.num_hidden_layers):
        ours, theirs = f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
        names |= {f"{ours}.{mine}": f"{theirs}.{other}" for mine, other in OPEN_CLIP_LAYER.items()}
    return names


def renamed(tensors: Mapping[str, Tensor], names: Names) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors whose names the table knows under their new names, and the others as they were."""
    known, others = {}, {}
    for name, tensor in tensors.items():
        for beginning in _beginnings(name):
            if beginning in names:
                known[names[beginning] + name[len(beginning) :]] = tensor
                break
        else:
            others[name] = tensor
    return known, others


def turned(names: Names) -> Names:
    """The table read the other way."""
    return {theirs: ours for ours, theirs in names.items()}


def as_convolutions(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder under their names, its attention's matrices [c, c] as [c, c, 1, 1]; the reverse: `vae_today`."""
    square = re.compile(r"\.attn_1\.(q|k|v|proj_out)\.weight$")
    return {
        name: t[..., None, None] if square.search(name) and t.ndim == 2 else t for name, t in tensors.items()
    }


def from_single(
    tensors: Mapping[str, Tensor], config: UNetConfig | VAEConfig | CLIPTextConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One component of a single file, its prefix taken off -> (under our names, what the net has no place for).

    The second is what such files are known to hold beyond the net; a name that means nothing stays in the first,
    for `tensors.check` to refuse.
    """
    if isinstance(config, CLIPTextConfig):
        named = _from_open_clip(tensors, config) if "positional_embedding" in tensors else text_today(tensors)
        spare = {name for name in named if _spare_text(name, config)}
    else:
        table = unet_names(config) if isinstance(config, UNetConfig) else vae_names(config)
        known, unknown = renamed(tensors, turned(table))
        named = (known if isinstance(config, UNetConfig) else vae_today(known)) | unknown
        spare = {name for name in unknown if name.startswith(SPARE_VAE) and isinstance(config, VAEConfig)}
    return {k: t for k, t in named.items() if k not in spare}, {k: t for k, t in named.items() if k in spare}


def to_single(
    tensors: Mapping[str, Tensor], config: UNetConfig | VAEConfig | CLIPTextConfig, *, open_clip: bool = False
) -> dict[str, Tensor]:
    """The reverse: a component under our names -> under theirs, without a prefix; text encoders as CLIP or OpenCLIP."""
    if isinstance(config, CLIPTextConfig):
        return _to_open_clip(tensors, config) if open_clip else dict(tensors)
    table = unet_names(config) if isinstance(config, UNetConfig) else vae_names(config)
    known, unknown = renamed(tensors, table)
    return (as_convolutions(known) if isinstance(config, VAEConfig) else known) | unknown


def _from_open_clip(tensors: Mapping[str, Tensor], config: CLIPTextConfig) -> dict[str, Tensor]:
    """Views of theirs: the three matrices of one, the projection turned over. What has no place keeps its name."""
    named, others = renamed(tensors, turned(open_clip_names(config)))
    for name, tensor in others.items():
        found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name)
        if found and int(found[1]) < config.num_hidden_layers and tensor.ndim and len(tensor) % 3 == 0:
            for key, part in zip(QKV, tensor.chunk(3), strict=True):
                named[f"text_model.encoder.layers.{found[1]}.self_attn.{key}.{found[2]}"] = part
        else:
            named[name] = tensor
    if PROJECTION in named:
        named[PROJECTION] = named[PROJECTION].T
    return named


def _to_open_clip(tensors: Mapping[str, Tensor], config: CLIPTextConfig) -> dict[str, Tensor]:
    named, others = renamed(tensors, open_clip_names(config))
    for name, tensor in others.items():
        found = re.fullmatch(
            r"text_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv]_proj)\.(weight|bias)", name
        )
        if not found:
            named[name] = tensor
        elif found[2] == QKV[0]:
            parts = [tensors[name.replace(QKV[0], key)] for key in QKV]
            named[f"transformer.resblocks.{found[1]}.attn.in_proj_{found[3]}"] = torch.cat(parts)
    if config.projected:
        named["text_projection"] = named["text_projection"].T
    return named


def _spare_text(name: str, config: CLIPTextConfig) -> bool:
    """Whether a text encoder's tensor is known to be there without a place in our net."""
    if name in ("text_projection", "logit_scale") or (name == PROJECTION and not config.projected):
        return True
    found = re.match(r"transformer\.resblocks\.(\d+)\.", name)
    return found is not None and int(found[1]) >= config.num_hidden_layers


def text_today(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP text encoder's weights under their prefixed names.

    transformers from 5.6 on leaves the prefix `text_model.` out.
    """
    known = ("text_model.", "text_projection.")
    return {
        name if name.startswith(known) else f"text_model.{name}": tensor for name, tensor in tensors.items()
    }


def vae_today(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder's weights under today's names: its attention had others before 2023, and 1 x 1 convolutions."""
    new = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    old = re.compile(rf"(attentions\.\d+\.)({'|'.join(new)})\.")
    renamed = {old.sub(lambda match: f"{match[1]}{new[match[2]]}.", name): t for name, t in tensors.items()}
    linear = re.compile(r"attentions\.\d+\.to_(q|k|v|out\.0)\.weight$")
    return {
        name: t.flatten(1) if linear.search(name) and t.shape[2:] == (1, 1) else t
        for name, t in renamed.items()
    }


def _shortcut(names: Names, ours: str, theirs: str) -> None:
    names |= {ours: theirs, f"{ours}.conv_shortcut": f"{theirs}.nin_shortcut"}


def _beginnings(name: str) -> Iterator[str]:
    """`a.b.c`, `a.b`, `a`."""
    while name:
        yield name
        name = name.rpartition(".")[0]
