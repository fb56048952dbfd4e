"""Restyle, stylize, rewrite by words: strength 0 is the plain task, batches are their seeds alone."""

import pytest
import torch
from PIL import Image

from drawing import apart, drawn
from mezzotint import Request
from mezzotint.diffusion.inversion import invert_bdia
from mezzotint.diffusion.types import Cond
from mezzotint.errors import MezzotintError
from mezzotint.formats.image import to_tensor
from mezzotint.tasks import TASKS
from mezzotint.tasks.beside import climbed, drowned
from mezzotint.tasks.problem import guided

STYLE = Image.linear_gradient("L").resize((16, 16)).convert("RGB")


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_without_style_it_is_the_plain_task(pipe, photo, guidance):
    asked = {"prompt": "a red apple", "seed": 3, "guidance_scale": guidance}
    plain = drawn(pipe, **asked)[0]
    restyled, much = (
        drawn(pipe, **asked, task="restyle", style_image=STYLE, style_strength=s)[0] for s in (0, 1.0)
    )
    assert apart(restyled, plain) == 0
    assert apart(much, plain) > 1


def test_stylize_begins_where_the_picture_comes_from(pipe, photo):
    asked = {"task": "stylize", "prompt": "a red apple", "seed": 3, "guidance_scale": 1.0, "strength": 0.5}
    asked |= {"image": photo, "style_image": STYLE, "num_inference_steps": 10}
    settled = pipe.settle(Request.parse(asked | {"style_strength": 0.0, "content_strength": 1.0}))
    with torch.no_grad():
        problem = TASKS["stylize"].state(pipe, settled)
        x0 = pipe.codec.encode(to_tensor(photo)[None])
        start = invert_bdia(guided(pipe, settled, problem.sigmas), x0, problem.sigmas, problem.cond)
    assert torch.allclose(problem.x, start.x, atol=1e-4)
    none, much = (drawn(pipe, **asked, style_strength=s)[0].image for s in (0.0, 1.0))
    assert apart(much, none) > 5


def test_what_is_looked_at_is_on_the_way_back_to_its_noise(pipe, photo):
    """At each level the state of an exact inversion, between two levels what lies between."""
    x0 = pipe.codec.encode(to_tensor(photo)[None]).detach()
    sigmas = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.0], dtype=torch.float64)

    def denoise(x, sigma, cond):
        return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    other, start = climbed(denoise, x0, sigmas, Cond()), invert_bdia(denoise, x0, sigmas, Cond())
    assert torch.equal(other.at(4.0), start.x)
    assert torch.equal(other.at(2.0), start.second)
    assert torch.allclose(other.at(0.0), x0)
    assert torch.allclose(other.at(3.0), (start.x + start.second) / 2, atol=1e-6)
    still = drowned(x0, torch.ones_like(x0), Cond())
    assert torch.equal(still.at(2.0), x0 + 2)


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "restyle", "style_image": STYLE, "prompt": "two green cats"},
        {"task": "stylize", "style_image": STYLE, "image": STYLE.rotate(90)},
        {
            "task": "rewrite",
            "method": "words",
            "image": STYLE,
            "source_prompt": "a red apple",
            "prompt": "a green apple",
        },
    ],
)
def test_a_batch_is_its_seeds_alone(pipe, fields):
    batch = drawn(pipe, **fields, seed=5, num_images=3)
    assert [apart(drawn(pipe, **fields, seed=5 + i)[0], batch[i]) for i in range(3)] == [0, 0, 0]
    assert apart(*batch[:2]) > 0


def test_words_that_nothing_is_lent_to_are_image_to_image(pipe, photo):
    asked = {"image": photo, "prompt": "two green cats", "seed": 3, "strength": 0.7}
    plain = drawn(pipe, **asked, task="img2img")[0]
    free, held = (
        drawn(
            pipe, **asked, task="rewrite", method="words", source_prompt="two red cats", content_strength=c
        )[0]
        for c in (0.0, 1.0)
    )
    assert apart(free, plain) == 0
    assert apart(held, plain) > 1
    long = " ".join(["two green cats"] * 6)  # in two chunks, beside one
    assert drawn(pipe, **asked | {"prompt": long}, task="rewrite", method="words", source_prompt="cats")
    with pytest.raises(MezzotintError, match="unknown method of rewriting 'word'"):
        drawn(pipe, **asked, task="rewrite", method="word")


def test_a_word_counts_as_much_as_is_said(pipe, photo):
    asked = {"task": "rewrite", "image": photo, "prompt": "two green cats", "seed": 3}
    same, more, less = (
        drawn(pipe, **asked, reweight=f"green:{w}", content_strength=1.0)[0] for w in ("1", "3", "0")
    )
    words = drawn(pipe, **asked, source_prompt="two green cats", method="words", content_strength=1.0)[0]
    assert apart(same, words) == 0
    assert apart(more, same) > 0
    assert apart(less, more) > 0
    for reweight, says in (
        ("green", "write it as word:2"),
        ("red:2", "the prompt does not say 'red'"),
    ):
        with pytest.raises(MezzotintError, match=says):
            drawn(pipe, **asked, reweight=reweight)
    with pytest.raises(MezzotintError, match="reweighted by --method words"):
        drawn(pipe, **asked, reweight="green:2", method="flow")
