"""The evaluation as a table to read and as JSON to compute with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .evaluate import Figure, Section
from .intervals import Interval


def to_json(sections: Iterable[Section], about: Mapping[str, Any]) -> dict[str, Any]:
    """All figures with their intervals and, where one was judged, every prompt with its outcome."""
    return {
        "about": dict(about),
        "sections": {section.letter: _section(section) for section in sections},
    }


def to_markdown(sections: Iterable[Section]) -> str:
    """A table of the figures, then how each was measured."""
    sections = list(sections)
    rows = [
        f"| ({section.letter}) {section.title}: {figure.name} | {_told(figure.interval, figure.unit)} "
        f"| {_aim(figure)} | {_short(figure.floor)} | {_short(figure.ceiling)} | {figure.interval.n} |"
        for section in sections
        for figure in section.figures
    ]
    return "\n".join(
        [
            "| question | measured (95 % interval) | aim | floor | ceiling | n |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "Floor: the same measure with every picture held against another's prompt. Ceiling: the measure on true "
            "pictures, composed for the same prompts.",
            "",
            *(f"- ({section.letter}) {section.how}" for section in sections),
            "",
        ]
    )


def _section(section: Section) -> dict[str, Any]:
    outcomes = zip(section.prompts, section.hits, strict=True) if section.hits else ()
    return {
        "title": section.title,
        "how": section.how,
        "figures": [_figure(figure) for figure in section.figures],
        "prompts": [{"prompt": prompt, "hit": hit} for prompt, hit in outcomes],
    }


def _figure(figure: Figure) -> dict[str, Any]:
    optional = {"floor": figure.floor, "ceiling": figure.ceiling}
    return {
        "name": figure.name,
        "unit": figure.unit,
        **figure.interval.to_dict(),
        **({"aim": figure.aim} if figure.aim is not None else {}),
        **{name: interval.to_dict() for name, interval in optional.items() if interval is not None},
    }


def _told(interval: Interval, unit: str) -> str:
    if unit == "%":
        return interval.percent()
    return f"{interval.plain(4 if unit == 'rms' else 2)}{' dB' if unit == 'dB' else ''}"


def _aim(figure: Figure) -> str:
    return "" if figure.aim is None else f"{100 * figure.aim:.0f} %"


def _short(interval: Interval | None) -> str:
    return "" if interval is None else f"{100 * interval.value:.1f} %"
