"""One call from a folder of emoji to a report; the judge is trained once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import shapes
import torch
from conftest import SMALL
from PIL import Image
from torch import Tensor

from mezzotint.metrics.evaluate import EvaluationConfig, Section
from mezzotint.metrics.judge_training import JudgeStep
from mezzotint.metrics.report import sheet
from mezzotint.metrics.run import Stream, run

CONFIG = EvaluationConfig(
    names=9, colours=15, scenes=4, fresh=4, training_pictures=20, reconstructions=2, batch=16
)


def grey(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    return torch.full((len(prompts), 3, 128, 128), 128, dtype=torch.uint8)


def test_a_report_grows_on_disk_and_the_judge_is_trained_once(tmp_path: Path) -> None:
    data, judge, out = shapes.write_folder(tmp_path / "data"), tmp_path / "judge", tmp_path / "out"
    stream = Stream(seed=1, count=30, plain=0.5, pairs=0.2)
    training = replace(SMALL, steps=2, held_out=4)

    def events() -> list[JudgeStep | Section]:
        seen: list[JudgeStep | Section] = []
        for event in run(
            grey,
            data,
            judge,
            out,
            stream=stream,
            reconstruct=lambda pictures: pictures,
            config=CONFIG,
            training=training,
            about={"model": "grey"},
        ):
            seen.append(event)
            if isinstance(event, Section):
                report = json.loads((out / "evaluation.json").read_text())
                assert list(report["sections"])[-1] == event.letter
        return seen

    first = events()
    assert [type(event) for event in first] == [JudgeStep] * 2 + [Section] * 6
    assert [type(event) for event in events()] == [Section] * 6
    assert report_of(out)["about"]["model"] == "grey"
    assert report_of(out)["about"]["trained on"]["count"] == 30
    assert "- judge: " in (out / "evaluation.md").read_text()
    with Image.open(out / "a.png") as page:
        assert page.size == (8 * 128, 2 * 128)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(f"{letter}.png" for letter in "abcdef"), "evaluation.json", "evaluation.md"]
    )


def report_of(out: Path) -> dict:
    return json.loads((out / "evaluation.json").read_text())


def test_sheets_keep_their_order() -> None:
    pictures = torch.arange(9, dtype=torch.uint8).view(9, 1, 1, 1).expand(9, 3, 2, 2)
    page = sheet(pictures)
    assert page.size == (16, 4)
    assert [page.getpixel((2 * (i % 8), 2 * (i // 8)))[0] for i in range(9)] == list(range(9))
    assert page.getpixel((15, 3)) == (255, 255, 255)
