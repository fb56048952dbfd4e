"""From a prompt to what a net is conditioned on: tokens, then the states of the text encoder.

Each text is encoded by itself, so that its states do not depend on what else is asked for. A text that does not
fit is refused: a prompt that is cut in silence is a wrong picture that nobody can explain.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from .diffusion.types import Cond
from .errors import UsageError
from .formats.tokenizer import Tokenizer
from .nets import CLIPTextModel

REMEMBERED = 64  # texts whose states are kept


class TextEncoder:
    """Prompts -> `Cond`, one row each; the last ones are remembered."""

    def __init__(self, net: CLIPTextModel, tokenizer: Tokenizer, device: torch.device) -> None:
        self.net, self.tokenizer, self.device = net, tokenizer, device
        self._states = lru_cache(REMEMBERED)(self._encode)

    @property
    def capacity(self) -> int:
        """Tokens of a text that fit, without those that mark begin and end."""
        return self.tokenizer.max_length - 2

    def check(self, text: str, *, what: str = "prompt") -> None:
        """Raises UsageError if `text` does not fit, naming the words that would be lost."""
        encoding = self.tokenizer.encode(text)
        if encoding.cut:
            raise UsageError(
                f"the {what} has {encoding.cut} tokens more than the {self.capacity} that the text encoder holds: "
                f"shorten it; '{encoding.cut_text.strip()}' did not fit"
            )

    def __call__(self, text: str) -> Cond:
        """What the net is told of `text`: `Cond.text` [1, L, D]. Raises UsageError as `check` does."""
        return self._states(text)

    def _encode(self, text: str) -> Cond:
        self.check(text)
        ids = torch.tensor([self.tokenizer.encode(text).ids], device=self.device)  # [1, L]
        with torch.inference_mode():
            return Cond(text=self.net(ids).last)
