"""Stage `model`: a net learns to take noise off any pictures, from nothing or from where another run ended.

L = E[ w(sigma) |F(scale x, time, cond) - target|^2 ], x = x0 + sigma eps (Ho et al. 2020; `diffusion/loss.py`), in
pixels or in latents, told texts, classes or nothing. Noise and noise level of a row are functions of (seed, slot), so
that a run is the same in one process, in several, and in parts. Latents and states of texts are computed once and
kept under hashes of what they depend on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..codec import Latents
from ..data.folder import Record
from ..diffusion.denoiser import Denoiser
from ..diffusion.grids import sigma_grid
from ..diffusion.guidance import cfg
from ..diffusion.loss import LEVELS, WEIGHTS, Uncertainty
from ..diffusion.noise import INITIAL, batch_noise, generator
from ..diffusion.samplers import SAMPLERS
from ..diffusion.types import Cond
from ..errors import unknown
from ..formats.atomic import new_file
from ..formats.folder import CARD
from ..metrics.kernel import FEWEST
from .card import card_files
from .config import TrainConfig
from .loop import Loss
from .model import condition_of, model_to_train
from .pictures import ENDLESS, Pictures, Row, parts, stacked
from .score import Score, score
from .signs import Validation, look_like_noise
from .store import Store, content_key, weights_hash
from .vae import from_unit, to_unit
from .world import WHOLE, Share

GRID = 12  # pictures of a sample grid
AT_ONCE = 256  # entries of a file of the cache
VALIDATED = 64  # pictures at most whose loss is looked at, held out and not
LEVELS_SEEN = 8  # noise levels at which
ENCODED = 8  # pictures or texts that are encoded together


@dataclass(frozen=True)
class Batch:
    """Rows of a step, on the processor."""

    x0: Tensor  # [B, C, h, w]
    eps: Tensor  # [B, C, h, w]
    sigma: Tensor  # [B]
    captions: tuple[str, ...]
    labels: tuple[str | None, ...]
    sizes: Tensor  # [B, 6] of the pictures and the windows, in pixels; see `TextTeller.cond`
    prior: Batch | None = None  # rows that keep the model what it is


class DenoisingStage:
    """Trains the U-Net; autoencoder and text encoders stay as they are."""

    levels: Uncertainty | None = None  # how noise levels are weighed, where that is learned

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        needs = condition_of(config)
        looked = (
            Pictures(config, step=1, needs=needs) if needs == "class" and not config.model.start else None
        )
        self.model = model_to_train(config, looked.classes if looked else (), device)
        self.classes = self.model.classes
        self.denoiser = Denoiser(self.model.unet, self.model.process, self.model.plan.prediction)
        self.cached = isinstance(self.model.codec, Latents)
        self.store = Store(config.out / "cache" / "latents")
        self.texts = Store(config.out / "cache" / "texts")
        self.drawn: Tensor | None = None  # the last samples, before they were decoded
        self._keys: dict[tuple[int, int], str] = {}
        codec = self.model.codec
        self.codec_hash = weights_hash([codec.vae]) if isinstance(codec, Latents) else ""
        self.text_hash = ""
        if self.model.teller is not None:
            self.text_hash = weights_hash([net for net, _ in self.model.teller.encoders])
        prior = self._prior_pictures(config.out / "prior") if config.prior.prompt else None
        step = self.model.factor
        self.pictures = Pictures(config, step=step, needs=needs, prior=prior, captioned=self.captioned)
        self._check_classes()
        self.players: dict[str, nn.Module] = self.trained()

    def _check_classes(self) -> None:
        """Raises UsageError for a class, of the pictures or of the sample grids, that the model does not know."""
        if self.model.condition == "class":
            for name in (*self.pictures.classes, *filter(None, self.config.model.prompts)):
                if name not in self.classes:
                    raise unknown("class", name, self.classes)

    @property
    def hears_anew(self) -> bool:
        """Whether the text encoders change, so that what they say cannot be kept."""
        return False

    def captioned(self, record: Record) -> Record:
        """A picture with what is told of it."""
        return record

    def trained(self) -> dict[str, nn.Module]:
        """What is trained, by name."""
        players: dict[str, nn.Module] = {"unet": self.model.unet.train()}
        if self.config.model.uncertainty:
            self.levels = Uncertainty().to(self.device)
            players["levels"] = self.levels
        return players

    # --- what is computed once ---

    def prepare(self, share: Share = WHOLE) -> Iterator[tuple[int, int]]:
        """Fill the caches with our share of what is missing; yields (done, in all) now and then."""
        views, captions = self._missing()
        total = len(views) + len(captions)
        mine = list(views)[share.part :: share.parts]
        for at in range(0, len(mine), AT_ONCE):
            some = mine[at : at + AT_ONCE]
            self.store.add({key: self._latent(*views[key]) for key in some})
            yield at + len(some), total
        texts = list(captions)[share.part :: share.parts]
        for group in parts(texts, AT_ONCE):
            self.texts.add(
                {key: entry for part in parts(group, ENCODED) for key, entry in self._heard(part, captions)}
            )
            yield len(mine) + len(group), total

    def prepare_step(self, step: int) -> tuple[int, int]:
        """Compute what one step needs and is not kept; the numbers of latents and of texts that were computed."""
        rows = self.pictures.rows(step, views=self.views)
        views = {self.key(row.picture, row.view): (row.picture, row.view) for row in rows if self.cached}
        latents = self.store.missing(views)
        captions: dict[str, str] = {}
        if self.model.teller is not None and not self.hears_anew:
            captions = {self.text_key(caption): caption for caption in {row.caption for row in rows}}
        texts = self.texts.missing(captions)
        if latents:
            self.store.add({key: self._latent(*views[key]) for key in latents})
        for group in parts(texts, ENCODED):
            self.texts.add(dict(self._heard(group, captions)))
        self.ready()
        return len(latents), len(texts)

    def ready(self) -> None:
        """After all processes prepared: find what they wrote."""
        self.store.refresh()
        self.texts.refresh()

    def _missing(self) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
        views: dict[str, tuple[int, int]] = {}
        if self.cached:
            everything = range(len(self.pictures.records))
            views = {self.key(i, v): (i, v) for i in everything for v in range(self.pictures.variants)}
            views = {key: views[key] for key in self.store.missing(views)}
        captions: dict[str, str] = {}
        if self.model.teller is not None and not self.hears_anew:
            said = {c for record in self.pictures.records for c in record.captions}
            captions = {self.text_key(c): c for c in sorted(said | {""} | set(self.prompts()))}
            captions = {key: captions[key] for key in self.texts.missing(captions)}
        return views, captions

    def key(self, picture: int, view: int) -> str:
        """Of a latent: the picture's bytes, the view and the autoencoder."""
        if (picture, view) not in self._keys:
            self._keys[picture, view] = content_key(self.codec_hash, *self.pictures.key(picture, view))
        return self._keys[picture, view]

    def text_key(self, caption: str) -> str:
        return content_key(self.text_hash, caption)

    @torch.no_grad()
    def _latent(self, picture: int, view: int) -> dict[str, Tensor]:
        looked = self.pictures.see(picture, view)
        image = to_unit(looked.pixels[None]).to(self.device)
        size = [*looked.original[::-1], *looked.corner[::-1], *looked.pixels.shape[:2]]
        return {"latent": self.model.codec.encode(image)[0].half().cpu(), "size": torch.tensor(size)}

    @torch.no_grad()
    def _heard(
        self, keys: Sequence[str], captions: dict[str, str]
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        assert self.model.teller is not None
        states, pooled = self.model.teller.states([captions[key] for key in keys])
        for i, key in enumerate(keys):
            entry = {"text": states[i].half().cpu()}
            yield key, entry if pooled is None else entry | {"pooled": pooled[i].half().cpu()}

    def _prior_pictures(self, folder: Path) -> list[Record]:
        """What the model draws of the prior's prompt before it is trained; drawn once."""
        prompt, count = self.config.prior.prompt, self.config.prior.pictures
        missing = [i for i in range(count) if not (folder / f"{i:05d}.png").exists()]
        for at in range(0, len(missing), ENCODED):
            some = missing[at : at + ENCODED]
            made = self.generate([prompt] * len(some), [self.config.seed + i for i in some])
            for i, pixels in zip(some, made, strict=True):
                with new_file(folder / f"{i:05d}.png", replace=True) as part_:
                    Image.fromarray(pixels).save(part_)
        return [Record(folder / f"{i:05d}.png", (prompt,)) for i in range(count)]

    # --- a step ---

    def batch(self, step: int, share: Share = WHOLE) -> Batch:
        batch = self.batch_of(self.pictures.rows(step, share, views=self.views))
        if not self.config.prior.prompt:
            return batch
        return replace(batch, prior=self.batch_of(self.pictures.prior_rows(step, share, views=self.views)))

    @property
    def views(self) -> int:
        """How many windows and mirrors of a picture are seen."""
        return self.pictures.variants if self.cached else ENDLESS

    def batch_of(self, rows: Sequence[Row]) -> Batch:
        """Pictures, noise and noise levels of some rows."""
        x0, sizes = self.clean([(row.picture, row.view) for row in rows])
        draws = [generator("noise", self.config.seed, row.slot) for row in rows]
        sigma = torch.cat([self._level(draw) for draw in draws]).float()
        eps = torch.stack([torch.randn(x.shape, generator=draw) for x, draw in zip(x0, draws, strict=True)])
        captions, labels = tuple(row.caption for row in rows), tuple(row.label for row in rows)
        return Batch(x0, eps, sigma, captions, labels, sizes)

    def clean(self, views: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Views of pictures of one bucket as the net works on them [B, C, h, w], and their sizes [B, 6]."""
        if self.cached:
            entries = [self.store[self.key(*view)] for view in views]
            return torch.stack([e["latent"].float() for e in entries]), torch.stack(
                [e["size"] for e in entries]
            )
        looked = [self.pictures.see(*view) for view in views]
        sizes = [[*one.original[::-1], *one.corner[::-1], *one.pixels.shape[:2]] for one in looked]
        return to_unit(stacked(looked)), torch.tensor(sizes)

    def _level(self, draw: torch.Generator) -> Tensor:
        settings = self.config.model
        if settings.levels == "uniform":
            return LEVELS["uniform"](self.model.process, 1, draw)
        knobs = {"mean": settings.level_mean, "std": settings.level_std}
        return LEVELS[settings.levels](self.model.process, 1, draw, **knobs)

    def told(self, captions: Sequence[str], labels: Sequence[str | None], sizes: Tensor) -> Cond:
        """What the net is told of rows."""
        if self.model.condition == "class":
            numbers = [len(self.classes) if name is None else self.classes.index(name) for name in labels]
            return Cond(label=torch.tensor(numbers, device=self.device))
        if self.model.teller is None:
            return Cond()
        keys = [self.text_key(caption) for caption in captions]
        if self.hears_anew or self.texts.missing(keys):
            return self.model.teller.cond(*self.model.teller.states(captions), sizes)
        entries = [self.texts[key] for key in keys]
        text = torch.stack([entry["text"].float() for entry in entries]).to(self.device)
        pooled = None
        if "pooled" in entries[0]:
            pooled = torch.stack([entry["pooled"].float() for entry in entries]).to(self.device)
        return self.model.teller.cond(text, pooled, sizes)

    def errors(self, batch: Batch) -> Tensor:
        """The weighted squared error of each row [B]."""
        x0, eps = (
            x.to(self.device).contiguous(memory_format=torch.channels_last) for x in (batch.x0, batch.eps)
        )
        cond = self.told(batch.captions, batch.labels, batch.sizes)
        weight = WEIGHTS[self.config.model.weight]
        return self.denoiser.loss(x0, eps, batch.sigma.to(self.device), cond, weight=weight)

    def losses(self, batch: Batch, step: int) -> Iterator[Loss]:
        error = self.errors(batch)
        sigma = batch.sigma.to(self.device)
        high = sigma > 1
        sides = {"high noise": error[high].detach(), "low noise": error[~high].detach()}
        weighed = error
        if self.levels is not None:  # the net and the weight are moved in turns, which comes to the same
            with torch.no_grad():  # called as a whole, for it may be kept in parts
                u = self.levels(torch.zeros_like(error), sigma)  # 0 / exp(u) + u
            weighed = error / u.exp()
        loss, parts = weighed.mean(), {k: v.mean() for k, v in sides.items() if len(v)}
        if batch.prior is not None:
            prior = self.errors(batch.prior).mean()
            loss, parts = loss + self.config.prior.weight * prior, parts | {"prior": prior.detach()}
        yield Loss(next(iter(self.players)), loss, parts)
        if self.levels is not None:
            yield Loss("levels", self.levels(error.detach(), sigma).mean())

    # --- how it does ---

    @torch.no_grad()
    def validate(self) -> Validation:
        """The loss of fixed pictures under fixed noise, each at one of `LEVELS_SEEN` noise levels."""
        split = self.pictures.split
        return Validation(self._losses_of(split.held_out), self._losses_of(split.train))

    def _losses_of(self, among: Sequence[int]) -> dict[float, float]:
        levels = self.model.process.quantile((torch.arange(LEVELS_SEEN) + 0.5) / LEVELS_SEEN)
        found: dict[float, list[float]] = {float(level): [] for level in levels}
        for number, picture in enumerate(self.pictures.some(among, VALIDATED)):
            sigma = levels[number % LEVELS_SEEN]
            x0, sizes = self.clean([(picture, 0)])
            eps = torch.randn(x0.shape, generator=generator("validation", number))
            record = self.pictures.records[picture]
            told = record.captions[:1] or ("",), (record.extra.get("class"),)
            error = self.errors(Batch(x0, eps, sigma[None].float(), *told, sizes))
            found[float(sigma)].append(float(error))
        return {sigma: sum(losses) / len(losses) for sigma, losses in found.items() if losses}

    def scored(self, count: int) -> Score | None:
        """How near up to `count` samples are to held-out pictures; None if too few are held out."""
        held, trained = (
            self.pictures.some(among, count)
            for among in (self.pictures.split.held_out, self.pictures.split.train)
        )
        if min(len(held), len(trained)) < FEWEST:
            return None
        made = [
            picture
            for some in parts(held, ENCODED)
            for picture in self.generate(
                [self._caption(i) for i in some], [self.config.seed + i for i in some]
            )
        ]
        real, seen = ([self.pictures.see(i, 0).pixels for i in side] for side in (held, trained))
        return score(real, made, seen)

    def _caption(self, picture: int) -> str:
        """What a sample beside a picture is told: its class or its first caption."""
        record = self.pictures.records[picture]
        if self.model.condition == "class":
            return str(record.extra["class"])
        return record.captions[0] if self.model.condition == "text" else ""

    def noisy(self) -> str:
        """A line if the last samples look like noise."""
        if self.drawn is None:
            return ""
        train = self.pictures.some(self.pictures.split.train, GRID)
        data = [self.clean([(picture, 0)])[0] for picture in train]
        return look_like_noise(self.drawn.cpu(), torch.cat([x for x in data if x.shape == data[0].shape]))

    # --- what it draws ---

    @property
    def guidance(self) -> float:
        """How strongly samples follow what is told, and what the model is shipped with."""
        return 1.0 if self.model.condition == "none" else self.config.model.guidance

    def prompts(self) -> tuple[str, ...]:
        """Of the sample grid."""
        if self.config.model.prompts:
            return self.config.model.prompts
        if self.model.condition == "class":
            return tuple(self.classes[i % len(self.classes)] for i in range(GRID))
        if self.model.condition == "none":
            return ("",) * GRID
        among = self.pictures.split.held_out or self.pictures.split.train
        chosen = self.pictures.some(among, GRID)
        return tuple(self.pictures.records[i].captions[0] for i in chosen)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], *, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Pictures uint8 [B, H, W, 3] from the nets as they are; prompts are captions or classes, "" is any."""
        width, height = size or (self.config.dataset.resolution // self.model.factor * self.model.factor,) * 2
        codec, plan = self.model.codec, self.model.plan
        sizes = torch.tensor([[height, width, 0, 0, height, width]] * len(prompts))
        cond = self.told(prompts, [prompt or None for prompt in prompts], sizes)
        null = self.told([""] * len(prompts), [None] * len(prompts), sizes)
        sigmas = sigma_grid(plan.grid, self.model.process, self.config.model.steps, **plan.grid_knobs)
        shape = (codec.channels, height // codec.factor, width // codec.factor)
        first = float(sigmas[0])
        noise = batch_noise(seeds, shape, self.device)
        x = noise(INITIAL) * (1 + first**2) ** 0.5
        for taken in SAMPLERS[plan.sampler](
            cfg(self.denoiser, self.guidance, null), x, sigmas, cond, noise=noise
        ):
            x = taken.x
        self.drawn = x
        return np.concatenate([from_unit(codec.decode(part)) for part in x.split(ENCODED)])

    def picture(self) -> Image.Image:
        prompts = self.prompts()
        made = self.generate(prompts, [self.config.seed + i for i in range(len(prompts))])
        across = min(4, len(made))
        made = np.concatenate([made, np.full((-len(made) % across, *made.shape[1:]), 255, np.uint8)])
        rows = [np.concatenate(list(made[i : i + across]), axis=1) for i in range(0, len(made), across)]
        return Image.fromarray(np.concatenate(rows, axis=0))

    def export(self, folder: Path) -> None:
        """Write the whole model."""
        self.model.write(folder, self.files(), dtype=torch.float16 if self.config.model.half else None)

    def files(self) -> dict[str, str | bytes]:
        """What a model's folder holds beside its weights."""
        defaults = {"num_inference_steps": self.config.model.steps, "guidance_scale": self.guidance}
        return {
            CARD: json.dumps(defaults, indent=2) + "\n",
            **card_files(self.config, self.pictures, self.prompts()),
        }
