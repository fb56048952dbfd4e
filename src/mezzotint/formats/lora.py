"""LoRA files in both dialects: that of diffusers and PEFT, and that of kohya's scripts, which A1111 and ComfyUI read.

    unet.down_blocks.0.attentions.0.[...].to_q.lora_A.weight
    lora_unet_down_blocks_0_attentions_0_[...]_to_q.lora_down.weight

The first names a layer as the net does (older files put `processor` and `_lora` in between), and keeps alpha in the
header, as PEFT's settings; the second turns dots to underscores, or names layers as latent diffusion's code does, and
keeps alpha beside the weights. LoHa, LoKr and OFT are written in either way too, as LyCORIS and PEFT do; what their
parts mean stands in `lora_parts.py`. What is read goes by layer; a key that means nothing, or a layer that the model
lacks, is an error: a LoRA that is dropped in part is a wrong picture that nobody can explain.
"""

from __future__ import annotations

import difflib
import hashlib
import json
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
from ..nets.lowrank import Change, LowRank
from .atomic import read_json
from .lora_parts import KINDS, LayerParts, parts_of
from .names import renamed, unet_names
from .tensors import read_metadata, read_tensors, write_tensors

Layers = Mapping[str, Mapping[str, Change]]  # component (unet, text_encoder, ...) -> layer -> change
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
    r"|\.(?P<part>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|oft_blocks|rescale)"
    r")"
)
_OTHERS = {
    ".diff": "full differences",
    "bias": "biases",
    "_norm": "changes of norms",
    "oft_": "another OFT than LyCORIS's",
    "on_input": "(IA)^3",
}
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
        if _KEY.fullmatch(key) is None:
            raise MezzotintError(f"{path}: {_meaningless(key)}")
        layer, role = split(key)
        parts = found[finder.place(layer, key)]
        if role in parts:
            raise MezzotintError(f"{path}: '{key}' says again what another key has said")
        parts[role] = tensor
    layers: dict[str, dict[str, Change]] = {}
    for (component, layer), parts in found.items():
        weight = finder.weights[component][layer]
        given = LayerParts(
            f"{path}: {component}.{layer}", layer, parts, weight.shape, settings.get(component, {})
        )
        layers.setdefault(component, {})[layer] = given.change()
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

    Raises MezzotintError as `tensors.write_tensors` does, and for what diffusers has no place for: LoHa, LoKr, OFT and
    a `mid`.
    """
    tensors: dict[str, Tensor] = {}
    metadata = dict(lora.metadata)
    settings: dict[str, Any] = {}
    for component, layers in sorted(lora.layers.items()):
        if dialect == "kohya":
            for layer, change in sorted(layers.items()):
                tensors |= _as_kohya(component, layer, change, two="text_encoder_2" in lora.layers)
            continue
        low = {layer: _for_diffusers(path, component, layer, change) for layer, change in layers.items()}
        for layer, each in sorted(low.items()):
            tensors |= _as_diffusers(component, layer, each)
        settings |= {f"{component}.{key}": value for key, value in _peft(low).items()}
    if settings:
        metadata[HEADER] = json.dumps(settings, sort_keys=True)
    tensors = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    write_tensors(path, tensors, dtype=dtype, metadata=metadata, replace=replace)


def is_lora(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a LoRA, going by their names."""
    return bool(tensors) and all(map(_KEY.fullmatch, tensors))


def split(key: str) -> tuple[str, str]:
    """A key of a LoRA (see `is_lora`) as its layer, however that is spelled, and the part of the change that it is."""
    match = _KEY.fullmatch(key)
    assert match is not None
    role = {"A": "down", "B": "up"}.get(match["peft"]) or match["old"] or match["alpha"]
    return match["layer"], role or match["dora"] or match["part"] or "magnitude"


def component_of(layer: str) -> str:
    """The component that a layer belongs to, however it is spelled."""
    for component, prefixes in KOHYA.items():
        if layer.startswith(prefixes):
            return component
    return _today(layer).partition(".")[0]


def short_hash(path: Path | str) -> str:
    """12 digits by which other programs know a LoRA: of the SHA-256 of what follows its header, or as that says."""
    said = read_metadata(path).get("sshs_model_hash", "")
    if re.fullmatch("[0-9a-fA-F]{12,64}", said):
        return said[:12].lower()
    with Path(path).open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


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


def _meaningless(key: str) -> str:
    for sign, name in _OTHERS.items():
        if sign in key:
            return f"'{key}' belongs to {name}, which is not supported; LoCon, DoRA, {', '.join(KINDS)} are"
    return f"'{key}' is no part of a LoRA; the file is something else"


# --- writing ---


def _for_diffusers(path: Path | str, component: str, layer: str, change: Change) -> LowRank:
    """The change if diffusers can read it."""
    name, advice = f"{path}: {component}.{layer}", "which diffusers cannot read; write it for kohya's readers"
    if not isinstance(change, LowRank):
        raise MezzotintError(f"{name} is no product of two matrices, {advice}")
    if change.mid is not None:
        raise MezzotintError(f"{name} has three parts, {advice}")
    if change.magnitude is not None and change.magnitude.shape[0] == 1 != change.up.shape[0]:
        raise MezzotintError(f"{name} has lengths of columns, {advice}")
    return change


def _as_diffusers(component: str, layer: str, change: LowRank) -> dict[str, Tensor]:
    name = f"{component}.{layer}"
    tensors = {f"{name}.lora_A.weight": change.down, f"{name}.lora_B.weight": change.up}
    if change.magnitude is not None:
        shape = (-1,) if change.down.ndim == 2 else (1, -1, 1, 1)
        tensors[f"{name}.lora_magnitude_vector"] = change.magnitude.reshape(shape)
    return tensors


def _as_kohya(component: str, layer: str, change: Change, *, two: bool) -> dict[str, Tensor]:
    prefix = "lora_te1_" if component == "text_encoder" and two else KOHYA[component][0]
    name = prefix + spread(layer)
    return {
        f"{name}.lora_{role}.weight" if role in KINDS["LoRA"] else f"{name}.{role}": part
        for role, part in parts_of(change).items()
    }


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
