"""The card that a trained model carries: what it was trained on, how, how the losses went, what it draws."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..data import remote
from .chart import together
from .config import TrainConfig
from .history import History, mean_loss, read_history
from .pictures import Pictures
from .report import grids, losses

README, CURVES, SAMPLES = "README.md", "curves.svg", "samples.png"


def card_files(
    config: TrainConfig, pictures: Pictures, prompts: Sequence[str] = ()
) -> dict[str, str | bytes]:
    """The card and the pictures in it, by file name: curves and the last sample grid, drawn for `prompts`."""
    history, drawn = read_history(config.out), grids(config.out)
    files: dict[str, str | bytes] = {}
    if len(history.steps) > 1:
        files[CURVES] = together(losses(history))
    if drawn:
        files[SAMPLES] = drawn[-1][1].read_bytes()
    return {README: model_card(config, pictures, shown=tuple(files), prompts=prompts)} | files


def model_card(
    config: TrainConfig, pictures: Pictures, *, shown: Sequence[str] = (), prompts: Sequence[str] = ()
) -> str:
    """Markdown. Losses are read from the run's log; `shown`: which pictures stand beside it."""
    split, history = pictures.split, read_history(config.out)
    lines = [
        f"# {config.out.name}",
        "",
        f"Trained by mezzotint {__version__}{_commit()} (torch {torch.__version__}), stage `{config.stage}`, seed "
        f"{config.seed}.",
        "",
        "## Data",
        "",
        f"{len(split.train)} pictures trained on, {len(split.held_out)} held out, of the folder "
        f"`{Path(remote.shown(config.data)).name}`; {sum(len(r.captions) for r in pictures.records)} captions"
        + (f"; classes: {', '.join(pictures.classes)}." if pictures.classes else "."),
        "",
        "```",
        pictures.table(),
        "```",
        "",
        *_samples(shown, prompts),
        "## Losses",
        "",
        *(["![Losses over steps](curves.svg)", ""] if CURVES in shown else []),
        *_losses(history),
        "",
        "## Settings",
        "",
        "```json",
        json.dumps(config.model_dump(mode="json", exclude={"data", "out"}, exclude_defaults=True), indent=2),
        "```",
        "",
        "Pictures that it draws are synthetic. What its training pictures allow, and what they show unequally often, "
        "holds for it too.",
        "",
    ]
    return "\n".join(lines)


def _samples(shown: Sequence[str], prompts: Sequence[str]) -> list[str]:
    if SAMPLES not in shown:
        return []
    said = ", ".join(f"`{prompt}`" for prompt in dict.fromkeys(prompts) if prompt)
    return ["## Samples", "", "![Samples](samples.png)", "", *([f"Of {said}.", ""] if said else [])]


def _losses(history: History) -> list[str]:
    steps, looks = history.steps, history.looks
    lines = ["| step | training loss | held out | trained on |", "|---:|---:|---:|---:|"]
    for look in _some(looks, 10):
        before = [entry["loss"] for entry in steps if entry["step"] <= look["step"]][-5:]
        mean = f"{sum(before) / len(before):.4f}" if before else ""
        held, train = (_shown(mean_loss(look["validation"][side])) for side in ("held_out", "train"))
        lines.append(f"| {look['step']} | {mean} | {held} | {train} |")
    scores = [e["score"] | {"step": e["step"]} for e in history.scores]
    if scores:
        last = scores[-1]
        lines += [
            "",
            f"Distance of {last['n']} samples to held-out pictures after step {last['step']} ({last['kind']}): "
            f"{last['value']:.4g} ({last['low']:.4g} to {last['high']:.4g}).",
        ]
    notes = Counter(note.partition(":")[0] for _, note in history.notes)
    return lines + ([""] + [f"- {note}" for note in list(notes)[:10]] if notes else [])


def _shown(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4f}"


def _some(items: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return (
        items if len(items) <= count else [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]
    )


def _commit() -> str:
    """The commit of the program, where it runs from a repository."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f", commit {done.stdout.strip()}"
