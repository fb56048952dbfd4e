"""LoRA in training: beside W x stands (alpha / r) B A x, and A and B alone are learned (Hu et al. 2021, 2106.09685).

A begins random and B zero, so that training begins at the model as it is. The layers are not touched: a hook adds what
their adapter says, and what is learned is written as a file in either dialect (`formats/lora.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..diffusion.noise import generator
from ..errors import UsageError, unknown
from ..formats.atomic import new_folder, write_file
from ..formats.lora import Lora, write_lora
from ..nets.lowrank import LowRank
from .card import card_files
from .denoising import DenoisingStage

FILE = "lora.safetensors"


class Adapter(nn.Module):
    """What is learned beside one linear or convolutional layer."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, draw: torch.Generator) -> None:
        super().__init__()
        out, ins, *kernel = layer.weight.shape
        bound = 1 / math.sqrt(math.prod((ins, *kernel)))
        down = (torch.rand(rank, ins, *kernel, generator=draw) * 2 - 1) * bound
        self.down = nn.Parameter(down.to(layer.weight.device))
        self.up = nn.Parameter(layer.weight.new_zeros(out, rank, *[1] * len(kernel), dtype=torch.float32))
        self.alpha = alpha
        self._shape = (layer.stride, layer.padding) if isinstance(layer, nn.Conv2d) else None
        layer.register_forward_hook(lambda _, given, answer: answer + self(given[0]))

    def forward(self, x: Tensor) -> Tensor:
        if self._shape is None:
            change = F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))
        else:
            stride, padding = self._shape
            inner = F.conv2d(x, self.down.to(x.dtype), stride=stride, padding=padding)
            change = F.conv2d(inner, self.up.to(x.dtype))
        return change * (self.alpha / len(self.down))

    def change(self) -> LowRank:
        """What has been learned."""
        return LowRank(self.down.detach().cpu(), self.up.detach().cpu(), alpha=self.alpha)


class Adapters(nn.Module):
    """The adapters of several nets, in the order of their layers."""

    def __init__(
        self,
        nets: Mapping[str, nn.Module],
        ends: Mapping[str, Sequence[str]],
        rank: int,
        alpha: float,
        seed: int,
    ) -> None:
        """`ends`: component -> ends of the names of layers. Raises UsageError for an end that no layer has."""
        super().__init__()
        self.names = [
            (part, name) for part, net in nets.items() for name in _layers(part, net, ends.get(part, ()))
        ]
        self.all = nn.ModuleList()
        for part, name in self.names:
            layer = nets[part].get_submodule(name)
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            self.all.append(Adapter(layer, rank, alpha, generator("lora", seed, part, name)))

    def lora(self, metadata: Mapping[str, str]) -> Lora:
        """What has been learned, by component and layer."""
        layers: dict[str, dict[str, LowRank]] = {}
        for (part, name), adapter in zip(self.names, self.all, strict=True):
            assert isinstance(adapter, Adapter)
            layers.setdefault(part, {})[name] = adapter.change()
        return Lora(layers, metadata)


class LoraStage(DenoisingStage):
    """Trains low-rank changes of a model that stays as it is; the result is `lora/lora.safetensors`."""

    def trained(self) -> dict[str, nn.Module]:
        settings = self.config.lora
        if self.model.checkpoint is None or not self.config.model.start:
            raise UsageError(
                "stage 'lora' needs model.start, a text-to-image model in Stable Diffusion's layout"
            )
        nets: dict[str, nn.Module] = {"unet": self.model.unet}
        nets |= {name: net for name, (net, _) in self.model.checkpoint.encoders.items()}
        for net in nets.values():
            net.requires_grad_(False)
        ends = {name: settings.unet if name == "unet" else settings.text_encoder for name in nets}
        self.adapters = Adapters(nets, ends, settings.rank, settings.alpha, self.config.seed)
        if not self.adapters.names:
            raise UsageError(
                "lora.unet and lora.text_encoder name no layer; give the ends of some, to_q for instance"
            )
        return {"lora": self.adapters}

    @property
    def hears_anew(self) -> bool:
        return bool(self.config.lora.text_encoder)

    def export(self, folder: Path) -> None:
        """Write the LoRA in the dialect that was asked for."""
        metadata = {"mezzotint": json.dumps(self.config.lora.model_dump(mode="json"))}
        with new_folder(folder, replace=True) as part:
            write_lora(part / FILE, self.adapters.lora(metadata), dialect=self.config.lora.dialect)
            for name, content in card_files(self.config, self.pictures, self.prompts()).items():
                write_file(part / name, content)


def _layers(part: str, net: nn.Module, ends: Sequence[str]) -> Iterator[str]:
    """The names of the layers of `net` that end in one of `ends`."""
    layers = [name for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for end in ends:
        if not any(f".{name}".endswith(f".{end}") for name in layers):
            raise unknown(f"layer in lora.{part}", end, {name.rpartition(".")[2] for name in layers})
    return (name for name in layers if any(f".{name}".endswith(f".{end}") for end in ends))
