"""Rewrite: change what a picture shows to what another prompt says, and keep the rest.

`flow` walks from the picture itself, by what the answers to both prompts differ by (FlowEdit, see
`diffusion/edit.py`). `words` sinks the picture into noise and draws it under the new prompt, looking at every word that
both prompts share as the old picture does (prompt-to-prompt, see `nets/control.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..diffusion.edit import flow_edit
from ..diffusion.noise import INITIAL
from ..diffusion.types import Cond, Noise
from ..errors import UsageError, unknown
from ..nets.blocks import Control
from ..nets.control import lent
from ..text import TextEncoder
from .beside import looking
from .problem import Problem, fresh_noise, given_latents, guided, levels, noisy, told

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request import Settled

METHODS = ("flow", "words")


def rewrite(pipeline: Pipeline, request: Settled) -> Problem:
    """The problem of a settled request; needs `image`, `source_prompt` and `strength`."""
    assert request.image is not None
    assert request.strength is not None
    method = request.method or METHODS[0]
    if method not in METHODS:
        raise unknown("method of rewriting", method, METHODS)
    sigmas, noise = levels(pipeline, request, request.strength), fresh_noise(pipeline, request)
    x0 = given_latents(pipeline, request, request.image.image)
    before = request.model_copy(
        update={"prompt": request.source_prompt or "", "guidance_scale": request.source_guidance or 1.0}
    )
    if method == "words":
        return _words(pipeline, request, sigmas, noise, x0, told(pipeline, before))
    denoise = flow_edit(
        guided(pipeline, request, sigmas),
        guided(pipeline, before, sigmas),
        told(pipeline, before),
        x0,
        sigmas,
        noise,
    )
    return Problem(denoise, x0.clone(), sigmas, told(pipeline, request), noise)


def _words(
    pipeline: Pipeline, request: Settled, sigmas: Tensor, noise: Noise, x0: Tensor, before: Cond
) -> Problem:
    """Attention is lent over the first `content_strength` of the steps, that of the layout over half as many."""
    eps, keep = noise(INITIAL), request.content_strength or 0.0
    old, new = (_ids(pipeline, text) for text in (request.source_prompt or "", request.prompt))
    steps = len(sigmas) - 1
    words, layout = (float(sigmas[min(round(share * steps), steps)]) for share in (keep, keep / 2))

    def control(level: float) -> Control:
        return lent(old, new, words=level > words, layout=level > layout)

    denoise = looking(pipeline, request, sigmas, [(x0, eps, before)], control)
    return Problem(denoise, noisy(x0, float(sigmas[0]), eps), sigmas, told(pipeline, request), noise)


def _ids(pipeline: Pipeline, text: str) -> list[int]:
    """What stands at each position of the text encoder; of a text of several chunks, of each in turn."""
    encoder = pipeline.encoder
    if not isinstance(encoder, TextEncoder):
        raise UsageError(f"'{pipeline.name}' reads no words; use --method flow")
    begin, end, length = encoder.tokenizer.bos, encoder.tokenizer.eos, encoder.capacity + 2
    rows = [[begin, *(token.id for token in chunk), end] for chunk in encoder.chunks(text)]
    return [one for row in rows for one in row + [encoder.tokenizer.pad] * (length - len(row))]
