"""What is trained: a net, the process it unlearns, what it is told, and the codec between it and pictures.

Either all new, as `[model]` and `[net]` of the configuration say it, or opened from a model that stands there. The
autoencoder and the text encoders stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..catalog import find_model
from ..codec import Codec, Latents, Pixels
from ..diffusion.grids import GRIDS
from ..diffusion.loss import LEVELS, WEIGHTS
from ..diffusion.prediction import PREDICTIONS
from ..diffusion.process import EDM, Flow, Process, VarianceExploding, VariancePreserving
from ..diffusion.samplers import SAMPLERS
from ..diffusion.types import Cond
from ..errors import UsageError, unknown
from ..formats.atomic import read_json
from ..formats.checkpoint import Checkpoint, assemble
from ..formats.folder import STEMS, write_folder
from ..formats.native import BACKBONES, NativeModel, backbone, is_native, read_native, write_native
from ..formats.opened import read_parts
from ..formats.scheduler import Plan
from ..formats.tensors import build, read_weights
from ..formats.tokenizer import Tokenizer
from ..nets import AutoencoderKL, Backbone, CLIPTextModel, UNet, VAEConfig, text_time
from ..nets.blocks import channels_last
from ..text import framed, pieces, places
from .config import TrainConfig
from .diffusion import quiet_start

TOLD_AS_TIME = 1000.0  # what nets are told for t = 1 of a flow, as in released models
OWN = (
    "process",
    "schedule",
    "zero_snr",
    "shift",
    "prediction",
    "condition",
    "vae",
    "text",
)  # of `model.start`


class TextTeller:
    """Captions -> `Cond`, many at a time; no weights in brackets, what does not fit is cut."""

    def __init__(
        self,
        encoders: Sequence[tuple[CLIPTextModel, Tokenizer]],
        *,
        pooled: bool,
        time_dim: int,
        learnt: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        """`learnt`: words with their vectors [n, D] for each encoder."""
        self.encoders, self.pooled, self.time_dim = tuple(encoders), pooled, time_dim
        self.learnt = dict(learnt or {})

    def learning(self, learnt: Mapping[str, Sequence[Tensor]]) -> TextTeller:
        """The same with words whose vectors may be learned."""
        return TextTeller(self.encoders, pooled=self.pooled, time_dim=self.time_dim, learnt=learnt)

    def states(self, captions: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """(states [B, L, D], vectors [B, P] where the net takes them)."""
        texts, pooled = [], None
        for number, (net, _) in enumerate(self.encoders):
            device = next(net.parameters()).device
            rows = [vectors[number] for vectors in self.learnt.values()]
            ids = torch.tensor([self.ids(caption, number) for caption in captions], device=device)
            said = net(ids, torch.cat(rows) if rows else None)
            texts.append(said.hidden[-2] if self.pooled else said.last)
            pooled = said.pooled if self.pooled else None
        return torch.cat(texts, dim=-1), pooled

    def cond(self, states: Tensor, pooled: Tensor | None, sizes: Tensor) -> Cond:
        """What the net is told; `sizes` [B, 6]: height and width before, top, left, height and width now."""
        if pooled is None:
            return Cond(text=states)
        return Cond(text=states, pooled=text_time(pooled, sizes.to(pooled), self.time_dim))

    def ids(self, caption: str, encoder: int = 0) -> list[int]:
        """How an encoder reads a caption; a word that is learned has ids beyond the vocabulary."""
        net, tokenizer = self.encoders[encoder]
        counts = {word: len(vectors[encoder]) for word, vectors in self.learnt.items()}
        known = places(counts, net.config.vocab_size)
        ids = [id_ for piece in pieces(tokenizer, caption, known) for id_ in piece]
        return framed(tokenizer, ids[: tokenizer.max_length - 2])


@dataclass
class Trained:
    """A model in training."""

    unet: Backbone  # a transformer goes by that name too
    plan: Plan
    codec: Codec
    condition: str  # none, class or text
    classes: tuple[str, ...] = ()
    teller: TextTeller | None = None
    checkpoint: Checkpoint | None = (
        None  # of which the U-Net is a part, where Stable Diffusion's layout holds it
    )
    text: tuple[CLIPTextModel, Tokenizer] | None = None  # where it does not

    @property
    def process(self) -> Process:
        return self.plan.process

    @property
    def factor(self) -> int:
        """What the sides of a picture must be multiples of."""
        return self.codec.factor * self.unet.config.multiple

    def write(self, folder: Path, files: Mapping[str, str | bytes], *, dtype: torch.dtype | None) -> None:
        """As a diffusers folder where that can hold it, else as one of ours; `Pipeline.load` opens both."""
        if self.checkpoint is not None:
            assert isinstance(self.unet, UNet)
            whole = replace(self.checkpoint, unet=self.unet, plan=self.plan)
            write_folder(folder, whole, dtype=dtype, files=files, replace=True)
            return
        vae = self.codec.vae if isinstance(self.codec, Latents) else None
        text, tokenizer = self.text if self.text is not None else (None, None)
        model = NativeModel(self.unet, self.plan, vae, text, tokenizer, self.classes)
        write_native(folder, model, dtype=dtype, files=files, replace=True)


def model_to_train(config: TrainConfig, classes: tuple[str, ...], device: torch.device) -> Trained:
    """The model that a configuration describes; raises UsageError for what does not go together."""
    settings = config.model
    for kind, name, known in (
        ("weight", settings.weight, WEIGHTS),
        ("levels", settings.levels, LEVELS),
        ("prediction", settings.prediction, PREDICTIONS),
        ("sampler", settings.sampler, SAMPLERS),
        ("grid", settings.grid, GRIDS),
    ):
        if name not in known:
            raise unknown(f"model.{kind}", name, known)
    if settings.uncertainty and config.stage != "model":
        raise UsageError(f"model.uncertainty is for the stage 'model', not for '{config.stage}'")
    return _opened(config, device) if settings.start else _fresh(config, classes, device)


def condition_of(config: TrainConfig) -> str:
    """What the model of a configuration is told, without opening its weights."""
    if not config.model.start:
        return config.model.condition
    folder = find_model(config.model.start)
    if not is_native(folder):
        return "text"
    unet, _ = backbone(folder)
    told_classes = (unet.num_class_embeds or 1) > 1  # a transformer without classes still has an "any"
    return "text" if unet.takes_text else "class" if told_classes else "none"


def _opened(config: TrainConfig, device: torch.device) -> Trained:
    """A model to go on with."""
    given = sorted(set(OWN) & config.model.model_fields_set)
    if given or config.net:
        key = f"model.{given[0]}" if given else "net"
        raise UsageError(f"{key} is given beside model.start, which says this itself; leave one of them out")
    folder = find_model(config.model.start)
    if is_native(folder):
        model = read_native(folder, device=device)
        codec: Codec = Latents(channels_last(model.vae)) if model.vae is not None else Pixels()
        told = "class" if model.classes else "text" if model.text_encoder is not None else "none"
        trained = Trained(channels_last(model.unet), model.plan, codec, told, model.classes)
        if model.text_encoder is not None and model.tokenizer is not None:
            trained.text = (model.text_encoder, model.tokenizer)
            trained.teller = TextTeller([trained.text], pooled=False, time_dim=0)
        return trained
    checkpoint = assemble(read_parts(folder), device=device)
    configs = checkpoint.configs
    if configs.inpainting:
        raise UsageError(
            f"{config.model.start} paints into pictures; training takes models that draw whole ones"
        )
    teller = TextTeller(
        list(checkpoint.encoders.values()),
        pooled=configs.sized > 0,
        time_dim=configs.unet.addition_time_embed_dim or 0,
    )
    codec = Latents(channels_last(checkpoint.vae))
    unet = channels_last(checkpoint.unet)
    return Trained(unet, checkpoint.plan, codec, "text", (), teller, replace(checkpoint, unet=unet))


def _fresh(config: TrainConfig, classes: tuple[str, ...], device: torch.device) -> Trained:
    """A new net, its last layers zero, around an autoencoder and a text encoder that are there."""
    settings = config.model
    plan = Plan(_process(config), settings.prediction, settings.sampler, {}, settings.grid, {})
    codec: Codec = Latents(open_autoencoder(settings.vae, device)) if settings.vae else Pixels()
    text = None
    if settings.condition == "text":
        if not settings.text:
            raise UsageError(
                "model.condition is 'text': model.text must name a model whose text encoder is used"
            )
        text = _text_encoder(settings.text, device)
    size = {"in_channels": codec.channels, "out_channels": codec.channels}
    size["sample_size"] = config.dataset.resolution // codec.factor
    unet = _backbone(config, size, text[0].config.hidden_size if text else 0, len(classes))
    unet = channels_last(unet.to(device))
    trained = Trained(unet, plan, codec, settings.condition, classes, text=text)
    if text is not None:
        trained.teller = TextTeller([text], pooled=False, time_dim=0)
        latent = isinstance(codec, Latents) and isinstance(plan.process, VariancePreserving)
        if latent and isinstance(unet, UNet):
            assert isinstance(codec, Latents)
            trained.checkpoint = Checkpoint(unet, codec.vae, *text, plan)
    return trained


def _backbone(config: TrainConfig, size: dict[str, int], text: int, classes: int) -> Backbone:
    """The net that `[net]` describes, of that `size`; it is told texts of so many channels, or so many classes."""
    given = dict(config.net)
    kind, condition = given.pop("kind", "unet"), config.model.condition
    keys: dict[str, Any] = dict(size)
    if kind == "unet":
        name = "UNet2DConditionModel"
        keys |= {"cross_attention_dim": text} if text else {"mid_block_type": "UNetMidBlock2D"}
        keys |= (
            {"num_class_embeds": classes + 1} if condition == "class" else {}
        )  # the last one stands for any
    elif kind == "dit" and text:
        name = "PixArtTransformer2DModel"
        width = given.get("num_attention_heads", 16) * given.get("attention_head_dim", 72)
        keys |= {"caption_channels": text, "cross_attention_dim": width}
    elif kind == "dit":
        name, keys["num_embeds_ada_norm"] = "DiTTransformer2DModel", classes
    else:
        raise unknown("net.kind", str(kind), ("unet", "dit"))
    if clash := sorted(keys.keys() & given.keys()):
        raise UsageError(f"net.{clash[0]} follows from [model] and [dataset]; leave it out")
    torch.manual_seed(config.seed)
    _, keys_of, net = BACKBONES[name]
    made = net(keys_of.from_dict(given | keys))
    if made.config.takes_text != bool(text):
        raise UsageError(
            "net: blocks that look at a text (CrossAttn...) need model.condition = 'text', and the reverse; "
            "AttnDownBlock2D and AttnUpBlock2D attend without one"
        )
    if isinstance(made, UNet):
        quiet_start(made)
    return made


def _process(config: TrainConfig) -> Process:
    settings = config.model
    if settings.process == "flow":
        return Flow(shift=settings.shift, told=TOLD_AS_TIME)
    if settings.process == "edm":
        return EDM(sigma_data=1.0 if settings.vae else 0.5)  # of latents, of pixels in [-1, 1]
    if settings.process == "variance_exploding":
        return VarianceExploding()
    return VariancePreserving(schedule=settings.schedule, zero_snr=settings.zero_snr)


def open_autoencoder(where: str, device: torch.device) -> AutoencoderKL:
    """That of a model, or of a `vae` folder alone."""
    folder = find_model(where)
    folder = folder / "vae" if (folder / "model_index.json").exists() else folder
    keys = VAEConfig.from_dict(read_json(folder / "config.json"))
    tensors, source = read_weights(folder, STEMS["vae"])
    return channels_last(build(lambda: AutoencoderKL(keys), tensors, where=source, device=device))


def _text_encoder(where: str, device: torch.device) -> tuple[CLIPTextModel, Tokenizer]:
    folder = find_model(where)
    if is_native(folder):
        model = read_native(folder, device=device)
        if model.text_encoder is None or model.tokenizer is None:
            raise UsageError(f"model.text: {where} has no text encoder")
        return model.text_encoder, model.tokenizer
    checkpoint = assemble(read_parts(folder), device=device)
    if checkpoint.configs.sized:
        raise UsageError(f"model.text: {where} has SDXL's pair of encoders; name a model with one")
    return checkpoint.text_encoder, checkpoint.tokenizer
