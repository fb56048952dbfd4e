"""LoRA two ways: added to the weights once, or as branches beside the layers at every step. Which costs less?

A U-Net of Stable Diffusion 1.5's size with random weights, and a LoRA on all linear layers of its transformers, as
kohya's scripts train it by default. One evaluation of two rows (guidance) bare, with the weights changed, and with
branches; the time to change the weights; what each way keeps in memory.

    python benchmarks/lora.py            # --rank 16 --size 512 --rounds 3; --width 320
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

from mezzotint.diffusion.types import Cond
from mezzotint.nets import UNet, UNetConfig
from mezzotint.nets.blocks import channels_last
from mezzotint.nets.layers import frozen
from mezzotint.nets.lowrank import LowRank, changed


class Branch(nn.Module):
    """A layer and a change of it, computed apart."""

    def __init__(self, layer: nn.Linear, change: LowRank) -> None:
        super().__init__()
        self.layer, self.down, self.up = layer, change.down, change.up * change.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + (x @ self.down.T) @ self.up.T


def branched(net: UNet, changes: dict[str, LowRank]) -> UNet:
    """The net with a branch beside each changed layer."""
    other = changed(net, {name: [] for name in changes})
    for name, change in changes.items():
        parent, _, child = name.rpartition(".")
        setattr(other.get_submodule(parent), child, Branch(net.get_submodule(name), change))
    return other


def seconds(rounds: int, work: object) -> float:
    """The median over rounds of the processor's time."""
    spent = []
    for _ in range(rounds):
        begun = time.process_time()
        work()  # type: ignore[operator]
        spent.append(time.process_time() - begun)
    return sorted(spent)[rounds // 2]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--size", type=int, default=512, help="of the picture, in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=320, help="channels of the finest level: 320 in SD 1.5")
    asked = parser.parse_args()
    torch.manual_seed(0)
    w = asked.width
    config = UNetConfig(block_out_channels=(w, 2 * w, 4 * w, 4 * w), cross_attention_dim=768)
    net = frozen(channels_last(UNet(config).eval()))
    changes = {
        name: LowRank(
            torch.randn(asked.rank, layer.in_features) / 100, torch.randn(layer.out_features, asked.rank)
        )
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Linear) and "transformer_blocks" in name
    }
    z = torch.randn(2, 4, asked.size // 8, asked.size // 8)
    t, cond = torch.tensor([500.0, 500.0]), Cond(text=torch.randn(2, 77, 768))
    merged = changed(net, {name: [(change, 1.0)] for name, change in changes.items()})
    beside = branched(net, changes)
    apart = float((merged(z, t, cond) - beside(z, t, cond)).abs().max() / merged(z, t, cond).abs().max())
    moved = float((merged(z, t, cond) - net(z, t, cond)).abs().max() / net(z, t, cond).abs().max())
    adding = seconds(
        asked.rounds, lambda: changed(net, {name: [(change, 1.0)] for name, change in changes.items()})
    )
    times = {
        name: seconds(asked.rounds, lambda n=n: n(z, t, cond))
        for name, n in {"bare": net, "changed": merged, "branches": beside}.items()  # type: ignore[misc]
    }
    weights = sum(net.get_submodule(name).weight.nbytes for name in changes) / 2**20
    small = sum(c.down.nbytes + c.up.nbytes for c in changes.values()) / 2**20
    print(
        f"{len(changes)} layers, rank {asked.rank}; they differ by {apart:.1e}, from the bare net by {moved:.1e}"
    )
    print("processor seconds of one evaluation: " + ", ".join(f"{name} {s:.2f}" for name, s in times.items()))
    print(f"adding to the weights, once: {adding:.2f} s")
    print(f"memory: changed weights {weights:.0f} MiB, branches {small:.0f} MiB")


if __name__ == "__main__":
    main()
