"""A Stable Diffusion checkpoint in memory, however it lay on disk.

`Parts` is what a folder or a single file holds: configurations, tokenizers, and tensors under the names of our nets,
still mapped from the disk; to convert is to move parts, so that no tensor changes its bytes. `Checkpoint` is the nets
that are built of them. Stable Diffusion 1 and 2 have one text encoder, SDXL two, its refiner the second of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..diffusion.process import Process
from ..errors import MezzotintError
from ..nets import AutoencoderKL, CLIPTextConfig, CLIPTextModel, UNet, UNetConfig, VAEConfig
from .scheduler import Plan
from .tensors import build
from .tokenizer import Tokenizer

POSITIONS = "position_ids"  # a table 0, 1, 2, ... that older programs store beside the weights
SIZES, SCORE = (
    6,
    5,
)  # numbers that SDXL is told beside the text: sizes and crop; its refiner: sizes and a score


@dataclass(frozen=True)
class Configs:
    """What a checkpoint says of itself, weights aside. `text_encoder` is the first that there is."""

    unet: UNetConfig
    vae: VAEConfig
    text_encoder: CLIPTextConfig
    plan: Plan
    index: Mapping[str, Any] = field(default_factory=dict)  # model_index.json
    text_encoder_2: CLIPTextConfig | None = None

    @property
    def encoders(self) -> dict[str, CLIPTextConfig]:
        """The text encoders by the names of their folders: that of the refiner is called the second."""
        if self.text_encoder_2 is not None:
            return {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}
        return {"text_encoder_2" if self.sized else "text_encoder": self.text_encoder}

    @property
    def sized(self) -> int:
        """How many numbers the U-Net is told beside the text: `SIZES`, `SCORE`, or 0."""
        if self.unet.addition_embed_type != "text_time":
            return 0
        last = self.text_encoder_2 or self.text_encoder
        width, each = self.unet.projection_class_embeddings_input_dim, self.unet.addition_time_embed_dim
        return ((width or 0) - last.projection_dim) // (each or 1)

    @property
    def zeros_for_empty(self) -> bool:
        """Whether guidance steers away from zeros, not from the states of an empty text, if nothing else is asked."""
        return bool(self.index.get("force_zeros_for_empty_prompt", self.sized == SIZES)) and self.sized > 0

    @property
    def inpainting(self) -> bool:
        """Whether the U-Net is given a mask and the masked picture beside the latents."""
        return self.unet.in_channels != self.vae.latent_channels

    def check(self, where: str) -> None:
        """Raises MezzotintError unless the components are made for each other."""
        unet, latents = self.unet, self.vae.latent_channels
        if unet.num_class_embeds or not unet.takes_text:
            raise MezzotintError(
                f"{where}: the U-Net looks at no text, or at a class; such a model has no text encoder"
            )
        width = sum(encoder.hidden_size for encoder in self.encoders.values())
        looks = {level.context_dim for level in unet.levels()}
        if looks != {width}:
            raise MezzotintError(
                f"{where}: the U-Net looks at texts of width {min(looks)}, the text encoder's is {width}; "
                "they are of different checkpoints"
            )
        if unet.out_channels != latents or unet.in_channels not in (latents, 2 * latents + 1):
            raise MezzotintError(
                f"{where}: the U-Net maps {unet.in_channels} channels to {unet.out_channels}, the autoencoder's "
                f"latents have {latents}; they are of different checkpoints"
            )
        if unet.addition_embed_type == "text_time" and self.sized not in (SIZES, SCORE):
            raise MezzotintError(
                f"{where}: the U-Net is told {self.sized} numbers beside the text; SDXL's is told {SIZES}, its "
                f"refiner's {SCORE}"
            )


@dataclass(frozen=True)
class Parts:
    """A checkpoint that is not built yet: `tensors` and `where` by component, `tokenizers` by text encoder."""

    configs: Configs
    tensors: Mapping[str, Mapping[str, Tensor]]
    tokenizers: Mapping[str, Tokenizer]
    where: Mapping[str, str]  # for messages
    rest: Mapping[str, Tensor] = field(default_factory=dict)  # what a single file holds and no component uses
    card: Mapping[str, Any] = field(
        default_factory=dict
    )  # what we say of a model beyond the format: steps, guidance


@dataclass(frozen=True)
class Checkpoint:
    """A text-to-image model in the layout of Stable Diffusion. `text_encoder` is the first that there is."""

    unet: UNet
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: Tokenizer
    plan: Plan
    index: Mapping[str, Any] = field(default_factory=dict)  # model_index.json, as it was read
    text_encoder_2: CLIPTextModel | None = None
    tokenizer_2: Tokenizer | None = None

    @property
    def process(self) -> Process:
        return self.plan.process

    @property
    def prediction(self) -> str:
        return self.plan.prediction

    @property
    def configs(self) -> Configs:
        second = self.text_encoder_2.config if self.text_encoder_2 is not None else None
        nets = self.unet.config, self.vae.config, self.text_encoder.config
        return Configs(*nets, self.plan, self.index, second)

    @property
    def encoders(self) -> dict[str, tuple[CLIPTextModel, Tokenizer]]:
        """Text encoders and their tokenizers by the names of their folders, as `Configs.encoders`."""
        pairs = [(self.text_encoder, self.tokenizer)]
        if self.text_encoder_2 is not None and self.tokenizer_2 is not None:
            pairs.append((self.text_encoder_2, self.tokenizer_2))
        return dict(zip(self.configs.encoders, pairs, strict=True))

    @property
    def parts(self) -> Parts:
        """The same, taken apart: nothing is copied."""
        encoders = self.encoders
        nets = {"unet": self.unet, "vae": self.vae, **{name: net for name, (net, _) in encoders.items()}}
        return Parts(
            self.configs,
            {name: net.state_dict() for name, net in nets.items()},
            {name: tokenizer for name, (_, tokenizer) in encoders.items()},
            dict.fromkeys(nets, "the checkpoint"),
        )


def assemble(
    parts: Parts, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Checkpoint:
    """The nets of a checkpoint in evaluation mode, their weights as `dtype` on `device`.

    Raises MezzotintError naming the component and the keys if weights and configurations do not fit.
    """
    configs = parts.configs

    def built(name: str, make: Any) -> Any:
        weights = {key: tensor for key, tensor in parts.tensors[name].items() if not key.endswith(POSITIONS)}
        return build(make, weights, where=parts.where[name], dtype=dtype, device=device)

    unet = built("unet", lambda: UNet(configs.unet))
    vae = built("vae", lambda: AutoencoderKL(configs.vae))
    encoders = [
        (built(name, lambda config=config: CLIPTextModel(config)), parts.tokenizers[name])
        for name, config in configs.encoders.items()
    ]
    (first, tokenizer), *more = encoders
    second, tokenizer_2 = more[0] if more else (None, None)
    return Checkpoint(unet, vae, first, tokenizer, configs.plan, configs.index, second, tokenizer_2)
