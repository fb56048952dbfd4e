"""The interface of diffusers' Stable Diffusion pipelines, over `Pipeline`.

    from mezzotint.compat.diffusers import StableDiffusionPipeline
    pipe = StableDiffusionPipeline.from_pretrained("path/to/stable-diffusion-v1-5", torch_dtype=torch.float16)
    image = pipe("an astronaut riding a horse", num_inference_steps=50, guidance_scale=7.5).images[0]

What is read here is turned into a request: `scheduler_config.json` gives sampler and noise levels, a
`torch.Generator` the noise that diffusers would draw from it, so that a deterministic scheduler makes the same picture.
Brackets in prompts are brackets. What has no meaning here is refused, with what to do; what only saves memory is taken
and has no effect. Nothing is downloaded unless `local_files_only=False` allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..catalog import find_model
from ..codec import Codec, Latents
from ..errors import UsageError, unknown
from ..formats.scheduler import NAMES
from ..pipeline import Picture, Pipeline
from ..prompt import escape
from ..request import Request
from ..text import TextEncoder
from ..told import Told
from .drawn import DrawnLatents, draws_of, fresh
from .pndm import midway
from .schedulers import Scheduler, SchedulerClass, config_of, plan_of

NO_EFFECT = (  # memory is not spent on these here, or nobody looks
    "enable_attention_slicing",
    "enable_model_cpu_offload",
    "enable_sequential_cpu_offload",
    "enable_vae_slicing",
    "enable_vae_tiling",
    "enable_xformers_memory_efficient_attention",
    "set_progress_bar_config",
)
PRECISIONS = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    None: "auto",
    "auto": "auto",
}
SHOWN = ("pil", "np", "pt")  # output_type
IGNORED = (
    "safety_checker",
    "feature_extractor",
    "requires_safety_checker",
    "use_safetensors",
    "low_cpu_mem_usage",
    "config",
)


@dataclass(frozen=True)
class StableDiffusionPipelineOutput:
    """The pictures of a call; nothing looks for what is not safe to show."""

    images: Any  # list of Pillow images, or [B, H, W, 3] in [0, 1] as numpy, or [B, 3, H, W] as a tensor
    nsfw_content_detected: None = None


def __getattr__(name: str) -> SchedulerClass:
    if name not in NAMES:
        raise AttributeError(f"mezzotint.compat.diffusers has no '{name}'")
    return SchedulerClass(name)


class StableDiffusionPipeline:
    """Text to image."""

    task: ClassVar[str] = "text2img"
    guidance: ClassVar[float] = 7.5  # diffusers' default for this class

    def __init__(self, path: Path, precision: str, variant: str | None) -> None:
        """See `from_pretrained`; the weights are read when they are first needed, after a `.to`."""
        self._path, self._precision, self._variant = path, precision, variant
        self._device = torch.device("cpu")
        self.scheduler: Any = Scheduler(config_of(path))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | str | None = None,
        variant: str | None = None,
        revision: str = "main",
        local_files_only: bool = True,
        scheduler: Any = None,
        **others: Any,
    ) -> StableDiffusionPipeline:
        """A model by path, or by its name in the Hugging Face cache. Raises UsageError for what is not understood.

        `torch_dtype` None is what the device does fast; another choice is obeyed, with a warning where it is slow.
        """
        for name in others:
            if name not in IGNORED:
                raise unknown(
                    "argument", name, ("torch_dtype", "variant", "revision", "local_files_only", *IGNORED)
                )
        path = find_model(pretrained_model_name_or_path, download=not local_files_only, revision=revision)
        made = cls(path, _precision(torch_dtype), variant)
        if scheduler is not None:
            made.scheduler = scheduler
        return made

    from_single_file = from_pretrained

    @property
    def device(self) -> torch.device:
        return self._device

    def to(
        self, *where: Any, device: Any = None, dtype: torch.dtype | None = None
    ) -> StableDiffusionPipeline:
        """Draw on that device, or in that precision, from now on. Raises UsageError if there is no such device."""
        for each in (*where, device, dtype):
            if isinstance(each, torch.dtype):
                self._precision = _precision(each)
            elif each is not None:
                self._device = _device(each)
        self.__dict__.pop("_loaded", None)
        return self

    @cached_property
    def _loaded(self) -> Pipeline:
        return Pipeline.load(
            self._path, device=str(self._device), precision=self._precision, variant=self._variant
        )

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline beneath, sampling as `scheduler` says."""
        plan = plan_of(self.scheduler)
        own = self._loaded
        if plan == own.plan:
            return own
        defaults = replace(own.defaults, sampler=plan.sampler, grid=plan.grid)
        denoiser = replace(own.denoiser, process=plan.process, prediction=plan.prediction)
        return replace(own, plan=plan, defaults=defaults, denoiser=denoiser)

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name not in NO_EFFECT:
            raise AttributeError(
                f"'{type(self).__name__}' has no '{name}'; see mezzotint.Pipeline for what there is"
            )
        return lambda *_, **__: None

    def __call__(
        self,
        prompt: str | Sequence[str] = "",
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        guidance_rescale: float = 0.0,
        clip_skip: int | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        **others: Any,
    ) -> Any:
        """The pictures of each prompt, `num_images_per_prompt` of it one after the other. Raises as `Pipeline` does.

        `clip_skip` counts, as there, from the layer that the model hears, and is for the prompt alone. States of text
        [B, L, D], and [B, P] for SDXL, stand in the place of prompts.
        """
        if output_type not in SHOWN:
            raise unknown("output_type", output_type, SHOWN)
        pipeline = self.pipeline
        given = {
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "pooled_prompt_embeds": pooled_prompt_embeds,
            "negative_pooled_prompt_embeds": negative_pooled_prompt_embeds,
        }
        states = {name: each for name, each in given.items() if each is not None}
        if prompt_embeds is not None and not prompt:
            prompt = [""] * len(prompt_embeds)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = _each(negative_prompt, len(prompts))
        scale = self.guidance if guidance_scale is None else guidance_scale
        fields: dict[str, Any] = {
            "task": self.task,
            "num_images": num_images_per_prompt,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": max(scale, 1.0),  # below 1 guidance is off there
            "guidance_rescale": guidance_rescale,
            "height": height,
            "width": width,
        }
        if pipeline.plan.sampler == "ddim":  # of others, diffusers does not take it
            fields["eta"] = eta
        fields |= self._fields(fields, others)
        rows = len(prompts) * num_images_per_prompt
        pipeline = self._drawing(pipeline, generator, latents, rows, fields)
        taken = int(fields["num_inference_steps"])
        if pipeline.plan.sampler == "pndm" and taken < num_inference_steps:
            pipeline = replace(pipeline, restated=midway(pipeline.plan, num_inference_steps))
        images = []
        for i, (text, negative) in enumerate(zip(prompts, negatives, strict=True)):
            # an empty negative prompt that was given is one to encode, not zeros: a blank says so
            asked = {
                "prompt": escape(text),
                "negative_prompt": "" if negative is None else escape(negative) or " ",
            }
            hearing = pipeline
            if clip_skip:
                null = None if negative_prompt_embeds is not None else asked.pop("negative_prompt")
                hearing = _skipping(pipeline, clip_skip, null)
            if states:
                hearing = hearing.hearing(
                    **{name: _row(each, i, len(prompts), name) for name, each in states.items()}
                )
            request = Request.parse(fields | asked | {"seed": i * num_images_per_prompt})
            images += [event.image for event in hearing.generate(request) if isinstance(event, Picture)]
        shown = _shown(images, output_type)
        return StableDiffusionPipelineOutput(shown) if return_dict else (shown, None)

    def _fields(self, fields: Mapping[str, Any], others: dict[str, Any]) -> dict[str, Any]:
        """What a subclass takes beyond; raises UsageError for an argument that nobody takes."""
        given = [name for name, value in others.items() if value is not None]
        if given:
            raise UsageError(
                f"{type(self).__name__} takes no {given[0]} here; mezzotint.Pipeline has its own ways: steps come from "
                "an iterator, LoRA and words from the prompt"
            )
        return {}

    def _drawing(
        self, pipeline: Pipeline, generator: Any, latents: Tensor | None, rows: int, fields: Mapping[str, Any]
    ) -> Pipeline:
        """The pipeline with the noise that diffusers would draw: of `generator`, its first part `latents` if given."""
        generators = list(generator) if isinstance(generator, Sequence) else [generator]
        if len(generators) not in (1, rows):
            raise UsageError(f"{len(generators)} generators for {rows} pictures; give one, or one for each")
        one = [each if each is not None else fresh() for each in generators]
        return replace(
            pipeline, draws=draws_of(one, latents, rows), codec=self._codec(pipeline, one[0], fields)
        )

    def _codec(self, pipeline: Pipeline, generator: torch.Generator, fields: Mapping[str, Any]) -> Codec:
        """The codec for pictures that are given."""
        return pipeline.codec


class StableDiffusionXLPipeline(StableDiffusionPipeline):
    """Text to image, with the sizes that SDXL is told."""

    guidance = 5.0

    def _fields(self, fields: Mapping[str, Any], others: dict[str, Any]) -> dict[str, Any]:
        top, left = others.pop("crops_coords_top_left", None) or (0, 0)
        sizes = {"crop_top": top, "crop_left": left}
        if original := others.pop("original_size", None):
            sizes |= {"original_height": original[0], "original_width": original[1]}
        return super()._fields(fields, others) | sizes


class StableDiffusionImg2ImgPipeline(StableDiffusionPipeline):
    """Image to image."""

    task = "img2img"
    strength: ClassVar[float] = 0.8

    def _fields(self, fields: Mapping[str, Any], others: dict[str, Any]) -> dict[str, Any]:
        image, strength = others.pop("image", None), others.pop("strength", None)
        strength = self.strength if strength is None else strength
        if not isinstance(image, Image.Image):
            raise UsageError(f"{type(self).__name__} needs image, a Pillow image")
        steps = int(fields["num_inference_steps"])
        taken = min(int(steps * strength), steps)
        if taken < 1:
            raise UsageError(
                f"strength {strength:g} of {steps} steps leaves none to take; ask for more of either"
            )
        size = {"width": image.width - image.width % 8, "height": image.height - image.height % 8}
        more = {"image": image, "strength": taken / steps, "num_inference_steps": taken} | size
        return super()._fields(fields, others) | more

    def _codec(self, pipeline: Pipeline, generator: torch.Generator, fields: Mapping[str, Any]) -> Codec:
        codec = pipeline.codec
        return DrawnLatents(codec.vae, generator) if isinstance(codec, Latents) else codec


class StableDiffusionInpaintPipeline(StableDiffusionImg2ImgPipeline):
    """Inpainting, by a checkpoint of 9 channels as diffusers does it, by another in our own way."""

    task, strength = "inpaint", 1.0

    def _fields(self, fields: Mapping[str, Any], others: dict[str, Any]) -> dict[str, Any]:
        mask = others.pop("mask_image", None)
        if not isinstance(mask, Image.Image):
            raise UsageError(
                f"{type(self).__name__} needs mask_image, a Pillow image, white where it is drawn anew"
            )
        more = super()._fields(fields, others)
        return more | {
            "mask": mask.convert("L"),
            "width": fields["width"] or more["width"],
            "height": fields["height"] or more["height"],
        }

    def _codec(self, pipeline: Pipeline, generator: torch.Generator, fields: Mapping[str, Any]) -> Codec:
        codec = super()._codec(pipeline, generator, fields)
        if (
            isinstance(codec, DrawnLatents)
            and fields["strength"] == 1
            and pipeline.configs.unet.in_channels != 4
        ):
            return replace(codec, drawn=chain([False], repeat(True)))  # then the picture itself is not needed
        return codec


class StableDiffusionXLInpaintPipeline(StableDiffusionInpaintPipeline, StableDiffusionXLPipeline):
    """Inpainting with SDXL."""

    guidance, strength = 7.5, 0.9999


class StableDiffusionXLImg2ImgPipeline(StableDiffusionImg2ImgPipeline, StableDiffusionXLPipeline):
    """Image to image with SDXL or its refiner."""

    guidance, strength = 5.0, 0.3

    def _fields(self, fields: Mapping[str, Any], others: dict[str, Any]) -> dict[str, Any]:
        scores = {
            name: others.pop(name)
            for name in ("aesthetic_score", "negative_aesthetic_score")
            if name in others
        }
        return super()._fields(fields, others) | scores


def _skipping(pipeline: Pipeline, skip: int, negative: str | None) -> Pipeline:
    """The prompt heard `skip` layers before the model's own, and `negative`, if there is a text, where it always is."""
    own = pipeline.encoder
    layer = own.layer if isinstance(own, TextEncoder) else 1
    null = None if negative is None else own.null(negative)
    return replace(pipeline, encoder=Told(own.heard_at(layer + skip), negative=null))


def _row(states: Tensor, i: int, prompts: int, name: str) -> Tensor:
    """What is given for prompt i: its row of as many."""
    if len(states) != prompts:
        raise UsageError(f"{name} has {len(states)} rows for {prompts} prompts; give one for each")
    return states[i]


def _each(text: str | Sequence[str] | None, prompts: int) -> list[str | None]:
    """One negative prompt for each prompt."""
    texts: list[str | None] = [text] * prompts if text is None or isinstance(text, str) else list(text)
    if len(texts) != prompts:
        raise UsageError(f"{len(texts)} negative prompts for {prompts} prompts; give one, or one for each")
    return texts


def _precision(dtype: torch.dtype | str | None) -> str:
    if dtype not in PRECISIONS:
        raise UsageError(f"torch_dtype {dtype} is none of float32, float16, bfloat16")
    return PRECISIONS[dtype]


def _device(name: Any) -> torch.device:
    device = torch.device(name)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device '{name}' is not to be had here; stay on cpu") from error
    return device


def _shown(images: list[Image.Image], kind: str) -> Any:
    """The pictures as one of `SHOWN`."""
    if kind == "pil":
        return images
    array = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])  # [B, H, W, 3]
    return array if kind == "np" else torch.from_numpy(array).permute(0, 3, 1, 2)
