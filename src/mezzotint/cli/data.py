"""`mezzotint data`: pictures with captions, to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Force, Json
from .show import Show

data = typer.Typer(help="Make data to train on.", no_args_is_help=True)


@data.callback()
def group() -> None:
    """Make data to train on."""


@data.command()
def emoji(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    font: Annotated[
        Path | None, typer.Option(help="A Noto Color Emoji font; the installed one if not given.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="A folder or tar of its PNGs, instead of the font.")
    ] = None,
    keywords: Annotated[Path | None, typer.Option(help="JSON: emoji to a list of words.")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Render every emoji with its names: RGBA pictures and metadata.jsonl; the same bytes each time."""
    from ..data.emoji import emoji_set, write_emoji

    show = Show(as_json)
    found = emoji_set(font=font, images=images, keywords=keywords)
    for _ in show.each(write_emoji(found, out, replace=force), len(found), "emoji", unit="pictures"):
        pass
    show.note(f"{len(found)} named pictures of {found.source}; {found.unnamed} without a name were left out")
    show.result(str(out), event="data", path=str(out), pictures=len(found), unnamed=found.unnamed)


@data.command()
def check(
    path: Annotated[
        Path, typer.Argument(help="A folder of pictures, tar shards ('shard-{000..009}.tar'), a dataset.")
    ],
    layout: Annotated[
        str, typer.Option(help="auto, metadata, coco, sidecar, classes, plain, shards or table.")
    ] = "auto",
    resolution: Annotated[int, typer.Option(help="Side in pixels that training asks for.")] = 64,
    step: Annotated[int, typer.Option(help="What the sides of buckets are multiples of.")] = 8,
    aspect: Annotated[float, typer.Option(help="Largest ratio of a bucket's sides.")] = 2.0,
    held_out: Annotated[float, typer.Option(help="Share that training would hold out.")] = 0.02,
    as_json: Json = False,
) -> None:
    """Look for what would spoil training: damaged, tiny, copied, uncaptioned pictures; status 1 if it is severe."""
    from ..data.doctor import check_folder, examine, report
    from ..data.split import split
    from ..data.views import bucket_rows, bucket_table, buckets, nearest

    show = Show(as_json)
    records, found, faults = check_folder(path, layout)
    looks = list(show.each(examine(records, resolution=resolution), len(records), "looking", unit="pictures"))
    held = split(records, held_out).held_out
    told = report(records, looks, held, layout=found, captions=found != "plain", faults=faults)
    sizes, choices = [look.size for look in looks if look.size], buckets(resolution, step, aspect)
    chosen = [nearest(size, choices) for size in sizes]
    rows = bucket_rows(sizes, chosen)
    text = f"{told.text()}\n{bucket_table(rows)}"
    facts = told.to_dict() | {"buckets": [row._asdict() for row in rows]}
    show.result(text, event="check", path=str(path), **facts)
    if told.severe:
        raise typer.Exit(1)
