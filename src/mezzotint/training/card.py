"""The card that a trained model carries: what it was trained on, how, by which version, and how the losses went."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from .config import TrainConfig
from .pictures import Pictures


def model_card(config: TrainConfig, pictures: Pictures) -> str:
    """Markdown. Losses are read from the run's log."""
    split = pictures.split
    lines = [
        f"# {config.out.name}",
        "",
        f"Trained by mezzotint {__version__}{_commit()} (torch {torch.__version__}), stage `{config.stage}`, seed "
        f"{config.seed}.",
        "",
        "## Data",
        "",
        f"{len(split.train)} pictures trained on, {len(split.held_out)} held out, of the folder "
        f"`{config.data.name}`; {sum(len(r.captions) for r in pictures.records)} captions"
        + (f"; classes: {', '.join(pictures.classes)}." if pictures.classes else "."),
        "",
        "```",
        pictures.table(),
        "```",
        "",
        "## Losses",
        "",
        *_losses(config.out / "log.jsonl"),
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


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; of steps that were done again after a kill, the last word."""
    if not path.exists():
        return []
    kept: dict[tuple[int, bool], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # cut short by a kill
            continue
        kept[entry["step"], "validation" in entry] = entry
    return [kept[key] for key in sorted(kept)]


def _losses(log: Path) -> list[str]:
    entries = read_log(log)
    steps = [entry for entry in entries if "loss" in entry]
    looks = [entry for entry in entries if "validation" in entry]
    lines = ["| step | training loss | held out | trained on |", "|---:|---:|---:|---:|"]
    for look in _some(looks, 10):
        before = [entry["loss"] for entry in steps if entry["step"] <= look["step"]][-5:]
        mean = f"{sum(before) / len(before):.4f}" if before else ""
        held, train = (_mean(look["validation"][side]) for side in ("held_out", "train"))
        lines.append(f"| {look['step']} | {mean} | {held} | {train} |")
    notes = Counter(note.partition(":")[0] for entry in steps for note in entry.get("notes", []))
    return lines + ([""] + [f"- {note}" for note in list(notes)[:10]] if notes else [])


def _mean(losses: dict[str, float]) -> str:
    return f"{sum(losses.values()) / len(losses):.4f}" if losses else ""


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
