"""Many requests from a file, one JSON object a line: what is missing is drawn, by one process or by many.

A line is a request in the words of `request.py`; a picture's name ends in a hash of all that makes it, so that a run
that was stopped goes on where it was, and it does not matter who draws a line. A line that cannot be drawn is told with
its number, and the others go on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .cluster import cluster, gpus, threads
from .errors import MezzotintError, UsageError
from .request import Request

if TYPE_CHECKING:
    from .pipeline import Pipeline

BLOCKS = 16  # parts of the file for each worker: who is done early takes another


class Line(NamedTuple):
    """A line of the file, counted from 1."""

    number: int
    text: str


@dataclass(frozen=True)
class Outcome:
    """What became of a line."""

    line: int
    paths: tuple[str, ...] = ()
    made: int = 0  # of them now; the others were there
    error: str = ""  # why it was not drawn, or not to the end


def read_lines(path: Path) -> list[Line]:
    """The lines of a file that are not blank. UsageError if it is missing, MezzotintError if it is no text."""
    try:
        with path.open(encoding="utf-8") as file:
            return [Line(number, line) for number, line in enumerate(file, 1) if line.strip()]
    except FileNotFoundError as error:
        raise UsageError(f"{path} is missing; give a file with one JSON request a line") from error
    except (UnicodeDecodeError, OSError) as error:
        raise MezzotintError(f"{path} cannot be read: {error}") from error


def request_of(text: str, shared: Mapping[str, Any]) -> Request:
    """The request of a line; `shared` are fields of lines that do not say otherwise.

    Without a seed, a line has one that is a function of its text. Raises UsageError.
    """
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise UsageError(f"not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise UsageError('not a JSON object; write it as {"prompt": "a red apple"}')
    seed = int(_digest({**shared, **fields})[:8], 16)
    return Request.parse({"seed": seed} | dict(shared) | fields)


def draw_line(pipeline: Pipeline, line: Line, out: Path, shared: Mapping[str, Any]) -> Outcome:
    """Draw those pictures of a line that are not in `out` with the same recipe."""
    from .formats.image import save_image
    from .pipeline import Picture

    paths: list[str] = []
    made = 0
    try:
        settled = pipeline.settle(request_of(line.text, shared))
        recipes = [pipeline.recipe(settled, i) for i in range(settled.num_images)]
        places = [out / picture_name(recipe) for recipe in recipes]
        there = [_is_there(place, recipe) for place, recipe in zip(places, recipes, strict=True)]
        paths = [str(place) for place, is_there in zip(places, there, strict=True) if is_there]
        alone = [
            settled.model_copy(update={"seed": settled.seed + i, "num_images": 1}) for i in range(len(there))
        ]
        asked = [one for one, is_there in zip(alone, there, strict=True) if not is_there]
        for request in asked if any(there) else [settled]:
            for event in pipeline.generate(request):
                if isinstance(event, Picture):
                    place = places[event.seed - settled.seed]
                    save_image(place, event.image, event.recipe, replace=True)
                    paths.append(str(place))
                    made += 1
    except MezzotintError as error:
        return Outcome(line.number, tuple(paths), made, str(error))
    return Outcome(line.number, tuple(paths), made)


def draw_on_ray(
    opened: Mapping[str, Any], lines: Sequence[Line], out: Path, shared: Mapping[str, Any], *, workers: int
) -> Iterator[Outcome]:
    """What becomes of the lines, as they are done; each worker opens the model by itself (`opened`: for `load`).

    Raises UsageError where Ray is not installed or too small, and for a model that is not there.
    """
    if not lines:
        return
    from .catalog import find_model

    # Here, where it is told in one line, and fetched once.
    find_model(opened["model"], download=bool(opened.get("download")))
    with cluster(workers) as ray:
        try:
            from ray.data import ActorPoolStrategy, DataContext, from_items
        except ImportError as error:
            raise UsageError(
                f"Ray Data needs more packages: pip install 'mezzotint[ray]' ({error})"
            ) from error
        DataContext.get_current().enable_progress_bars = False
        parts = min(len(lines), BLOCKS * workers)
        rows = from_items([line._asdict() for line in lines], override_num_blocks=parts)
        done = rows.map(
            Drawer,
            fn_constructor_args=(os.getcwd(), dict(opened), out, dict(shared)),
            compute=ActorPoolStrategy(size=workers),
            num_cpus=threads(ray, workers),
            num_gpus=gpus(ray, str(opened.get("device", "auto"))),
        )
        for row in done.iter_rows():
            yield Outcome(row["line"], tuple(row["paths"]), row["made"], row["error"])


class Drawer:
    """One worker of Ray Data: it opens the model once, then draws line after line."""

    def __init__(self, folder: str, opened: dict[str, Any], out: Path, shared: dict[str, Any]) -> None:
        from .pipeline import Pipeline

        os.chdir(folder)  # paths may be relative to it
        self.pipeline, self.out, self.shared = Pipeline.load(**opened), out, shared

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        outcome = asdict(draw_line(self.pipeline, Line(row["number"], row["text"]), self.out, self.shared))
        return outcome | {"paths": list(outcome["paths"])}


def picture_name(recipe: Mapping[str, Any]) -> str:
    """Of the picture that a recipe makes: its prompt, its seed, and a hash of what was asked of which model."""
    asked = {
        key: value for key, value in recipe.items() if key in Request.model_fields or key == "model_hash"
    }
    return f"{slug(str(recipe.get('prompt', '')))}-{recipe['seed']}-{_digest(asked)[:10]}.png"


def slug(text: str, length: int = 60) -> str:
    """A file's name for a text: its letters and numbers, lower-case, joined by dashes."""
    words = "-".join(re.findall(r"[^\W_]+", text.lower()))
    return words.encode()[:length].decode(errors="ignore").strip("-") or "picture"


def _is_there(path: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether a picture stands at `path` that carries just this recipe."""
    from .formats.image import read_recipe

    if not path.exists():
        return False
    try:
        return read_recipe(path) == json.loads(json.dumps(recipe))
    except MezzotintError:  # damaged, or of another program: it is made again
        return False


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()
