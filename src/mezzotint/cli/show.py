"""What a command says while it works: a live line for people on stderr, results on stdout, or JSON lines."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")


class Show:
    """Says things; `as_json` decides how."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.live = not as_json and sys.stderr.isatty()  # somebody sees the bar
        self.console = Console(stderr=True, highlight=False)

    def result(self, text: str, **fields: Any) -> None:
        """Something that was asked for: `text` on stdout, or the fields."""
        print(json.dumps(fields) if self.as_json else text, flush=True)

    def event(self, **fields: Any) -> None:
        """Something on the way, for scripts alone."""
        if self.as_json:
            print(json.dumps(fields), flush=True)

    def note(self, text: str) -> None:
        """Something for people alone, on stderr."""
        if not self.as_json:
            self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def warned(self) -> Iterator[None]:
        """Our own warnings are notes while this lasts."""
        with warnings.catch_warnings():
            usual = warnings.showwarning

            def told(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
                if not category.__module__.startswith("mezzotint."):
                    usual(message, category, *rest, **more)
                    return
                self.event(event="note", text=str(message))
                self.note(str(message))

            warnings.showwarning = told
            yield

    @contextmanager
    def bar(self, *, unit: str = "step") -> Iterator[Progress]:
        """A live progress bar; silent with JSON and where nobody looks."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.live) as progress:
            yield progress

    def each(self, items: Iterable[T], total: int, description: str, *, unit: str) -> Iterator[T]:
        """The items, counted on a bar."""
        with self.bar(unit=unit) as progress:
            task = progress.add_task(description, total=total, note="")
            for item in items:
                progress.advance(task)
                yield item
