"""One small judge for all tests of the metrics."""

from __future__ import annotations

from pathlib import Path

import pytest
import shapes

from mezzotint.metrics.judge import Judge, JudgeConfig
from mezzotint.metrics.judge_training import JudgeTraining, train_judge

SMALL = JudgeTraining(
    steps=60,
    batch=40,
    warmup=5,
    net=JudgeConfig(side=32, widths=(16, 32, 64), blocks=(1, 1, 1), features=32),
    held_out=200,
)


@pytest.fixture(scope="session")
def judge_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    for _ in train_judge(shapes.glyphs(), path, SMALL, seed=3, bf16=False):
        pass
    return path


@pytest.fixture(scope="session")
def judge(judge_file: Path) -> Judge:
    return Judge.load(judge_file, shapes.glyphs())
