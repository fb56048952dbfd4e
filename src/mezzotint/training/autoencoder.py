"""Stage `autoencoder`: any pictures to small maps and back, sharp where a mean would be blurred.

L = reconstruction (see `vae.py`) + perceptual |f(x^) - f(x)|^2 in the maps f of eyes that stage `features` trained; in
the last part of the run + a lambda -E C(x^), where the critic C learns E max(0, 1 - C(x)) + E max(0, 1 + C(x^)), and
lambda = |dL/dw| / |d(-E C)/dw| at the decoder's last layer w holds both in balance (VQGAN: Esser et al. 2021, arXiv
2012.09841; latent diffusion: Rombach et al. 2022). With `vae.decoder_only` what the latents mean stays as it is, so
that the model around them goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..catalog import find_model
from ..diffusion.noise import generator
from ..errors import UsageError
from ..formats.atomic import new_folder, write_file, write_json
from ..formats.checkpoint import assemble
from ..formats.folder import CARD, write_folder
from ..formats.native import is_native, read_native, write_native
from ..formats.opened import read_parts
from ..formats.tensors import write_tensors
from ..nets.blocks import channels_last
from ..nets.critics import Critic, unlikeness
from ..nets.vae import AutoencoderKL, VAEConfig
from .card import card_files
from .config import TrainConfig
from .features import read_eyes
from .loop import Loss
from .model import open_autoencoder
from .pictures import Pictures, stacked
from .signs import Validation
from .vae import from_unit, reconstruction, to_unit, whitened
from .world import WHOLE, Share, whole_only

SHOWN = 8  # pictures of a sample grid
MEASURED = 256  # pictures whose latents' mean and spread are taken
VALIDATED = 64
CRITICS_LEAST = 16  # pixels of a side that a critic can look at, halved too
LARGEST = 1e4  # of lambda


class AutoencoderStage:
    """Trains an autoencoder, and at last a critic, on any pictures; the result is `autoencoder/`."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        settings = config.vae
        torch.manual_seed(config.seed)
        if settings.start is not None:
            if config.net:
                raise UsageError(
                    "net is given beside vae.start, which says this itself; leave one of them out"
                )
            self.net = open_autoencoder(str(settings.start), device)
        elif settings.decoder_only:
            raise UsageError(
                "vae.decoder_only goes on with an autoencoder; name a model or its folder in vae.start"
            )
        else:
            self.net = channels_last(AutoencoderKL(VAEConfig.from_dict(config.net)).to(device))
        if settings.decoder_only:
            self.net.encoder.requires_grad_(False)
            if self.net.quant_conv is not None:
                self.net.quant_conv.requires_grad_(False)
        self.eyes = read_eyes(settings.features, device) if settings.features is not None else None
        step = max(self.net.config.factor, self.eyes.multiple if self.eyes else 1)
        self.step = 2 * step if settings.equivariance else step  # halved pictures must be seen too
        self.pictures = Pictures(config, step=self.step, needs="none")
        self.players: dict[str, nn.Module] = {"vae": self.net}
        if settings.adversarial:
            self.critic = channels_last(Critic(settings.critic).to(device))
            self.players["critic"] = self.critic

    # --- a step ---

    def batch(self, step: int, share: Share = WHOLE) -> Tensor:
        """[B, 3, h, w] in [-1, 1]: windows of at most `vae.crop` pixels a side."""
        whole_only(share, "autoencoder")
        rows = self.pictures.rows(step)
        seen = to_unit(stacked([self.pictures.see(row.picture, row.view) for row in rows]))
        sides = [min(self.config.vae.crop, side) // self.step * self.step for side in seen.shape[2:]]
        least = max(self.step, CRITICS_LEAST if self.config.vae.adversarial else 0)
        if min(sides) < least:
            raise UsageError(
                f"windows of {sides[1]} x {sides[0]} pixels are too small, {least} is the least; raise vae.crop "
                f"({self.config.vae.crop}) or dataset.resolution ({self.config.dataset.resolution})"
            )
        cut = []
        for row, picture in zip(rows, seen, strict=True):
            at = torch.rand(2, generator=generator("crop", self.config.seed, row.slot)).tolist()
            top, left = (
                round(a * (size - side)) for a, size, side in zip(at, picture.shape[1:], sides, strict=True)
            )
            cut.append(picture[:, top : top + sides[0], left : left + sides[1]])
        return torch.stack(cut).to(self.device).contiguous(memory_format=torch.channels_last)

    def losses(self, batch: Tensor, step: int) -> Iterator[Loss]:
        settings = self.config.vae
        made = reconstruction(self.net, batch, self.config, step)
        loss, parts = made.loss, dict(made.parts)
        if self.eyes is not None:
            parts["unlikeness"] = unlikeness(self.eyes, made.picture, made.target)
            loss = loss + settings.perceptual * parts["unlikeness"]
        if not settings.adversarial or step < settings.adversarial_from * self.config.optim.steps:
            yield Loss("vae", loss, parts)
            return
        self.critic.requires_grad_(False)
        doubt = -self.critic(made.picture).float().mean()
        balance = balanced(loss, doubt, self.net.decoder.conv_out.weight)
        self.critic.requires_grad_(True)
        yield Loss("vae", loss + settings.adversarial * balance * doubt, parts | {"balance": balance})
        true, false = (self.critic(x).float() for x in (made.target, made.picture.detach()))
        yield Loss("critic", hinge(true, false), {"true": true.mean(), "false": false.mean()})

    # --- how it does ---

    @torch.no_grad()
    def validate(self) -> Validation:
        """The mean absolute error of pictures that are encoded and decoded: at no noise, which is level 0."""
        split = self.pictures.split
        return Validation(
            *({0.0: self._error(some)} if some else {} for some in (split.held_out, split.train))
        )

    def _error(self, among: Sequence[int]) -> float:
        errors = [self._there_and_back(i) for i in self.pictures.some(among, VALIDATED)]
        return sum(float((made - seen).abs().mean()) for seen, made in errors) / len(errors)

    def _there_and_back(self, picture: int) -> tuple[Tensor, Tensor]:
        """[1, 3, H, W] each: a picture, and what becomes of it."""
        seen = to_unit(self.pictures.see(picture, 0).pixels[None]).to(self.device)
        return seen, self.net.decode(self.net.encode(seen)[0]).float()

    def noisy(self) -> str:
        """Nothing: it is not asked to make pictures of noise."""
        return ""

    @torch.no_grad()
    def picture(self) -> Image.Image:
        """Pictures, held out if any are, above what the net makes of them."""
        among = self.pictures.split.held_out or self.pictures.split.train
        first = self.pictures.buckets[among[0]]
        alike = [i for i in among if self.pictures.buckets[i] == first]
        columns = [self._there_and_back(i) for i in self.pictures.some(alike, SHOWN)]
        rows = (torch.cat(row) for row in zip(*columns, strict=True))
        return Image.fromarray(np.concatenate([np.concatenate(list(from_unit(row)), axis=1) for row in rows]))

    # --- what comes of it ---

    def export(self, folder: Path) -> None:
        """Write the autoencoder as a diffusers `vae/` folder, its latents of zero mean and unit variance.

        With `decoder_only` latents stay as they were, and where `start` is a whole model, so is what is written.
        """
        files = card_files(self.config, self.pictures)
        if self.config.vae.decoder_only and self._write_model(folder, files):
            return
        config, tensors = self.net.config, self.net.state_dict()
        if not self.config.vae.decoder_only:
            config, tensors = self._whitened()
        with new_folder(folder, replace=True) as part:
            write_json(part / "config.json", config.to_dict())
            write_tensors(part / "diffusion_pytorch_model.safetensors", tensors)
            for name, content in files.items():
                write_file(part / name, content)

    @torch.no_grad()
    def _whitened(self) -> tuple[VAEConfig, dict[str, Tensor]]:
        chosen = self.pictures.some(self.pictures.split.train, MEASURED)
        latents = [
            self.net.encode(to_unit(self.pictures.see(i, 0).pixels[None]).to(self.device))[0].float()
            for i in chosen
        ]
        flat = torch.cat([z.transpose(0, 1).flatten(1) for z in latents], dim=1)  # [C, places]
        config, weights = self.net.config, self.net.state_dict()
        if not (
            config.use_quant_conv and config.use_post_quant_conv
        ):  # then the format has room for one scale
            scaling = replace(config, scaling_factor=float(1 / flat.std()), shift_factor=float(flat.mean()))
            return scaling, {name: weight.contiguous() for name, weight in weights.items()}
        return replace(config, scaling_factor=1.0, shift_factor=None), whitened(
            weights, flat.mean(1), flat.std(1)
        )

    def _write_model(self, folder: Path, files: dict[str, str | bytes]) -> bool:
        """Write the model that the autoencoder was taken from, around the new one; False if it stood alone."""
        start = find_model(str(self.config.vae.start))
        if start.is_dir() and not (start / "model_index.json").exists():
            return False
        if (start / CARD).exists():
            files = files | {CARD: (start / CARD).read_text(encoding="utf-8")}
        if is_native(start):
            write_native(folder, replace(read_native(start), vae=self.net), files=files, replace=True)
        else:
            checkpoint = replace(assemble(read_parts(start)), vae=self.net)
            write_folder(folder, checkpoint, files=files, replace=True)
        return True


def hinge(true: Tensor, false: Tensor) -> Tensor:
    """What a critic wants smaller (Lim and Ye 2017, arXiv 1705.02894), half of it, as VQGAN has it: []."""
    return 0.5 * (F.relu(1 - true).mean() + F.relu(1 + false).mean())


def balanced(loss: Tensor, doubt: Tensor, last: Tensor) -> Tensor:
    """How much `doubt` must be weighed so that it moves the weights `last` as much as `loss` does: [], constant."""
    ours, theirs = (torch.autograd.grad(each, last, retain_graph=True)[0].norm() for each in (loss, doubt))
    return (ours / (theirs + 1e-4)).clamp(0, LARGEST).detach()
