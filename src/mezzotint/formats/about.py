"""What a LoRA's file, or one of learnt words, is: told from its tensors and its header, without the model it is for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .embedding import is_embedding, read_embedding
from .lora import COMPONENTS, component_of, is_lora, short_hash, split, spread
from .lora_parts import KINDS, kind_of, rank_of
from .tensors import read_metadata, read_tensors

# How wide the texts are that a model's attention looks at: it tells what a LoRA or a word was made for.
WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "the refiner of SDXL", 2048: "SDXL"}
TEXT_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}
SAID = {  # in a header -> what it is called here
    "ss_base_model_version": "trained_on",
    "ss_sd_model_name": "trained_from",
    "modelspec.architecture": "architecture",
    "modelspec.title": "title",
    "modelspec.trigger_phrase": "trigger_words",
    "ss_output_name": "output_name",
}
ENDS = (
    *(
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "ff.net.0.proj",
        "ff.net.2",
        "proj_in",
        "proj_out",
        "time_emb_proj",
    ),
    *("conv1", "conv2", "conv_shortcut", "conv_in", "conv_out", "conv", "linear_1", "linear_2"),
    *("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
)  # of layers' names in a U-Net, then in a text encoder
LONGEST = 200  # letters of a header's value that are shown


def about(path: Path) -> dict[str, Any] | None:
    """The facts about such a file; None if it is neither. Raises MezzotintError if it is damaged."""
    tensors = read_tensors(path)
    if is_lora(tensors):
        return _lora(path, tensors)
    return _embedding(path) if is_embedding(tensors) else None


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Parameters, megabytes and precision."""
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
    size = sum(tensor.nbytes for tensor in tensors.values())
    count = sum(tensor.numel() for tensor in tensors.values())
    return {"parameters": count, "megabytes": round(size / 1e6, 3), "precision": kinds}


def _lora(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        layer, role = split(key)
        layers[layer][role] = tensor
    kinds = {kind_of(parts) for parts in layers.values()}
    if any(
        "down" in parts and parts["down"].ndim == 4 and parts["down"][0, 0].numel() > 1
        for parts in layers.values()
    ):
        kinds.add("LoCon")
    if any({"dora_scale", "magnitude"} & parts.keys() for parts in layers.values()):
        kinds.add("DoRA")
    alphas = {
        float(parts["alpha"]) for parts in layers.values() if "alpha" in parts and parts["alpha"].numel() == 1
    }
    width = next(
        (_width(parts) for layer, parts in layers.items() if layer.endswith(("attn2.to_k", "attn2_to_k"))), 0
    )
    targets = Counter(component_of(layer) for layer in layers)
    return {
        "model": path.stem,
        "kind": [kind for kind in (*KINDS, "LoCon", "DoRA") if kind in kinds],
        "dialect": "kohya" if any(layer.startswith("lora_") for layer in layers) else "diffusers",
        "made_for": WIDTHS.get(width, f"texts of width {width}" if width else "not told"),
        "rank": sorted({rank_of(parts) for parts in layers.values()}),
        "alpha": sorted(alphas) or "not told",
        "targets": {name: targets[name] for name in COMPONENTS if targets[name]},
        "layers": dict(Counter(_last(layer) for layer in layers).most_common()),
        **sizes(tensors),
        "short_hash": short_hash(path),
        **_said(read_metadata(path)),
    }


def _width(parts: Mapping[str, Tensor]) -> int:
    """How many numbers the layer takes, where the parts tell."""
    for role in ("down", "hada_w1_b"):
        if role in parts and parts[role].ndim >= 2:
            return parts[role].shape[1]
    return 0


def _last(layer: str) -> str:
    """What a layer is called in its block, however its whole name is spelled."""
    name = f"_{spread(layer)}"
    return next((end for end in ENDS if name.endswith(f"_{spread(end)}")), "others")


def _embedding(path: Path) -> dict[str, Any]:
    words = read_embedding(path)
    widths = sorted({vectors.shape[1] for word in words for vectors in word.vectors.values()})
    two = any(len(word.vectors) > 1 for word in words)
    made_for = "SDXL" if two else TEXT_WIDTHS.get(widths[0], f"texts of width {widths[0]}")
    return {
        "model": path.stem,
        "kind": ["textual inversion"],
        "words": {word.word: len(next(iter(word.vectors.values()))) for word in words},
        "made_for": made_for,
        "width": widths,
        **sizes(read_tensors(path)),
        **_said(read_metadata(path)),
    }


def _said(metadata: Mapping[str, str]) -> dict[str, str]:
    """What the header says of itself, for people."""
    return {
        name: " ".join(metadata[key].split())[:LONGEST] for key, name in SAID.items() if metadata.get(key)
    }
