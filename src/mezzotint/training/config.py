"""What `mezzotint train CONFIG.toml` reads: one schema for every stage.

A configuration is TOML; each key is declared here with its default, its unit and its reason. Unknown keys and
impossible values are one-line errors. The whole of it is stored beside the checkpoints, and a run resumes only
under the configuration that it began with (the number of steps may grow).
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import MezzotintError, UsageError, unknown
from ..formats.atomic import read_json
from .presets import with_preset


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Optim(Section):
    """Warm-up, a constant rate, and a last part in which it falls to zero as 1 - sqrt."""

    steps: int = Field(gt=0)
    batch: int = Field(gt=0)
    lr: float = Field(gt=0)
    optimiser: Literal["adamw", "muon"] = "adamw"  # muon: for matrices, beside AdamW for the rest
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(200, ge=0, description="steps over which the rate rises from 0")
    decay: float = Field(
        0.3, ge=0, le=1, description="share of the run at its end in which the rate falls to 0"
    )
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(0.999, ge=0, lt=1, description="decay per step of the average of the weights")
    posthoc: tuple[float, ...] = Field(
        (),
        description="relative lengths of averages that are kept besides, of which `mezzotint train ema` makes any "
        "other length after the run: [0.05, 0.1] reach from 0.03 to 0.2; two more copies of the weights in memory",
    )
    accumulate: int = Field(1, gt=0, description="parts that a batch is computed in, one after the other")
    spike: float = Field(
        0.0,
        ge=0,
        description="a step is skipped whose gradient is this many times the median's norm; 0: none",
    )


class Run(Section):
    """How the loop keeps house."""

    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = (
        "auto"  # auto: whichever a short measurement finds faster
    )
    sharding: Literal["none", "fsdp"] = Field(
        "none", description="fsdp: each of several processes keeps a part of the weights, not a copy"
    )
    checkpoint: int = Field(500, gt=0, description="steps between checkpoints")
    keep: int = Field(2, gt=0, description="checkpoints kept")
    log: int = Field(50, gt=0, description="steps between lines in the log")
    snapshots: int = Field(
        500, gt=0, description="steps between stored ones of optim.posthoc; two dozen in a run are enough"
    )
    pictures: int = Field(1000, gt=0, description="steps between sample grids")
    score: int = Field(
        0,
        ge=0,
        description="pictures drawn beside each sample grid to be scored against as many held-out ones; 0: none, "
        "200 say something",
    )
    wandb: str = Field("", description="a project of Weights & Biases that is told too; empty: none")
    validate_every: int = Field(500, gt=0, description="steps between looks at held-out pictures")
    workers: int = Field(1, gt=0, description="batches that are made ready ahead, each in a thread")
    patience: int = Field(3, gt=0, description="skipped steps in a row after which the run goes back")
    retreats: int = Field(3, ge=0, description="times that a run goes back before it stops")


class VAE(Section):
    """The autoencoder: L1 and gradient errors, a light KL term, latents that turn and scale with the picture.

    From `perceptual` on for the stage `autoencoder` alone, which takes any pictures.
    """

    crop: int = Field(64, gt=0, description="side in pixels of the crops it is trained on")
    kl: float = Field(1e-5, ge=0)
    edges: float = Field(
        1.0, ge=0, description="weight of the error of the picture's gradient, at three scales"
    )
    squares: float = Field(
        0.0, ge=0, description="weight of the squared error, in which a wrong hue outweighs many soft edges"
    )
    equivariance: float = Field(
        0.5, ge=0, le=1, description="share of steps on transformed latents, in the first half"
    )
    start: Path | None = None  # a folder to take the first weights from; for `autoencoder` a model's name too
    perceptual: float = Field(1.0, ge=0, description="weight of the unlikeness that `features` sees")
    features: Path | None = None  # the folder that the stage `features` wrote; no such part if not given
    adversarial: float = Field(
        0.0, ge=0, description="weight of the critic's part, which is balanced; 0: none"
    )
    adversarial_from: float = Field(0.5, ge=0, lt=1, description="share of the run after which it joins")
    critic: int = Field(64, gt=0, multiple_of=8, description="channels of the critic's first map")
    decoder_only: bool = False  # latents stay as they are, so that models of them go on


class Text(Section):
    """The text encoder: its states are pulled to a sentence encoder's embeddings of text and noun phrases."""

    vocabulary: int = Field(8192, gt=600)
    length: int = Field(32, gt=4, description="tokens a prompt may have, start and end included")
    phrases: float = Field(1.0, ge=0, description="weight of the phrases inside a caption")
    words: float = Field(
        0.6, ge=0, le=1, description="share of dictionary entries in a batch; captions otherwise"
    )
    dictionary: Path = Path("/usr/share/wordnet")
    define: bool = Field(False, description="let the teacher read a word's definition beside the word")
    recall: float = Field(
        0.0, ge=0, description="weight of which names a state calls to mind, as the teacher's does"
    )
    keep: float = Field(
        0.0, ge=0, description="weight of staying with the states of `start` for texts that have pictures"
    )
    start: Path | None = None  # a folder to take the encoder's first weights from


class Diffusion(Section):
    """The U-Net, on latents of composed scenes and on states of their captions."""

    vae: Path
    text: Path
    prediction: str = "v_prediction"
    weight: str = "min_snr"
    levels: str = "uniform"
    level_mean: float = 0.0
    level_std: float = 1.0
    pool: int = Field(16384, gt=0, description="scenes composed and encoded at a time")
    reuse: int = Field(8, gt=0, description="times that each of them is used before the next pool")
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    plain: float = Field(0.5, ge=0, le=1, description="share of scenes that are one thing alone")
    pairs: float = Field(0.25, ge=0, le=1, description="share of scenes of two things")
    guidance: float = 4.0  # of the sample grids, and the default that is shipped
    start: Path | None = None  # a folder to take the first weights of the U-Net from


class Dataset(Section):
    """Which pictures there are, and how they are looked at."""

    layout: str = "auto"  # metadata, coco, sidecar, classes, plain, shards, table
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="of tables: which is image, caption, class; picked by type if not given",
    )
    resolution: int = Field(64, gt=0, description="side of the square that has as many pixels as a picture")
    aspect: float = Field(2.0, ge=1, description="widest bucket, as width over height; 1: squares alone")
    crop: Literal["centre", "random"] = "centre"  # where the window is that a bucket cuts out
    flip: bool = False  # mirrored half of the time
    views: int = Field(
        4, gt=0, description="different windows and mirrors of a picture, where they are cached"
    )
    captions: Literal["first", "random"] = "random"  # which of a picture's captions
    caption: str = ""  # of pictures that have none of their own
    dropout: float = Field(0.1, ge=0, lt=1, description="share of captions or classes that are not told")
    held_out: float = Field(0.02, ge=0, lt=1, description="share of the pictures that is never trained on")
    background: tuple[int, int, int] = (255, 255, 255)  # behind what is transparent
    memory: float = Field(1.0, ge=0, description="GiB of decoded pictures that may be kept in memory")
    window: int = Field(4096, gt=0, description="pictures in shards that are shuffled among one another")
    lanes: int = Field(8, gt=0, description="places in the shards at which pictures are read side by side")
    damaged: Literal["stop", "skip"] = "stop"  # what to do about shards and samples that cannot be read
    download: bool = False  # shards at a URL may be fetched; by an opener of Python's, or of fsspec
    shelf: float = Field(10.0, gt=0, description="GiB of fetched shards that are kept in out/cache/shelf")


class Model(Section):
    """What is trained: from random weights as said here, or from `start`, which says all this itself."""

    start: str = ""  # a model's name or path; then process, prediction and condition are its own
    condition: Literal["none", "class", "text"] = "text"
    vae: str = ""  # a model, or a vae folder, whose latents it works on; pixels if not given
    text: str = ""  # a model whose text encoder it listens to
    process: Literal["variance_preserving", "variance_exploding", "edm", "flow"] = "variance_preserving"
    schedule: str = "scaled_linear"  # of variance_preserving
    zero_snr: bool = False
    shift: float = Field(1.0, gt=0, description="of flow: towards noise, for large pictures")
    prediction: str = "v_prediction"
    weight: str = "min_snr"
    uncertainty: bool = (
        False  # and over that a weight that is learned, so that every noise level has the same say
    )
    levels: str = "uniform"
    level_mean: float = 0.0
    level_std: float = 1.0
    guidance: float = Field(3.0, ge=0, description="of the sample grids, and the default that is shipped")
    sampler: str = "dpmpp_2m"
    grid: str = "karras"
    steps: int = Field(20, gt=0, description="of the sample grids, and the default that is shipped")
    prompts: tuple[str, ...] = ()  # of the sample grids; captions or classes of the data if not given
    half: bool = True  # the result's weights are stored as float16


class Lora(Section):
    """Low-rank changes (Hu et al. 2021): W x + (alpha / rank) B A x, A and B learned."""

    rank: int = Field(8, gt=0)
    alpha: float = Field(8.0, gt=0)
    unet: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")  # ends of the names of layers
    text_encoder: tuple[str, ...] = ()  # for instance q_proj, k_proj, v_proj, out_proj
    dialect: Literal["diffusers", "kohya"] = "diffusers"  # of the file that is written


class Embedding(Section):
    """A new word (textual inversion, Gal et al. 2022): its vectors are learned and nothing else."""

    word: str = ""  # that the model does not know, for instance <zorple>
    vectors: int = Field(
        1, gt=0, description="how many the word stands for: more hold more, and are heard less"
    )
    start: str = ""  # words whose vectors it begins as; vectors like any other's if not given
    templates: Literal["object", "style", "own"] | tuple[str, ...] = (
        "object"  # captions, {} for the word and {caption} for the picture's own; own: these, which must name it
    )


class Prior(Section):
    """Prior preservation (DreamBooth, Ruiz et al. 2022): other pictures of the kind, so that it is not forgotten."""

    prompt: str = ""  # of the kind, "a dog"; empty: no prior
    pictures: int = Field(100, gt=0, description="how many the model itself draws before it is trained")
    weight: float = Field(1.0, gt=0)


class Consistency(Section):
    """Few steps instead of many (Geng et al. 2024)."""

    doublings: int = Field(8, gt=0, description="times that the gap between the two noise levels is halved")
    guidance: float = Field(1.0, ge=0, description="that the tuned model has within itself; 1: none")


class TrainConfig(Section):
    """One run of one stage."""

    stage: Literal[
        "vae", "text", "diffusion", "model", "lora", "embedding", "consistency", "features", "autoencoder"
    ]
    data: Path
    out: Path
    seed: int = 0
    net: dict[str, Any] = Field(
        default_factory=dict
    )  # keys of the net's own configuration; kind: unet or dit
    optim: Optim
    run: Run = Run()
    vae: VAE = VAE()
    text: Text = Text()
    diffusion: Diffusion | None = None
    dataset: Dataset = Dataset()
    model: Model = Model()
    lora: Lora = Lora()
    embedding: Embedding = Embedding()
    prior: Prior = Prior()
    consistency: Consistency = Consistency()


SECTIONS: dict[str, type[Section]] = {
    "optim": Optim,
    "run": Run,
    "vae": VAE,
    "text": Text,
    "diffusion": Diffusion,
    "dataset": Dataset,
    "model": Model,
    "lora": Lora,
    "embedding": Embedding,
    "prior": Prior,
    "consistency": Consistency,
}


def read_config(
    path: Path | None, overrides: list[str] | None = None, *, preset: str | None = None
) -> TrainConfig:
    """The configuration in a TOML file, with `a.b=value` overrides, on top of a preset (`presets.py`) if there is one.

    `path` may be None beside a `preset`, which goes before the file's own. Raises UsageError naming the key that is
    wrong.
    """
    raw = _read(path)
    for override in overrides or []:
        _override(raw, override)
    own = raw.pop("preset", None)
    chosen = own if preset is None else preset
    where = str(path) if path is not None else f"preset '{chosen}'"
    if path is None and chosen is None:
        raise UsageError("name a configuration, or a preset with --preset (--presets lists them)")
    if chosen is not None:
        raw = with_preset(raw, str(chosen))
    try:
        return TrainConfig.model_validate(raw)
    except ValidationError as error:
        raise _explained(error, where) from error


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path} is missing; give the path of a training configuration") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise MezzotintError(f"{path} is not readable TOML: {error}") from error


def read_run(folder: Path) -> TrainConfig:
    """The configuration that a run in `folder` stored; MezzotintError if there is no run."""
    stored = read_json(folder / "config.json")
    try:
        return TrainConfig.model_validate(stored | {"out": folder})
    except ValidationError as error:
        raise MezzotintError(f"{folder / 'config.json'} is no configuration of a run") from error


def _override(raw: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign:
        raise UsageError(f"--set {override}: write it as section.key=value")
    *sections, last = key.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise UsageError(f"--set {override}: '{section}' is a value and has no keys; set {section}=value")
    try:
        raw[last] = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        raw[last] = value


def _explained(error: ValidationError, where: str) -> UsageError:
    """The first thing that pydantic found, in one line."""
    first = error.errors()[0]
    *sections, last = (str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        model = SECTIONS[sections[0]] if sections else TrainConfig
        known = [".".join((*sections, key)) for key in model.model_fields] + ([] if sections else ["preset"])
        return UsageError(f"{where}: {unknown('key', '.'.join((*sections, last)), known)}")
    return UsageError(f"{where}: {'.'.join((*sections, last))}: {first['msg'].lower()}")
