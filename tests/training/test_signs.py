"""Roughness is what theory says; the warnings come when they should and not before."""

import pytest
import torch

from mezzotint.training.signs import Memory, Validation, look_like_noise, remembered, roughness


def waves(frequency, count=64):
    """[count, 3, 32, 32]: cosines of a frequency (radians a pixel) along x, of random phase."""
    phase = torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(0)) * 6.28318
    return (torch.arange(32) * frequency + phase).cos().expand(count, 3, 32, 32)


def test_roughness_of_noise_and_of_waves():
    noise = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert roughness(noise) == pytest.approx(1, abs=0.01)
    assert roughness(5 * noise + 3) == pytest.approx(roughness(noise), rel=1e-4)
    for frequency in (
        0.3927,
        0.7854,
        1.5708,
    ):  # along x: 1 - cos(frequency); along y nothing; the mean of both
        expected = (1 - torch.tensor(frequency).cos()) / 2
        assert roughness(waves(frequency)) == pytest.approx(float(expected), rel=0.05)


def test_samples_between_pictures_and_noise():
    data = waves(0.3927)
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(2))
    assert not look_like_noise(data + 0.1 * noise, data)
    assert "look like noise" in look_like_noise(data + 1.0 * noise, data)


def test_learning_by_heart_is_told_after_three_looks_in_a_row():
    memory = Memory()

    def look(step, held, train=0.3):
        return memory.warn(step, Validation({1.0: held, 2.0: held}, {1.0: train, 2.0: train}))

    assert not any(
        look(step, held) for step, held in ((1, 1.0), (2, 0.8), (3, 0.9), (4, 0.82), (5, 0.9), (6, 0.95))
    )
    assert "25% above its best, at step 2" in look(7, 1.0)
    assert Validation({1.0: 0.9}, {1.0: 0.3}).gap == pytest.approx(3)
    quiet = Memory()
    assert not any(quiet.warn(s, Validation({}, {1.0: loss})) for s, loss in enumerate((0.1, 1, 1, 1)))


def test_a_widening_gap_is_an_early_sign_and_a_resumed_run_remembers():
    def looks(pairs):
        return [(step, Validation({1.0: held}, {1.0: train})) for step, (held, train) in enumerate(pairs)]

    # the loss on held-out pictures still falls, that on trained ones falls faster
    run = looks([(1.0, 1.0), (0.9, 0.9), (0.88, 0.7), (0.87, 0.68), (0.86, 0.65), (0.85, 0.6)])
    memory = Memory()
    said = [memory.warn(step, look) for step, look in run]
    assert not any(said[:4])
    assert "1.32 times that on trained ones, and was 1.00 times: an early sign" in said[4]
    log = [
        {"step": step, "validation": {"held_out": {"1.0": look.loss}, "train": {"1.0": look.loss / look.gap}}}
        for step, look in run
    ]
    assert remembered(log, 3).warn(*run[4]) == said[4]
    assert remembered(log, 3).losses == memory.losses[:4]
    assert not Memory().warn(*run[4])
