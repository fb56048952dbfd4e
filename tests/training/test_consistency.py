"""Consistency tuning: the two noise levels, what is aimed at, and a model that draws in one step what took many."""

import numpy as np
import pytest
import torch
from test_denoising import COLOURS, NET, config, places, trained  # noqa: F401 - a fixture

from mezzotint.errors import UsageError
from mezzotint.pipeline import Pipeline
from mezzotint.training.consistency import ConsistencyStage, earlier
from mezzotint.training.watch import run

CPU = torch.device("cpu")


def test_the_gap_begins_whole_and_is_halved():
    t = torch.tensor([0.05, 0.5, 1.0, 5.0, 14.0])
    assert torch.equal(earlier(t, 0), torch.zeros(5))
    for doublings in range(5, 10):
        r, nearer = earlier(t, doublings), earlier(t, doublings + 1)
        assert ((r < t) & (r < nearer)).all()
        torch.testing.assert_close(t - nearer, (t - r) / 2)
    relative = (t - earlier(t, 6)) / t
    assert (relative.diff() < 0).all()  # smaller steps, as a share, where there is more noise
    assert relative[-1] == pytest.approx(2.0**-6, rel=1e-3)


@pytest.fixture(scope="module")
def classes(places, tmp_path_factory):  # noqa: F811
    """A class-conditional model that has learned its three colours."""
    model = {"condition": "class", "prediction": "v_prediction", "weight": "simple", "guidance": 1.0}
    optim = {"steps": 120, "batch": 8, "lr": 3e-3, "ema": 0.9}
    run_ = {"checkpoint": 200, "pictures": 200, "validate_every": 200}
    settings = config(
        tmp_path_factory.mktemp("classes"), places / "classes", model, net=NET, optim=optim, run=run_
    )
    trained(settings)
    return settings.out / "model"


def far(pipe, steps):
    """How far drawn colours are from those of the data."""
    errors = []
    for name, colour in COLOURS.items():
        drawn = [np.asarray(pipe(name, seed=seed, num_inference_steps=steps)[0], float) for seed in range(3)]
        errors.append(np.abs(np.stack(drawn) - colour).mean())
    return np.mean(errors)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_one_step_comes_to_what_took_many(places, classes, tmp_path, guidance):  # noqa: F811
    optim = {"steps": 60, "batch": 8, "lr": 1e-3, "ema": 0.9}
    run_ = {"checkpoint": 200, "pictures": 200, "validate_every": 200}
    consistency = {"doublings": 6, "guidance": guidance}
    settings = config(
        tmp_path,
        places / "classes",
        {"start": str(classes), "steps": 2},
        stage="consistency",
        optim=optim,
        run=run_,
        consistency=consistency,
    )
    for _ in run(settings):
        pass
    before, after = (
        Pipeline.load(classes, device="cpu"),
        Pipeline.load(tmp_path / "consistency", device="cpu"),
    )
    assert (after.plan.sampler, after.plan.grid) == ("lcm", "distilled")
    assert (after.defaults.num_inference_steps, after.defaults.guidance_scale) == (2, 1.0)
    once = far(before, 1)
    assert far(after, 1) < 0.8 * once
    assert far(after, 2) < once


def test_refusals(places, tmp_path):  # noqa: F811
    with pytest.raises(UsageError, match=r"needs model\.start"):
        ConsistencyStage(config(tmp_path, places / "classes", {"condition": "class"}, net=NET), CPU)
