"""Who draws does not matter: a replica's pictures are those of one process, and one that dies is replaced."""

import asyncio
import io
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mezzotint import Pipeline
from mezzotint.errors import MezzotintError
from mezzotint.pipeline import Picture, Progress
from mezzotint.request import Request
from mezzotint.serve.on_ray import Replica, Way, painters
from mezzotint.serve.settings import Settings


def settings_of(model, data):
    return Settings(data=data, models=(str(model),), device="cpu", drain=5.0, running=4)


def test_a_replica_sends_steps_looks_and_the_picture(model, tmp_path):
    replica = Replica(os.getcwd(), settings_of(model, tmp_path), 2)
    pipeline = Pipeline.load(model, device="cpu")
    asked = [
        pipeline.settle(Request.parse({"prompt": "a red apple", "seed": seed, "num_inference_steps": steps}))
        for seed, steps in ((3, 20), (4, 4))
    ]

    async def events(request, watched):
        return [event async for event in replica.draw(model.name, request, watched)]

    async def both():
        return await asyncio.gather(events(asked[0], True), events(asked[1], False))

    for request, found in zip(asked, asyncio.run(both()), strict=True):
        *ways, picture = found
        assert [way.step for way in ways] == list(range(1, request.num_inference_steps + 1))
        assert isinstance(picture, Picture)
        (alone,) = (e for e in pipeline.generate(request) if isinstance(e, Picture))
        assert np.array_equal(np.asarray(picture.image), np.asarray(alone.image))
        assert picture.recipe == alone.recipe
        shown = [way.step for way in ways if way.seen]
        assert isinstance(ways[0], Way)
        assert shown == (list(range(1, 21, 2)) if request is asked[0] else [])
    replica.lane.close()


def test_who_comes_when_nothing_is_sent_along_sees_nothing_and_harms_nothing(start):
    def blind(model, pipeline, request, watched):
        for event in pipeline.generate(request):
            time.sleep(0.01)
            yield replace(event, look=list) if isinstance(event, Progress) else event

    running = start(painter=blind)
    job = running.post(num_inference_steps=60).json()["id"]
    with running.client.stream("GET", f"/api/jobs/{job}/events?previews=true") as response:
        told = [line for line in response.iter_lines() if line.startswith("event: ")]
    assert told[-1] == "event: end"
    assert "event: preview" not in told
    assert running.wait(job)["state"] == "done"


def test_a_model_that_is_not_there_is_told_before_processes_start(tmp_path):
    with (
        pytest.raises(MezzotintError, match="there is no such folder"),
        painters(settings_of(tmp_path / "nowhere", tmp_path), 2),
    ):
        pass


@pytest.mark.ray
def test_two_replicas_and_the_death_of_one(model, start, tmp_path):
    pytest.importorskip("ray.serve", reason="the extra `ray` is not installed; `make test-ray` does both")
    psutil = pytest.importorskip("psutil")
    with painters(settings_of(model, tmp_path), 2) as painter:
        running = start(painter=painter, running=4)
        running.client.timeout = 120
        jobs = [running.post(seed=i, num_inference_steps=200).json()["id"] for i in range(6)]
        while not running.service.running:
            time.sleep(0.1)
        mine = psutil.Process().children(recursive=True)
        at_work = [one for one in mine if "ServeReplica:mezzotint:painter" in " ".join(one.cmdline())]
        assert len(at_work) == 2
        os.kill(at_work[0].pid, signal.SIGKILL)
        for i, job in enumerate(jobs):
            done = running.wait(job, seconds=240)
            assert done["state"] == "done", done
            (picture,) = done["pictures"]
            png = running.client.get(picture["url"]).content
            alone = Pipeline.load(model, device="cpu")("a red apple", seed=i, num_inference_steps=200)[0]
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), np.asarray(alone))
        running.stop()
