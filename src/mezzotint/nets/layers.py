"""Linear layers and convolutions, as torch has them to learn with, and frozen ones to draw with.

To draw, weights stay as they are, and a picture must come out the same in any company. On a processor, in float32, a
frozen linear layer therefore makes a product of each two rows (one picture under guidance): kernels choose the order of
their sums by shapes. A frozen convolution of 3 x 3 pixels uses Winograd's method where that pays, and remembers its
filters for it. All others remember them in the order in which oneDNN wants them, which else sorts them anew at every
call; oneDNN's sums are the same for any number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .winograd import convolve, tile_size, transformed

M = TypeVar("M", bound=nn.Module)

PAIR = 2  # rows of one picture under guidance
SORTED = 0  # where a convolution remembers filters that are not for tiles


def frozen(net: M) -> M:
    """`net`, whose weights stay as they are from now on; call it again after changing them."""
    for module in net.modules():
        if isinstance(module, Linear | Conv2d):
            module.frozen = True
        if isinstance(module, Conv2d):
            module.remembered = {}
    return net


def _drawing(layer: Linear | Conv2d, x: Tensor) -> bool:
    return layer.frozen and x.is_cpu and not torch.is_grad_enabled()


def _sorts(dtype: torch.dtype) -> bool:
    """Whether oneDNN is here, computes in `dtype` and takes filters that are in its own order."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


def in_pairs(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b for [B, ..., C_in]; each two rows are a product of their own."""
    if len(x) <= PAIR or len(x) % PAIR:
        return F.linear(x, weight, bias)
    pairs = x.reshape(len(x) // PAIR, -1, x.shape[-1])
    matrix = weight.T.expand(len(pairs), -1, -1)
    y = torch.bmm(pairs, matrix) if bias is None else torch.baddbmm(bias, pairs, matrix)
    return y.view(*x.shape[:-1], len(weight))


def gated(layer: Linear, x: Tensor) -> Tensor:
    """a gelu(b), (a, b) = W x (+ c) of `layer`: [B, ..., C_in] -> [B, ..., C_out / 2].

    Frozen, in half precision, b's gelu and the product with a happen inside oneDNN's two products: a quarter less time.
    """
    half = x.dtype != torch.float32 and x.dtype == layer.weight.dtype and _sorts(x.dtype)
    if not (half and _drawing(layer, x)):
        value, gate = layer(x).chunk(2, dim=-1)
        return value * F.gelu(gate)
    of_value, of_gate = layer.weight.chunk(2)
    bias, shift = (None, None) if layer.bias is None else layer.bias.chunk(2)
    product = (
        torch.ops.mkldnn._linear_pointwise
    )  # named by overload: a failed guess prints both tensors first
    gate = product.default(x, of_gate, shift, "gelu", [], "none")
    return product.binary(x, gate, of_value, bias, "mul")


class Linear(nn.Linear):
    """x W^T + b."""

    frozen = False

    def forward(self, x: Tensor) -> Tensor:
        if not _drawing(self, x) or x.dtype != torch.float32:
            return super().forward(x)
        return in_pairs(x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """A convolution; frozen ones of 1 x 1 pixels are linear layers, and those of 3 x 3 Winograd's where that pays."""

    frozen = False
    # the size of tiles, or `SORTED` -> (stamp of the weights, what was made of them)
    remembered: dict[int, tuple[tuple[int, int], Tensor]]

    def forward(self, x: Tensor) -> Tensor:
        if not _drawing(self, x) or x.dtype != self.weight.dtype:
            return super().forward(x)
        plain = (
            x.dtype == torch.float32
            and self.stride == (1, 1)
            and self.dilation == (1, 1)
            and self.groups == 1
        )
        if plain and self.kernel_size == (1, 1) and self.padding == (0, 0):
            tokens = x.permute(0, 2, 3, 1)  # a view of channels_last memory
            return in_pairs(tokens, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        if plain and self.kernel_size == (3, 3) and self.padding == (1, 1):
            m = tile_size(self.in_channels, self.out_channels, min(len(x), PAIR), *x.shape[2:])
            if m:
                return convolve(x, self._made(m, lambda: transformed(self.weight, m)), self.bias, m)
        return self._sorted(x) if _sorts(x.dtype) else super().forward(x)

    def _sorted(self, x: Tensor) -> Tensor:
        """The convolution with filters in oneDNN's order."""
        how = self.padding, self.stride, self.dilation, self.groups
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight

        def sort() -> Tensor:
            return reorder(self.weight.detach().to_mkldnn(), *how, x.shape)

        filters = self._made(SORTED, sort)
        return torch.ops.mkldnn._convolution_pointwise.default(x, filters, self.bias, *how, "none", [], "")

    def _made(self, key: int, make: Callable[[], Tensor]) -> Tensor:
        """What `make` makes of the weights; made anew where they were replaced or written to since."""
        stamp = self.weight.data_ptr(), 0 if self.weight.is_inference() else self.weight._version
        if key not in self.remembered or self.remembered[key][0] != stamp:
            self.remembered[key] = stamp, make()
        return self.remembered[key][1]
