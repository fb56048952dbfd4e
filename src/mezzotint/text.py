"""From a prompt to what a net is conditioned on: tokens, then the states of the text encoder.

Stable Diffusion 1 and 2 look at the encoder's last states. SDXL looks at the states before the last layer, of both its
encoders side by side, and is told the second's vector for the whole text (Podell et al. 2023, section 2). Each text is
encoded by itself, so that its states do not depend on what else is asked for. A text that does not fit is refused: a
prompt that is cut in silence is a wrong picture that nobody can explain.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from .diffusion.types import Cond
from .errors import UsageError
from .formats.tokenizer import Tokenizer
from .nets import CLIPTextModel

REMEMBERED = 64  # texts whose states are kept


class TextEncoder:
    """Prompts -> `Cond`, one row each; the last ones are remembered."""

    def __init__(
        self,
        encoders: Sequence[tuple[CLIPTextModel, Tokenizer]],
        device: torch.device,
        *,
        pooled: bool = False,
        zeros_for_empty: bool = False,
    ) -> None:
        """`pooled`: as SDXL has it, see above. `zeros_for_empty`: guidance away from nothing is away from zeros."""
        self.encoders, self.device = tuple(encoders), device
        self.pooled, self.zeros_for_empty = pooled, zeros_for_empty
        self._states = lru_cache(REMEMBERED)(self._encode)

    @property
    def tokenizer(self) -> Tokenizer:
        """The first encoder's; others cut texts at the same words."""
        return self.encoders[0][1]

    @property
    def capacity(self) -> int:
        """Tokens of a text that fit, without those that mark begin and end."""
        return min(tokenizer.max_length for _, tokenizer in self.encoders) - 2

    def check(self, text: str, *, what: str = "prompt") -> None:
        """Raises UsageError if `text` does not fit, naming the words that would be lost."""
        encoding = self.tokenizer.encode(text)
        if encoding.cut:
            raise UsageError(
                f"the {what} has {encoding.cut} tokens more than the {self.capacity} that the text encoder holds: "
                f"shorten it; '{encoding.cut_text.strip()}' did not fit"
            )

    def __call__(self, text: str) -> Cond:
        """What the net is told of `text`: `Cond.text` [1, L, D], and `Cond.pooled` [1, P] where it takes that.

        Raises UsageError as `check` does.
        """
        return self._states(text)

    def null(self, text: str) -> Cond:
        """What guidance steers away from: `text`, or zeros where there is none and the model was made for that."""
        told = self(text)
        return told.map(torch.zeros_like) if self.zeros_for_empty and not text else told

    def _encode(self, text: str) -> Cond:
        self.check(text)
        with torch.inference_mode():
            states = [
                net(torch.tensor([tokenizer.encode(text).ids], device=self.device))  # [1, L] -> TextStates
                for net, tokenizer in self.encoders
            ]
            if not self.pooled:
                return Cond(text=states[0].last)
            return Cond(
                text=torch.cat([each.hidden[-2] for each in states], dim=-1), pooled=states[-1].pooled
            )
