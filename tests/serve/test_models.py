"""Several models within a budget: the least recently used goes, and what goes leaves nothing behind."""

import gc
import threading
import weakref

import pytest

from mezzotint.errors import UsageError
from mezzotint.nets import UNet
from mezzotint.serve.keys import ANYBODY
from mezzotint.serve.lane import Lane
from mezzotint.serve.models import Models, held
from mezzotint.serve.service import Service
from mezzotint.serve.settings import Settings
from tiny import write_tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("several")
    return [str(write_tiny(place / name)) for name in ("one", "two", "three")]


def alive():
    gc.collect()
    return sum(isinstance(each, UNet) for each in gc.get_objects())


def test_the_least_recently_used_goes_when_memory_is_short(folders):
    models = Models(folders, device="cpu")
    with models.use("one") as pipeline:
        size = held(pipeline)
    assert size > 100_000
    models = Models(folders, device="cpu", memory=2.9 * size)
    for name in ("one", "two", "one", "three"):
        with models.use(name):
            pass
    assert models.loaded == ["one", "three"]
    with models.use("one"), models.use("three"), models.use("two"):
        assert models.loaded == ["one", "three", "two"]  # what is in use stays, however much it is
    with models.use("two"):
        pass
    with pytest.raises(UsageError, match="unknown model 'four'"), models.use("four"):
        pass


def test_fifty_swaps_leave_as_many_nets_as_one(folders):
    before = alive()
    lane = Lane(2)
    models = Models(folders, device="cpu", memory=1, share=lane.shared)
    with models.use("one") as pipeline:
        first = weakref.ref(pipeline.wardrobe.unet)
    for i in range(50):
        with models.use(models.names[i % 3]) as pipeline:
            pipeline("a red apple", seed=1, num_inference_steps=1)
            del pipeline
    assert first() is None
    assert models.loaded == ["two"]
    assert alive() == before + 1
    lane.close()


@pytest.mark.slow
def test_memory_is_flat_over_fifty_swaps_of_jobs(folders, tmp_path):
    """Of the whole process, and through the whole service: jobs for three models in turn, of which one fits."""
    service = Service(Settings(data=tmp_path, models=tuple(folders), device="cpu", memory=1, drain=1.0))
    service.start()

    def swaps(count):
        for i in range(count):
            job = service.submit(
                ANYBODY, {"prompt": "cats", "num_inference_steps": 2}, model=service.models.names[i % 3]
            )
            while service.store.job(job.id).state != "done":
                threading.Event().wait(0.01)
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    warm = swaps(15)
    assert swaps(50) < warm + 20e6
    assert len(service.models.loaded) == 1
    service.stop()


def test_a_model_that_loads_holds_up_nobody_else(folders, monkeypatch):
    from mezzotint.serve import models as module

    models = Models(folders, device="cpu")
    with models.use("one"):
        pass
    begun, go_on = threading.Event(), threading.Event()
    load = module.Pipeline.load

    def slow(*given, **knobs):
        begun.set()
        assert go_on.wait(20)
        return load(*given, **knobs)

    monkeypatch.setattr(module.Pipeline, "load", slow)
    made = []

    def use():
        with models.use("two") as pipeline:
            made.append(pipeline)

    waiting = [threading.Thread(target=use) for _ in range(2)]
    for thread in waiting:
        thread.start()
    assert begun.wait(20)
    with models.use("one"):
        assert models.loaded == ["one"]
    go_on.set()
    for thread in waiting:
        thread.join(20)
    assert made[0] is made[1]


def test_what_is_told_of_a_model_needs_it_once(folders):
    models = Models(folders, device="cpu", memory=1)
    told = [models.about(name) for name in models.names]
    assert [(about["factor"], about["sized"]) for about in told] == [(2, False)] * 3
    models.use = None  # not asked for again
    assert [models.about(name) for name in models.names] == told
