"""From a prompt to a class: what a model that was trained on classes, or on nothing at all, is told.

The prompt is the name of a class; an empty one stands for "any", which such models learn as a class of its own, so
that guidance works as it does with texts (Ho and Salimans 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .diffusion.types import Cond
from .errors import UsageError, unknown


class LabelEncoder:
    """Names of classes -> `Cond`; without classes every prompt but the empty one is refused. See `TextEncoder`."""

    def __init__(self, classes: Sequence[str], device: torch.device) -> None:
        self.classes, self.device = tuple(classes), device

    @property
    def capacity(self) -> int:
        """One word."""
        return 1

    def check(self, text: str, *, what: str = "prompt") -> None:
        """Raises UsageError for a text that is no class's name."""
        if text and not self.classes:
            raise UsageError(
                f"the {what} is '{text}', but this model was trained without words; leave it empty"
            )
        if text and text not in self.classes:
            raise unknown("class", text, self.classes)

    def __call__(self, text: str) -> Cond:
        """`Cond.label` [1]: the number of the class, of "any" for an empty text. Raises UsageError as `check` does."""
        self.check(text)
        if not self.classes:
            return Cond()
        number = self.classes.index(text) if text else len(self.classes)
        return Cond(label=torch.tensor([number], device=self.device))

    def null(self, text: str) -> Cond:
        """What guidance steers away from."""
        return self(text)

    def heard_at(self, layer: int) -> LabelEncoder:
        """Raises UsageError: there are no layers."""
        raise UsageError(
            f"clip_skip (--clip-skip) is {layer}, and this model reads no text that layers could be skipped of"
        )
