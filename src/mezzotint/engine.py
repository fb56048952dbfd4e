"""Who computes the U-Net: torch, or OpenVINO where it is installed.

An engine makes a net of a U-Net; whoever draws sees no difference (`diffusion.types.Net`). For OpenVINO the U-Net is
traced once, in float32, with keys and values of the text given (`UNet.prepared`). The graph is kept on disk, by the
SHA-256 of the weights (with LoRAs, if any are worn) and of all else that it is made of; it is compiled for each shape
that is asked for. What a graph cannot do, gradients and attention under control, the U-Net does itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .diffusion.types import Cond, Net
from .errors import UsageError, unknown
from .formats.atomic import new_folder
from .nets import Backbone, UNet
from .nets.blocks import Control
from .nets.layers import PAIR

ENGINES = ("torch", "openvino", "openvino-int8")
CACHE = "MEZZOTINT_CACHE"  # the environment variable: a folder for what can be made again
LAYOUT = 1  # of the graph; another number makes it anew
HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
KEPT = 4  # graphs on disk; those of Stable Diffusion 1 have 1.7 GB
COMPILED = 2  # shapes in memory, each with weights of its own
LEAST = 4096  # numbers of a weight from which on it pays to store it as int8
TAKEN = ("keys", "mask", "told", "label", "concat")  # fields of a `Cond` that a graph takes, in this order
Inputs = dict[str, Tensor]


def realiser(name: str, precision: str, device: torch.device) -> Callable[[Backbone], Net]:
    """What makes the nets that compute: `name` is one of `ENGINES`, `precision` a name of `precision.PRECISIONS`.

    Raises UsageError for an unknown name, for OpenVINO if it is not installed or the device is no processor.
    """
    if name == "torch":
        return _itself
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    if device.type != "cpu":
        raise UsageError(
            f"engine {name} computes on processors, not on '{device}'; leave --engine or use --device cpu"
        )
    if find_spec("openvino") is None:
        raise UsageError(f"engine {name} needs OpenVINO; install it with `pip install mezzotint[openvino]`")

    def graphed(net: Backbone) -> Net:
        if not isinstance(net, UNet):
            raise UsageError(
                f"engine {name} computes U-Nets, and this model is a transformer; leave --engine"
            )
        return Graphed(net, precision, int8=name == "openvino-int8")

    return graphed


def _itself(net: Backbone) -> Net:
    return net


class Graphed:
    """A U-Net computed by OpenVINO, rows in pairs as guidance makes them; see `diffusion.types.Net`."""

    def __init__(self, unet: UNet, precision: str = "float32", *, int8: bool = False) -> None:
        """`int8`: weights in eight bits and a scale for each output channel."""
        self.unet, self.precision, self.int8 = unet, precision, int8
        self._compiled: OrderedDict[tuple[tuple[int, ...], ...], Any] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def remembered(self) -> int:
        """Bytes of weights that the graph will keep beside the U-Net's and does not keep yet."""
        if self._compiled:
            return 0
        size = 4 if self.precision == "float32" else 2
        return size * sum(weight.numel() for weight in self.unet.parameters())

    def prepared(self, cond: Cond) -> Cond:
        """As `UNet.prepared`."""
        return self.unet.prepared(cond)

    def __call__(
        self, z: Tensor, t: Tensor, cond: Cond = Cond(), *, control: Control | None = None
    ) -> Tensor:
        """As `UNet.forward`, but answers in float32. The first call of a shape compiles it, which takes seconds."""
        if control is not None or (torch.is_grad_enabled() and not torch.is_inference_mode_enabled()):
            return self.unet(z, t, cond, control=control)
        self.unet.check(z, cond)
        if cond.keys is None and cond.told is None:
            cond = self.prepared(cond)
        given = _given(z, t, cond)
        each = 1 if len(z) % PAIR else PAIR
        with self._lock:
            parts = [
                self._ask({name: one[i : i + each] for name, one in given.items()})
                for i in range(0, len(z), each)
            ]
        return torch.cat(parts).contiguous(memory_format=torch.channels_last)

    def _ask(self, given: Inputs) -> Tensor:
        shapes = tuple(tuple(one.shape) for one in given.values())
        if shapes not in self._compiled:
            while len(self._compiled) >= COMPILED:
                self._compiled.popitem(last=False)
            self._compiled[shapes] = self._compile(given)
        self._compiled.move_to_end(shapes)
        answer = self._compiled[shapes](
            [one.contiguous().numpy() for one in given.values()], share_inputs=True
        )[0]
        return torch.from_numpy(answer)

    def _compile(self, given: Inputs) -> Any:
        """The graph, for inputs of these shapes."""
        import openvino

        core = openvino.Core()
        graph = core.read_model(str(self._on_disk(given)))
        graph.reshape({i: list(one.shape) for i, one in enumerate(given.values())})
        how = {
            "INFERENCE_PRECISION_HINT": HINTS[self.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        if self.precision == "float32":
            how["SNIPPETS_MODE"] = (
                "DISABLE"  # OpenVINO 2026.4 ends with a segmentation fault at group norms else
            )
        return core.compile_model(graph, "CPU", how)

    def _on_disk(self, given: Inputs) -> Path:
        """The file of the graph, which is made if it is not there."""
        folder = cache() / "openvino" / self.key
        graph = folder / "unet.xml"
        if not graph.exists():
            import openvino

            with new_folder(folder, replace=True) as part:
                made = traced(self.unet, given)
                if self.int8:
                    _in_eight_bits(made)
                openvino.save_model(made, part / "unet.xml", compress_to_fp16=self.precision != "float32")
            _forget_oldest(folder.parent)
        with suppress(OSError):  # others' folder, which may only be read
            os.utime(folder)
        return graph

    @cached_property
    def key(self) -> str:
        """SHA-256 of everything that the graph is made of."""
        import openvino

        about = {
            "layout": LAYOUT,
            "openvino": openvino.get_version(),
            "torch": torch.__version__,
            "config": self.unet.config.to_dict(),
            "half": self.precision != "float32",
            "int8": self.int8,
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for name, tensor in sorted(self.unet.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


def cache() -> Path:
    """The folder for what can be made again: that of the environment variable, or the user's."""
    if there := os.environ.get(CACHE):
        return Path(there).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mezzotint"


def _given(z: Tensor, t: Tensor, cond: Cond) -> Inputs:
    """The inputs of a graph: z, t and those of `TAKEN` that there are; all float32, but labels."""
    mask = cond.mask
    if cond.keys is None or mask is None:  # with keys there is always one, so that there is one graph
        mask = None if cond.keys is None else torch.ones(len(z), cond.keys.shape[1])
    fields = {"z": z, "t": t.expand(len(z))}
    fields |= {name: getattr(cond._replace(mask=mask), name) for name in TAKEN}
    return {
        name: field if field.dtype == torch.int64 else field.float()
        for name, field in fields.items()
        if field is not None
    }


def traced(unet: UNet, given: Inputs) -> Any:
    """An OpenVINO graph in float32 with these inputs, in whatever shapes."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's, about checks of shapes
        example = tuple(one.clone() for one in given.values())
        script = torch.jit.trace(_Told(unet, [*given][2:]), example, check_trace=False)
        # the frontend itself: `openvino.convert_model` tells its makers of each use where it can
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(script)  # is asked while the graph is made: it must not go before
        return frontend.convert(frontend.load(decoder))


class _Told(nn.Module):
    """A U-Net as a function of tensors alone, by the definitions of its layers, in float32."""

    def __init__(self, unet: UNet, names: list[str]) -> None:
        super().__init__()
        with torch.device("meta"):
            self.unet = UNet(unet.config).eval().requires_grad_(False)
        weights = {name: tensor.float() for name, tensor in unet.state_dict().items()}
        self.unet.load_state_dict(weights, assign=True)
        self.names = names

    def forward(self, z: Tensor, t: Tensor, *fields: Tensor) -> Tensor:
        config = self.unet.config
        # what keys were made of, and what is told, must be there but is not looked at again
        text = z.new_zeros(1, 1, 1) if config.takes_text else None
        pooled = z.new_zeros(1, 1) if config.addition_embed_type == "text_time" else None
        there = dict(zip(self.names, fields, strict=True))
        answer: Tensor = self.unet(z, t, Cond(text=text, pooled=pooled)._replace(**there))
        return answer


def _in_eight_bits(graph: Any) -> None:
    """The weights of products and convolutions as int8, with a scale for each output channel."""
    import numpy as np
    from openvino import opset13

    for node in graph.get_ordered_ops():
        if node.get_type_name() not in ("MatMul", "Convolution"):
            continue
        weight = node.input_value(1).get_node()
        if weight.get_type_name() != "Constant" or np.prod(weight.get_output_shape(0)) < LEAST:
            continue
        values = weight.get_data()
        out = 0 if node.get_attributes().get("transpose_b", True) else values.ndim - 1
        others = tuple(axis for axis in range(values.ndim) if axis != out)
        scale = abs(values).max(axis=others, keepdims=True) / 127
        scale[scale == 0] = 1
        bits = opset13.constant(np.round(values / scale).astype(np.int8))
        whole = opset13.multiply(opset13.convert(bits, "f32"), opset13.constant(scale.astype(np.float32)))
        node.input(1).replace_source_output(whole.output(0))


def _forget_oldest(folder: Path) -> None:
    """Keeps the graphs that were used last."""
    used = sorted(
        (one for one in folder.iterdir() if not one.name.startswith(".")), key=lambda one: one.stat().st_mtime
    )
    for one in used[:-KEPT]:
        shutil.rmtree(one, ignore_errors=True)
