"""The lane: calls that fit are answered together, and each answer is, to the last bit, that of the call alone."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint import Pipeline, Request
from mezzotint.diffusion.types import Cond
from mezzotint.exact import gathered
from mezzotint.pipeline import Picture
from mezzotint.serve.lane import Lane
from tiny import WIDTH

MIX = [  # jobs that differ in everything that may differ
    {"prompt": "a red apple", "seed": 1, "num_inference_steps": 3},
    {"prompt": "two green cats", "seed": 2, "num_inference_steps": 9, "sampler": "heun"},
    {
        "prompt": "two cats",
        "seed": 3,
        "num_inference_steps": 6,
        "sampler": "euler_ancestral",
        "guidance_scale": 7.0,
    },
    {"prompt": "an apple", "seed": 4, "num_inference_steps": 5, "guidance_scale": 1.0},
    {"prompt": "red cats", "seed": 5, "num_inference_steps": 7, "guidance_rescale": 0.7},
    {"prompt": "green", "seed": 6, "num_inference_steps": 4, "width": 32},
    {"prompt": "a green apple", "seed": 7, "num_inference_steps": 8, "grid": "karras", "guidance_end": 0.5},
    {"prompt": "a cat", "seed": 8, "num_inference_steps": 5, "negative_prompt": "red"},
]
GIVEN = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)) for i in (0, 1)]
TASKS = [  # that look at the net's attention, each in its way
    {"task": "restyle", "style_image": GIVEN[0], "prompt": "cats"},
    {"task": "stylize", "image": GIVEN[0], "style_image": GIVEN[1], "prompt": "cats"},
    {"task": "rewrite", "image": GIVEN[0], "source_prompt": "a cat", "prompt": "two cats", "method": "words"},
]


@pytest.fixture
def lane():
    lane = Lane(8)
    yield lane
    lane.close()


def drawn(pipeline, fields, lane=None):
    for event in pipeline.generate(Request(**fields)):
        if isinstance(event, Picture):
            return np.asarray(event.image)
    raise AssertionError


def test_pictures_of_a_mix_are_those_of_each_alone(model, lane):
    pipeline = Pipeline.load(model, device="cpu")
    alone = [drawn(pipeline, fields) for fields in MIX]
    shared = lane.shared(pipeline)
    together = threading.Barrier(len(MIX))

    def member(fields):
        with lane.member():
            together.wait()
            return drawn(shared, fields)

    with ThreadPoolExecutor(len(MIX)) as pool:
        mixed = list(pool.map(member, MIX))
    for a, b in zip(alone, mixed, strict=True):
        assert np.array_equal(a, b)
    assert lane.answered > 1.3 * lane.forwards  # they did share forwards


def test_attention_is_seen_and_changed_in_the_lane(model, lane):
    pipeline = Pipeline.load(model, device="cpu")
    shared = lane.shared(pipeline)
    for fields in TASKS:
        fields = fields | {"seed": 2, "num_inference_steps": 3}
        assert np.array_equal(drawn(pipeline, fields), drawn(shared, fields))


def test_texts_are_prepared_once_in_the_lane_too(model, lane):
    net = lane.shared(Pipeline.load(model, device="cpu")).denoiser.net
    told = net.prepared(Cond(torch.randn(1, 12, WIDTH)))
    assert told.keys is not None
    z, t = torch.randn(1, 4, 8, 8), torch.ones(1)
    with torch.inference_mode():
        assert torch.equal(net(z, t, told), net(z, t, told._replace(keys=None)))


def test_a_model_that_is_let_go_leaves_nothing_behind(model, lane):
    pipeline = lane.shared(Pipeline.load(model, device="cpu"))
    net = weakref.ref(pipeline.denoiser.net.net)
    drawn(pipeline, MIX[0])
    del pipeline
    gc.collect()
    assert net() is None
    assert len(lane._trials) == 0


def test_a_net_that_is_not_the_same_in_company_is_asked_call_by_call():
    sizes = []

    def net(z, t, cond):
        sizes.append(len(z))
        return z + 1e-6 * len(z)

    calls = [(torch.randn(2, 1, 2, 2), torch.ones(2), Cond()) for _ in range(3)]
    trials = {}
    for _ in range(2):
        for call, answer in zip(calls, gathered(net, calls, trials), strict=True):
            assert torch.equal(answer, call[0] + 2e-6)
    assert sizes == [6, 2, 2, 2, 2, 2, 2, 2]
    assert list(trials.values()) == [False]


def test_an_error_reaches_those_who_asked_and_the_lane_goes_on(lane):
    from mezzotint.serve.lane import Call

    def broken(given):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        lane.ask(Call("broken", 4, broken, 1))
    assert lane.ask(Call("fine", 4, lambda given: [one + 1 for one in given], 1)) == 2


def test_calls_of_a_kind_share_a_forward_up_to_its_most(lane):
    from mezzotint.serve.lane import Call

    sizes = []

    def answer(given):
        sizes.append(len(given))
        return given

    def member(i):
        with lane.member():
            barrier.wait()
            return lane.ask(Call(i % 2, 3, answer, i))

    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(member, range(8))) == list(range(8))
    assert sum(sizes) == 8
    assert max(sizes) <= 3
    assert len(sizes) < 8
