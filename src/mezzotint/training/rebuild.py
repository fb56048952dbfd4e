"""From the snapshots of a run to a model: averages of any length, looked at and written.

Each length is judged by the loss on held-out pictures under fixed noise, the same for all, so that small differences
count; what it cannot say is how pictures look, for which the best lengths are often a little shorter or longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError
from ..formats.atomic import write_file
from .config import TrainConfig, read_run
from .loop import SNAPSHOTS, pick_device
from .posthoc import Snapshot, read_snapshots, rebuild
from .watch import Prepared, Validated, build_stage

LENGTHS = (0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25)  # looked at if none is asked for
FAR = 0.05  # of the profile that may be missed before it is said


@dataclass(frozen=True)
class Look:
    """What an average is worth."""

    length: float
    rest: float  # see `posthoc.Mixture`
    loss: float  # on held-out pictures; nan where the stage has no such measure

    @property
    def note(self) -> str:
        """What speaks against it, if anything."""
        if self.rest <= FAR:
            return ""
        return (
            f"{self.rest:.0%} of its profile is out of the snapshots' reach; take a length nearer to theirs"
        )


class Averages:
    """The averages of a run's nets, put together when they are asked for."""

    def __init__(self, run: Path, *, step: int | None = None, device: str = "auto") -> None:
        """`step`: after how many steps, the last snapshot's if not given. Raises UsageError if there are none."""
        self.config: TrainConfig = read_run(run)
        self.snapshots = read_snapshots(run / SNAPSHOTS)
        if not self.snapshots:
            raise UsageError(f"{run} kept no snapshots; set optim.posthoc = [0.05, 0.1] before training")
        self.step = step or self.snapshots[-1].step
        if not any(s.step <= self.step for s in self.snapshots):
            raise UsageError(f"the first snapshot of {run} is that after step {self.snapshots[0].step}")
        self.stage = build_stage(self.config, pick_device(device))
        if isinstance(self.stage, Prepared):
            for _ in self.stage.prepare():
                pass
            self.stage.ready()

    def look(self, length: float) -> Look:
        """Put the average of a length into the nets, and see how they do."""
        rest = self._apply(length)
        loss = self.stage.validate().loss if isinstance(self.stage, Validated) else math.nan
        return Look(length, rest, loss)

    def looks(self, lengths: tuple[float, ...] = ()) -> Iterator[Look]:
        """One after the other; without `lengths`, those of `LENGTHS` that are within reach."""
        for length in lengths or LENGTHS:
            found = self.look(length)
            if lengths or not found.note:
                yield found

    def export(self, look: Look, folder: Path) -> None:
        """Write what the run's stage writes, with the average's weights; its card says which they are."""
        self._apply(look.length)
        self.stage.export(folder)
        card = folder / "README.md"
        if card.exists():
            kept = sorted({s.length for s in self.snapshots})
            line = (
                f"The weights are their power-function average of relative length {look.length:g} after step "
                f"{self.step}, rebuilt from {len(self.snapshots)} snapshots of lengths "
                f"{', '.join(f'{one:g}' for one in kept)}; the profile is missed by {look.rest:.1%}.\n"
            )
            write_file(card, card.read_text(encoding="utf-8") + "\n" + line, replace=True)

    def _apply(self, length: float) -> float:
        rest = 0.0
        for name, net in self.stage.players.items():
            mine: list[Snapshot] = [s for s in self.snapshots if s.player == name]
            weights, mixed = rebuild(mine, length, self.step)
            net.load_state_dict(weights)
            rest = max(rest, mixed.rest)
        return rest


def best(looks: list[Look]) -> Look:
    """The one of the lowest loss; without losses, the one that is met best. UsageError if there is none."""
    if not looks:
        raise UsageError(
            "no length that is looked at by itself is within the snapshots' reach; name one: --length 0.1"
        )
    return min(looks, key=lambda look: (look.rest if math.isnan(look.loss) else look.loss, look.rest))
