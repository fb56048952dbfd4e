"""From a request to pictures: denoiser, codec and text encoder of one model, and the one loop that uses them.

    settle -> task states a problem -> sampler yields steps -> codec decodes -> picture with its recipe

Down once; pictures stream up. What happens on the way is an iterator of events, and whoever closes it stops the work.
Picture i is the one that seed + i makes alone; on a processor that holds to the last bit (see `exact.py`).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from . import __version__
from .catalog import Defaults, content_hash, find_model, model_name, read_defaults
from .codec import Codec, Latents, Pixels
from .diffusion.denoiser import Denoiser
from .diffusion.grids import GRIDS
from .diffusion.noise import Draws, batch_noise
from .diffusion.samplers import SAMPLERS
from .diffusion.types import Net, Step
from .engine import realiser
from .errors import MezzotintError, UsageError, unknown
from .exact import Trials
from .formats.checkpoint import Configs, assemble
from .formats.image import to_image
from .formats.native import NativeConfigs, is_native, read_native
from .formats.opened import read_parts
from .formats.scheduler import Plan
from .labels import LabelEncoder
from .mark import marked
from .memory import fitting
from .nets import AutoencoderKL, UNetConfig
from .nets.blocks import channels_last
from .nets.layers import frozen
from .precision import chosen, name_of
from .prompt import conjuncts, tags, texts_of
from .request import Request, Settled, replayable
from .tasks import TASKS
from .tasks.canvas import area
from .tasks.problem import Problem, itself, prepared, solve
from .text import Encoder, TextEncoder
from .told import STATES, Told, heard
from .wardrobe import Wardrobe

TOGETHER = 8  # pictures at most that are drawn at a time
SMALL = 8192  # elements per channel that a batch may have on a processor: beyond, it costs memory and gains nothing
SEVERAL = {"prompt_to", "source_prompt"}  # fields of tasks that hear other texts than the prompt
MOST_PARTS = 8  # of a prompt with AND: each costs an evaluation of the net at every step
LARGEST = 8  # times the size that the model was made for, in width and in height
FRESH_SEEDS = 2**32  # short enough to be typed again


@dataclass(frozen=True)
class Progress:
    """One step of the sampler on some of a request's pictures."""

    first: int  # number of the first of these pictures
    count: int  # how many of them are drawn together
    step: int  # 1 .. steps
    steps: int
    start: float  # noise level before the first step
    sigma: float  # noise level that is reached
    look: Callable[[], list[Image.Image]] = field(repr=False)  # what the model sees in the noise; decodes
    state: Callable[[], list[Image.Image]] = field(
        repr=False
    )  # the noisy state as the net is shown it; decodes


@dataclass(frozen=True)
class Picture:
    """A finished picture and all that is needed to make it again."""

    number: int  # in the request
    image: Image.Image
    recipe: dict[str, Any]

    @property
    def seed(self) -> int:
        return int(self.recipe["seed"])


Event = Progress | Picture


@dataclass(frozen=True)
class Pipeline:
    """A model that is ready to draw."""

    name: str
    folder: Path
    denoiser: Denoiser
    codec: Codec
    encoder: Encoder
    plan: Plan
    configs: Configs | NativeConfigs
    defaults: Defaults
    device: torch.device
    wardrobe: Wardrobe = field(repr=False)
    # how nets compute that are put on: by themselves, or in a service's lane
    share: Callable[[Net], Net] = field(default=lambda net: net, repr=False)
    precision: str = "float32"  # what the nets compute in
    engine: str = "torch"  # who computes the denoiser's net; one of `engine.ENGINES`
    trials: Trials = field(default_factory=dict, repr=False)  # see `exact.tried`
    read: dict[str, str] = field(default_factory=dict, repr=False)  # of the model's files; see `fingerprint`
    draws: Draws = field(default=batch_noise, repr=False)  # seeds of pictures -> their noise
    restated: Callable[[Problem], Problem] = field(
        default=itself, repr=False
    )  # what is made of a task's problem
    states: Mapping[str, str] = field(default_factory=dict)  # of texts, given by `hearing`: name -> SHA-256

    @classmethod
    def load(
        cls,
        model: str | Path = "emoji",
        *,
        device: str = "auto",
        precision: str = "auto",
        engine: str = "torch",
        variant: str | None = None,
        prediction: str | None = None,
        download: bool = False,
        revision: str = "main",
        extras: Sequence[Path | str] = (),
    ) -> Pipeline:
        """Open a model: an embedded one by name, a diffusers folder or a single file by path, one in the Hub's cache.

        `device`: a torch device, or "auto" for the accelerator if there is one. `precision`: float32, bfloat16 or
        float16, or "auto": float32 for small models, for large ones what the device does fast. `engine`: who computes
        the U-Net: torch, openvino, or openvino-int8 (weights in eight bits). `variant` ("fp16") picks among a folder's
        weights, `prediction` outranks what a single file says. Nothing is fetched unless `download` allows it.
        `extras`: folders in which LoRAs and embeddings are found by name, before those of the environment variable
        MEZZOTINT_MODELS. Raises UsageError for an unknown model, precision or engine, MezzotintError naming the file
        for one that is incomplete, damaged, or of a kind that is not known.
        """
        folder = find_model(model, download=download, revision=revision)
        where = _device(device)
        if is_native(folder):
            return cls._native(folder, where, precision, engine, extras)
        parts = read_parts(folder, variant=variant, prediction=prediction)
        parameters = sum(tensor.numel() for tensor in parts.tensors["unet"].values())
        dtype = chosen(precision, where, parameters)
        realised = realiser(engine, name_of(dtype), where)
        checkpoint = assemble(parts, dtype=dtype, device=where)
        del parts  # and with it the pages of its files
        configs = checkpoint.configs
        unet, vae = frozen(channels_last(checkpoint.unet)), _autoencoder(checkpoint.vae, dtype)
        encoder = TextEncoder(
            list(checkpoint.encoders.values()),
            where,
            pooled=configs.sized > 0,
            zeros_for_empty=configs.zeros_for_empty,
        )
        wardrobe = Wardrobe(unet, encoder, list(checkpoint.encoders), extras, realised)
        return cls(
            name=model_name(folder),
            folder=folder,
            denoiser=Denoiser(wardrobe.net, checkpoint.process, checkpoint.prediction),
            codec=Latents(vae),
            encoder=encoder,
            configs=configs,
            plan=checkpoint.plan,
            defaults=read_defaults(folder, unet.config, vae.config, checkpoint.plan),
            device=where,
            precision=name_of(dtype),
            engine=engine,
            wardrobe=wardrobe,
        )

    @classmethod
    def _native(
        cls,
        folder: Path,
        device: torch.device,
        precision: str,
        engine: str,
        extras: Sequence[Path | str],
    ) -> Pipeline:
        """A model that the layout of Stable Diffusion has no words for."""
        model = read_native(folder, device=device)
        dtype = chosen(precision, device, sum(weight.numel() for weight in model.unet.parameters()))
        realised = realiser(engine, name_of(dtype), device)
        unet = frozen(channels_last(model.unet.to(dtype)))
        codec = Latents(_autoencoder(model.vae, dtype)) if model.vae is not None else Pixels()
        encoder: Encoder = LabelEncoder(model.classes, device)
        names: list[str] = []
        if model.text_encoder is not None and model.tokenizer is not None:
            encoder, names = TextEncoder([(model.text_encoder, model.tokenizer)], device), ["text_encoder"]
        wardrobe = Wardrobe(unet, encoder, names, extras, realised)
        return cls(
            name=folder.name,
            folder=folder,
            denoiser=Denoiser(wardrobe.net, model.plan.process, model.plan.prediction),
            codec=codec,
            encoder=encoder,
            configs=model.configs,
            plan=model.plan,
            defaults=read_defaults(folder, model.unet.config, codec, model.plan),
            device=device,
            precision=name_of(dtype),
            engine=engine,
            wardrobe=wardrobe,
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model's files, read once for all pipelines made of this one: what a recipe knows it by."""
        if "sha256" not in self.read:
            self.read["sha256"] = content_hash(self.folder)
        return self.read["sha256"]

    @property
    def exact(self) -> bool:
        """Whether a batch is held to the last bit: on processors, in float32."""
        return self.device.type == "cpu" and self.precision == "float32"

    def __call__(self, prompt: str = "", **fields: Any) -> list[Image.Image]:
        """The pictures of a prompt; `fields`: those of `Request` and of `hearing`. Raises as `generate` does."""
        return self._images({"prompt": prompt} | fields)

    def __getattr__(self, task: str) -> Callable[..., list[Image.Image]]:
        """Every task by name: `pipe.img2img("photo.png", "a cat", strength=0.5)`; what must be given stands first."""
        if task not in TASKS:
            raise AttributeError(f"a pipeline has no '{task}'; what it can do: {', '.join(TASKS)}")
        given = TASKS[task].given

        def images(*values: Any, **fields: Any) -> list[Image.Image]:
            if len(values) > len(given):
                raise UsageError(f"{task} is given {', '.join(given)}; the rest by name, for instance seed=1")
            return self._images({"task": task} | dict(zip(given, values, strict=False)) | fields)

        return images

    def _images(self, fields: dict[str, Any]) -> list[Image.Image]:
        given = {name: fields.pop(name) for name in STATES if name in fields}
        pipeline = self.hearing(**given) if given else self
        return [
            event.image for event in pipeline.generate(Request.parse(fields)) if isinstance(event, Picture)
        ]

    def hearing(self, **states: Tensor | None) -> Pipeline:
        """The pipeline with states of text in the place of the prompt, of the negative prompt, or of both.

        `prompt_embeds`, `negative_prompt_embeds` [L, D] or [1, L, D], D as the model's own; where it takes that (SDXL)
        `pooled_prompt_embeds`, `negative_pooled_prompt_embeds` [P] or [1, P]. What is not given is encoded as ever.
        Raises UsageError for what the model cannot hear.
        """
        encoder, known = heard(self.encoder, states)
        return replace(self, encoder=encoder, states={**self.states, **known})

    def settle(self, request: Request, *, files: bool = True) -> Settled:
        """The request with nothing left open. Raises UsageError for what this model cannot do.

        `files` off: no path is opened that the prompt, or the recipe of the picture given, names (see `Request.parse`).
        """
        if request.task not in TASKS:
            raise unknown("task", request.task, TASKS)
        task = TASKS[request.task]
        if not isinstance(request, Settled):  # whose ignored fields were chosen here
            task.check(request)
        chosen = dict(request)
        if task.inherits and request.image is not None:
            own = replayable(request.image.recipe)
            chosen |= {name: own[name] for name in self._inherited(request) if name in own}
        model_s = self.defaults.fields()
        model_s |= {name: min(model_s[name], most) for name, most in task.most.items()}
        open_ones = model_s | dict(task.heeds) | self._size(request)
        chosen |= {name: value for name, value in open_ones.items() if chosen[name] is None}
        for side in ("width", "height"):
            chosen[f"original_{side}"] = chosen[f"original_{side}"] or chosen[side]
        if chosen["seed"] is None:
            chosen["seed"] = secrets.randbelow(FRESH_SEEDS)
        chosen["prompt"], tagged = tags(chosen["prompt"])
        chosen["loras"] = (*chosen["loras"], *(tag._asdict() for tag in tagged))
        settled = Settled.parse(chosen, files=files)
        loras = self.wardrobe.settled("LoRA", settled.loras)
        embeddings = self.wardrobe.settled("embedding", settled.embeddings)
        settled = settled.model_copy(update={"loras": loras, "embeddings": embeddings})
        for kind, name, known in (("sampler", settled.sampler, SAMPLERS), ("grid", settled.grid, GRIDS)):
            if name not in known:
                raise unknown(kind, name, known)
        self._check_size(settled)
        if self.states and SEVERAL & {*task.fields}:
            raise UsageError(f"{request.task} hears several texts, and states are given in the place of one")
        encoder = self.wearing(settled).encoder
        for prompt, what in (
            (settled.prompt, "prompt"),
            (settled.negative_prompt, "negative prompt"),
            (settled.prompt_to or "", "prompt at the far end"),
            (settled.source_prompt or "", "prompt of what is there"),
        ):
            if what != "prompt" and tags(prompt)[1]:
                raise UsageError(
                    f"the {what} has a LoRA tag; LoRAs stand in the prompt, for the whole picture"
                )
            if len(conjuncts(prompt)) > MOST_PARTS:
                raise UsageError(
                    f"the {what} has {len(conjuncts(prompt))} parts with AND; at most {MOST_PARTS} can be"
                )
            for text in texts_of(prompt, settled.num_inference_steps):
                encoder.check(text, what=what)
        return settled

    def wearing(self, request: Settled) -> Pipeline:
        """The pipeline with the LoRAs on that a request asks for, knowing its words, and hearing the layer that it asks
        for; this one is not changed.

        Raises MezzotintError for a file that is damaged or made for another kind of model, UsageError for a layer that
        the text encoder lacks.
        """
        dressed = self
        if request.loras or request.embeddings:
            worn = self.wardrobe.wear(request.loras, request.embeddings)
            encoder = worn.encoder
            if isinstance(self.encoder, Told):
                encoder = replace(self.encoder, encoder=encoder)
            dressed = replace(
                self, denoiser=replace(self.denoiser, net=self.share(worn.net)), encoder=encoder
            )
        if request.clip_skip is None:
            return dressed
        return replace(dressed, encoder=dressed.encoder.heard_at(request.clip_skip))

    def _inherited(self, request: Request) -> list[str]:
        """The fields that a task may take from the recipe of its picture: those that were not given."""
        own = {*TASKS["text2img"].fields} - {"task", "seed", "num_images"}
        return [name for name in own if getattr(request, name) == Request.model_fields[name].default]

    def _size(self, request: Request) -> dict[str, int]:
        """The size to work at for a request about a picture: the picture's, or near the model's in its proportions."""
        if request.image is None:
            return {}
        native = (self.defaults.width, self.defaults.height)
        asked = (request.width, request.height)
        width, height = fitted(area(request, native), asked, native, self.grain)
        return {"width": width, "height": height}

    def generate(self, request: Request, *, together: int | None = None) -> Iterator[Event]:
        """The pictures of a request, each announced by the steps that lead to it.

        `together`: how many are drawn at a time; the default is as many as it pays to. Raises UsageError as `settle`
        does, MezzotintError for a picture that is not finite or all black.
        """
        settled = self.settle(request)
        at_a_time = together or self._together(settled)
        for first in range(0, settled.num_images, at_a_time):
            count = min(at_a_time, settled.num_images - first)
            part = settled.model_copy(update={"seed": settled.seed + first, "num_images": count})
            yield from fitting(self, settled, count)._draw(part, first)

    def _together(self, request: Settled) -> int:
        _, height, width = self.shape(request)
        return max(1, min(TOGETHER, SMALL // (height * width))) if self.device.type == "cpu" else TOGETHER

    @torch.inference_mode()
    def _draw(self, request: Settled, first: int) -> Iterator[Event]:
        """The pictures of a settled request, drawn together; `first` is the number of the first."""
        dressed = self.wearing(request)
        problem = self.restated(TASKS[request.task].state(dressed, request))
        problem = problem._replace(cond=prepared(dressed, problem.cond))
        knobs = dict(self.plan.sampler_knobs) if request.sampler == self.plan.sampler else {}
        if request.eta is not None:
            knobs["eta"] = request.eta
        x = problem.x
        for step in solve(problem, request.sampler, **knobs):
            if not step.x.isfinite().all():
                raise MezzotintError(
                    f"step {step.i + 1} of {request.num_inference_steps} with seed {request.seed} gave numbers that "
                    f"are not finite; lower guidance_scale ({request.guidance_scale:g}), or fetch the model again"
                )
            x = step.x
            yield self._progress(request, step, first, float(problem.sigmas[0]))
        for i in range(request.num_images):
            drawn = self._picture(x[i : i + 1], request.seed + i)
            image = problem.finish(marked(drawn) if request.mark else drawn)
            yield Picture(first + i, image, self.recipe(request, i))

    def _picture(self, z: Tensor, seed: int) -> Image.Image:
        pixels = self.codec.decode(z.clone())[0]  # [3, H, W]
        if not pixels.isfinite().all():
            raise MezzotintError(f"the picture of seed {seed} is not finite; fetch the model's vae again")
        if pixels.max() <= -1:
            raise MezzotintError(f"the picture of seed {seed} is black all over; try another seed or sampler")
        return to_image(pixels)

    def _progress(self, request: Settled, step: Step, first: int, start: float) -> Progress:
        def decoded(z: Tensor) -> Callable[[], list[Image.Image]]:
            def look() -> list[Image.Image]:
                with torch.inference_mode():
                    return [to_image(self.codec.decode(z[i : i + 1].clone())[0]) for i in range(len(z))]

            return look

        shown = step.x * float(self.plan.process.scale(torch.tensor(step.sigma, dtype=torch.float64)))
        return Progress(
            first,
            request.num_images,
            step.i + 1,
            request.num_inference_steps,
            start,
            step.sigma,
            look=decoded(step.denoised),
            state=decoded(shown),
        )

    def recipe(self, request: Settled, i: int = 0) -> dict[str, Any]:
        """All that makes picture i of a settled request again: a JSON object."""
        of_this = {
            field: tuple(extra.model_copy(update={"name": extra.title}) for extra in getattr(request, field))
            for field in ("loras", "embeddings")
        }
        alone = request.model_copy(update=of_this | {"seed": request.seed + i, "num_images": 1})
        return alone.model_dump(include={*TASKS[request.task].fields}) | {
            "model": self.name,
            "model_hash": self.fingerprint,
            "version": f"mezzotint {__version__}",
            "torch": torch.__version__,
            "device": self.device.type,
            "precision": self.precision,
            "engine": self.engine,
            **({"lora_hashes": self.wardrobe.short_hashes(request.loras)} if request.loras else {}),
            **({"states": dict(self.states)} if self.states else {}),
        }

    def shape(self, request: Settled) -> tuple[int, int, int]:
        """[C, h, w] of what the denoiser works on."""
        factor = self.codec.factor
        return self.codec.channels, request.height // factor, request.width // factor

    @property
    def grain(self) -> int:
        """What the sides of pictures must be multiples of: maps are smaller, and transformers cut them into squares."""
        net = self.configs.unet
        return self.codec.factor * (1 if isinstance(net, UNetConfig) else net.multiple)

    def _check_size(self, request: Settled) -> None:
        for name, native in (("width", self.defaults.width), ("height", self.defaults.height)):
            asked, grain = getattr(request, name), self.grain
            if asked % grain:
                near = max(grain, round(asked / grain) * grain)
                raise UsageError(f"{name} {asked} is not a multiple of {grain}; the nearest that is: {near}")
            if asked > LARGEST * native:
                raise UsageError(
                    f"{name} {asked} is too large for '{self.name}', which draws {native} well; ask for at most "
                    f"{LARGEST * native}"
                )


load = Pipeline.load


def _autoencoder(vae: AutoencoderKL, dtype: torch.dtype) -> AutoencoderKL:
    """Ready to draw in `dtype`, or in float32 where it would overflow."""
    wide = dtype == torch.float16 and vae.config.force_upcast
    return frozen(channels_last(vae.to(torch.float32 if wide else dtype)))


def fitted(
    size: tuple[int, int], asked: tuple[int | None, int | None], native: tuple[int, int], factor: int
) -> tuple[int, int]:
    """Width and height to work at for a picture of `size`, in multiples of `factor`, where they are not asked for.

    The picture's own if a model made for `native` draws it well (between half and twice as many pixels), else as many
    pixels as native, in the picture's proportions; if one side is asked for, the other follows it.
    """
    width, height = size
    if asked[0] or asked[1]:
        scale = asked[0] / width if asked[0] else (asked[1] or 0) / height
    else:
        scale = math.sqrt(native[0] * native[1] / (width * height))
        scale = 1.0 if 0.5 <= scale**2 <= 2 else scale
    found = (max(factor, round(side * scale / factor) * factor) for side in size)
    wide, high = (given or side for given, side in zip(asked, found, strict=True))
    return wide, high


def _device(name: str) -> torch.device:
    """The device of a name; UsageError if there is none such here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device '{name}' is not to be had here; use auto or cpu") from error
    return device
