"""Ray starts the processes, the training is the same."""

import pytest
import torch
from test_denoising import NET, config, places  # noqa: F401 - a fixture
from test_loop import final_state

from mezzotint.pipeline import Pipeline
from mezzotint.training.watch import run

pytestmark = pytest.mark.ray


def test_two_workers_of_ray_are_one_process(places, tmp_path):  # noqa: F811
    """With weights in parts, looks on the way, and a result that opens."""
    pytest.importorskip("ray.train", reason="the extra `ray` is not installed; `make test-ray` does both")
    from mezzotint.training.on_ray import train_on_ray

    model = {"condition": "class", "weight": "simple"}
    alone = config(tmp_path / "alone", places / "classes", model, net=NET)
    for _ in run(alone):
        pass
    settings = config(tmp_path / "ray", places / "classes", model, net=NET, run={"sharding": "fsdp"})
    path = train_on_ray(settings, 2)
    found, step = final_state(tmp_path / "ray")
    expected, _ = final_state(tmp_path / "alone")
    assert step == 4
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-5)
    assert Pipeline.load(path, device="cpu").encoder.classes == ("blue", "green", "red")
    assert (tmp_path / "ray" / "pictures" / "00000004.png").exists()
