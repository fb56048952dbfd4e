"""The evaluation as a table to read, as JSON to compute with, and as pictures to look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..formats.atomic import new_file, write_file, write_json
from .evaluate import Figure, Section
from .intervals import Interval

COLUMNS = 8


def write_report(out: Path, sections: Sequence[Section], about: Mapping[str, Any]) -> None:
    """Write `evaluation.json`, `evaluation.md` and a sheet of pictures for each section, over what is there."""
    write_json(out / "evaluation.json", to_json(sections, about), replace=True)
    write_file(out / "evaluation.md", to_markdown(sections, about), replace=True)
    for section in sections:
        if section.pictures is not None:
            with new_file(out / f"{section.letter}.png", replace=True) as part:
                sheet(section.pictures).save(part)


def sheet(pictures: Tensor) -> Image.Image:
    """uint8 [B, 3, H, W] in rows of eight, on white."""
    count, _, height, width = pictures.shape
    page = Image.new("RGB", (COLUMNS * width, -(-count // COLUMNS) * height), "white")
    for i, picture in enumerate(pictures):
        corner = (i % COLUMNS * width, i // COLUMNS * height)
        page.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()), corner)
    return page


def to_json(sections: Iterable[Section], about: Mapping[str, Any]) -> dict[str, Any]:
    """All figures with their intervals and, where one was judged, every prompt with its outcome."""
    return {
        "about": dict(about),
        "sections": {section.letter: _section(section) for section in sections},
    }


def to_markdown(sections: Iterable[Section], about: Mapping[str, Any]) -> str:
    """A table of the figures, then how each was measured and what else is known."""
    sections = list(sections)
    rows = [
        f"| ({section.letter}) {section.title}: {figure.name} | {_told(figure.interval, figure.unit)} "
        f"| {_aim(figure)} | {_short(figure.floor, figure.unit)} | {_short(figure.ceiling, figure.unit)} "
        f"| {figure.interval.n} |"
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
            *(f"- {name}: {_listed(what)}" for name, what in about.items()),
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


def _listed(what: Any) -> str:
    return "; ".join(f"{k}: {v}" for k, v in what.items()) if isinstance(what, Mapping) else str(what)


def _told(interval: Interval, unit: str) -> str:
    if unit == "%":
        return interval.percent()
    return f"{interval.plain(4 if unit == 'rms' else 2)}{' dB' if unit == 'dB' else ''}"


def _aim(figure: Figure) -> str:
    if figure.aim is None:
        return ""
    return f"{100 * figure.aim:.0f} %" if figure.unit == "%" else f"at most {figure.aim:g}"


def _short(interval: Interval | None, unit: str) -> str:
    if interval is None:
        return ""
    return f"{100 * interval.value:.1f} %" if unit == "%" else f"{interval.value:.2f}"
