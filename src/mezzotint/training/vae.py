"""Stage `vae`: pictures to a small map of unit variance and back.

L = |x^ - x| + squares * |x^ - x|^2 + edges * (errors of the picture's gradient at three scales)
    + kl * KL(q(z|x) || N(0, 1)). In the first
half of the run the latent map is, on a share of steps, turned, mirrored or halved and must decode to the picture so
transformed (EQ-VAE, Kouzelis et al. 2025, arXiv 2502.09509): smoother latents, which diffusion learns faster. Trained
on crops, since the net is convolutional. At the end each channel's mean and scale are folded into the two 1x1
convolutions around the latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..data.scenes import EmojiScenes, load_scenes
from ..diffusion.noise import generator
from ..formats.atomic import new_folder, write_json
from ..formats.tensors import load, read_weights, write_tensors
from ..nets.blocks import channels_last
from ..nets.vae import AutoencoderKL, VAEConfig
from .config import TrainConfig
from .loop import Loss
from .world import WHOLE, Share, whole_only


class VAEStage:
    """Trains an autoencoder on crops of composed scenes."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.scenes = load_scenes(config.data)
        torch.manual_seed(config.seed)  # the first weights; nothing else draws from the global generator
        net = AutoencoderKL(VAEConfig.from_dict(config.net)).to(device)
        if config.vae.start is not None:
            tensors, where = read_weights(config.vae.start, "diffusion_pytorch_model")
            load(net, tensors, where=where, device=device)
        self.net = channels_last(net)
        self.players: dict[str, nn.Module] = {"vae": self.net}

    def batch(self, step: int, share: Share = WHOLE) -> Tensor:
        """[B, 3, crop, crop] in [-1, 1]."""
        whole_only(share, "vae")
        size = self.config.optim.batch
        crops = [
            crop(self.scenes, self.config.seed, step * size + j, self.config.vae.crop) for j in range(size)
        ]
        return to_unit(np.stack(crops)).to(self.device)

    def losses(self, batch: Tensor, step: int) -> Iterator[Loss]:
        made = reconstruction(self.net, batch, self.config, step)
        yield Loss("vae", made.loss, made.parts)

    @torch.no_grad()
    def picture(self) -> Image.Image:
        """Held-out glyphs (skin tones are never trained on) above what the net makes of them."""
        glyphs = self.scenes.glyphs[len(self.scenes.things) :: 191][:10] or self.scenes.glyphs[:10]
        seen = np.stack([np.asarray(on_white(glyph)) for glyph in glyphs])
        made = from_unit(self.net.decode(self.net.encode(to_unit(seen).to(self.device))[0]))
        rows = [np.concatenate(list(row), axis=1) for row in (seen, made)]
        return Image.fromarray(np.concatenate(rows, axis=0))

    def export(self, folder: Path) -> None:
        """Write the autoencoder, its latents of zero mean and unit variance, as a diffusers `vae/` folder."""
        pictures = to_unit(
            np.stack([self.scenes.picture(self.scenes.scene(self.config.seed, i)) for i in range(256)])
        )
        with torch.no_grad():
            latents = torch.cat(
                [self.net.encode(part.to(self.device))[0].float() for part in pictures.split(32)]
            )
        tensors = whitened(self.net.state_dict(), latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
        config = VAEConfig.from_dict(self.config.net | {"scaling_factor": 1.0})
        with new_folder(folder, replace=True) as part:
            write_json(part / "config.json", config.to_dict())
            write_tensors(part / "diffusion_pytorch_model.safetensors", tensors)


class Reconstruction(NamedTuple):
    """A batch that was encoded and decoded."""

    picture: Tensor  # [B, 3, h, w]
    target: Tensor  # what it should be
    loss: Tensor  # []
    parts: dict[str, Tensor]


def reconstruction(net: AutoencoderKL, batch: Tensor, config: TrainConfig, step: int) -> Reconstruction:
    """What an autoencoder makes of pictures [B, 3, H, W] in [-1, 1] at a step, as the top of the file says."""
    settings = config.vae
    draw = generator("vae", config.seed, step)
    mean, logvar = net.encode(batch)
    z = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=draw).to(mean)
    kl = 0.5 * (mean.float().square() + logvar.float().exp() - 1 - logvar.float()).mean()
    transform = int(torch.randint(6, (), generator=draw))
    smoothing = 2 * step < config.optim.steps  # detail needs latents that know directions
    if smoothing and float(torch.rand((), generator=draw)) < settings.equivariance:
        z, batch = transformed(z, transform), transformed(batch, transform)
    decoded = net.decode(z).float()
    pixels, gradients = (decoded - batch).abs().mean(), edge_error(decoded, batch)
    loss = pixels + settings.edges * gradients + settings.kl * kl
    if settings.squares:
        loss = loss + settings.squares * (decoded - batch).square().mean()
    return Reconstruction(decoded, batch, loss, {"pixels": pixels, "edges": gradients, "kl": kl})


def crop(scenes: EmojiScenes, seed: int, i: int, side: int, canvas: int = 128) -> np.ndarray:
    """Crop number i: uint8 [side, side, 3] of a random scene, around some point of one of its things."""
    rng = np.random.default_rng((seed, i, 1))
    scene = scenes.scene(seed, i, plain=0.3, pairs=0.3)
    thing = scene.objects[int(rng.integers(len(scene.objects)))]
    centre = np.array([thing.x, thing.y]) + thing.side * rng.uniform(-0.5, 0.5, 2)
    left, top = np.clip(np.round(centre * canvas - side / 2), 0, canvas - side).astype(int)
    return scenes.picture(scene, canvas)[top : top + side, left : left + side]


def transformed(x: Tensor, which: int) -> Tensor:
    """A map [B, C, H, W] turned by 90, 180 or 270 degrees (0 to 2), mirrored (3), or halved (4 and 5)."""
    if which < 3:
        return x.rot90(which + 1, (2, 3))
    return x.flip(3) if which == 3 else F.avg_pool2d(x, 2)


def edge_error(a: Tensor, b: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of the finite differences of two pictures, at halving scales: []."""
    error = a.new_zeros(())
    difference = a - b
    for scale in range(scales):
        if scale:
            difference = F.avg_pool2d(difference, 2)
        error = error + difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
    return error / (2 * scales)


def whitened(weights: dict[str, Tensor], mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """The same autoencoder with latents (z - mean) / std, by changing its 1x1 convolutions alone; exact."""
    w = {k: v.detach().clone().contiguous() for k, v in weights.items()}
    channels = len(mean)
    spread = torch.cat([std, torch.ones_like(std)])  # the convolution's outputs: means, then log variances
    shift = torch.cat([-mean / std, -2 * std.log()])
    w["quant_conv.weight"] /= spread[:, None, None, None]
    w["quant_conv.bias"] = w["quant_conv.bias"] / spread + shift
    matrix = w["post_quant_conv.weight"].reshape(-1, channels)
    w["post_quant_conv.bias"] = w["post_quant_conv.bias"] + matrix @ mean
    w["post_quant_conv.weight"] = w["post_quant_conv.weight"] * std[None, :, None, None]
    return w


def to_unit(pictures: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [-1, 1], channels last in memory."""
    return (torch.from_numpy(pictures).float() / 127.5 - 1).permute(0, 3, 1, 2)


def from_unit(x: Tensor) -> np.ndarray:
    """[B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3]."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def on_white(glyph: Image.Image) -> Image.Image:
    """An RGBA glyph on white, RGB."""
    return Image.alpha_composite(Image.new("RGBA", glyph.size, "white"), glyph).convert("RGB")
