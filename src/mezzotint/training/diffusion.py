"""Stage `diffusion`: the U-Net learns to take noise off latents of scenes, told their captions.

L = E[ w(sigma) |F(scale x, time, text) - target|^2 ], x = x0 + sigma * eps (Ho et al. 2020; `diffusion/loss.py`).
Composing and encoding a scene costs more than half as much as a training step on it, so scenes are made a pool at a
time, each is used `reuse` times under other noise, and then a new pool is made. Everything is a function of
(seed, step): pool, order, levels, noise, dropped captions. A share of captions is empty, for classifier-free guidance
(Ho and Salimans 2022).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..data.scenes import load_scenes
from ..diffusion.denoiser import Denoiser
from ..diffusion.grids import sigma_grid
from ..diffusion.guidance import cfg
from ..diffusion.loss import LEVELS, WEIGHTS
from ..diffusion.noise import INITIAL, batch_noise, generator
from ..diffusion.process import VariancePreserving
from ..diffusion.samplers import SAMPLERS
from ..diffusion.types import Cond
from ..errors import UsageError, unknown
from ..formats.atomic import read_json
from ..formats.checkpoint import Checkpoint
from ..formats.folder import CARD, write_folder
from ..formats.scheduler import Plan
from ..formats.tensors import build, read_tensors, read_weights, write_tensors
from ..formats.tokenizer import read_tokenizer
from ..nets.blocks import ResnetBlock, SpatialTransformer, channels_last
from ..nets.clip_text import CLIPTextConfig, CLIPTextModel
from ..nets.unet import UNet, UNetConfig
from ..nets.vae import AutoencoderKL, VAEConfig
from .config import TrainConfig
from .loop import Loss
from .vae import from_unit, to_unit
from .world import WHOLE, Share, whole_only

N = TypeVar("N", bound=nn.Module)

STEPS = 20  # of DPM-Solver++(2M): what the samples are made with, and the default that is shipped

PROMPTS = (  # of the sample grids; what is hard stands beside what is easy
    "a red apple",
    "dog face",
    "a pizza",
    "rocket",
    "a sunflower on a blue background",
    "an owl on a yellow background",
    "a small strawberry in the top left corner on a black background",
    "a cat face to the left of a red heart",
    "a doggy",
    "a sedan",
    "a jumbo jet on a light blue background",
    "a guitar above a fish on a pink background",
)


@dataclass(frozen=True)
class Pool:
    """Scenes made ready: latents [P, C, h, w] as float16, caption ids [P, L]."""

    latents: Tensor
    ids: Tensor


class DiffusionStage:
    """Trains the U-Net; autoencoder and text encoder stay as they are."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        if config.diffusion is None:
            raise UsageError("stage 'diffusion' needs a section [diffusion] that names vae and text")
        self.config, self.device, self.settings = config, device, config.diffusion
        for kind, name, table in (
            ("weight", self.settings.weight, WEIGHTS),
            ("levels", self.settings.levels, LEVELS),
        ):
            if name not in table:
                raise unknown(f"diffusion.{kind}", name, table)
        per_pool = self.settings.pool * self.settings.reuse
        if self.settings.pool % config.optim.batch:
            raise UsageError(
                f"diffusion.pool {self.settings.pool} must be a multiple of optim.batch {config.optim.batch}"
            )
        self.steps_per_pool = per_pool // config.optim.batch
        self.scenes = load_scenes(config.data)
        self.vae = load_net(
            AutoencoderKL, VAEConfig.from_dict, self.settings.vae, "diffusion_pytorch_model", device
        )
        self.text = load_net(
            CLIPTextModel, CLIPTextConfig.from_dict, self.settings.text / "text_encoder", "model", device
        )
        self.tokenizer = read_tokenizer(self.settings.text / "tokenizer")
        self.null = torch.tensor([self.tokenizer.encode("").ids])
        self.net = self._unet()
        self.process = VariancePreserving()
        self.denoiser = Denoiser(self.net, self.process, self.settings.prediction)
        self.players: dict[str, nn.Module] = {"unet": self.net}
        self._pools: dict[int, Pool] = {}  # two at most: workers meet at the border of two
        self._pooling = threading.Lock()

    def _unet(self) -> UNet:
        """With random first weights, or those of an earlier model."""
        if self.settings.start is not None:
            return load_net(
                UNet, UNetConfig.from_dict, self.settings.start, "diffusion_pytorch_model", self.device
            ).train()
        torch.manual_seed(self.config.seed)
        net = UNet(UNetConfig.from_dict(self.config.net))
        quiet_start(net)
        return channels_last(net.to(self.device))

    def batch(self, step: int, share: Share = WHOLE) -> tuple[Tensor, Tensor]:
        """Latents [B, C, h, w] and caption ids [B, L] of a step."""
        whole_only(share, "diffusion")
        number, within = divmod(step, self.steps_per_pool)
        pool = self.pool(number)
        turn, at = divmod(within * self.config.optim.batch, self.settings.pool)
        order = torch.randperm(
            self.settings.pool, generator=generator("order", self.config.seed, number, turn)
        )
        rows = order[at : at + self.config.optim.batch]
        return pool.latents[rows].float(), pool.ids[rows]

    def pool(self, number: int) -> Pool:
        """Pool number n, from memory, from the run's cache, or made anew."""
        with self._pooling:
            if number not in self._pools:
                path = self.config.out / "cache" / f"pool-{number:04d}.safetensors"
                if not path.exists():
                    pool = self._make_pool(number)
                    for old in sorted(path.parent.glob("pool-*.safetensors"))[:-1]:
                        old.unlink()
                    write_tensors(path, {"latents": pool.latents, "ids": pool.ids})
                tensors = read_tensors(path)
                self._pools = {n: p for n, p in self._pools.items() if abs(n - number) == 1}
                self._pools[number] = Pool(tensors["latents"], tensors["ids"])
            return self._pools[number]

    def _make_pool(self, number: int, part: int = 16) -> Pool:
        latents, ids = [], []
        for start in range(0, self.settings.pool, part):
            scenes = [
                self.scenes.scene(
                    self.config.seed,
                    number * self.settings.pool + i,
                    plain=self.settings.plain,
                    pairs=self.settings.pairs,
                )
                for i in range(start, min(start + part, self.settings.pool))
            ]
            pictures = np.stack([self.scenes.picture(scene) for scene in scenes])
            latents.append(self.encode(pictures).half().cpu())
            ids.append(torch.tensor([self.tokenizer.encode(scene.caption).ids for scene in scenes]))
        return Pool(torch.cat(latents), torch.cat(ids))

    @torch.no_grad()
    def encode(self, pictures: np.ndarray) -> Tensor:
        """uint8 [B, H, W, 3] -> latents [B, C, h, w] of unit variance (the mean of q(z|x))."""
        images = to_unit(pictures).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.vae.encode(images)[0].float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def states(self, ids: Tensor) -> Tensor:
        """Caption ids [B, L] -> states [B, L, D]."""
        return self.text(ids.to(self.device)).last.float()

    def losses(self, batch: tuple[Tensor, Tensor], step: int) -> Iterator[Loss]:
        draw = generator("diffusion", self.config.seed, step)
        x0, ids = batch
        size = len(x0)
        dropped = torch.rand(size, generator=draw) < self.settings.caption_dropout
        ids = torch.where(dropped[:, None], self.null, ids)
        sigma = self._levels(size, draw)
        eps = torch.randn(x0.shape, generator=draw)
        x0, eps = (x.to(self.device).contiguous(memory_format=torch.channels_last) for x in (x0, eps))
        cond = Cond(text=self.states(ids))
        error = self.denoiser.loss(
            x0, eps, sigma.float().to(self.device), cond, weight=WEIGHTS[self.settings.weight]
        )
        high = sigma > 1
        parts = {
            "high noise": error[high.to(self.device)].mean() if high.any() else error.mean(),
            "low noise": error[~high.to(self.device)].mean() if not high.all() else error.mean(),
        }
        yield Loss("unet", error.mean(), {k: v.detach() for k, v in parts.items()})

    def _levels(self, size: int, draw: torch.Generator) -> Tensor:
        levels = LEVELS[self.settings.levels]
        if self.settings.levels == "uniform":
            return levels(self.process, size, draw)
        knobs = {"mean": self.settings.level_mean, "std": self.settings.level_std}
        return levels(self.process, size, draw, **knobs)

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], seeds: Sequence[int], *, steps: int = STEPS) -> np.ndarray:
        """Pictures uint8 [B, H, W, 3] by DPM-Solver++(2M) with guidance, from the nets as they are."""
        side = self.config.net.get("sample_size", 16)
        channels = self.net.config.in_channels
        cond = Cond(text=self.states(torch.tensor([self.tokenizer.encode(p).ids for p in prompts])))
        null = Cond(text=self.states(self.null))
        sigmas = sigma_grid("karras", self.process, steps)
        x = batch_noise(seeds, (channels, side, side), self.device)(INITIAL) * float(sigmas[0])
        denoise = cfg(self.denoiser, self.settings.guidance, null)
        with torch.autocast(self.device.type, torch.bfloat16):
            for taken in SAMPLERS["dpmpp_2m"](denoise, x, sigmas, cond):
                x = taken.x
            return from_unit(self.vae.decode(x / self.vae.config.scaling_factor))

    def picture(self) -> Image.Image:
        made = self.generate(PROMPTS, [self.config.seed] * len(PROMPTS))
        rows = [np.concatenate(list(made[i : i + 4]), axis=1) for i in range(0, len(made), 4)]
        return Image.fromarray(np.concatenate(rows, axis=0))

    def export(self, folder: Path) -> None:
        """Write the whole model as a diffusers folder in half precision."""
        plan = Plan(self.process, self.settings.prediction, sampler="dpmpp_2m", grid="karras")
        checkpoint = Checkpoint(self.net, self.vae, self.text, self.tokenizer, plan)
        defaults = {"num_inference_steps": STEPS, "guidance_scale": self.settings.guidance}
        files = {CARD: json.dumps(defaults, indent=2) + "\n"}
        write_folder(folder, checkpoint, dtype=torch.float16, files=files, replace=True)


@torch.no_grad()
def quiet_start(net: UNet) -> None:
    """Let every residual branch, and the net itself, begin as zero (Zhang et al. 2019, arXiv 1901.09321)."""
    for module in net.modules():
        last: nn.Module
        if isinstance(module, ResnetBlock):
            last = module.conv2
        elif isinstance(module, SpatialTransformer):
            last = module.proj_out
        elif module is net:
            last = net.conv_out
        else:
            continue
        for parameter in last.parameters():
            parameter.zero_()


def load_net(
    net: Callable[[Any], N],
    config: Callable[[dict[str, Any]], Any],
    folder: Path,
    stem: str,
    device: torch.device,
) -> N:
    """A component of a diffusers folder: its config.json and its weights, ready to be asked."""
    keys = config(read_json(folder / "config.json"))
    tensors, where = read_weights(folder, stem)
    made = build(lambda: net(keys), tensors, where=where, device=device)
    return channels_last(made)
