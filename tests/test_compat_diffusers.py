"""The snippet that everyone starts from, with only its import changed, makes what diffusers makes."""

import inspect
import warnings

import diffusers
import numpy as np
import pytest
import torch

from kinds import DDIM, EULER, saved, text
from mezzotint.compat import diffusers as ours
from mezzotint.diffusion.noise import INITIAL
from mezzotint.errors import MezzotintError, UsageError

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
    prompts = [PROMPT, "(two) [green] AND"]  # signs that mean nothing there
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


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_an_earlier_layer(made, tmp_path, kind):
    """diffusers counts from the layer that the model hears, and leaves the negative prompt where it is."""
    _, theirs = made(kind)
    torch.manual_seed(1)
    texts = {"text_encoder": text(theirs.tokenizer, 64, layers=3)}
    if kind == "sdxl":
        texts["text_encoder_2"] = text(theirs.tokenizer_2, 128, layers=3, act="gelu", projected=True)
    theirs = type(theirs)(**(theirs.components | texts))
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(tmp_path / kind)
    if not hasattr(
        theirs.text_encoder, "text_model"
    ):  # where diffusers 0.42 looks, and transformers 5.6 has nothing
        object.__setattr__(theirs.text_encoder, "text_model", theirs.text_encoder)
    pipe = getattr(ours, type(theirs).__name__).from_pretrained(tmp_path / kind)
    fields = {"num_inference_steps": 3, "negative_prompt": NEGATIVE}
    pictures = []
    for skip in (None, 0, 1):
        expected = theirs(PROMPT, generator=seeded(), clip_skip=skip, **fields).images[0]
        pictures.append(pipe(PROMPT, generator=seeded(), clip_skip=skip, **fields).images[0])
        assert differ(pictures[-1], expected) <= 1
    assert differ(pictures[0], pictures[1]) == 0
    assert differ(pictures[0], pictures[2]) > 1
    # in A1111's count, for both prompts
    native = pipe.pipeline
    pooled = {}
    if kind == "sd1":
        states = {name: theirs.encode_prompt(each, "cpu", 1, False, clip_skip=1)[0]
                  for name, each in (("prompt_embeds", PROMPT), ("negative_prompt_embeds", NEGATIVE))}  # fmt: skip
    else:
        both = [
            theirs.encode_prompt(each, clip_skip=1, do_classifier_free_guidance=False)
            for each in (PROMPT, NEGATIVE)
        ]
        states = {"prompt_embeds": both[0][0], "negative_prompt_embeds": both[1][0]}
        pooled = {"pooled_prompt_embeds": both[0][2], "negative_pooled_prompt_embeds": both[1][2]}
    latents = native.draws([4], (4, 8, 8))(INITIAL)
    expected = theirs(latents=latents, num_inference_steps=3, guidance_scale=5.0, **states, **pooled).images[
        0
    ]
    layer = 2 if kind == "sd1" else 3
    got = native(
        PROMPT, negative_prompt=NEGATIVE, seed=4, clip_skip=layer, num_inference_steps=3, guidance_scale=5.0
    )[0]
    assert differ(got, expected) <= 1


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_states_in_the_place_of_texts(made, kind):
    folder, theirs = made(kind)
    pipe = getattr(ours, type(theirs).__name__).from_pretrained(folder)
    torch.manual_seed(2)
    states = {"prompt_embeds": torch.randn(2, 12, 64 if kind == "sd1" else 192)}
    fields = {"num_inference_steps": 3, "num_images_per_prompt": 2}
    if kind == "sdxl":
        states["pooled_prompt_embeds"] = torch.randn(2, 128)
    for _ in range(2):
        expected = theirs(generator=seeded(), **states, **fields).images
        got = pipe(generator=seeded(), **states, **fields).images
        assert len(got) == 4
        assert max(map(differ, got, expected)) <= 1
        states |= {f"negative_{name}": torch.randn_like(each) for name, each in states.items()}


@pytest.mark.parametrize(
    ("kind", "strength"), [("sd1", 0.6), ("sd1", 0.9), ("sd1", 1.0), ("sdxl-refiner", 0.6)]
)
def test_image_to_image(made, kind, strength):
    """With the scheduler of its folder: SD 1's is PNDM."""
    from PIL import Image

    folder, theirs = made(kind)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8))
    cls, fields = ours.StableDiffusionImg2ImgPipeline, {"num_inference_steps": 8, "strength": strength}
    if kind == "sd1":
        theirs = diffusers.StableDiffusionImg2ImgPipeline(**theirs.components, requires_safety_checker=False)
        theirs.set_progress_bar_config(disable=True)
    else:
        cls, fields = ours.StableDiffusionXLImg2ImgPipeline, fields | {"aesthetic_score": 7.0}
    expected = theirs(PROMPT, image=image, generator=seeded(), **fields).images[0]
    pipe = cls.from_pretrained(folder, scheduler=theirs.scheduler)
    got = pipe(PROMPT, image=image, generator=seeded(), **fields).images[0]
    assert got.size == expected.size
    assert differ(got, expected) <= 1


def test_a_picture_s_latents_are_drawn_once_for_all_prompts(made):
    from PIL import Image

    folder, theirs = made("sd1")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8))
    theirs = diffusers.StableDiffusionImg2ImgPipeline(**theirs.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    fields = {"prompt": [PROMPT, "two green cats"], "image": image, "num_inference_steps": 4, "strength": 1.0}
    pipe = ours.StableDiffusionImg2ImgPipeline.from_pretrained(folder, scheduler=DDIM)
    theirs.scheduler = DDIM
    expected = theirs(generator=seeded(), **fields).images
    assert max(map(differ, pipe(generator=seeded(), **fields).images, expected)) <= 1


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
    if kind != "sd1-inpaint":  # whose own is PNDM
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
        "takes no ip_adapter_image here": lambda: pipe(PROMPT, ip_adapter_image=torch.zeros(1)),
        "is 'a red apple', and states are given": lambda: pipe(PROMPT, prompt_embeds=torch.zeros(1, 12, 64)),
        "2 rows for 1 prompts": lambda: pipe(PROMPT, negative_prompt_embeds=torch.zeros(2, 12, 64)),
        r"prompt_embeds is \[12, 63\]; this model hears \[1, L, 64\]": lambda: pipe(
            prompt_embeds=torch.zeros(1, 12, 63)
        ),
        "takes states alone, no vector": lambda: pipe(
            prompt_embeds=torch.zeros(1, 12, 64), pooled_prompt_embeds=torch.zeros(1, 64)
        ),
        "clip_skip .* is 3; the text encoder of this model has 2 layers": lambda: pipe(PROMPT, clip_skip=2),
        r"latents is \[1, 4, 8, 8\]; these pictures start from \[2, 4, 8, 8\]": lambda: pipe(
            [PROMPT] * 2, latents=torch.zeros(1, 4, 8, 8)
        ),
        "3 generators for 1 pictures": lambda: pipe(PROMPT, generator=[seeded()] * 3),
        "2 negative prompts for 1 prompts": lambda: pipe(PROMPT, negative_prompt=["a", "b"]),
        "unknown output_type 'pill'; did you mean 'pil'": lambda: pipe(PROMPT, output_type="pill"),
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
