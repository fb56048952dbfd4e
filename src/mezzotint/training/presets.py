"""Settings to begin with, by name: what a kind of training usually wants, so that a configuration says only the rest.

`preset = "lora"` in a configuration, or `mezzotint train --preset lora --set data=... --set out=...` without one. What
the user sets goes before a preset's values, key by key. A run stores the settings that resulted and not the preset's
name, so that checkpoints are known by what was done, whatever a later version thinks of as usual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError, unknown

Settings = Mapping[str, Any]  # sections and keys as in TOML


@dataclass(frozen=True)
class Preset:
    """Settings, what they are for, and what the user has to add beside `data` and `out`."""

    about: str
    settings: Settings
    needs: Mapping[str, str]  # key -> what to give there


_BLOCKS = {
    "layers_per_block": 1,
    "attention_head_dim": 32,
    "norm_num_groups": 4,
    "resnet_time_scale_shift": "scale_shift",
}
_MUON = {
    "optimiser": "muon",
    "lr": 1e-3,
    "warmup": 100,
    "decay": 0.4,
    "ema": 0.998,
    "weight_decay": 0.01,
    "spike": 20.0,
}
_EDM = {
    "process": "edm",
    "prediction": "edm",
    "weight": "edm",
    "levels": "lognormal",
    "level_mean": -1.2,
    "level_std": 1.2,
    "steps": 18,
}
_START = {"model.start": "the model to begin with: its name, folder or file"}

PRESETS: dict[str, Preset] = {
    "scratch-small": Preset(
        "a small model of pixels from nothing, told nothing; any folder of pictures, 64 pixels",
        {
            "stage": "model",
            "dataset": {"resolution": 64, "flip": True},
            "model": {"condition": "none", **_EDM},
            "net": {
                "block_out_channels": [64, 128, 128, 192],
                "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
                "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
                **_BLOCKS,
            },
            "optim": {"steps": 20_000, "batch": 32, **_MUON},
        },
        {},
    ),
    "class-conditional": Preset(
        "a model of pixels from nothing, told classes; a folder for each class, 32 pixels",
        {
            "stage": "model",
            "dataset": {"resolution": 32, "flip": True},
            "model": {"condition": "class", "guidance": 1.5, **_EDM},
            "net": {
                "block_out_channels": [64, 128, 192],
                "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
                "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
                **_BLOCKS,
            },
            "optim": {"steps": 6_000, "batch": 64, **_MUON},
        },
        {},
    ),
    "finetune": Preset(
        "all weights of a text-to-image model, on captioned pictures",
        {
            "stage": "model",
            "dataset": {"resolution": 512, "flip": True, "dropout": 0.1},
            "model": {"weight": "min_snr"},
            "optim": {
                "steps": 10_000,
                "batch": 16,
                "accumulate": 4,
                "lr": 1e-5,
                "weight_decay": 0.01,
                "warmup": 500,
                "ema": 0.9995,
                "spike": 20.0,
            },
        },
        _START,
    ),
    "lora": Preset(
        "a LoRA: a style or a thing as a small file beside a text-to-image model",
        {
            "stage": "lora",
            "dataset": {"resolution": 512, "flip": True, "dropout": 0.05, "held_out": 0.0},
            "model": {"weight": "min_snr"},
            "lora": {"rank": 16, "alpha": 16.0},
            "optim": {"steps": 1_500, "batch": 4, "lr": 1e-4, "warmup": 50, "ema": 0.99, "spike": 20.0},
            "run": {"checkpoint": 250, "pictures": 250},
        },
        _START,
    ),
    "dreambooth": Preset(
        "one thing from three to ten pictures, with the model's own pictures of its kind so that these stay",
        {
            "stage": "model",
            "dataset": {"resolution": 512, "aspect": 1.0, "dropout": 0.0, "held_out": 0.0},
            "model": {"weight": "simple"},
            "prior": {"pictures": 200, "weight": 1.0},
            "optim": {"steps": 800, "batch": 2, "lr": 2e-6, "warmup": 0, "decay": 0.0, "ema": 0.99},
            "run": {"checkpoint": 200, "pictures": 200},
        },
        {
            **_START,
            "dataset.caption": "what to call the thing: 'a zorple dog'",
            "prior.prompt": "what it is one of: 'a dog'",
        },
    ),
    "textual-inversion": Preset(
        "a new word for a thing or a style, a few kilobytes; the model stays as it is",
        {
            "stage": "embedding",
            "dataset": {"resolution": 512, "aspect": 1.0, "dropout": 0.0, "held_out": 0.0, "crop": "random"},
            "model": {"weight": "simple"},
            "embedding": {"vectors": 4},
            "optim": {"steps": 2_000, "batch": 4, "lr": 5e-3, "warmup": 50, "ema": 0.98},
            "run": {"checkpoint": 250, "pictures": 250},
        },
        {
            **_START,
            "embedding.word": "the new word: '<zorple>'",
            "embedding.start": "a word that is near in meaning",
        },
    ),
    "vae": Preset(
        "an autoencoder of captioned emoji, as the embedded model has it: pictures to latents and back",
        {
            "stage": "vae",
            "net": {
                "latent_channels": 8,
                "block_out_channels": [32, 64, 96, 96],
                "down_block_types": ["DownEncoderBlock2D"] * 4,
                "up_block_types": ["UpDecoderBlock2D"] * 4,
                "layers_per_block": 1,
                "norm_num_groups": 8,
                "mid_block_add_attention": False,
            },
            "optim": {"steps": 10_000, "batch": 32, **_MUON},
        },
        {},
    ),
    "transformer": Preset(
        "a transformer on patches (DiT) instead of a U-Net, of pixels and told classes; a folder for each class",
        {
            "stage": "model",
            "dataset": {"resolution": 32, "flip": True},
            "model": {
                "condition": "class",
                "process": "flow",
                "prediction": "flow",
                "weight": "simple",
                "levels": "logit_normal",
                "guidance": 1.5,
                "steps": 20,
            },
            "net": {
                "kind": "dit",
                "num_attention_heads": 6,
                "attention_head_dim": 32,
                "num_layers": 6,
                "patch_size": 4,
            },
            "optim": {"steps": 8_000, "batch": 64, **_MUON},
        },
        {},
    ),
    "features": Preset(
        "eyes for the training of autoencoders: what is alike, learned from pictures without labels",
        {
            "stage": "features",
            "dataset": {"resolution": 64, "aspect": 1.0},
            "net": {"widths": [32, 64, 128, 256]},
            "optim": {"steps": 5_000, "batch": 128, "lr": 2e-3, "warmup": 100, "decay": 0.4, "ema": 0.995},
        },
        {},
    ),
    "autoencoder": Preset(
        "an autoencoder of any pictures, 8 times smaller, sharpened by a critic in the last part",
        {
            "stage": "autoencoder",
            "dataset": {"resolution": 256, "crop": "random", "flip": True},
            "net": {
                "latent_channels": 4,
                "block_out_channels": [64, 128, 192, 192],
                "down_block_types": ["DownEncoderBlock2D"] * 4,
                "up_block_types": ["UpDecoderBlock2D"] * 4,
                "layers_per_block": 1,
                "norm_num_groups": 16,
                "mid_block_add_attention": False,
                "force_upcast": False,
            },
            "vae": {"crop": 128, "adversarial": 0.3, "adversarial_from": 0.6},
            "optim": {"steps": 50_000, "batch": 16, "lr": 4e-4, "warmup": 200, "decay": 0.4, "ema": 0.999},
        },
        {"vae.features": "the folder that a run of the preset 'features' wrote"},
    ),
    "decoder": Preset(
        "a sharper decoder for a model that there is: its latents, and so everything else of it, stay as they are",
        {
            "stage": "autoencoder",
            "dataset": {"resolution": 512, "crop": "random", "flip": True},
            "vae": {
                "crop": 256,
                "decoder_only": True,
                "equivariance": 0.0,
                "adversarial": 0.3,
                "adversarial_from": 0.3,
            },
            "optim": {"steps": 10_000, "batch": 8, "lr": 5e-5, "warmup": 200, "decay": 0.4, "ema": 0.999},
        },
        {"vae.start": "the model whose decoder it is"},
    ),
    "consistency": Preset(
        "few steps instead of many: tunes a model to draw in one to four, guidance included",
        {
            "stage": "consistency",
            "dataset": {"resolution": 512, "dropout": 0.0},
            "model": {"levels": "uniform", "steps": 2},
            "consistency": {"doublings": 8, "guidance": 4.0},
            "optim": {"steps": 4_000, "batch": 16, "lr": 2e-5, "warmup": 100, "ema": 0.995, "spike": 20.0},
            "run": {"checkpoint": 250, "pictures": 500},
        },
        _START,
    ),
}


def with_preset(given: Settings, name: str) -> dict[str, Any]:
    """What was `given`, and where it says nothing, the preset's values.

    Raises UsageError for a preset that does not exist and for a key that it needs and that is not given.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    for key, what in PRESETS[name].needs.items():
        if not _at(given, key):
            raise UsageError(f"preset '{name}' needs {key}: {what}")
    return _merged(PRESETS[name].settings, given)


def _at(settings: Settings, key: str) -> Any:
    section, _, name = key.partition(".")
    found = settings.get(section)
    return found.get(name) if isinstance(found, Mapping) else None


def _merged(below: Settings, above: Settings) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        inner = both.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            both[key] = _merged(inner, value)
        else:
            both[key] = value
    return both
