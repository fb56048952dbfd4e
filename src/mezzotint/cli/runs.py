"""`mezzotint train`, and what is done with a run afterwards: `train ema RUN`, `train report RUN`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .options import Device, Json
from .show import Show
from .train import train

Run = Annotated[Path, typer.Argument(help="The folder of a run: `out` of its configuration.")]


class _Training(TyperGroup):
    """`train CONFIG ...` is `train run CONFIG ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help", "-h"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


training = typer.Typer(
    cls=_Training,
    help="Train what a configuration describes (`train CONFIG.toml`), or look at a run afterwards.",
    no_args_is_help=True,
)
training.command("run")(train)


@training.command()
def ema(
    run: Run,
    length: Annotated[
        list[float] | None,
        typer.Option(
            "--length",
            "-l",
            help="Relative length of the average, 0.1 for instance; may be repeated: the best one is written.",
        ),
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=1, help="After so many steps; the last if not given.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to; RUN/<stage>-ema if not given.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Average the weights of a run anew, as long as you like, and write the model; needs `optim.posthoc`."""
    from ..training.rebuild import Averages, best

    show = Show(as_json)
    averages = Averages(run, step=step, device=device)
    looks = []
    for look in averages.looks(tuple(length or ())):
        looks.append(look)
        said = "" if math.isnan(look.loss) else f", loss {look.loss:.5f}"
        show.note(f"length {look.length:g}{said}" + (f": {look.note}" if look.note else ""))
        show.event(
            event="look",
            length=look.length,
            rest=look.rest,
            loss=None if math.isnan(look.loss) else look.loss,
        )
    chosen = best(looks)
    folder = out or run / f"{averages.config.stage}-ema"
    averages.export(chosen, folder)
    show.result(str(folder), event="model", path=str(folder), length=chosen.length)


@training.command()
def report(
    run: Run,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write; RUN/report.html if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw the curves and the samples of a run, under way or ended, as one HTML file that needs no network."""
    from ..training.report import write_report

    path = write_report(run, out)
    Show(as_json).result(str(path), event="report", path=str(path))
