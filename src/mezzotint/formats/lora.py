"""LoRA files in both dialects: that of diffusers and PEFT, and that of kohya's scripts, which A1111 and ComfyUI read.

    unet.down_blocks.0.attentions.0.[...].to_q.lora_A.weight
    lora_unet_down_blocks_0_attentions_0_[...]_to_q.lora_down.weight

The first names a layer as the net does (older files put `processor` and `_lora` in between), and keeps alpha in the
header, as PEFT's settings; the second turns dots to underscores, or names layers as latent diffusion's code does, and
keeps alpha beside the weights. What is read goes by layer; a key that means nothing, or a layer that the model lacks,
is an error: a LoRA that is dropped in part is a wrong picture that nobody can explain.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import MezzotintError
from ..nets import UNet
from ..nets.lowrank import LowRank
from .atomic import read_json
from .names import renamed, unet_names
from .tensors import read_metadata, read_tensors, write_tensors

Layers = dict[str, dict[str, LowRank]]  # component (unet, text_encoder, ...) -> layer -> change
Dialect = Literal["diffusers", "kohya"]

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
HEADER = "lora_adapter_metadata"
KOHYA = {"unet": ("lora_unet_",), "text_encoder": ("lora_te_", "lora_te1_"), "text_encoder_2": ("lora_te2_",)}
_KEY = re.compile(
    r"(?P<layer>.+?)(?:"
    r"\.lora_(?P<peft>[AB])(?:\.(?!weight$)\w+)?\.weight"
    r"|[._]lora(?:_linear_layer)?[._](?P<old>down|up|mid)\.weight"
    r"|\.(?P<alpha>alpha)"
    r"|\.(?P<dora>dora_scale)"
    r"|\.(?P<magnitude>lora_magnitude_vector)(?:\.\w+)*"
    r")"
)
_OTHERS = {"hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", ".diff": "full differences", "bias": "biases"}
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Lora:
    """What a file changes. `metadata` is its header, PEFT's settings aside."""

    layers: Layers
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_lora(
    path: Path | str, nets: Mapping[str, nn.Module], *, aliases: Mapping[str, str] | None = None
) -> Lora:
    """The LoRA in a safetensors file, for a model with these components.

    `aliases`: other names for layers of the U-Net, in kohya's spelling without its prefix. Raises MezzotintError
    naming the file for a key that has no meaning or no place (with the nearest that has), a part that is missing, and
    a shape that does not fit.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path), dict(read_metadata(path))
    settings = _settings(path, metadata.pop(HEADER, None))
    finder = _Finder(path, nets, aliases or {})
    found: dict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise MezzotintError(f"{path}: {_meaningless(key)}")
        role = {"A": "down", "B": "up"}.get(match["peft"]) or match["old"] or match["alpha"]
        role = role or match["dora"] or "magnitude"
        parts = found[finder.place(match["layer"], key)]
        if role in parts:
            raise MezzotintError(f"{path}: '{key}' says again what another key has said")
        parts[role] = tensor
    layers: Layers = {}
    for (component, layer), parts in found.items():
        weight = finder.weights[component][layer]
        change = _change(f"{path}: {component}.{layer}", parts, weight, settings.get(component, {}), layer)
        layers.setdefault(component, {})[layer] = change
    if not layers:
        raise MezzotintError(f"{path} holds no weights; it is not a LoRA")
    return Lora(layers, metadata)


def write_lora(
    path: Path | str,
    lora: Lora,
    *,
    dialect: Dialect = "diffusers",
    dtype: torch.dtype | None = None,
    replace: bool = False,
) -> None:
    """Write a LoRA for diffusers (its U-Net part is PEFT's too) or for kohya's readers; tensors as `dtype` if given.

    Raises MezzotintError as `tensors.write_tensors` does, and for a `mid`, which diffusers has no place for.
    """
    tensors: dict[str, Tensor] = {}
    metadata = dict(lora.metadata)
    settings: dict[str, Any] = {}
    for component, layers in sorted(lora.layers.items()):
        for layer, change in sorted(layers.items()):
            if dialect == "kohya":
                tensors |= _as_kohya(component, layer, change, two="text_encoder_2" in lora.layers)
            else:
                tensors |= _as_diffusers(path, component, layer, change)
        if dialect == "diffusers":
            settings |= {f"{component}.{key}": value for key, value in _peft(layers).items()}
    if settings:
        metadata[HEADER] = json.dumps(settings, sort_keys=True)
    tensors = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    write_tensors(path, tensors, dtype=dtype, metadata=metadata, replace=replace)


def is_lora(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a LoRA, going by their names."""
    return bool(tensors) and all(map(_KEY.fullmatch, tensors))


def spread(layer: str) -> str:
    """A layer's name as kohya's dialect spells it."""
    return layer.replace(".", "_")


def aliases(unet: UNet) -> dict[str, str]:
    """Names of the U-Net's layers in the latent diffusion code, in kohya's spelling -> ours: of LoRAs for SDXL."""
    names = unet_names(unet.config)
    found = {}
    for layer, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            (theirs,) = renamed({layer: module.weight}, names)[0] or (layer,)
            found[spread(theirs)] = layer
    return found


# --- reading ---


class _Finder:
    """Which layer a key means."""

    def __init__(self, path: Path, nets: Mapping[str, nn.Module], aliases: Mapping[str, str]) -> None:
        self.path = path
        self.weights: dict[str, dict[str, Tensor]] = {
            component: {
                name: module.weight
                for name, module in net.named_modules()
                if isinstance(module, nn.Linear | nn.Conv2d)
            }
            for component, net in nets.items()
        }
        self.flat = {
            prefix + spread(layer): (component, layer)
            for component, layers in self.weights.items()
            for prefix in KOHYA[component]
            for layer in layers
        }
        for name, layer in aliases.items():
            self.flat.setdefault(KOHYA["unet"][0] + name, ("unet", layer))
        self.dotted = {
            f"{component}.{layer}": (component, layer)
            for component, layers in self.weights.items()
            for layer in layers
        }

    def place(self, name: str, key: str) -> tuple[str, str]:
        """(component, layer) that `name` means."""
        kohya = name.startswith("lora_")
        known = self.flat if kohya else self.dotted
        spelled = name if kohya else _today(name)
        if spelled in known:
            return known[spelled]
        near = difflib.get_close_matches(spelled, known, n=1, cutoff=0.6)
        hint = f"the nearest is '{near[0]}'" if near else f"it has {', '.join(sorted(self.weights))}"
        raise MezzotintError(
            f"{self.path}: '{key}' has no place in this model, {hint}; the LoRA was made for another kind of model"
        )


def _today(name: str) -> str:
    """A name of diffusers' dialect, old or new, as `component.layer`."""
    name = name.removeprefix("base_model.model.").replace(".processor.", ".")
    component, _, layer = name.partition(".")
    if component not in COMPONENTS:
        component, layer = "unet", name
    if component == "unet":
        return f"unet.{layer}.0" if layer.endswith(".to_out") else f"unet.{layer}"
    before, _, last = layer.rpartition(".")
    layer = f"{before}.{_OLD_TEXT[last]}" if last in _OLD_TEXT else layer
    return f"{component}.{layer if layer.startswith('text_') else f'text_model.{layer}'}"


def _change(
    where: str, parts: dict[str, Tensor], weight: Tensor, settings: Mapping[str, Any], layer: str
) -> LowRank:
    """The parts of one layer together. Raises MezzotintError if one is missing or does not fit the weight."""
    missing = [role for role in ("down", "up") if role not in parts]
    if missing:
        raise MezzotintError(f"{where} lacks its '{missing[0]}' part; the file is incomplete, fetch it again")
    down, up, mid = parts["down"], parts["up"], parts.get("mid")
    alpha = float(parts["alpha"]) if "alpha" in parts else _alpha(settings, layer, down.shape[0])
    magnitude = parts.get("magnitude", parts.get("dora_scale"))
    rank = down.shape[0]
    fits = (
        min(down.ndim, up.ndim) >= 2
        and up.shape[1] == rank
        and up.shape[0] == weight.shape[0]
        and down.shape[1] == weight.shape[1]
        and (mid is None or (mid.ndim == weight.ndim == 4 and mid.shape[:2] == (rank, rank)))
        and LowRank(down, up, mid).size == weight.numel()
    )
    if not fits:
        shapes = ", ".join(
            f"{role} {list(parts[role].shape)}" for role in ("down", "mid", "up") if role in parts
        )
        raise MezzotintError(
            f"{where} has {shapes}, for which the model's weight {list(weight.shape)} has no place; "
            "the LoRA was made for another kind of model"
        )
    if magnitude is not None:
        magnitude = _turned(where, magnitude, weight, rows="magnitude" in parts)
    if alpha is not None and not math.isfinite(alpha):
        raise MezzotintError(f"{where} has alpha {alpha}; the file is damaged, fetch it again")
    return LowRank(down, up, mid, alpha, magnitude)


def _turned(where: str, magnitude: Tensor, weight: Tensor, *, rows: bool) -> Tensor:
    """DoRA's lengths as [out, 1] or [1, in]. PEFT has them of rows, LyCORIS of either, which its shape tells."""
    outs, ins = weight.shape[:2]
    if magnitude.numel() == outs and (rows or magnitude.shape[0] == outs):
        return magnitude.reshape(outs, 1)
    if magnitude.numel() == ins and not rows:
        return magnitude.reshape(1, ins)
    raise MezzotintError(f"{where} has lengths {list(magnitude.shape)} for a weight {list(weight.shape)}")


def _settings(path: Path, header: str | None) -> dict[str, dict[str, Any]]:
    """PEFT's settings by component: from the header, or from the file that PEFT puts beside its weights."""
    beside = path.with_name("adapter_config.json")
    if header is None:
        return (
            {"unet": read_json(beside)}
            if path.name == "adapter_model.safetensors" and beside.exists()
            else {}
        )
    try:
        flat = json.loads(header)
        split = [(*key.partition("."), value) for key, value in flat.items()]
    except (ValueError, AttributeError) as error:
        raise MezzotintError(f"{path}: its header '{HEADER}' is not the settings of PEFT") from error
    settings: dict[str, dict[str, Any]] = {}
    for component, _, key, value in split:
        settings.setdefault(component, {})[key] = value
    return settings


def _alpha(settings: Mapping[str, Any], layer: str, rank: int) -> float | None:
    """PEFT's alpha of a layer: its own, found by the end of its name, or that of all; rank-stabilised if so said."""
    patterns = settings.get("alpha_pattern") or {}
    own = [value for name, value in patterns.items() if f".{layer}".endswith(f".{name.removeprefix('^')}")]
    alpha = own[0] if own else settings.get("lora_alpha")
    if alpha is None:
        return None
    return float(alpha) * (math.sqrt(rank) if settings.get("use_rslora") else 1.0)


def _meaningless(key: str) -> str:
    for sign, name in _OTHERS.items():
        if sign in key:
            return f"'{key}' belongs to {name}, which are not supported; only LoRA, LoCon and DoRA are"
    return f"'{key}' is no part of a LoRA; the file is something else"


# --- writing ---


def _as_diffusers(path: Path | str, component: str, layer: str, change: LowRank) -> dict[str, Tensor]:
    name = f"{component}.{layer}"
    if change.mid is not None:
        raise MezzotintError(
            f"{path}: {name} has three parts, which diffusers cannot read; write it for kohya's readers"
        )
    tensors = {f"{name}.lora_A.weight": change.down, f"{name}.lora_B.weight": change.up}
    if change.magnitude is not None:
        if change.magnitude.shape[0] == 1 != change.up.shape[0]:
            raise MezzotintError(f"{path}: {name} has lengths of columns, which diffusers cannot read")
        shape = (-1,) if change.down.ndim == 2 else (1, -1, 1, 1)
        tensors[f"{name}.lora_magnitude_vector"] = change.magnitude.reshape(shape)
    return tensors


def _as_kohya(component: str, layer: str, change: LowRank, *, two: bool) -> dict[str, Tensor]:
    prefix = "lora_te1_" if component == "text_encoder" and two else KOHYA[component][0]
    name = prefix + spread(layer)
    alpha = torch.tensor(float(change.rank if change.alpha is None else change.alpha))
    tensors = {
        f"{name}.lora_down.weight": change.down,
        f"{name}.lora_mid.weight": change.mid,
        f"{name}.lora_up.weight": change.up,
        f"{name}.alpha": alpha,
        f"{name}.dora_scale": change.magnitude,
    }
    return {key: tensor for key, tensor in tensors.items() if tensor is not None}


def _peft(layers: Mapping[str, LowRank]) -> dict[str, Any]:
    """PEFT's settings for one component: the commonest rank and alpha, and the layers that have others.

    PEFT goes by the ends of names; so the prefix `text_model.`, which transformers dropped in 5.6, is left out.
    """
    layers = {layer.removeprefix("text_model."): change for layer, change in layers.items()}
    ranks = {layer: change.rank for layer, change in layers.items()}
    alphas = {layer: change.scale * change.rank for layer, change in layers.items()}
    rank, alpha = (Counter(sorted(values.values())).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {layer: value for layer, value in ranks.items() if value != rank},
        "alpha_pattern": {layer: value for layer, value in alphas.items() if value != alpha},
        "target_modules": sorted(layers),
        "use_dora": any(change.magnitude is not None for change in layers.values()),
    }
