"""What may not be drawn: a hook with two questions, and a word list that answers the first out of the box.

A word list stops what is asked for in plain words and nothing else; it knows no intentions and no pictures. Whoever
needs more passes a `Safety` of their own to `Service`, with a classifier behind `check_picture`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ..errors import MezzotintError
from ..prompt import plain
from ..request import Request

# Sexual depiction of minors, and nothing else: what no service anywhere may draw. The rest is the operator's to say.
MINORS = (
    r"child|children|kid|kids|minor|minors|toddler|toddlers|baby|babies|infant|boy|boys|girl|girls|teen|teens|"
    r"schoolgirl|schoolboy|loli|shota|underage|preteen"
)
SEXUAL = (
    r"nude|nudes|nudity|naked|sex|sexual|sexy|porn|porno|pornographic|erotic|erotica|hentai|nsfw|genitals?|topless|"
    r"undressed"
)

STEPS = 50  # over which a prompt is read that may change, where nothing else is asked for


class Blocked(MezzotintError):
    """The safety check said no: not a failure."""


class Safety(Protocol):
    """Both answer why not, or None."""

    def check_request(self, request: Request) -> str | None:
        """Before a job is accepted."""

    def check_picture(self, image: Image.Image, recipe: Mapping[str, Any]) -> str | None:
        """Before a finished picture is kept."""


@dataclass(frozen=True)
class WordList:
    """Refuses prompts with one of the words or phrases, and those that put minors and sex together."""

    words: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path | None) -> WordList:
        """One word or phrase a line; what follows # is for people. Raises MezzotintError if it cannot be read."""
        if path is None:
            return cls()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise MezzotintError(f"the block list {path} cannot be read ({error})") from error
        return cls(tuple(filter(None, (_folded(line.split("#")[0]) for line in lines))))

    def check_request(self, request: Request) -> str | None:
        prompts = [request.prompt, request.prompt_to or ""]
        if request.guidance_scale is not None and request.guidance_scale < 1:  # towards it, and not away
            prompts.append(request.negative_prompt)
        said = {text for prompt in prompts for text in plain(prompt, request.num_inference_steps or STEPS)}
        for text in (f" {_folded(each)} " for each in (*prompts, *sorted(said))):
            if re.search(rf" ({MINORS}) ", text) and re.search(rf" ({SEXUAL}) ", text):
                return "the prompt asks for what this service does not draw"
            if any(f" {word} " in text for word in self.words):
                return "the prompt has words that this service's operator does not allow"
        return None

    def check_picture(self, image: Image.Image, recipe: Mapping[str, Any]) -> str | None:
        return None


def _folded(text: str) -> str:
    """Lower-case letters and digits, accents and compatibility forms undone, one space between words."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return " ".join(re.findall(r"[^\W_]+", plain))
