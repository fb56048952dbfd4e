"""From a folder of emoji and a generator to a report on disk; the judge is trained if there is none yet.

    for event in run(generate, data, judge, out, stream=...): a step of the judge's training, or a finished section

The report is written anew after every section, so that a long evaluation may be interrupted.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.captions import Scene
from ..data.folder import read_folder
from ..data.scenes import EmojiScenes, load_scenes
from .edits import Edit, EditsConfig, evaluate_edits
from .evaluate import EvaluationConfig, Generate, Reconstruct, Section, evaluate, seen
from .judge import Judge
from .judge_training import JudgeStep, JudgeTraining, train_judge
from .report import write_report


@dataclass(frozen=True)
class Stream:
    """Which scenes the model was trained on: the first `count` of the run `seed`, drawn with these shares."""

    seed: int
    count: int
    plain: float
    pairs: float

    def of(self, scenes: EmojiScenes) -> Iterator[Scene]:
        return (scenes.scene(self.seed, i, plain=self.plain, pairs=self.pairs) for i in range(self.count))


def run(
    generate: Generate,
    data: Path,
    judge: Path,
    out: Path,
    *,
    stream: Stream,
    config: EvaluationConfig,
    training: JudgeTraining,
    reconstruct: Reconstruct | None = None,
    about: Mapping[str, Any] | None = None,
) -> Iterator[JudgeStep | Section]:
    """Yields the steps of the judge's training (if the file `judge` is not there yet), then sections (a) to (f).

    `out` gets `evaluation.json`, `evaluation.md` and `a.png` to `f.png`; `about` goes into the first two. Raises
    as `read_folder`, `train_judge`, `Judge.load`, `evaluate` and writing do.
    """
    scenes, referee = yield from _judged(data, judge, training)
    known = {**(about or {}), "judge": referee.about, "trained on": asdict(stream), "sizes": asdict(config)}
    sections = evaluate(
        generate,
        referee,
        scenes,
        read_folder(data),
        stream.of(scenes),
        reconstruct=reconstruct,
        config=config,
    )
    yield from _reported(sections, out, known)


def run_edits(
    edit: Edit,
    data: Path,
    judge: Path,
    out: Path,
    *,
    stream: Stream,
    config: EditsConfig,
    training: JudgeTraining,
    about: Mapping[str, Any] | None = None,
) -> Iterator[JudgeStep | Section]:
    """As `run`, with the sections (g) to (k) of `edits.py`."""
    scenes, referee = yield from _judged(data, judge, training)
    known = {**(about or {}), "judge": referee.about, "trained on": asdict(stream), "sizes": asdict(config)}
    _, pairs = seen(stream.of(scenes), EvaluationConfig(training_pictures=0))
    yield from _reported(evaluate_edits(edit, referee, scenes, pairs, config=config), out, known)


def _judged(
    data: Path, judge: Path, training: JudgeTraining
) -> Generator[JudgeStep, None, tuple[EmojiScenes, Judge]]:
    """The scenes of a folder and their judge, which is trained if the file is not there."""
    scenes = load_scenes(data)
    glyphs = scenes.glyphs[: len(scenes.things)]
    if not judge.exists():
        yield from train_judge(glyphs, judge, training)
    return scenes, Judge.load(judge, glyphs)


def _reported(sections: Iterable[Section], out: Path, about: Mapping[str, Any]) -> Iterator[Section]:
    """The sections, each when the report with it is on disk."""
    done: list[Section] = []
    for section in sections:
        done.append(section)
        write_report(out, done, about)
        yield section
