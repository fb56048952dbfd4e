"""What a run wrote down of itself, read back: steps, looks at held-out pictures, scores, and what went wrong.

`log.jsonl` holds one JSON object a line. A run that was killed wrote some steps twice; the last word counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
LOOK, SCORE = "validation", "score"  # keys of lines that are no steps
LOG = "log.jsonl"


@dataclass(frozen=True)
class History:
    """Lines of a log by kind, in the order of steps."""

    steps: list[Entry]
    looks: list[Entry]  # {"step", "validation": {"held_out": {sigma: loss}, "train": ...}}
    scores: list[Entry]  # {"step", "score": {"value", "low", "high", "n", ...}}

    @property
    def notes(self) -> list[tuple[int, str]]:
        """(step, what happened) of all that was out of the ordinary."""
        return [(entry["step"], note) for entry in self.steps for note in entry.get("notes", [])]

    @property
    def skipped(self) -> list[int]:
        """The steps that were not taken."""
        return [step for step, note in self.notes if " was skipped: " in note]


def read_history(run: Path) -> History:
    """The history of a run's folder; empty if it has no log."""
    path = run / LOG
    kept: dict[tuple[int, str], Entry] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:  # cut short by a kill
            continue
        kind = LOOK if LOOK in entry else SCORE if SCORE in entry else ""
        kept[entry["step"], kind] = entry
    in_order = [kept[key] for key in sorted(kept)]
    steps = [e for e in in_order if LOOK not in e and SCORE not in e]
    return History(steps, [e for e in in_order if LOOK in e], [e for e in in_order if SCORE in e])


def mean_loss(losses: dict[str, float]) -> float | None:
    """The mean over noise levels; None if nothing was looked at."""
    return sum(losses.values()) / len(losses) if losses else None
