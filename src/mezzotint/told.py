"""States of text that were made elsewhere, heard in the place of a prompt: `prompt_embeds` and its kin.

They may be sums of several texts, texts weighed by another program's rules, or nothing that any text says. What is not
given is still encoded from its text. No recipe can hold them; it has their SHA-256, and says so when asked to draw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from .diffusion.types import Cond
from .errors import UsageError, unknown
from .text import Encoder

STATES = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)


@dataclass(frozen=True)
class Told:
    """An encoder that says `prompt`, one row, whatever the prompt is, and `negative` likewise, if they are given."""

    encoder: Encoder
    prompt: Cond | None = None
    negative: Cond | None = None

    @property
    def capacity(self) -> int:
        return self.encoder.capacity

    def check(self, text: str, *, what: str = "prompt") -> None:
        """Raises UsageError as the encoder does, and for a text in whose place states are given."""
        instead = {"prompt": self.prompt, "negative prompt": self.negative}.get(what)
        if text and instead is not None:
            raise UsageError(
                f"the {what} is '{text}', and states are given in its place; give one of the two"
            )
        self.encoder.check(text, what=what)

    def __call__(self, text: str) -> Cond:
        return self.encoder(text) if self.prompt is None else self.prompt

    def null(self, text: str) -> Cond:
        return self.encoder.null(text) if self.negative is None else self.negative

    def heard_at(self, layer: int) -> Told:
        return replace(self, encoder=self.encoder.heard_at(layer))


def heard(encoder: Encoder, states: Mapping[str, Tensor | None]) -> tuple[Told, dict[str, str]]:
    """`encoder` with these `STATES` in the place of texts, and the SHA-256 of each that is given.

    Raises UsageError for another name, and as `told` does.
    """
    for name in states:
        if name not in STATES:
            raise unknown("state of a text", name, STATES)
    own = encoder if isinstance(encoder, Told) else Told(encoder)
    prompt, negative = (
        told(own.encoder, states.get(name), states.get(name.replace("prompt", "pooled_prompt")), what=name)
        for name in ("prompt_embeds", "negative_prompt_embeds")
    )
    known = {name: _sha256(given) for name, given in states.items() if given is not None}
    return replace(own, prompt=prompt or own.prompt, negative=negative or own.negative), known


def told(encoder: Encoder, states: Tensor | None, pooled: Tensor | None, *, what: str) -> Cond | None:
    """States [L, D] or [1, L, D] and a vector [P] or [1, P], if the model takes one, as `encoder` would tell them.

    None if neither is given. `what`: how they are called. Raises UsageError for what this model cannot hear.
    """
    if states is None and pooled is None:
        return None
    own = encoder("")
    if own.text is None:
        raise UsageError(f"this model reads no text, and has no use for {what}")
    if states is None:
        raise UsageError(f"the vector of {what} is given without its states; give both")
    if (pooled is None) != (own.pooled is None):
        needs = (
            "needs a vector of the whole text too (pooled)"
            if pooled is None
            else "takes states alone, no vector"
        )
        raise UsageError(f"{what}: this model {needs}")
    return Cond(
        text=_like(states, own.text, what),
        pooled=None if pooled is None or own.pooled is None else _like(pooled, own.pooled, f"pooled {what}"),
    )


def _like(given: Tensor, own: Tensor, what: str) -> Tensor:
    """`given` in the form of `own`, whose length alone may differ."""
    row = given[None] if given.ndim == own.ndim - 1 else given
    if row.ndim != own.ndim or len(row) != 1 or row.shape[-1] != own.shape[-1] or not row.numel():
        form = ["1", "L", str(own.shape[-1])] if own.ndim == 3 else ["1", str(own.shape[-1])]
        raise UsageError(f"{what} is {list(given.shape)}; this model hears [{', '.join(form)}]")
    if not row.isfinite().all():
        raise UsageError(f"{what} has numbers that are not finite")
    return row.detach().to(own)


def _sha256(states: Tensor) -> str:
    """What states are known by: that of their float32 bytes."""
    return hashlib.sha256(states.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()
