"""From a request to pictures: each is its seed's own, each can be made again, and nothing wrong passes in silence."""

import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from mezzotint import Pipeline, Request
from mezzotint.diffusion.noise import INITIAL, image_noise
from mezzotint.diffusion.process import VariancePreserving
from mezzotint.errors import MezzotintError, UsageError
from mezzotint.formats.image import to_image
from mezzotint.formats.scheduler import Plan
from mezzotint.pipeline import Picture, Progress
from mezzotint.tasks import TASKS
from mezzotint.tasks.problem import levels, pure_noise, solve
from tiny import LENGTH, STEPS, tiny_checkpoint, write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pipeline(folder):
    return Pipeline.load(folder, device="cpu")


def pictures(pipeline, **fields):
    request = Request.parse({"prompt": "a red apple"} | fields)
    return [event for event in pipeline.generate(request) if isinstance(event, Picture)]


def same(left, right):
    return np.array_equal(np.asarray(left.image), np.asarray(right.image))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral"])
def test_picture_of_a_batch_is_that_of_its_seed_alone(pipeline, sampler):
    alone = [pictures(pipeline, seed=5 + i, sampler=sampler)[0] for i in range(8)]
    for size in (3, 8):
        batch = pictures(pipeline, seed=5, num_images=size, sampler=sampler)
        assert [picture.seed for picture in batch] == list(range(5, 5 + size))
        assert all(map(same, batch, alone))
    assert not same(alone[0], alone[1])


@pytest.mark.parametrize(
    "fields", [{}, {"guidance_scale": 1.0}, {"guidance_end": 0.5}, {"guidance_rescale": 0.7}]
)
def test_however_many_are_drawn_at_a_time_they_are_the_same(pipeline, fields):
    request = Request(prompt="a red apple", seed=5, num_images=5, **fields)
    alone, threes = (
        [event for event in pipeline.generate(request, together=size) if isinstance(event, Picture)]
        for size in (1, 3)
    )
    assert [a.recipe for a in alone] == [b.recipe for b in threes]
    assert all(map(same, alone, threes))


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m", "heun"])
def test_recipe_makes_the_picture_again(pipeline, sampler):
    first = pictures(pipeline, num_images=2, sampler=sampler, guidance_scale=2.0, grid="karras")[1]
    again = pictures(pipeline, **Request.of_recipe(first.recipe).model_dump())[0]
    assert same(first, again)
    assert again.recipe == first.recipe


def test_what_is_left_open_is_chosen_and_told(pipeline, folder):
    recipe = pictures(pipeline)[0].recipe
    assert recipe["num_inference_steps"] == STEPS
    assert recipe["guidance_scale"] == 3.0
    assert (recipe["sampler"], recipe["grid"]) == ("dpmpp_2m", "trailing")
    assert (recipe["width"], recipe["height"]) == (16, 16)
    assert recipe["model"] == "tiny"
    assert recipe["seed"] != pictures(pipeline)[0].recipe["seed"]
    assert None not in {recipe[key] for key in recipe if key not in ("eta", "clip_skip")}


def test_prompt_negative_prompt_and_guidance_have_effect(pipeline):
    plain = pictures(pipeline, seed=1)[0]
    assert not same(plain, pictures(pipeline, seed=1, prompt="two green cats")[0])
    assert not same(plain, pictures(pipeline, seed=1, negative_prompt="cats")[0])
    assert not same(plain, pictures(pipeline, seed=1, guidance_rescale=0.7)[0])
    off = pictures(pipeline, seed=1, guidance_scale=1)[0]
    assert not same(plain, off)
    assert same(off, pictures(pipeline, seed=1, guidance_scale=1, negative_prompt="cats")[0])


def test_guidance_in_a_part_of_the_steps(pipeline, monkeypatch):
    rows = []
    forward = type(pipeline.denoiser.net).forward
    monkeypatch.setattr(
        type(pipeline.denoiser.net),
        "forward",
        lambda net, z, t, cond: rows.append(len(z)) or forward(net, z, t, cond),
    )
    pictures(pipeline, seed=1, guidance_start=0.25, guidance_end=0.75)
    assert rows == [1, 2, 2, 1]


@pytest.mark.parametrize("size", [(32, 16), (16, 20), (2, 2)])
def test_other_sizes(pipeline, size):
    image = pictures(pipeline, width=size[0], height=size[1])[0].image
    assert image.size == size


def test_steps_are_announced_and_can_be_looked_at(pipeline):
    events = list(pipeline.generate(Request(prompt="cats", num_images=2), together=1))
    steps = [event for event in events if isinstance(event, Progress)]
    assert [(event.first, event.step) for event in steps] == [
        (i, s + 1) for i in range(2) for s in range(STEPS)
    ]
    assert steps[-1].sigma == 0
    assert same(Picture(0, steps[-1].state()[0], {}), events[-1])
    assert steps[0].look()[0].size == (16, 16)


def test_closing_the_iterator_stops_the_work(pipeline, monkeypatch):
    calls = []
    forward = type(pipeline.denoiser.net).forward
    monkeypatch.setattr(
        type(pipeline.denoiser.net), "forward", lambda net, *given: calls.append(1) or forward(net, *given)
    )
    events = pipeline.generate(Request(prompt="cats"))
    next(events)
    events.close()
    assert calls == [1]
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"sampler": "dpm_2m"}, "unknown sampler 'dpm_2m'; did you mean 'dpmpp_2m'"),
        ({"grid": "karas"}, "unknown grid 'karas'; did you mean 'karras'"),
        ({"task": "text2image"}, "unknown task 'text2image'; did you mean 'text2img'"),
        ({"width": 17}, "width 17 is not a multiple of 2; the nearest that is: 16"),
        ({"height": 4096}, "height 4096 is too large for 'tiny', which draws 16 well; ask for at most 128"),
        (
            {"prompt": "apple " * 321},
            "the prompt has 321 tokens and would be read in 33 chunks of 10; shorten it to at most 32 chunks",
        ),
        ({"negative_prompt": "[a:" + "cats " * 321 + ":2]"}, "the negative prompt has"),
        ({"num_inference_steps": 2000}, "2000 steps asked of a model with 1000 timesteps"),
        ({"eta": 1.0}, "sampler 'dpmpp_2m' takes no eta; those that do: ddim"),
        ({"seed": -1}, "seed (--seed) is -1: input should be greater than or equal to 0"),
        ({"guidance": 3}, "unknown field of a request 'guidance'; did you mean 'guidance_"),
        ({"guidance_scale": float("nan")}, "guidance_scale (--guidance) is nan"),
    ],
)
def test_impossible_requests(pipeline, fields, says):
    with pytest.raises(UsageError) as caught:
        pictures(pipeline, **fields)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_prompts_of_any_length_and_unequal_ones(pipeline):
    """A negative prompt says the same whatever the length of the prompt: what is filled up is hidden."""
    long = "apple " * (2 * LENGTH)
    alone = pictures(pipeline, seed=1, prompt=long)[0]
    assert same(alone, pictures(pipeline, seed=0, num_images=3, prompt=long)[1])
    assert not same(alone, pictures(pipeline, seed=1, prompt="apple " * LENGTH)[0])
    assert not same(pictures(pipeline, seed=1, negative_prompt=long)[0], alone)


def test_weights_in_prompts(pipeline):
    plain = pictures(pipeline, seed=1)[0]
    assert same(plain, pictures(pipeline, seed=1, prompt="(a red:1.0) apple")[0])
    assert not same(plain, pictures(pipeline, seed=1, prompt="a (red:1.3) apple")[0])
    assert not same(plain, pictures(pipeline, seed=1, prompt="a [red] apple")[0])
    assert not same(plain, pictures(pipeline, seed=1, prompt="a red BREAK apple")[0])


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "euler_ancestral", "unipc"])
def test_prompts_that_change_over_the_steps(pipeline, sampler):
    """The same solver on a problem whose texts are swapped by hand, at the levels where the prompt says so."""
    fields = {"seed": 1, "sampler": sampler, "num_inference_steps": 6}
    assert same(
        pictures(pipeline, prompt="[cats:cats:0.5]", **fields)[0],
        pictures(pipeline, prompt="cats", **fields)[0],
    )
    heard = []
    encode = type(pipeline.encoder).__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(pipeline.encoder), "__call__", lambda self, text: heard.append(text) or encode(self, text)
        )
        switched = pictures(pipeline, prompt="[cats:two apple:2]", **fields)[0]
    assert set(heard) == {"cats", "two apple", ""}
    assert not same(switched, pictures(pipeline, prompt="cats", **fields)[0])
    assert not same(switched, pictures(pipeline, prompt="two apple", **fields)[0])
    assert same(
        switched,
        pictures(pipeline, **(fields | {"seed": 0, "num_images": 2}), prompt="[cats:two apple:2]")[1],
    )
    settled = pipeline.settle(Request(prompt="cats", **fields))
    problem = TASKS["text2img"].state(pipeline, settled)
    other = TASKS["text2img"].state(pipeline, settled.model_copy(update={"prompt": "two apple"}))

    def by_hand(x, sigma, cond):
        part = problem if float(sigma[0]) > float(problem.sigmas[2].float()) else other
        return part.denoise(x, sigma, part.cond)

    with torch.inference_mode():
        *_, last = solve(problem._replace(denoise=by_hand), sampler)
        image = pipeline._picture(last.x, 1)
    assert np.array_equal(np.asarray(image), np.asarray(switched.image))


def test_negative_prompts_change_too_and_the_last_step_hears_the_last_word(pipeline):
    def drawn(**fields):
        return pictures(pipeline, seed=1, num_inference_steps=4, **fields)[0]

    assert not same(drawn(negative_prompt="[cats|apple]"), drawn(negative_prompt="[cats|cats]"))
    assert same(drawn(negative_prompt="[cats|cats]"), drawn(negative_prompt="cats"))
    assert same(drawn(prompt="[cats:apple:4]"), drawn(prompt="cats"))
    assert not same(drawn(prompt="[cats:apple:3]"), drawn(prompt="cats"))
    assert same(drawn(prompt="[cats:apple:0]"), drawn(prompt="apple"))


def by_hand(pipeline, parts, negative, scale, seed):
    """DDIM in terms of eps: eps0 + scale * sum of w (eps - eps0) (Liu et al. 2022, eq. 11)."""
    sigmas = levels(pipeline, pipeline.settle(Request(sampler="ddim")))
    x = pure_noise(lambda _: image_noise(seed, INITIAL, (4, 8, 8))[None], float(sigmas[0]))
    with torch.inference_mode():
        for s, t in pairwise(sigmas.tolist()):
            one = torch.tensor([s])
            eps = {
                text: (x - pipeline.denoiser(x, one, pipeline.encoder(text))) / s
                for text in {*parts, negative}
            }
            total = eps[negative] + scale * sum(w * (eps[text] - eps[negative]) for text, w in parts.items())
            x = x + (t - s) * total
        return to_image(pipeline.codec.decode(x)[0])


@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_several_prompts_at_once(pipeline, scale):
    fields = {
        "prompt": "a red apple :1.2 AND two green cats:0.5",
        "negative_prompt": "cats",
        "guidance_scale": scale,
    }
    drawn = pictures(pipeline, **fields, seed=5, num_images=4, sampler="ddim")
    expected = by_hand(pipeline, {"a red apple": 1.2, "two green cats": 0.5}, "cats", scale, 6)
    assert abs(np.asarray(drawn[1].image).astype(int) - np.asarray(expected).astype(int)).max() <= 1
    assert all(
        same(one, pictures(pipeline, **fields, seed=5 + i, sampler="ddim")[0]) for i, one in enumerate(drawn)
    )
    assert not same(
        drawn[0], pictures(pipeline, **(fields | {"prompt": "a red apple"}), seed=5, sampler="ddim")[0]
    )
    assert pictures(pipeline, **Request.of_recipe(drawn[0].recipe).model_dump())[0].recipe == drawn[0].recipe


def test_each_of_several_prompts_may_change_over_the_steps_and_be_of_any_length(pipeline):
    fields = {"negative_prompt": "cats", "seed": 5, "sampler": "ddim"}
    changing = pictures(pipeline, prompt=f"[apple:cats:2] AND {'red ' * LENGTH}", **fields)[0]
    before, after = (
        pictures(pipeline, prompt=f"{word} AND {'red ' * LENGTH}", **fields)[0] for word in ("apple", "cats")
    )
    assert not same(before, after)
    assert not any(same(changing, other) for other in (before, after))
    late = pictures(pipeline, prompt=f"[apple:cats:{STEPS}] AND {'red ' * LENGTH}", **fields)[0]
    assert same(late, before)
    partly = pictures(pipeline, prompt="apple AND cats", guidance_start=0.5, guidance_rescale=0.7, **fields)[
        0
    ]
    assert not same(partly, pictures(pipeline, prompt="apple AND cats", **fields)[0])
    with pytest.raises(UsageError, match="interpolate takes prompts that say one thing at a time"):
        pictures(pipeline, task="interpolate", prompt="apple AND cats", prompt_to="cats", seed=1)
    with pytest.raises(UsageError, match="the prompt has 9 parts with AND; at most 8"):
        pictures(pipeline, prompt="apple" + " AND apple" * 8)


def test_models_that_are_not_there(tmp_path, folder):
    with pytest.raises(UsageError, match=r"unknown model 'nomodel'; \(known: .*path of a diffusers folder"):
        Pipeline.load("nomodel")
    with pytest.raises(MezzotintError, match="no such folder"):
        Pipeline.load(tmp_path / "missing")
    with pytest.raises(UsageError, match="device 'tpu9' is not to be had"):
        Pipeline.load(folder, device="tpu9")


def test_card_with_an_unknown_key(tmp_path):
    broken = write_tiny(tmp_path / "tiny")
    (broken / "mezzotint.json").write_text('{"guidance": 3}')
    with pytest.raises(
        MezzotintError, match=r"mezzotint.json: unknown key 'guidance'; did you mean 'guidance_scale'"
    ):
        Pipeline.load(broken)


def test_a_picture_that_is_not_finite_is_an_error(tmp_path):
    checkpoint = tiny_checkpoint()
    checkpoint.unet.conv_out.bias.data[0] = float("nan")
    sick = Pipeline.load(write_tiny(tmp_path / "sick", checkpoint), device="cpu")
    with pytest.raises(MezzotintError, match=r"step 1 of 4 with seed 3 gave numbers that are not finite"):
        pictures(sick, seed=3)


@pytest.mark.parametrize(("bias", "says"), [(float("inf"), "not finite"), (-1e4, "black all over")])
def test_a_black_picture_is_an_error(tmp_path, bias, says):
    checkpoint = tiny_checkpoint()
    checkpoint.vae.decoder.conv_out.bias.data[:] = bias
    sick = Pipeline.load(write_tiny(tmp_path / "sick", checkpoint), device="cpu")
    with pytest.raises(
        MezzotintError, match=rf"the picture of seed 3 is .*{says}|the picture of seed 3 is {says}"
    ):
        pictures(sick, seed=3)


def test_fingerprint_is_of_the_weights_and_not_of_the_card(tmp_path, pipeline):
    copy = write_tiny(tmp_path / "copy")
    (copy / "mezzotint.json").unlink()
    loaded = Pipeline.load(copy)
    drawing = replace(loaded, precision="bfloat16")  # as whoever draws otherwise makes one
    assert drawing.fingerprint == pipeline.fingerprint
    for part in ("unet", "vae", "text_encoder"):
        shutil.rmtree(copy / part)
    assert loaded.fingerprint == pipeline.fingerprint  # what has been read is not read again
    checkpoint = tiny_checkpoint()
    checkpoint.unet.conv_out.bias.data[0] += 1
    other = Pipeline.load(write_tiny(tmp_path / "other", checkpoint))
    assert other.fingerprint != pipeline.fingerprint


@pytest.mark.parametrize(
    ("sampler", "grid", "knobs", "tolerance"),
    [
        ("dpmpp_2m", "trailing", {}, 1),
        (
            "dpmpp_2m",
            "karras",
            {},
            3,
        ),  # there the net is told rounded timesteps for these levels, here exact ones
        ("ddim", "leading", {"steps_offset": 1}, 1),
    ],
)
def test_diffusers_draws_the_same(tmp_path, sampler, grid, knobs, tolerance):
    from diffusers import StableDiffusionPipeline

    plan = Plan(VariancePreserving(), "v_prediction", sampler, {}, grid, knobs)
    folder = write_tiny(tmp_path / "model", tiny_checkpoint(plan))
    ours = pictures(Pipeline.load(folder, device="cpu"), seed=7, num_inference_steps=6)[0]
    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    drawn = theirs(
        "a red apple",
        num_inference_steps=6,
        guidance_scale=3.0,
        latents=image_noise(7, INITIAL, (4, 8, 8))[None],
    ).images[0]
    assert abs(np.asarray(ours.image).astype(int) - np.asarray(drawn).astype(int)).max() <= tolerance


def test_imports_only_what_it_uses(folder):
    script = (
        "import sys, mezzotint\n"
        "assert 'torch' not in sys.modules\n"
        f"mezzotint.load({str(folder)!r}, device='cpu')('a red apple')\n"
        "heavy = {'diffusers', 'transformers', 'scipy', 'torch._dynamo', 'torch.distributed.nn', 'torchvision',"
        " 'typer', 'sympy', 'mezzotint.training', 'mezzotint.data', 'mezzotint.metrics'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
