"""The judge learns to name what it sees, is a function of its seed, and comes back from disk as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import shapes
import torch
from conftest import SMALL

from mezzotint.errors import MezzotintError
from mezzotint.formats.tensors import write_tensors
from mezzotint.metrics.judge import Judge, JudgeConfig, JudgeNet, plain, same_picture, to_net
from mezzotint.metrics.judge_training import Augment, rate, train_judge


def test_it_names_disturbed_pictures_far_above_chance(judge: Judge) -> None:
    augment = Augment(shapes.glyphs(), judge.net.config.side)
    indices, pictures = augment.batch(200, "a stream of its own", 1)
    shown = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    hits = judge.found(shown, [[int(i)] for i in indices], 1)
    assert sum(hits) / 200 > 0.5  # chance: 0.1
    assert sum(judge.found(shown, [[int(i)] for i in indices.roll(1)], 1)) / 200 < 0.25
    assert all(judge.found(shown, [[int(i)] for i in indices], 10))


def test_a_training_picture_is_nearest_to_itself(judge: Judge) -> None:
    pictures = torch.stack([plain(glyph) for glyph in shapes.glyphs()])
    assert judge.nearest(pictures, 1)[:, 0].tolist() == list(range(10))
    assert judge.ranking(pictures).sort(1).values.tolist() == [list(range(10))] * 10
    assert judge.embed(pictures).norm(dim=1).tolist() == pytest.approx([1.0] * 10, abs=1e-5)


def test_equal_pictures_count_as_one() -> None:
    glyphs = [shapes.glyph(0), shapes.glyph(1), shapes.glyph(0)]
    assert same_picture(glyphs).tolist() == [0, 1, 0]
    judge = Judge(JudgeNet(SMALL.net), glyphs)
    assert judge.distinct.tolist() == [0, 1]
    assert judge.found(plain(glyphs[0])[None], [[2]], 1) == [True]
    assert judge.found(plain(glyphs[0])[None], [[1]], 1) == [False]


def test_it_comes_back_from_disk_as_it_was(judge: Judge, judge_file: Path, tmp_path: Path) -> None:
    assert "top 1 on 200 held-out pictures" in judge.about
    assert judge.about["training"] == "60 steps of 40 pictures, seed 3"
    judge.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == judge_file.read_bytes()
    assert Judge.load(tmp_path / "again.safetensors", shapes.glyphs()).gallery.equal(judge.gallery)


def test_training_is_a_function_of_its_seed(tmp_path: Path) -> None:
    config = replace(SMALL, steps=3, held_out=8)
    losses = []
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        torch.manual_seed(len(losses))  # what the global generator holds plays no part
        path = tmp_path / name
        losses.append(
            [step.loss for step in train_judge(shapes.glyphs(), path, config, seed=seed, bf16=False)]
        )
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    a, b = (Judge.load(tmp_path / name, shapes.glyphs()).gallery for name in "ab")
    assert a.equal(b)


def test_a_loss_that_is_not_finite_stops_training(tmp_path: Path) -> None:
    config = replace(SMALL, steps=2, scale=float("nan"))
    with pytest.raises(MezzotintError, match="not finite at step 0"):
        list(train_judge(shapes.glyphs(), tmp_path / "judge", config))
    assert not list(tmp_path.iterdir())


def test_a_file_that_holds_no_judge_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(2)})
    with pytest.raises(MezzotintError, match="holds no judge; `make evaluate` trains one"):
        Judge.load(tmp_path / "other.safetensors", shapes.glyphs())


def test_batches_are_functions_of_their_key() -> None:
    augment = Augment(shapes.glyphs(), 32)
    (i, x), (j, y), (_, z) = (augment.batch(16, "k", 1, step) for step in (5, 5, 6))
    assert i.equal(j)
    assert x.equal(y)
    assert not x.equal(z)
    assert x.shape == (16, 3, 32, 32)
    assert x.isfinite().all()


def test_paint_puts_the_glyph_where_it_is_told() -> None:
    augment = Augment([shapes.glyph(1)], 64)
    still = torch.Generator().manual_seed(0)
    white = torch.ones(1, 3, 64, 64)
    painted = augment.paint(white, torch.tensor([0]), torch.tensor([0.5]), torch.tensor([[0.5, -0.5]]), still)
    rows, columns = (painted[0] < 0).any(0).nonzero(as_tuple=True)  # channels of the red that are dark
    assert 40 < columns.float().mean() < 56  # right of the middle
    assert 8 < rows.float().mean() < 24  # above it


def test_pictures_of_any_size_are_brought_to_the_nets() -> None:
    assert to_net(torch.full((2, 3, 72, 72), 255, dtype=torch.uint8), 32).shape == (2, 3, 32, 32)
    exact = to_net(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 2, 2), 2)
    assert exact.unique().tolist() == [-1, 1]


def test_config_survives_json_and_the_rate_its_schedule() -> None:
    config = JudgeConfig(widths=(8, 16), blocks=(1, 2))
    assert JudgeConfig.from_json(config.to_json()) == config
    assert [rate(step, SMALL) for step in (0, 4)] == [0.2, 1.0]
    assert rate(59, SMALL) < 0.01
