"""Linear layers and convolutions, as torch has them to learn with, and frozen ones to draw with.

To draw, weights stay as they are, and a picture must come out the same in any company. On a processor, in float32, a
frozen linear layer therefore makes a product of each two rows (one picture under guidance): kernels choose the order of
their sums by shapes. A frozen convolution of 3 x 3 pixels uses Winograd's method, and remembers its filters for it.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .winograd import convolve, tile_size, transformed

M = TypeVar("M", bound=nn.Module)

PAIR = 2  # rows of one picture under guidance


def frozen(net: M) -> M:
    """`net`, whose weights stay as they are from now on; call it again after changing them."""
    for module in net.modules():
        if isinstance(module, Linear | Conv2d):
            module.frozen = True
        if isinstance(module, Conv2d):
            module.remembered = {}
    return net


def _drawing(layer: Linear | Conv2d, x: Tensor) -> bool:
    return layer.frozen and x.is_cpu and x.dtype == torch.float32 and not torch.is_grad_enabled()


def in_pairs(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b for [B, ..., C_in]; each two rows are a product of their own."""
    if len(x) <= PAIR or len(x) % PAIR:
        return F.linear(x, weight, bias)
    pairs = x.reshape(len(x) // PAIR, -1, x.shape[-1])
    matrix = weight.T.expand(len(pairs), -1, -1)
    y = torch.bmm(pairs, matrix) if bias is None else torch.baddbmm(bias, pairs, matrix)
    return y.view(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """x W^T + b."""

    frozen = False

    def forward(self, x: Tensor) -> Tensor:
        if not _drawing(self, x):
            return super().forward(x)
        return in_pairs(x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """A convolution; frozen ones of 1 x 1 pixels are linear layers, and those of 3 x 3 Winograd's where that pays."""

    frozen = False
    remembered: dict[
        int, tuple[tuple[int, int], Tensor]
    ]  # tile size -> (stamp of the weights, their filters)

    def forward(self, x: Tensor) -> Tensor:
        plain = self.stride == (1, 1) and self.dilation == (1, 1) and self.groups == 1
        if not plain or not _drawing(self, x):
            return super().forward(x)
        if self.kernel_size == (1, 1) and self.padding == (0, 0):
            tokens = x.permute(0, 2, 3, 1)  # a view of channels_last memory
            return in_pairs(tokens, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        if self.kernel_size == (3, 3) and self.padding == (1, 1):
            m = tile_size(self.in_channels, self.out_channels, min(len(x), PAIR), *x.shape[2:])
            if m:
                return convolve(x, self._filters(m), self.bias, m)
        return super().forward(x)

    def _filters(self, m: int) -> Tensor:
        """The transformed filters, made anew where the weights were replaced or written to since."""
        stamp = self.weight.data_ptr(), 0 if self.weight.is_inference() else self.weight._version
        if m not in self.remembered or self.remembered[m][0] != stamp:
            self.remembered[m] = stamp, transformed(self.weight, m)
        return self.remembered[m][1]
