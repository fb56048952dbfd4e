"""A task states a problem, a sampler solves it.

    for step in SAMPLERS[name](problem.denoise, problem.x, problem.sigmas, problem.cond, noise=problem.noise): ...

What every task prepares alike stands here: noise, noise levels, what the net is told, guidance. A task changes one
of these and leaves the others.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ..diffusion.grids import sigma_grid
from ..diffusion.guidance import cfg, composed, interval, saying, staged
from ..diffusion.noise import INITIAL
from ..diffusion.samplers import SAMPLERS
from ..diffusion.types import Cond, Denoise, Noise, Sampler, Step
from ..errors import UsageError
from ..exact import tried
from ..formats.checkpoint import SCORE
from ..formats.image import resized, to_tensor
from ..nets import UNetConfig, text_time
from ..nets.blocks import Attentive
from ..prompt import Conjunct, Script, conjuncts

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request import Settled

T = TypeVar("T")


def itself(value: T) -> T:
    """Nothing is done to it."""
    return value


def finite(text: str) -> float:
    """The number that a text is; ValueError if it is none."""
    if math.isfinite(number := float(text)):
        return number
    raise ValueError(text)


class Problem(NamedTuple):
    """All that a sampler needs."""

    denoise: Denoise
    x: Tensor  # [B, C, h, w] at noise level sigmas[0]
    sigmas: Tensor  # [N + 1] float64, falling
    cond: Cond  # B rows
    noise: Noise
    within: Callable[[Sampler], Sampler] = itself  # what goes on between the sampler's steps
    finish: Callable[[Image.Image], Image.Image] = itself  # from the decoded picture to the one asked for


def solve(problem: Problem, sampler: str, **knobs: Any) -> Iterator[Step]:
    """The steps of a sampler by name. Raises UsageError for a knob that it does not take."""
    taken = inspect.signature(SAMPLERS[sampler]).parameters
    for knob in knobs:
        if knob not in taken:
            able = [name for name, other in SAMPLERS.items() if knob in inspect.signature(other).parameters]
            raise UsageError(f"sampler '{sampler}' takes no {knob}; those that do: {', '.join(able)}")
    return problem.within(SAMPLERS[sampler])(
        problem.denoise, problem.x, problem.sigmas, problem.cond, noise=problem.noise, **knobs
    )


def levels(pipeline: Pipeline, request: Settled, strength: float = 1.0) -> Tensor:
    """The noise levels of a request: sigmas [N + 1], N being the steps asked for.

    With a `strength` below 1 they are the last N + 1 of as many more, so that they start at that share of the grid.
    Raises UsageError if there are not so many.
    """
    knobs = pipeline.plan.grid_knobs if request.grid == pipeline.plan.grid else {}
    steps = request.num_inference_steps
    if strength == 0:
        raise UsageError("strength 0 leaves the picture as it is and no step to take; ask for more than 0")
    total = round(steps / strength)
    try:
        return sigma_grid(request.grid, pipeline.plan.process, total, **knobs)[-steps - 1 :]
    except UsageError as error:
        if total == steps:
            raise
        raise UsageError(
            f"strength {strength:g} in {steps} steps would be the end of {total} steps, and this model has not so many "
            "levels of noise; ask for more strength or fewer steps"
        ) from error


def fresh_noise(pipeline: Pipeline, request: Settled) -> Noise:
    """Step -> standard normal noise [B, C, h, w]; row i is that of seed + i."""
    seeds = [request.seed + i for i in range(request.num_images)]
    return pipeline.draws(seeds, pipeline.shape(request), pipeline.device)


def pure_noise(noise: Noise, sigma: float) -> Tensor:
    """Where sampling starts when nothing is known of the picture: x ~ N(0, 1 + sigma^2).

    Data of unit variance and nothing else is in it: so it is z = `noise` that a variance-preserving net sees.
    """
    x = math.hypot(1.0, sigma) * noise(INITIAL)
    return x.contiguous(memory_format=torch.channels_last)


def given_latents(pipeline: Pipeline, request: Settled, image: Image.Image) -> Tensor:
    """A picture as the denoiser knows it, at the request's size, once for each picture to draw: [B, C, h, w]."""
    pixels = to_tensor(resized(image, (request.width, request.height)))[None].to(pipeline.device)
    z = pipeline.codec.encode(pixels.contiguous(memory_format=torch.channels_last))
    return z.expand(request.num_images, *z.shape[1:])


def noisy(x0: Tensor, sigma: float, noise: Tensor) -> Tensor:
    """x0 + sigma * noise, in the memory format that a net is fastest in."""
    return (x0 + sigma * noise).contiguous(memory_format=torch.channels_last)


def from_noise(pipeline: Pipeline, request: Settled, noise: Noise) -> Problem:
    """Down all noise levels from `noise` alone, guided by the prompt."""
    sigmas = levels(pipeline, request)
    return Problem(
        guided(pipeline, request, sigmas),
        pure_noise(noise, float(sigmas[0])),
        sigmas,
        told(pipeline, request),
        noise,
    )


def told(pipeline: Pipeline, request: Settled) -> Cond:
    """The prompt, once for each picture; of one that changes over the steps, how it begins, of one with AND its first
    part (see `guided`)."""
    first = conjuncts(request.prompt)[0].text
    rows, text = request.num_images, Script.read(first).at(1, request.num_inference_steps)
    return _heard(pipeline, request, text).map(lambda field: field.expand(rows, *field.shape[1:]))


def _heard(pipeline: Pipeline, request: Settled, text: str) -> Cond:
    """What the net is told of one text of the prompt: one row."""
    return sized(pipeline, request, pipeline.encoder(text), request.aesthetic_score)


def single(request: Settled, *prompts: str | None) -> None:
    """Raises UsageError if one of the prompts has an AND or changes over the steps, for a task in which several are
    heard side by side: `guided` would have all of them say that one."""
    for prompt in prompts:
        if len(conjuncts(prompt or "")) > 1:
            raise UsageError(
                f"{request.task} takes prompts that say one thing at a time; take AND out of them"
            )
        if not Script.read(prompt or "").constant:
            raise UsageError(
                f"{request.task} takes prompts that stay the same over the steps; take [..] out of them"
            )


def prepared(pipeline: Pipeline, cond: Cond) -> Cond:
    """`cond` with what the pipeline's net makes of it once and for all, where it can."""
    net = getattr(pipeline.denoiser, "net", None)  # any function may stand for the denoiser
    return net.prepared(cond) if isinstance(net, Attentive) else cond


def sized(pipeline: Pipeline, request: Settled, cond: Cond, score: float) -> Cond:
    """`cond`, of one row, as the U-Net takes it: SDXL is also told sizes, its refiner a size and a score.

    The numbers: height and width of the picture that this one was made from, top and left of the part that was cut
    out, then height and width of this one, or how beautiful it is (Podell et al. 2023, section 2.2).
    """
    numbers = pipeline.configs.sized
    if not numbers or cond.pooled is None:
        return cond
    ids: list[float] = [request.original_height, request.original_width, request.crop_top, request.crop_left]
    ids += [score] if numbers == SCORE else [request.height, request.width]
    unet = pipeline.configs.unet
    assert isinstance(unet, UNetConfig)  # other nets are told no numbers
    each = unet.addition_time_embed_dim or 0
    return cond._replace(pooled=text_time(cond.pooled, cond.pooled.new_tensor([ids]), each))


def guided(
    pipeline: Pipeline, request: Settled, sigmas: Tensor, *, denoiser: Denoise | None = None
) -> Denoise:
    """The denoiser with the guidance that the request asks for, at the steps that it asks it for.

    `denoiser` stands in for the pipeline's, and is taken as it is: its batches are not tried (see `exact.py`).

    Where the prompts change over the steps, it hears at each noise level what they say there, whatever it is told; and
    so it does of a prompt with AND.
    """
    steps = len(sigmas) - 1
    parts = [(Script.read(part.text), part.weight) for part in conjuncts(request.prompt)]
    negative = Script.read(request.negative_prompt)
    changing = not all(script.constant for script, _ in parts)
    said = [
        (
            tuple(Conjunct(script.at(step, steps), weight) for script, weight in parts),
            negative.at(step, steps),
        )
        for step in range(1, steps + 1)
    ]
    stages = {pair: _away_from(pair[1], pair[0], pipeline, request, sigmas, denoiser) for pair in said}
    if changing and len(parts) == 1:
        stages = {
            pair: saying(stage, prepared(pipeline, _heard(pipeline, request, pair[0][0].text)))
            for pair, stage in stages.items()
        }
    return stages[said[0]] if len(stages) == 1 else staged([stages[pair] for pair in said], sigmas)


def _away_from(
    negative: str,
    parts: Sequence[Conjunct],
    pipeline: Pipeline,
    request: Settled,
    sigmas: Tensor,
    denoiser: Denoise | None,
) -> Denoise:
    """Guidance away from one text; toward what the sampler tells, or toward several `parts`."""

    def held(denoise: Denoise, kind: str) -> Denoise:
        return tried(denoise, pipeline.trials, kind) if pipeline.exact and denoiser is None else denoise

    bare = denoiser or pipeline.denoiser
    plain = held(bare, "plain")
    if request.guidance_scale == 1 and len(parts) == 1:
        return plain
    null = pipeline.encoder.null(negative)
    null = sized(pipeline, request, null, request.negative_aesthetic_score)
    null = prepared(pipeline, null)
    states = 0 if null.text is None else null.text.shape[1]
    kind = f"{'rescaled' if request.guidance_rescale else 'guided'} from {states} states"
    scale, rescale = request.guidance_scale, request.guidance_rescale
    if len(parts) == 1:
        strong = held(cfg(bare, scale, null, rescale=rescale), kind)
    else:
        heard = [prepared(pipeline, _heard(pipeline, request, part.text)) for part in parts]
        weighed = [(cond, part.weight) for cond, part in zip(heard, parts, strict=True)]
        kind += f" to {[0 if cond.text is None else cond.text.shape[1] for cond in heard]}"
        strong = held(composed(bare, scale, weighed, null, rescale=rescale), kind)
        plain = held(composed(bare, 1.0, weighed, null), kind)
    steps = len(sigmas) - 1
    first, last = (round(share * steps) for share in (request.guidance_start, request.guidance_end))
    if (first, last) == (0, steps):
        return strong
    highest = math.inf if first == 0 else float(sigmas[first])
    return interval(strong, plain, float(sigmas[max(first, last)]), highest)
