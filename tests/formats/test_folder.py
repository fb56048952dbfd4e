"""Stable Diffusion in miniature: diffusers opens what we write, we open what it saves, and the numbers agree."""

import json
import re
import shutil
import subprocess
import sys
import warnings

import pytest
import torch

from mezzotint.diffusion.denoiser import Denoiser
from mezzotint.diffusion.grids import sigma_grid
from mezzotint.diffusion.process import VariancePreserving
from mezzotint.diffusion.samplers import SAMPLERS
from mezzotint.diffusion.types import Cond
from mezzotint.errors import MezzotintError
from mezzotint.formats import folder as module
from mezzotint.formats.checkpoint import Checkpoint
from mezzotint.formats.folder import (
    read_configs,
    read_folder,
    write_folder,
)
from mezzotint.formats.names import text_today, vae_today
from mezzotint.formats.scheduler import Plan
from mezzotint.formats.tokenizer import Tokenizer, train_bpe
from mezzotint.nets import AutoencoderKL, CLIPTextConfig, CLIPTextModel, UNet, UNetConfig, VAEConfig

LENGTH = 12
WIDTH = 24
PROMPTS = ["a red apple", "two green CATS, and a hat"]


def make(plan=None, in_channels=4):
    torch.manual_seed(0)
    vocab, merges = train_bpe(["a red apple and two green cats"] * 3, 540)
    tokenizer = Tokenizer(vocab, merges, max_length=LENGTH)
    unet = UNetConfig(
        sample_size=8,
        in_channels=in_channels,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
    )
    vae = VAEConfig(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=48,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
        pad_token_id=tokenizer.pad,
    )
    plan = plan or Plan(VariancePreserving(zero_snr=True), "v_prediction")
    return Checkpoint(
        UNet(unet).eval(), AutoencoderKL(vae).eval(), CLIPTextModel(text).eval(), tokenizer, plan
    )


@pytest.fixture(scope="module")
def made():
    return make()


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    write_folder(path, made, files={"README.md": "# tiny\n"})
    return path


@pytest.fixture(scope="module")
def theirs(written):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(written)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def parts(checkpoint):
    return {"unet": checkpoint.unet, "vae": checkpoint.vae, "text_encoder": checkpoint.text_encoder}


def same_weights(left, right):
    for name, net in parts(left).items():
        other = parts(right)[name].state_dict()
        assert net.state_dict().keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in net.state_dict().items())


def copy(folder, to):
    return shutil.copytree(folder, to / "copy")


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_round_trip(made, written):
    again = read_folder(written)
    same_weights(again, made)
    assert again.plan == made.plan
    assert again.process == made.plan.process
    assert again.prediction == "v_prediction"
    assert again.tokenizer.files() == made.tokenizer.files()
    for name, net in parts(again).items():
        assert net.config == parts(made)[name].config
        assert not net.training
    assert (written / "README.md").read_text() == "# tiny\n"
    assert sorted(path.name for path in written.parent.iterdir()) == ["tiny"]


def test_half_precision_for_shipping(made, tmp_path):
    write_folder(tmp_path / "half", made, dtype=torch.float16)
    again = read_folder(tmp_path / "half")
    for name, net in parts(again).items():
        for key, tensor in parts(made)[name].state_dict().items():
            assert torch.equal(net.state_dict()[key], tensor.half().float())
    assert next(read_folder(tmp_path / "half", dtype=torch.float16).unet.parameters()).dtype == torch.float16
    size = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    assert size < 0.6 * sum(t.numel() * 4 for net in parts(made).values() for t in net.state_dict().values())


def test_same_bytes_each_time(made, written, tmp_path):
    write_folder(tmp_path / "again", made, files={"README.md": "# tiny\n"})
    for file in written.rglob("*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "again" / file.relative_to(written)).read_bytes()


@torch.no_grad()
def test_diffusers_computes_the_same(made, theirs):
    tokens = made.tokenizer.batch(PROMPTS)
    ids = theirs.tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(ids, tokens.ids)
    states = made.text_encoder(ids).last
    torch.testing.assert_close(theirs.text_encoder(ids).last_hidden_state, states, rtol=1e-4, atol=1e-5)
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([7.0, 900.0])
    torch.testing.assert_close(
        theirs.unet(z, t, states).sample, made.unet(z, t, Cond(text=states)), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(theirs.vae.decode(z).sample, made.vae.decode(z), rtol=1e-4, atol=1e-5)


PLANS = [
    Plan(VariancePreserving(zero_snr=True), "v_prediction"),
    Plan(prediction="epsilon", sampler="ddim"),
    Plan(prediction="v_prediction", sampler="euler", grid="leading", grid_knobs={"steps_offset": 1}),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.sampler)
@torch.no_grad()
def test_diffusers_samples_the_same(plan, tmp_path):
    from diffusers import StableDiffusionPipeline

    checkpoint = make(plan)
    write_folder(tmp_path / "m", checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # what is outdated in a file is said so
        theirs = StableDiffusionPipeline.from_pretrained(tmp_path / "m")
    theirs.set_progress_bar_config(disable=True)
    text = checkpoint.text_encoder(checkpoint.tokenizer.batch(PROMPTS).ids).last
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = theirs(
        prompt_embeds=text, latents=noise, num_inference_steps=8, guidance_scale=1.0, output_type="latent"
    ).images
    sigmas = sigma_grid(plan.grid, plan.process, 8, **plan.grid_knobs)
    denoise = Denoiser(checkpoint.unet, plan.process, plan.prediction)
    start = noise / plan.process.scale(sigmas[0])
    *_, last = SAMPLERS[plan.sampler](denoise, start.float(), sigmas, Cond(text=text), **plan.sampler_knobs)
    torch.testing.assert_close(last.x, expected, rtol=2e-3, atol=2e-3)


@torch.no_grad()
def test_reads_what_diffusers_saves(made, theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer" / "tokenizer.json").exists()  # the newer form
    again = read_folder(tmp_path / "saved")
    same_weights(again, made)
    assert again.plan == made.plan
    for text in [*PROMPTS, "😀 it's <|endoftext|>"]:
        assert again.tokenizer.encode(text) == made.tokenizer.encode(text)


def test_reads_what_diffusers_saves_in_half_precision(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "saved", variant="fp16")
    assert (tmp_path / "saved" / "unet" / "diffusion_pytorch_model.fp16.safetensors").exists()
    read_folder(tmp_path / "saved")


def test_whole_pipeline_of_diffusers_runs_on_half_precision(made, tmp_path):
    from diffusers import StableDiffusionPipeline

    write_folder(tmp_path / "half", made, dtype=torch.float16)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "half")
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red apple", num_inference_steps=2).images[0]
    assert image.size == (16, 16)


def test_older_names(made):
    text = made.text_encoder.state_dict()
    bare = {name.removeprefix("text_model."): t for name, t in text.items()}
    assert text_today(bare).keys() == text_today(text).keys() == text.keys()
    vae = made.vae.state_dict()
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    renamed = {}
    for name, tensor in vae.items():
        for new, was in old.items():
            name = name.replace(new, was)
        square = re.search("(query|key|value|proj_attn).weight", name)
        renamed[name] = tensor[:, :, None, None] if square else tensor
    assert renamed.keys() != vae.keys()
    back = vae_today(renamed)
    assert back.keys() == vae.keys()
    assert all(torch.equal(back[name], vae[name]) for name in vae)


def test_inpainting_checkpoint(tmp_path):
    write_folder(tmp_path / "inpaint", make(in_channels=9))
    assert json.loads((tmp_path / "inpaint" / "model_index.json").read_text())["_class_name"].endswith(
        "InpaintPipeline"
    )
    assert read_folder(tmp_path / "inpaint").unet.config.in_channels == 9


def test_steps_offset_is_that_of_the_pipelines(written, tmp_path):
    """diffusers' pipelines correct it to 1, so a plan without would be sampled in two ways."""
    path = copy(written, tmp_path)
    edit(path / "scheduler" / "scheduler_config.json", timestep_spacing="leading", steps_offset=0)
    assert read_configs(path).plan.grid_knobs["steps_offset"] == 1
    with pytest.raises(MezzotintError, match="steps_offset 1; plan with that"):
        write_folder(tmp_path / "x", make(Plan(sampler="ddim", grid="leading")))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def pickle_instead(file):
    file.rename(file.with_suffix(".bin"))


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("model_index.json", lambda f: f.unlink(), "is not a diffusers folder: it has no model_index.json"),
        ("model_index.json", lambda f: edit(f, _class_name="FluxPipeline"), "index.json: unknown pipeline 'FluxPipe"),
        ("model_index.json", lambda f: edit(f, vae=[None, None]), "component 'vae' is missing"),
        ("model_index.json", lambda f: edit(f, unet=["diffusers", "UNet2DModel"]), "unet is 'UNet2DModel', and"),
        ("model_index.json", lambda f: edit(f, prior=["x", "Y"]), "unknown component 'prior'"),
        ("unet/config.json", lambda f: f.unlink(), "unet/config.json is missing"),
        ("unet/config.json", lambda f: f.write_text("{"), "unet/config.json is not valid JSON"),
        ("unet/config.json", lambda f: edit(f, norm_num_grups=4), "unet/config.json: unknown key .*'norm_num_groups'"),
        ("unet/config.json", lambda f: edit(f, cross_attention_dim=32), "texts of width 32, the text encoder's is 24"),
        ("unet/config.json", lambda f: edit(f, in_channels=5), "maps 5 channels to 4"),
        ("unet/config.json", lambda f: edit(f, layers_per_block=2), r"unet/diff.*do not fit .* missing \("),
        ("vae/diffusion_pytorch_model.safetensors", truncate, "vae/diff.* is damaged or cut short"),
        ("vae/diffusion_pytorch_model.safetensors", lambda f: f.unlink(), "vae/diff.* is missing"),
        ("unet/diffusion_pytorch_model.safetensors", pickle_instead, "bin beside it is pickled code"),
        ("scheduler/scheduler_config.json", lambda f: edit(f, thresholding=True), "config.json: .*'thresholding'"),
        ("tokenizer/merges.txt", lambda f: f.unlink(), "merges.txt: cannot be read"),
        ("text_encoder/config.json", lambda f: edit(f, vocab_size=500), "tokens, but the text encoder knows 500"),
    ],
)  # fmt: skip
def test_damaged_folder(written, tmp_path, file, damage, says):
    path = copy(written, tmp_path)
    damage(path / file)
    with pytest.raises(MezzotintError, match=says) as caught:
        read_folder(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_not_a_folder(tmp_path):
    with pytest.raises(MezzotintError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(MezzotintError, match="is a file"):
        read_folder(tmp_path / "file")


def test_components_that_do_not_fit_are_not_written(made, tmp_path):
    other = make(in_channels=4)
    wrong = Checkpoint(UNet(UNetConfig(cross_attention_dim=8, norm_num_groups=8, block_out_channels=(8,),
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), attention_head_dim=1)),
        other.vae, other.text_encoder, other.tokenizer, other.plan)  # fmt: skip
    with pytest.raises(MezzotintError, match="texts of width 8"):
        write_folder(tmp_path / "x", wrong)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", [MezzotintError("cannot write: the disk is full"), KeyboardInterrupt()])
def test_nothing_half_written_stays(made, tmp_path, monkeypatch, what):
    write_folder(tmp_path / "m", made)
    before = sorted(tmp_path.rglob("*"))
    real = module.write_tensors

    def fail_at_the_second(path, *args, **kwargs):
        if "vae" in str(path):
            raise what
        real(path, *args, **kwargs)

    monkeypatch.setattr(module, "write_tensors", fail_at_the_second)
    with pytest.raises(type(what)):
        write_folder(tmp_path / "m", make(), replace=True)
    assert sorted(tmp_path.rglob("*")) == before
    same_weights(read_folder(tmp_path / "m"), made)


def test_reading_imports_nothing_heavy(written):
    """Starting quickly is a promise: torch's meta device alone would cost a second of imports."""
    code = (
        "import sys; from mezzotint.formats.folder import read_folder; import mezzotint.formats.sheet\n"
        "read_folder(sys.argv[1])\n"
        "print([name for name in ('sympy', 'scipy', 'transformers', 'diffusers', 'torch._dynamo', 'torchvision',"
        " 'torch.distributed.fsdp') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code, written], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_existing_folder_is_kept(written, made):
    with pytest.raises(MezzotintError, match="exists; remove it or choose another name"):
        write_folder(written, made)
