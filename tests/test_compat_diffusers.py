"""The snippet that everyone starts from, with only its import changed, makes what diffusers makes."""

import inspect
import warnings

import diffusers
import numpy as np
import pytest
import torch

from kinds import DDIM, EULER, saved
from mezzotint.compat import diffusers as ours
from mezzotint.errors import MezzotintError, UsageError

# Pictures are begun from with DDIM: half way in, diffusers' PNDM takes its second step for one at another level.
PROMPT, NEGATIVE = "a red apple", "two CATS"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, remembered = tmp_path_factory.mktemp("compat"), {}

    def get(kind):
        if kind not in remembered:
            remembered[kind] = saved(kind, folder)
        return remembered[kind]

    return get


def differ(left, right):
    return abs(np.asarray(left).astype(int) - np.asarray(right).astype(int)).max()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_snippet(made):
    folder, theirs = made("sd1")
    pipe = ours.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe = pipe.to("cpu")
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_attention_slicing()
    fields = {"num_inference_steps": 6, "guidance_scale": 7.5, "num_images_per_prompt": 2}
    prompts = [PROMPT, "(two) [green] cats"]  # signs that mean nothing there
    got = pipe(prompts, negative_prompt=NEGATIVE, generator=seeded(), **fields).images
    expected = theirs(prompts, negative_prompt=[NEGATIVE] * 2, generator=seeded(), **fields).images
    assert len(got) == 4
    assert max(map(differ, got, expected)) <= 1
    assert pipe.scheduler.config["_class_name"] == "PNDMScheduler"


@pytest.mark.parametrize(
    "name", ["EulerAncestralDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"]
)
def test_another_scheduler(made, name):
    """Ours by that name, or diffusers' own object; noise on the way comes from the same generator."""
    folder, _ = made("sd1")
    other = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    other.set_progress_bar_config(disable=True)
    knobs = {"clip_sample": False} if name == "DDIMScheduler" else {}
    other.scheduler = getattr(diffusers, name).from_config(other.scheduler.config, **knobs)
    pipe = ours.StableDiffusionPipeline.from_pretrained(folder)
    fields = {"num_inference_steps": 4} | ({"eta": 0.7} if name == "DDIMScheduler" else {})
    expected = other(PROMPT, generator=seeded(), **fields).images[0]
    for scheduler in (getattr(ours, name).from_config(pipe.scheduler.config), other.scheduler):
        pipe.scheduler = scheduler
        assert differ(pipe(PROMPT, generator=seeded(), **fields).images[0], expected) <= 1


def test_generators_latents_and_outputs(made):
    folder, theirs = made("sd1")
    pipe = ours.StableDiffusionPipeline.from_pretrained(folder)
    fields = {"num_inference_steps": 3, "num_images_per_prompt": 2}
    several = [seeded(1), seeded(2)]
    expected = theirs(PROMPT, generator=[seeded(1), seeded(2)], **fields).images
    assert max(map(differ, pipe(PROMPT, generator=several, **fields).images, expected)) <= 1
    latents = torch.randn(2, 4, 8, 8, generator=seeded(5))
    array = pipe(PROMPT, latents=latents, output_type="np", **fields).images
    assert abs(array - theirs(PROMPT, latents=latents, output_type="np", **fields).images).max() < 1.5 / 255
    (tensor, nothing) = pipe(PROMPT, latents=latents, output_type="pt", return_dict=False, **fields)
    assert nothing is None
    assert tensor.shape == (2, 3, 16, 16)
    assert torch.equal(tensor, torch.from_numpy(array).permute(0, 3, 1, 2))


@pytest.mark.parametrize("negative", [None, "", NEGATIVE])
def test_xl(made, negative):
    folder, theirs = made("sdxl")
    pipe = ours.StableDiffusionXLPipeline.from_pretrained(folder)
    fields = {"num_inference_steps": 4, "original_size": (48, 640), "crops_coords_top_left": (5, 90)}
    expected = theirs(PROMPT, negative_prompt=negative, generator=seeded(), **fields).images[0]
    assert (
        differ(pipe(PROMPT, negative_prompt=negative, generator=seeded(), **fields).images[0], expected) <= 1
    )


@pytest.mark.parametrize("kind", ["sd1", "sdxl-refiner"])
def test_image_to_image(made, kind):
    from PIL import Image

    folder, theirs = made(kind)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8))
    cls, fields = ours.StableDiffusionImg2ImgPipeline, {"num_inference_steps": 8, "strength": 0.6}
    if kind == "sd1":
        theirs = diffusers.StableDiffusionImg2ImgPipeline(**theirs.components, requires_safety_checker=False)
        theirs.set_progress_bar_config(disable=True)
        theirs.scheduler = DDIM
    else:
        cls, fields = ours.StableDiffusionXLImg2ImgPipeline, fields | {"aesthetic_score": 7.0}
    expected = theirs(PROMPT, image=image, generator=seeded(), **fields).images[0]
    pipe = cls.from_pretrained(folder, scheduler=theirs.scheduler)
    got = pipe(PROMPT, image=image, generator=seeded(), **fields).images[0]
    assert got.size == expected.size
    assert differ(got, expected) <= 1


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("kind", ["sd1-inpaint", "sd2-inpaint", "sdxl-inpaint"])
def test_inpainting(made, kind, strength):
    """Where it is drawn anew; elsewhere ours is the picture itself."""
    from PIL import Image

    folder, theirs = made(kind)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8))
    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 14, 14))
    fields = {"image": image, "mask_image": mask, "num_inference_steps": 5, "strength": strength}
    fields |= {"height": 16, "width": 16}
    theirs.scheduler = EULER if "xl" in kind else DDIM
    expected = theirs(PROMPT, generator=seeded(), **fields).images[0]
    cls = ours.StableDiffusionXLInpaintPipeline if "xl" in kind else ours.StableDiffusionInpaintPipeline
    pipe = cls.from_pretrained(folder, scheduler=theirs.scheduler)
    got = pipe(PROMPT, generator=seeded(), **fields).images[0]
    inside = (8, 8, 10, 10)  # away from the rim, where ours is blended
    assert differ(got.crop(inside), expected.crop(inside)) <= 1
    assert differ(got.crop((0, 0, 16, 2)), image.crop((0, 0, 16, 2))) == 0


def test_single_file(made, tmp_path):
    from mezzotint.formats.folder import folder_parts
    from mezzotint.formats.single import write_single

    folder, _ = made("sd1")
    write_single(tmp_path / "a.safetensors", folder_parts(folder))
    fields = {"num_inference_steps": 2}
    left, right = (
        ours.StableDiffusionPipeline.from_single_file(path)(PROMPT, generator=seeded(), **fields).images[0]
        for path in (folder, tmp_path / "a.safetensors")
    )
    assert differ(left, right) == 0


def test_half_precision_on_a_processor_is_obeyed(made):
    """Whether that is slow is measured; it is said once, and not before somebody draws."""
    folder, _ = made("sd1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe = ours.StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert pipe(PROMPT, num_inference_steps=2).images[0].size == (16, 16)
    assert pipe.pipeline.precision == "float16"
    assert pipe.to(torch.float32).pipeline.precision == "float32"


def test_what_is_refused(made):
    folder, _ = made("sd1")
    load = ours.StableDiffusionPipeline.from_pretrained
    pipe = load(folder)
    for says, wrong in {
        "takes no prompt_embeds here": lambda: pipe(PROMPT, prompt_embeds=torch.zeros(1)),
        "3 generators for 1 pictures": lambda: pipe(PROMPT, generator=[seeded()] * 3),
        "2 negative prompts for 1 prompts": lambda: pipe(PROMPT, negative_prompt=["a", "b"]),
        "unknown output_type 'pill'; did you mean 'pil'": lambda: pipe(
            PROMPT, num_inference_steps=1, output_type="pill"
        ),
        "unknown argument 'torch_dtpye'; did you mean 'torch_dtype'": lambda: load(folder, torch_dtpye=1),
        "device 'cuda:99' is not to be had": lambda: pipe.to("cuda:99"),
        "torch_dtype": lambda: load(folder, torch_dtype=torch.int8),
        "no such folder": lambda: load("/nowhere/at/all"),
    }.items():
        with pytest.raises((UsageError, MezzotintError), match=says):
            wrong()
    with pytest.raises(AttributeError, match="no 'load_ip_adapter'"):
        pipe.load_ip_adapter("x")
    with pytest.raises(AttributeError, match="has no 'FluxPipeline'"):
        ours.FluxPipeline  # noqa: B018


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionXLInpaintPipeline",
    ],
)
def test_defaults_are_those_of_diffusers(name):
    theirs = inspect.signature(getattr(diffusers, name).__call__).parameters
    mine = getattr(ours, name)
    assert theirs["guidance_scale"].default == mine.guidance
    assert (
        theirs["num_inference_steps"].default
        == inspect.signature(mine.__call__).parameters["num_inference_steps"].default
    )
    if "strength" in theirs:
        assert theirs["strength"].default == mine.strength
