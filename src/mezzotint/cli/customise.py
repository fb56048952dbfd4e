"""`mezzotint customise`: a few pictures of a thing to a name that every task understands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .options import Json, Model
from .show import Show
from .train import follow


def customise(
    pictures: Annotated[
        list[Path], typer.Argument(metavar="PICTURE...", help="Three to five pictures of the thing.")
    ],
    name: Annotated[str, typer.Option(help="What it is to be called: a word that the model does not know.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder for what is learned.")] = Path("customs"),
    model: Model = "emoji",
    way: Annotated[
        Literal["lora", "embedding"],
        typer.Option(help="lora: changes the model a little; embedding: the name alone is learned."),
    ] = "lora",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of training; 300, or 400 for an embedding, if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the training.")] = 0,
    as_json: Json = False,
) -> None:
    """Learn a thing from a few pictures of it, and print the file that holds it; may be interrupted at any moment."""
    from ..pipeline import Pipeline
    from ..training.customise import custom

    show = Show(as_json)
    thing = custom(pictures, name, out, way)
    settings = thing.config(model, Pipeline.load(model, device="cpu").defaults.width, steps=steps, seed=seed)
    thing.gather()
    follow(settings, show)
    path = thing.take(settings)
    show.result(str(path), event="custom", path=str(path), name=thing.name, example=thing.example)
    show.note(thing.example)
