"""The language of prompts that AUTOMATIC1111's program made common: words, how much each counts, and when.

    (word) x 1.1    [word] / 1.1    (word:1.3) x 1.3    \\( \\) \\[ \\] \\\\ the sign itself    BREAK a new chunk
    [a:b:0.25] a, then b after a quarter of the steps (10 without a point: after ten)    [a|b] a and b in turn
    <lora:name:0.8> the LoRA of that name, at that weight    cat AND dog :0.5 both at once, the dog half as much

It is read in passes, as there: tags are taken out of a prompt (`tags`), it is parted at each AND (`conjuncts`), what
changes over the steps gives a text for each step (`Script`), and brackets that are left are weights (`weigh`). No
prompt is wrong: what has no partner or no meaning stands for itself, and a bracket that is never closed reaches to
the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from .errors import UsageError
from .extras import is_path

STRONGER = 1.1  # what a pair of round brackets multiplies by, and a pair of square ones divides by
DEEPEST = 50  # brackets within brackets; what lies deeper is text
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_WHEN = re.compile(rf"\s*({_NUMBER}(?:[eE][+-]?\d+)?)\s*")
_TAG = re.compile(r"<(\w+):([^<>]+)>")
_PIECE = re.compile(rf"\\(.?)|([(\[])|:\s*({_NUMBER})\s*\)|([)\]])|[^\\()\[\]:]+|:", re.DOTALL)
_AND = re.compile(r"(?<!\\)\bAND\b")
_SHARE = re.compile(rf"(.*?)\s*:\s*({_NUMBER})\s*", re.DOTALL)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_PLAIN = re.compile(r"(?:[^\\()\[\]:|]|\\.)+", re.DOTALL)
_SIGNS = re.compile(r"[\\()\[\]]")


# --- tags ---


class Tag(NamedTuple):
    """`<lora:name:weight>`, or `<lora:name:text weight:picture weight>`."""

    name: str
    weight: float  # of what it does to the denoiser
    text_weight: float  # of what it does to the text encoders


def tags(text: str) -> tuple[str, tuple[Tag, ...]]:
    """A prompt without its LoRA tags, and these. Raises UsageError for a tag that cannot be understood."""
    found = []

    def taken(match: re.Match[str]) -> str:
        kind, (name, *weights) = match[1].lower(), match[2].split(":")
        if kind == "hypernet":
            raise UsageError(f"{match[0]}: hypernetworks are not supported; use a LoRA or an embedding")
        if kind not in ("lora", "lyco"):
            return match[0]
        named = dict(zip(("te", "unet"), (each for each in weights if "=" not in each), strict=False))
        named |= {key: value for key, sign, value in (each.partition("=") for each in weights) if sign}
        if not name.strip() or len(named) != len(weights) or named.keys() - {"te", "unet"}:
            raise UsageError(
                f"{match[0]}: write <lora:name:weight>, or <lora:name:text weight:picture weight>"
            )
        if is_path(name):
            raise UsageError(
                f"{match[0]}: '{name}' is a path; a tag has the name of a file in a known folder"
            )
        try:
            numbers = {key: float(value) for key, value in named.items()}
        except ValueError as error:
            raise UsageError(f"{match[0]}: a weight is a number, for instance <lora:{name}:0.8>") from error
        text_weight = numbers.get("te", 1.0)
        weight = numbers.get("unet", text_weight)
        found.append(Tag(name.strip(), weight, text_weight))
        return ""

    rest = _TAG.sub(taken, text)
    return (rest.strip() if found else text), tuple(found)


# --- several at once ---


class Conjunct(NamedTuple):
    """One of the prompts that a picture is to answer to at once, and how much it counts among them."""

    text: str
    weight: float


def conjuncts(text: str) -> tuple[Conjunct, ...]:
    """The prompts between ANDs, weighed by the number behind a colon at the end of each; one where there is no AND.

    Without an AND the text stays as it is: a colon at its end is then a colon.
    """
    parts = _AND.split(text)
    if len(parts) == 1:
        return (Conjunct(text, 1.0),)
    found = []
    for part in parts:
        weighed = _SHARE.fullmatch(part)
        found.append(
            Conjunct(weighed[1].strip(), float(weighed[2])) if weighed else Conjunct(part.strip(), 1.0)
        )
    return tuple(found)


def texts_of(prompt: str, steps: int) -> set[str]:
    """All that a prompt says at any step."""
    return {text for part in conjuncts(prompt) for text in Script.read(part.text).texts(steps)}


# --- what changes over the steps ---


@dataclass(frozen=True)
class Switch:
    """`[before:after:when]`."""

    before: Script
    after: Script
    when: str  # as it is written: with a point a share of the steps, else a number of them

    def at(self, step: int, steps: int) -> str:
        last = float(self.when) * (steps if "." in self.when else 1)
        return (self.before if step <= last else self.after).at(step, steps)

    def __str__(self) -> str:
        return f"[{self.before}:{self.after}:{self.when}]"


@dataclass(frozen=True)
class Cycle:
    """`[one|other|...]`."""

    options: tuple[Script, ...]

    def at(self, step: int, steps: int) -> str:
        return self.options[(step - 1) % len(self.options)].at(step, steps)

    def __str__(self) -> str:
        return f"[{'|'.join(map(str, self.options))}]"


@dataclass(frozen=True)
class Script:
    """A prompt as a function of the step; `str` writes it again, and `Script.read(str(script)) == script`."""

    parts: tuple[str | Switch | Cycle, ...] = ()

    @classmethod
    def read(cls, text: str) -> Script:
        """Never fails: a bracket that is neither a switch nor a cycle is text."""
        return _Reader(text).all()

    @property
    def constant(self) -> bool:
        return all(isinstance(part, str) for part in self.parts)

    def at(self, step: int, steps: int) -> str:
        """The text at step 1 .. steps."""
        return "".join(part if isinstance(part, str) else part.at(step, steps) for part in self.parts)

    def texts(self, steps: int) -> list[str]:
        """The texts of all steps."""
        return [self.at(step, steps) for step in range(1, steps + 1)]

    def __str__(self) -> str:
        return "".join(map(str, self.parts))


def _script(parts: list[str | Switch | Cycle]) -> Script:
    """Neighbouring texts joined, empty ones left out."""
    joined: list[str | Switch | Cycle] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return Script(tuple(joined))


class _Reader:
    """Recursive descent. A bracket without an end of its own is text; that is found out once for each place."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.closed: dict[int, tuple[list[str | Switch | Cycle], int] | None] = {}  # where -> (what, its end)

    def all(self) -> Script:
        parts: list[str | Switch | Cycle] = []
        here = 0
        while here < len(self.text):
            group = self.group(here, 0) if self.text[here] in "([" else None
            found, here = group or self.plain(here)
            parts += found
        return _script(parts)

    def plain(self, here: int) -> tuple[list[str | Switch | Cycle], int]:
        match = _PLAIN.match(self.text, here)
        end = match.end() if match else here + 1
        return [self.text[here:end]], end

    def group(self, here: int, depth: int) -> tuple[list[str | Switch | Cycle], int] | None:
        """The bracket that opens at `here`; None if it has no end of its own."""
        if here not in self.closed:
            self.closed[here] = self._group(here, depth + 1) if depth < DEEPEST else None
        return self.closed[here]

    def _group(self, start: int, depth: int) -> tuple[list[str | Switch | Cycle], int] | None:
        opens = self.text[start]
        close, separators = (")", "") if opens == "(" else ("]", ":|")
        scripts: list[list[str | Switch | Cycle]] = [[]]
        used = ""
        here = start + 1
        while here < len(self.text):
            sign = self.text[here]
            if sign == close:
                return self._meaning(opens, [*scripts], used, close), here + 1
            if sign in ")]":
                return None
            if sign in separators:
                scripts.append([])
                used += sign
                here += 1
                continue
            inner = self.group(here, depth) if sign in "([" else self.plain(here)
            if inner is None:
                return None
            scripts[-1] += inner[0]
            here = inner[1]
        return None

    @staticmethod
    def _meaning(
        opens: str, scripts: list[list[str | Switch | Cycle]], used: str, close: str
    ) -> list[str | Switch | Cycle]:
        if used and set(used) == {"|"}:
            return [Cycle(tuple(map(_script, scripts)))]
        if used in (":", "::"):
            *before, after, last = map(_script, scripts)
            when = _WHEN.fullmatch(str(last)) if last.constant else None
            if when:
                return [Switch(before[0] if before else Script(), after, when[1])]
        parts: list[str | Switch | Cycle] = [opens, *scripts[0]]
        for separator, script in zip(used, scripts[1:], strict=True):
            parts += [separator, *script]
        return [*parts, close]


# --- how much the words count ---


class Run(NamedTuple):
    """Words that count alike."""

    text: str
    weight: float


Section = tuple[Run, ...]  # what stands between two BREAKs


@lru_cache(256)
def weigh(text: str) -> tuple[Section, ...]:
    """A text as sections of runs: brackets multiply the weights of what they hold, BREAK begins a section.

    Sums of brackets need not nest: "(a [b) c]" weighs b by both. Runs of equal weight are joined.
    """
    pieces: list[list[tuple[str, float]]] = [[]]  # by section
    places: dict[str, list[tuple[int, int]]] = {"(": [], "[": []}  # where brackets opened: section, piece

    def multiply(place: tuple[int, int], factor: float) -> None:
        section, first = place
        for i in range(section, len(pieces)):
            begin = first if i == section else 0
            pieces[i][begin:] = [(words, weight * factor) for words, weight in pieces[i][begin:]]

    for match in _PIECE.finditer(text):
        escaped, opened, number, closed = match.groups()
        here = (len(pieces) - 1, len(pieces[-1]))
        if escaped is not None:
            pieces[-1].append((escaped, 1.0))
        elif opened:
            places[opened].append(here)
        elif number and places["("]:
            multiply(places["("].pop(), float(number))
        elif closed == ")" and places["("]:
            multiply(places["("].pop(), STRONGER)
        elif closed == "]" and places["["]:
            multiply(places["["].pop(), 1 / STRONGER)
        else:
            first, *more = _BREAK.split(match[0])
            pieces[-1].append((first, 1.0))
            pieces += [[(words, 1.0)] for words in more]
    for place in places["("]:
        multiply(place, STRONGER)
    for place in places["["]:
        multiply(place, 1 / STRONGER)
    return tuple(tuple(_joined(section)) for section in pieces)


def _joined(pieces: list[tuple[str, float]]) -> Iterator[Run]:
    text, before = "", 1.0
    for words, weight in pieces:
        if not words:
            continue
        if text and weight != before:
            yield Run(text, before)
            text = ""
        text, before = text + words, weight
    if text:
        yield Run(text, before)


def spell(sections: tuple[Section, ...]) -> str:
    """The text that `weigh` reads so; weights are written out in full."""

    def run(text: str, weight: float) -> str:
        return escape(text) if weight == 1 else f"({escape(text)}:{weight!r})"

    return " BREAK ".join("".join(run(*each) for each in section) for section in sections)


def plain(text: str, steps: int) -> set[str]:
    """What a prompt says at any of the steps, in words alone: without tags, brackets and weights."""
    texts = set(Script.read(_TAG.sub("", text)).texts(steps))
    return {" ".join("".join(run.text for run in section) for section in weigh(at)) for at in texts}


def escape(text: str) -> str:
    """A prompt that says `text` and nothing else, whatever signs are in it."""
    signs = _SIGNS.sub(lambda sign: "\\" + sign[0], text)
    return re.sub(r"\b(BREAK|AND)\b", r"\\\1", re.sub(r"<(?=\w+:)", r"<\\", signs))
