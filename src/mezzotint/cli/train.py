"""`mezzotint train`: a configuration to a model, with an eye on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import unknown
from .options import Json
from .show import Show

if TYPE_CHECKING:
    from ..training.config import TrainConfig

ENGINES = ("here", "ray")


def train(
    config: Annotated[
        Path | None, typer.Argument(help="A TOML file, see configs/; not needed beside --preset.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change a value of the file."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help="Settings to begin with; yours go before.")
    ] = None,
    presets: Annotated[bool, typer.Option("--presets", help="List them, and do nothing else.")] = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Say what would happen, measured by a few steps that leave no trace."),
    ] = False,
    engine: Annotated[
        str, typer.Option(help="here: this process, or those of torchrun; ray: processes of a Ray cluster.")
    ] = "here",
    workers: Annotated[int, typer.Option(min=1, help="With --engine ray: processes that train.")] = 2,
    as_json: Json = False,
) -> None:
    """Train, or go on training, what a configuration describes; it may be interrupted at any moment."""
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    from ..training.config import read_config

    show = Show(as_json)
    if presets:
        _list_presets(show)
        return
    settings = read_config(config, overrides, preset=preset)
    if explain:
        from .explain import show_explanation

        show_explanation(settings, show)
        return
    if engine == "ray":
        from ..training.on_ray import train_on_ray

        path = train_on_ray(settings, workers)
        show.result(str(path), event="model", path=str(path))
        return
    follow(settings, show)
    result = settings.out / settings.stage
    show.result(str(result), event="model", path=str(result))


def follow(settings: TrainConfig, show: Show) -> None:
    """Train to the end and say how it goes. Raises MezzotintError as `training.watch.run` does."""
    from ..training.watch import session

    with show.bar() as progress, show.warned(), session(settings) as here:
        first = progress.add_task("preparing", total=None, note="")
        for done, total in here.prepare():
            progress.update(first, completed=done, total=total)
        progress.remove_task(first)
        if (table := here.table()) is not None:
            show.note(table)
        task = progress.add_task(settings.stage, total=settings.optim.steps, note="")
        for now in here.steps():
            for note in now.stats.notes:
                show.event(event="note", step=now.stats.step, text=note)
                show.note(note)
            progress.update(
                task,
                completed=now.stats.step,
                note=f"loss {now.stats.loss:.4f}, {now.images_per_second:.1f} pictures/s, "
                f"{_time(now.seconds_left)} left, {now.precision}",
            )
            if now.stats.step % settings.run.log == 0 or now.stats.step == settings.optim.steps:
                show.event(
                    event="step",
                    step=now.stats.step,
                    steps=now.steps,
                    loss=now.stats.loss,
                    parts=now.stats.parts,
                    lr=now.stats.lr,
                    images_per_second=now.images_per_second,
                    seconds_left=now.seconds_left,
                )
                if not show.live:
                    show.note(
                        f"step {now.stats.step} of {now.steps}: loss {now.stats.loss:.4f}, "
                        f"{now.images_per_second:.1f} pictures/s, {_time(now.seconds_left)} left"
                    )


def _list_presets(show: Show) -> None:
    from ..training.presets import PRESETS

    for name, preset in PRESETS.items():
        needs = "".join(f"\n    --set {key}=...  {what}" for key, what in preset.needs.items())
        text = f"{name}: {preset.about}{needs}"
        show.result(
            text, event="preset", name=name, about=preset.about, needs=preset.needs, settings=preset.settings
        )


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
