"""Between two seeds and two prompts: both ends are what they are alone, and the way between keeps to the sphere."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from drawing import apart, drawn
from mezzotint.diffusion.between import slerp
from mezzotint.errors import UsageError
from mezzotint.labels import LabelEncoder

ASKED = {"prompt": "a red apple", "seed": 3}


def test_slerp_turns_evenly_and_keeps_length():
    a, b = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)).double()
    way = [slerp(a, b, s / 10) for s in range(11)]
    angles = [torch.arccos(torch.cosine_similarity(x, y, dim=0)) for x, y in pairwise(way)]
    assert torch.allclose(torch.stack(angles), angles[0], atol=1e-9)
    lengths = torch.stack([point.norm() for point in way])
    assert lengths.diff().diff().abs().max() < 1e-9
    assert torch.equal(way[0], a)
    assert torch.equal(way[-1], b)
    assert torch.allclose(slerp(a, 3 * a, 0.5), 2 * a)
    assert torch.equal(slerp(torch.zeros(3), torch.zeros(3), 0.5), torch.zeros(3))


def test_the_ends_of_a_walk_are_the_pictures_themselves(pipe):
    far = {"prompt": "two green cats", "seed": 9}
    walk = {"task": "interpolate", "prompt_to": far["prompt"], "seed_to": far["seed"]}
    for share, end in ((0.0, ASKED), (1.0, far)):
        assert apart(drawn(pipe, **ASKED, **walk, at=share)[0], drawn(pipe, **end)[0]) == 0
    middle = drawn(pipe, **ASKED, **walk)[0]
    assert middle.recipe["at"] == 0.5
    assert apart(middle, drawn(pipe, **ASKED)[0]) > 0


def test_between_classes_lies_nothing(pipe):
    told = replace(pipe, encoder=LabelEncoder(["cat", "dog"], pipe.device))
    with pytest.raises(UsageError, match="'tiny' is told classes, between which nothing lies"):
        drawn(told, task="interpolate", prompt="cat", prompt_to="dog")


def test_from_seed_to_seed_any_prompt_will_do(pipe):
    asked = ASKED | {"prompt": "a red apple AND [cats:apple:0.5]", "task": "interpolate", "seed_to": 9}
    [alone] = drawn(pipe, **asked)
    [told_twice] = drawn(pipe, **asked, prompt_to=asked["prompt"])  # as the command line does
    assert apart(alone, told_twice) == 0


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral"])
def test_vary_goes_from_the_picture_to_another_seed_s(pipe, tmp_path, sampler):
    from mezzotint.formats.image import save_image

    [own] = drawn(pipe, **ASKED, sampler=sampler, negative_prompt="cats", guidance_scale=2.0)
    path = save_image(tmp_path / "own.png", own.image, own.recipe)
    same, near, other = (
        drawn(pipe, task="vary", image=path, seed=50, distance=distance)[0] for distance in (0.0, 0.1, 1.0)
    )
    assert apart(same, own) == 0
    assert near.recipe["negative_prompt"] == "cats"  # the settings are the picture's own
    [fresh] = drawn(pipe, **ASKED | {"seed": 50}, sampler=sampler, negative_prompt="cats", guidance_scale=2.0)
    assert apart(other, fresh) == 0
    assert apart(near, own) > 0
    batch = drawn(pipe, task="vary", image=path, seed=49, num_images=2, distance=0.1)
    assert apart(batch[1], near) == 0
    changed = drawn(pipe, task="vary", image=path, seed=50, distance=0.0, prompt="two green cats")[0]
    assert apart(changed, own) > 0
