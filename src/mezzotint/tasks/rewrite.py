"""Rewrite: change what a picture shows to what another prompt says, and keep the rest.

`flow` walks from the picture itself, by what the answers to both prompts differ by (FlowEdit, see
`diffusion/edit.py`). `words` sinks the picture into noise and draws it under the new prompt, looking at every word that
both prompts share as the old picture does (prompt-to-prompt, see `nets/control.py`). Its words may be weighed, too:
`--reweight red:2` with the prompt that the picture was made from makes it redder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..diffusion.edit import flow_edit
from ..diffusion.noise import INITIAL
from ..diffusion.types import Noise
from ..errors import UsageError, unknown
from ..nets.blocks import Control
from ..nets.control import lent
from ..text import TextEncoder
from .beside import drowned, looking
from .problem import Problem, finite, fresh_noise, given_latents, guided, levels, noisy, prepared, told

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..request import Settled

METHODS = ("flow", "words")


def rewrite(pipeline: Pipeline, request: Settled) -> Problem:
    """The problem of a settled request; needs `image`, `source_prompt`, `source_guidance` and `strength`."""
    assert request.image is not None
    assert request.strength is not None
    assert request.source_guidance is not None
    method = request.method or METHODS[request.reweight is not None]
    if request.reweight is not None and method != "words":
        raise UsageError(f"words are reweighted by --method words; {method} looks at none")
    if method not in METHODS:
        raise unknown("method of rewriting", method, METHODS)
    sigmas, noise = levels(pipeline, request, request.strength), fresh_noise(pipeline, request)
    x0 = given_latents(pipeline, request, request.image.image)
    said = request.source_prompt or (request.prompt if request.reweight else "")
    before = request.model_copy(update={"prompt": said, "guidance_scale": request.source_guidance})
    if method == "words":
        return _words(pipeline, request, sigmas, noise, x0, before)
    denoise = flow_edit(
        guided(pipeline, request, sigmas),
        guided(pipeline, before, sigmas),
        prepared(pipeline, told(pipeline, before)),
        x0,
        sigmas,
        noise,
    )
    return Problem(denoise, x0.clone(), sigmas, told(pipeline, request), noise)


def _words(
    pipeline: Pipeline, request: Settled, sigmas: Tensor, noise: Noise, x0: Tensor, before: Settled
) -> Problem:
    """Attention is lent over the first `content_strength` of the steps, that of the layout over half as many."""
    eps, keep = noise(INITIAL), request.content_strength or 0.0
    old, new = (_ids(pipeline, text) for text in (before.prompt, request.prompt))
    weights = _weights(pipeline, request.reweight, new) if request.reweight else []
    steps = len(sigmas) - 1
    words, layout = (  # lent above these levels, which come back rounded to the precision of x
        float(sigmas[min(round(share * steps), steps)]) * (1 + 1e-6) for share in (keep, keep / 2)
    )

    shown = prepared(pipeline, told(pipeline, before))

    def control(level: float) -> Control:
        return lent(old, new, words=level > words, layout=level > layout, weights=weights)

    denoise = looking(pipeline, request, sigmas, [drowned(x0, eps, shown)], control)
    return Problem(denoise, noisy(x0, float(sigmas[0]), eps), sigmas, told(pipeline, request), noise)


def _weights(pipeline: Pipeline, asked: str, ids: list[int]) -> list[float]:
    """`word:2, some words:0.5` as a weight for each position of a text that is read as `ids`."""
    assert isinstance(pipeline.encoder, TextEncoder)
    weights = [1.0] * len(ids)
    for part in asked.split(","):
        words, _, number = part.rpartition(":")
        try:
            weight = finite(number)
        except ValueError as error:
            raise UsageError(f"reweight '{part.strip()}': write it as word:2") from error
        tokens = pipeline.encoder.tokenizer.tokens(words.strip())
        places = [i for i in range(len(ids)) if tokens and tuple(ids[i : i + len(tokens)]) == tokens]
        if not places:
            raise UsageError(f"reweight '{part.strip()}': the prompt does not say '{words.strip()}'")
        for i in places:
            weights[i : i + len(tokens)] = [weight] * len(tokens)
    return weights


def _ids(pipeline: Pipeline, text: str) -> list[int]:
    """What stands at each position of the text encoder; of a text of several chunks, of each in turn.

    What fills a chunk up is told apart by its position, so that it keeps its place whatever stands before it.
    """
    encoder = pipeline.encoder
    if not isinstance(encoder, TextEncoder):
        raise UsageError(f"'{pipeline.name}' reads no words; use --method flow")
    begin, end, length = encoder.tokenizer.bos, encoder.tokenizer.eos, encoder.capacity + 2
    rows = [[begin, *(token.id for token in chunk), end] for chunk in encoder.chunks(text)]
    filled = [row + [-1 - length * i - j for j in range(len(row), length)] for i, row in enumerate(rows)]
    return [one for row in filled for one in row]
