"""One request: everything that can be asked of a pipeline, each knob named once.

The fields make the command line's flags, the HTTP schema and the recipe inside a picture. None has a single
meaning: *you choose*. What was chosen (the model's own value; for the seed, a fresh one) stands in the recipe, so
that a recipe read back is a request that leaves nothing open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import UsageError, unknown
from .extras import EmbeddingUse, LoraUse
from .inputs import Given

MOST_SEEDS = 2**63  # as many as other programs can hold


@dataclass(frozen=True)
class Flag:
    """How the command line calls a field."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


class Request(BaseModel):
    """What to draw. Pictures are numbered from 0; picture i is the one that seed + i makes alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    task: Annotated[str, Field(description="what is to be done")] = "text2img"
    prompt: Annotated[str, Field(description="what the picture shows")] = ""
    negative_prompt: Annotated[
        str, Flag("--negative"), Field(description="what guidance steers away from")
    ] = ""
    loras: Annotated[
        tuple[LoraUse, ...],
        Flag("--lora"),
        Field(
            description="LoRAs to wear, by name or path, each with a weight: NAME:0.8; may be given more than once"
        ),
    ] = ()
    embeddings: Annotated[
        tuple[EmbeddingUse, ...],
        Flag("--embedding"),
        Field(description="words learnt by textual inversion, by name or path; may be given more than once"),
    ] = ()
    clip_skip: Annotated[
        int | None,
        Flag("--clip-skip"),
        Field(
            ge=1,
            le=100,
            description="which of the text encoder's layers is heard, counted from the end: 1 the last, 2 the one "
            "before it; the model's own if not given",
        ),
    ] = None
    num_images: Annotated[
        int, Flag("--num", "-n"), Field(ge=1, description="pictures of each prompt; number i has seed + i")
    ] = 1
    seed: Annotated[
        int | None,
        Flag("--seed"),
        Field(
            ge=0, lt=MOST_SEEDS, description="the same seed makes the same picture; a fresh one if not given"
        ),
    ] = None
    num_inference_steps: Annotated[
        int | None, Flag("--steps"), Field(ge=1, le=10_000, description="steps from noise to picture")
    ] = None
    guidance_scale: Annotated[
        float | None,
        Flag("--guidance"),
        Field(ge=0, le=1000, description="how strongly the prompt is followed; 1 is off, at half the cost"),
    ] = None
    guidance_start: Annotated[
        float,
        Flag("--guidance-start"),
        Field(ge=0, le=1, description="share of the steps before guidance sets in"),
    ] = 0.0
    guidance_end: Annotated[
        float, Flag("--guidance-end"), Field(ge=0, le=1, description="share of the steps after which it ends")
    ] = 1.0
    guidance_rescale: Annotated[
        float,
        Flag("--guidance-rescale"),
        Field(ge=0, le=1, description="how far the contrast that guidance adds is taken back"),
    ] = 0.0
    sampler: Annotated[
        str | None,
        Flag("--sampler"),
        Field(description="how the steps are taken: for instance dpmpp_2m, ddim, euler_ancestral"),
    ] = None
    grid: Annotated[
        str | None,
        Flag("--grid"),
        Field(description="how noise levels are spaced: for instance karras or trailing"),
    ] = None
    eta: Annotated[
        float | None,
        Flag("--eta"),
        Field(ge=0, le=10, description="fresh noise in samplers that can mix it in: 0 none, 1 ancestral"),
    ] = None
    mark: Annotated[
        bool,
        Flag("--mark"),
        Field(description="put an invisible mark into the pixels, which `verify` finds again"),
    ] = False
    width: Annotated[int | None, Field(ge=1, description="pixels")] = None
    height: Annotated[int | None, Field(ge=1, description="pixels")] = None
    original_width: Annotated[
        int | None,
        Field(
            ge=1,
            description="SDXL: pixels of the picture that this one is as if scaled from; its own if not given",
        ),
    ] = None
    original_height: Annotated[int | None, Field(ge=1, description="SDXL: as original_width")] = None
    crop_left: Annotated[
        int, Field(ge=0, description="SDXL: pixels that are as if cut off at the left of the original")
    ] = 0
    crop_top: Annotated[int, Field(ge=0, description="SDXL: as crop_left, at the top")] = 0
    aesthetic_score: Annotated[
        float,
        Flag("--aesthetic"),
        Field(ge=0, le=10, description="SDXL refiner: how beautiful the picture is to be"),
    ] = 6.0
    negative_aesthetic_score: Annotated[
        float, Field(ge=0, le=10, description="SDXL refiner: the score that guidance steers away from")
    ] = 2.5
    image: Annotated[Given | None, Field(description="the picture that is worked on")] = None
    strength: Annotated[
        float | None,
        Flag("--strength"),
        Field(ge=0, le=1, description="how much is drawn anew: 0 nothing, 1 everything"),
    ] = None
    distance: Annotated[
        float | None,
        Flag("--distance"),
        Field(ge=0, le=1, description="how far from the picture: 0 the same, 1 as another seed's"),
    ] = None
    prompt_to: Annotated[
        str | None, Flag("--to"), Field(description="the prompt at the far end; the same one if not given")
    ] = None
    seed_to: Annotated[
        int | None,
        Flag("--seed-to"),
        Field(ge=0, lt=MOST_SEEDS, description="the seed at the far end; the same one if not given"),
    ] = None
    at: Annotated[
        float | None, Flag("--at"), Field(ge=0, le=1, description="where between the two ends: 0 to 1")
    ] = None

    mask: Annotated[
        Given | None,
        Flag("--mask"),
        Field(
            description="a picture, white where it is drawn anew; the transparency of the picture if not given"
        ),
    ] = None
    fit_mask: Annotated[
        bool | None, Flag("--fit-mask"), Field(description="resize a mask of another size than the picture")
    ] = None
    feather: Annotated[
        int | None,
        Flag("--feather"),
        Field(ge=0, le=1000, description="pixels inside the mask's edge over which old fades into new"),
    ] = None
    crop: Annotated[
        int | None,
        Flag("--crop"),
        Field(
            ge=0,
            description="look at the mask and so many pixels around it, at full size; at everything if not given",
        ),
    ] = None
    left: Annotated[int | None, Flag("--left"), Field(ge=0, description="pixels to grow at the left")] = None
    top: Annotated[int | None, Flag("--top"), Field(ge=0, description="pixels to grow at the top")] = None
    right: Annotated[int | None, Flag("--right"), Field(ge=0, description="pixels to grow at the right")] = (
        None
    )
    bottom: Annotated[
        int | None, Flag("--bottom"), Field(ge=0, description="pixels to grow at the bottom")
    ] = None
    method: Annotated[
        str | None,
        Flag("--method"),
        Field(description="how the task is done, where there are several ways; see docs/editing.md"),
    ] = None
    inner_steps: Annotated[
        int | None,
        Flag("--inner"),
        Field(
            ge=0,
            le=1000,
            description="further evaluations at each step, which hold the picture to what is known",
        ),
    ] = None

    style_image: Annotated[
        Given | None, Flag("--style"), Field(description="the picture whose manner is taken")
    ] = None
    style_strength: Annotated[
        float | None,
        Flag("--style-strength"),
        Field(ge=0, le=1, description="how much of the manner is taken: 0 nothing, 1 as much as can be"),
    ] = None
    content_strength: Annotated[
        float | None,
        Flag("--content-strength"),
        Field(ge=0, le=1, description="how closely the content of the picture is kept"),
    ] = None
    source_prompt: Annotated[
        str | None, Flag("--from"), Field(description="what the picture shows as it is")
    ] = None
    source_guidance: Annotated[
        float | None,
        Flag("--from-guidance"),
        Field(ge=0, le=1000, description="how strongly that is followed in what is taken away"),
    ] = None
    reweight: Annotated[
        str | None,
        Flag("--reweight"),
        Field(description="how much words of the prompt are looked at: 'red:2, apple:0.5'; by method words"),
    ] = None
    damage: Annotated[
        str | None,
        Flag("--damage"),
        Field(description="what happened to the picture: smaller:4, blur:2 (radius in pixels), grey or mask"),
    ] = None

    @classmethod
    def parse(cls, fields: Mapping[str, Any], *, files: bool = True) -> Self:
        """The request with these fields; UsageError in one line for the first that is unknown or impossible.

        Pictures are paths, bytes or Pillow images. With `files` off, as for whoever is not to open files here, text is
        a picture's file in base64.
        """
        try:
            return cls.model_validate(dict(fields), context={"files": files})
        except ValidationError as error:
            raise _explained(error) from error

    @classmethod
    def of_recipe(cls, recipe: Mapping[str, Any]) -> Request:
        """The request that makes the one picture that carries `recipe`; raises UsageError as `parse` does."""
        fields = replayable(recipe)
        return cls.parse({key: value for key, value in fields.items() if key in cls.model_fields})


class Settled(Request):
    """A request that leaves nothing open but `eta` and `clip_skip`, of which samplers and models have their own."""

    seed: int
    num_inference_steps: int
    guidance_scale: float
    sampler: str
    grid: str
    width: int
    height: int
    original_width: int
    original_height: int


def replayable(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """`recipe`, if all is in it that makes its picture again; UsageError if something else was given."""
    if recipe.get("states"):
        raise UsageError(
            "the picture was drawn from states of text given in Python, which no recipe holds; give them again"
        )
    return recipe


PICTURES = frozenset(  # the fields that are pictures
    name for name, field in Request.model_fields.items() if Given in get_args(field.annotation)
)


def called(field: str) -> str:
    """A field's name for people: with its flag, if it has one."""
    mark = flag(field) if field in Request.model_fields else None
    return f"{field} ({mark.names[0]})" if mark else field


def flag(field: str) -> Flag | None:
    """How the command line calls a field of `Request`, if it does."""
    return next((mark for mark in Request.model_fields[field].metadata if isinstance(mark, Flag)), None)


def _explained(error: ValidationError) -> UsageError:
    """The first thing that pydantic found, in one line."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "request"
    if first["type"] == "extra_forbidden":
        return unknown("field of a request", name, Request.model_fields)
    return UsageError(f"{called(name)} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}")
