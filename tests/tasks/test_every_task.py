"""What holds for every task: a film of the way, batches that are their seeds alone, a recipe that makes it again."""

import dataclasses

import pytest
from PIL import Image

from drawing import apart, drawn
from mezzotint import Request
from mezzotint.diffusion.denoiser import Denoiser
from mezzotint.errors import UsageError
from mezzotint.formats.image import save_image
from mezzotint.pipeline import Picture, Progress
from mezzotint.tasks import TASKS

STYLE = Image.linear_gradient("L").resize((16, 16)).convert("RGB")
MASK = Image.new("L", (16, 16))
MASK.paste(255, (8, 0, 16, 16))
ASKED = {"prompt": "a red apple", "seed": 3, "num_inference_steps": 3}


@pytest.fixture
def asked(pipe, photo, tmp_path):
    [own] = drawn(pipe, **ASKED)
    path = save_image(tmp_path / "own.png", own.image, own.recipe)
    stored = save_image(tmp_path / "photo.png", photo, {})
    style = save_image(tmp_path / "style.png", STYLE, {})
    mask = save_image(tmp_path / "mask.png", MASK.convert("RGB"), {})
    of = {
        "text2img": {},
        "img2img": {"image": stored},
        "inpaint": {"image": stored, "mask": mask},
        "outpaint": {"image": stored, "right": 8},
        "rewrite": {"image": stored, "source_prompt": "cats"},
        "restyle": {"style_image": style},
        "stylize": {"image": stored, "style_image": style},
        "invert": {"image": stored},
        "restore": {"image": stored, "damage": "smaller:2"},
        "vary": {"image": path, "prompt": ""},
        "interpolate": {"prompt_to": "two green cats"},
    }
    assert set(of) == set(TASKS)
    return lambda task: ASKED | {"task": task} | of[task]


@pytest.mark.parametrize("task", TASKS)
def test_film_batch_and_recipe(pipe, asked, task):
    events = list(pipe.generate(Request.parse(asked(task) | {"num_images": 2})))
    film = [event for event in events if isinstance(event, Progress)]
    pictures = [event for event in events if isinstance(event, Picture)]
    assert [event.step for event in film] == [1, 2, 3]
    assert all(event.steps == 3 and event.start > event.sigma for event in film)
    for event in film:
        for shown in (event.look(), event.state()):
            assert [image.size for image in shown] == [film[0].look()[0].size] * 2
    assert [picture.seed for picture in pictures] == [3, 4]
    [again] = drawn(pipe, **Request.of_recipe(pictures[1].recipe).model_dump(exclude_unset=True))
    assert apart(again, pictures[1]) == 0


def test_tasks_that_a_checkpoint_cannot_do(pipe, asked):
    deaf = dataclasses.replace(
        pipe,
        denoiser=Denoiser(lambda z, t, cond: z, pipe.denoiser.process, "v_prediction"),
        encoder=Deaf(pipe),
    )
    for task, says in (("restyle", "has no attention"), ("stylize", "has no attention")):
        with pytest.raises(UsageError, match=says):
            drawn(deaf, **asked(task))
    with pytest.raises(UsageError, match="reads no words; use --method flow"):
        drawn(deaf, **asked("rewrite"), method="words")


class Deaf:
    """An encoder that is no text encoder."""

    def __init__(self, pipe):
        self.encoder, self.capacity = pipe.encoder, pipe.encoder.capacity
        self.check, self.null = pipe.encoder.check, pipe.encoder.null

    def __call__(self, text):
        return self.encoder(text)
