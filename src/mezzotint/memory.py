"""How much memory a run will take beyond the weights, and how much there is: said before, not found out after.

What layers keep beside their weights is counted exactly; how many maps are held at a time is one number for the U-Net
and one for the decoder. The decoder's is fitted to the highest resident size of the embedded model in float32, which
the estimate passes by 1 % at 128 x 128 and 2 % at 256 x 256 (benchmarks/memory.py); the U-Net's is on the high side:
measured, the embedded one holds 14 to 26. Larger models are not measured yet. An autoencoder's last level is as large
as the picture: where that does not fit, it decodes in tiles.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from .codec import Codec, Latents
from .engine import Graphed
from .nets import BackboneConfig, UNet, VAEConfig
from .nets.layers import PAIR, Conv2d
from .nets.winograd import tile_size
from .precision import PRECISIONS

if TYPE_CHECKING:
    from .pipeline import Pipeline
    from .request import Settled

DRAWING = (
    30  # maps of the U-Net's first width, for each row: those that the way up will meet, and what is at work
)
DECODING = 6  # maps of the autoencoder's second width, at the size of the picture
FIRST = 8 * 2**20  # bytes that libraries take when they first compute
TILE = 64  # latents of a side that are decoded at a time when memory is short
CGROUP = Path("/sys/fs/cgroup")


class ShortOfMemory(UserWarning):
    """A run needs more memory than is free."""


@dataclass(frozen=True)
class Need:
    """Bytes."""

    remembered: int  # what layers will make of their weights and keep, at the first run
    drawing: int
    decoding: int

    @property
    def total(self) -> int:
        """At the highest point: a picture is decoded when all are drawn."""
        return FIRST + self.remembered + max(self.drawing, self.decoding)


def fitting(pipeline: Pipeline, request: Settled, together: int) -> Pipeline:
    """`pipeline`, or one that decodes in tiles if that makes it fit; warns of that, or of what else to change."""
    needed, there = need(pipeline, request, together), free(pipeline.device)
    if there is None or needed.total <= there:
        return pipeline
    told = f"this run needs about {needed.total / 2**30:.1f} GiB, {there / 2**30:.1f} GiB are free"
    codec, side = pipeline.codec, TILE * pipeline.codec.factor
    if isinstance(codec, Latents) and max(request.height, request.width) > side:
        tiled = replace(codec, tile=TILE)
        if replace(needed, decoding=_decoding(tiled, side, side)).total <= there:
            warnings.warn(
                f"{told}: pictures are decoded in tiles of {side} pixels", ShortOfMemory, stacklevel=3
            )
            return replace(pipeline, codec=tiled)
    ways = [f"draw fewer than {together} at a time"] if together > 1 else []
    ways += ["ask for a smaller picture"]
    ways += ["load the model with precision bfloat16"] if pipeline.precision == "float32" else []
    warnings.warn(f"{told}; {', or '.join(ways)}", ShortOfMemory, stacklevel=3)
    return pipeline


def need(pipeline: Pipeline, request: Settled, together: int) -> Need:
    """What a run takes beyond the weights, about; `together` pictures at a time."""
    _, height, width = pipeline.shape(request)
    itemsize, rows = PRECISIONS[pipeline.precision].itemsize, together * (1 + (request.guidance_scale != 1))
    net = getattr(pipeline.denoiser, "net", None)  # any function may stand for the denoiser
    kept = net.remembered if isinstance(net, Graphed) else 0
    if isinstance(net, UNet):
        kept = remembered(net, rows, height, width)
    if isinstance(pipeline.codec, Latents):
        kept += remembered(pipeline.codec.vae.decoder, 1, height, width)
    return Need(
        kept,
        drawing(pipeline.configs.unet, rows, height, width, itemsize),
        _decoding(pipeline.codec, request.height, request.width),
    )


def _decoding(codec: Codec, height: int, width: int) -> int:
    if not isinstance(codec, Latents):
        return 0
    return decoding(codec.vae.config, height, width, codec.vae.dtype.itemsize)


def drawing(config: BackboneConfig, rows: int, height: int, width: int, itemsize: int) -> int:
    """Bytes of one evaluation of a net on `rows` maps of height x width."""
    return DRAWING * config.first_width * rows * height * width * itemsize


def decoding(config: VAEConfig, height: int, width: int, itemsize: int) -> int:
    """Bytes of decoding one picture of height x width pixels."""
    widths = config.block_out_channels
    return DECODING * widths[min(1, len(widths) - 1)] * height * width * itemsize


def remembered(net: torch.nn.Module, rows: int, height: int, width: int) -> int:
    """Bytes that frozen convolutions of a U-Net or a decoder will keep beside their weights and do not keep yet.

    Only those on processors keep any. The net is given `rows` maps of height x width.
    """
    total, levels = 0, len(cast(Sized, getattr(net, "up_blocks", ())))
    for name, layer in net.named_modules():
        if not isinstance(layer, Conv2d) or not layer.frozen or layer.remembered or not layer.weight.is_cpu:
            continue
        if layer.weight.dtype == torch.float32 and layer.kernel_size == (1, 1):
            continue  # a linear layer
        m = 0
        if layer.weight.dtype == torch.float32 and layer.kernel_size == (3, 3) and layer.stride == (1, 1):
            scale = 2.0 ** _finer(name, levels, isinstance(net, UNet))
            sides = (math.ceil(side * scale) for side in (height, width))
            m = tile_size(layer.in_channels, layer.out_channels, min(rows, PAIR), *sides)
        total += (m + 2) ** 2 * layer.weight[..., 0, 0].nbytes if m else layer.weight.nbytes
    return total


def _finer(name: str, levels: int, unet: bool) -> int:
    """How often the map that a convolution of this name makes was doubled from the one that the net is given."""
    part, _, rest = name.partition("_")
    coarsest = 1 - levels if unet else 0
    if part == "conv":
        return 0 if unet or rest == "in" else levels - 1
    if part == "mid":
        return coarsest
    level = int(rest.split(".")[1])
    return -level if part == "down" else coarsest + level + (".upsamplers." in name)


def free(device: torch.device) -> int | None:
    """Bytes that may still be had on a device; None where the system does not tell."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(
            device
        )  # torch keeps it for later
        return torch.cuda.mem_get_info(device)[0] + idle
    found = [value for value in (_available(), _allowed()) if value is not None]
    return min(found) if device.type == "cpu" and found else None


def _available() -> int | None:
    """What the system has."""
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _allowed() -> int | None:
    """What the container leaves."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return max(0, int(limit) - int(used)) if limit != "max" else None
    except OSError:
        return None
