"""`mezzotint train --explain` as tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from .show import Show

if TYPE_CHECKING:
    from ..training.config import TrainConfig
    from ..training.explain import Data, Explanation


def show_explanation(settings: TrainConfig, show: Show) -> None:
    """Say what a run would do."""
    from ..training.explain import explain

    with show.bar() as progress:
        progress.add_task("measuring a few steps", total=None, note="")
        told = explain(settings)
    if show.as_json:
        show.result("", event="explain", **asdict(told))
        return
    console = Console(highlight=False)
    table = Table(title=f"mezzotint train: {told.nets.stage}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in _rows(told):
        table.add_row(name, text, end_section=name == "" and not text)
    console.print(table)
    if told.data is not None:
        console.print(_buckets(told.data))
    for warning in told.warnings:
        console.print(f"! {warning}", markup=False, soft_wrap=True)


def _rows(told: Explanation) -> Iterator[tuple[str, str]]:
    data, nets, steps, times = told.data, told.nets, told.steps, told.times
    if data is not None:
        yield "data", f"{data.path}, layout {data.layout}"
        yield (
            "pictures",
            f"{data.pictures} trained on, {data.held_out} held out"
            + (f", {data.drawn} drawn by the model first" if data.drawn else ""),
        )
        yield (
            "told",
            f"{nets.condition}: {data.captions} captions"
            + (f", {len(data.classes)} classes" if data.classes else ""),
        )
    yield "begins with", nets.begins
    yield "parameters", f"{nets.trained:,} trained of {nets.parameters:,} in memory"
    yield "computes on", f"{nets.device}, {nets.precision}"
    done = f", {steps.done} of them done" if steps.done else ""
    epochs = f"; each picture {steps.epochs:.1f} times" if steps.epochs else ""
    yield "steps", f"{steps.steps}{done}{epochs}"
    parts = f", in {steps.parts} parts of {steps.batch // steps.parts}" if steps.parts > 1 else ""
    yield "batch", f"{steps.batch}{parts}, over all processes"
    there = f", {_size(told.bytes.memory_free)} free" if told.bytes.memory_free is not None else ""
    yield (
        "memory",
        f"{_size(told.bytes.peak)} at most so far, {_size(told.bytes.state)} of it trained state{there}",
    )
    kept = f"latents {_size(told.bytes.latents)}, texts {_size(told.bytes.texts)}"
    yield "disk", f"{kept}, checkpoints {_size(told.bytes.checkpoints)}; {_size(told.bytes.disk_free)} free"
    rate = f"{steps.batch / times.step:.1f} pictures a second"
    yield "a step", f"{times.step:.3f} s, {rate}, {times.waiting / times.step:.0%} of it waiting for data"
    yield "time", f"{_time(times.preparing)} of preparing at most, then {_time(times.training)} of training"
    yield "result", f"{told.out}/{nets.stage}"


def _buckets(data: Data) -> Table:
    table = Table(title="buckets", title_justify="left")
    for name in ("size", "pictures", "cut off", "enlarged"):
        table.add_column(name, justify="right")
    for bucket in data.buckets:
        width, height = bucket.size
        table.add_row(
            f"{width} x {height}", str(bucket.pictures), f"{bucket.cut_off:.1%}", str(bucket.enlarged)
        )
    return table


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _time(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
