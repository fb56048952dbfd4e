"""The three stages on eight glyphs: what they promise the loop, and what they hand on."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mezzotint.data.captions import PALETTE, compose
from mezzotint.data.scenes import load_scenes
from mezzotint.errors import UsageError
from mezzotint.formats.folder import read_folder
from mezzotint.nets import AutoencoderKL, VAEConfig
from mezzotint.training import teacher
from mezzotint.training.config import TrainConfig
from mezzotint.training.diffusion import DiffusionStage
from mezzotint.training.text import TextStage
from mezzotint.training.vae import crop, edge_error, from_unit, to_unit, transformed, whitened
from mezzotint.training.watch import run
from wordnet_files import write_wordnet

CPU = torch.device("cpu")
VAE_NET = {
    "block_out_channels": [8, 8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
TEXT_NET = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_dim": 16,
}
UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
}


def config(stage, data, out, net, **changes):
    optim = {"steps": 4, "batch": 4, "lr": 1e-3, "warmup": 1} | changes.pop("optim", {})
    keys = {"stage": stage, "data": data, "out": out, "net": net, "optim": optim}
    keys["run"] = {"precision": "float32", "checkpoint": 1, "pictures": 1000}
    return TrainConfig.model_validate(keys | changes)


def pretend_embedding(texts, cache, *, batch=256):
    """A fixed unit vector for each text, without the pretrained teacher."""
    seeds = [int.from_bytes(hashlib.sha256(t.encode()).digest()[:4], "big") for t in texts]
    rows = [torch.randn(teacher.DIM, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return F.normalize(torch.stack(rows), dim=1)


@pytest.fixture(scope="module")
def trained(glyph_folder, tmp_path_factory):
    """The folders of all three stages after a few steps each."""
    out = tmp_path_factory.mktemp("stages")
    patch = pytest.MonkeyPatch()
    patch.setattr(teacher, "embed", pretend_embedding)
    patch.setattr(teacher, "common_words", lambda: ["sedan", "hound", "jumbo", "jet"])
    for _ in run(config("vae", glyph_folder, out / "vae", VAE_NET, vae={"crop": 32})):
        pass
    for _ in run(config("text", glyph_folder, out / "text", TEXT_NET, text=text_settings(out))):
        pass
    for _ in run(diffusion(glyph_folder, out)):
        pass
    yield out
    patch.undo()


def text_settings(out, **changes):
    """Settings of the text stage, with a dictionary of five entries."""
    folder = out / "wordnet"
    if not folder.exists():
        write_wordnet(folder)
    return {"vocabulary": 700, "length": 32, "dictionary": folder} | changes


def diffusion(glyph_folder, out, name="diffusion", **changes):
    section = {"vae": out / "vae/vae", "text": out / "text/text", "pool": 8, "reuse": 2} | changes
    return config("diffusion", glyph_folder, out / name, UNET, diffusion=section, optim={"steps": 6})


def test_crops_are_functions_of_seed_and_number(glyph_folder):
    scenes = load_scenes(glyph_folder)
    first = crop(scenes, 3, 17, 32)
    assert first.shape == (32, 32, 3)
    assert np.array_equal(first, crop(load_scenes(glyph_folder), 3, 17, 32))
    assert not np.array_equal(first, crop(scenes, 4, 17, 32))


def test_whitening_changes_latents_and_nothing_else():
    torch.manual_seed(0)
    net = AutoencoderKL(VAEConfig.from_dict(VAE_NET)).double()
    image = torch.rand(6, 3, 32, 32, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        z, logvar = net.encode(image)
        picture = net.decode(z)
        net.load_state_dict(whitened(net.state_dict(), z.mean((0, 2, 3)), z.std((0, 2, 3))))
        white, white_logvar = net.encode(image)
        again = net.decode(white)
    assert torch.allclose(white.mean((0, 2, 3)), torch.zeros(4).double(), atol=1e-9)
    assert torch.allclose(white.std((0, 2, 3)), torch.ones(4).double())
    assert torch.allclose(again, picture, atol=1e-9)
    spread = z.std((0, 2, 3))[None, :, None, None]
    assert torch.allclose(white_logvar.exp().sqrt() * spread, logvar.exp().sqrt())


def test_transforms_go_with_pictures_and_edges_see_blur():
    x = torch.rand(2, 3, 16, 16)
    for which in range(4):
        assert torch.equal(transformed(transformed(x, which), [2, 1, 0, 3][which]), x)
    assert transformed(x, 5).shape == (2, 3, 8, 8)
    blurred = F.avg_pool2d(x, 3, 1, 1)
    assert edge_error(x, x) == 0
    assert edge_error(x, x + 0.5) < 1e-6  # a shift of brightness has no edges
    assert edge_error(x, blurred) > 0.01


def test_unit_range_is_exact():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(from_unit(to_unit(pictures)), pictures)


def test_phrases_are_found_among_the_tokens(trained, glyph_folder):
    settings = text_settings(trained)
    stage = TextStage(config("text", glyph_folder, trained / "text", TEXT_NET, text=settings), CPU)
    ids = stage.tokenizer.encode("a jumbo jet above a sedan on a blue background").ids
    for phrase, last in (("jumbo jet", "jet"), ("sedan", "sedan"), ("blue", "blue")):
        end = stage._end_of(phrase, ids)
        assert stage.tokenizer.decode(ids[: end + 1]).endswith(last)
    assert stage._end_of("apple", ids) is None
    lesson = stage.batch(1)
    again = stage.batch(1)
    assert torch.equal(lesson.ids, again.ids)
    assert torch.equal(lesson.meaning, again.meaning)
    assert torch.allclose(lesson.meaning.norm(dim=1), torch.ones(len(lesson.meaning)), atol=1e-5)


def test_text_stage_learns(trained, glyph_folder):
    settings = text_settings(trained, words=1.0)
    keys = config(
        "text",
        glyph_folder,
        trained / "text-long",
        TEXT_NET,
        text=settings,
        optim={"steps": 60, "lr": 1e-2, "batch": 16},
    )
    losses = [p.stats.parts["meaning"] for p in run(keys)]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_text_stage_keeps_what_can_be_drawn_and_recalls_names(trained, glyph_folder):
    settings = text_settings(trained, define=True, recall=1.0, keep=100.0, start=trained / "text/text")
    optim = {"steps": 40, "lr": 1e-3, "batch": 16, "ema": 0.0}
    steps = [
        p.stats.parts
        for p in run(config("text", glyph_folder, trained / "words", TEXT_NET, text=settings, optim=optim))
    ]
    assert max(part["keep"] for part in steps) < 0.02  # mean square of a state is about 1
    assert np.mean([part["recall"] for part in steps[-8:]]) < np.mean([part["recall"] for part in steps[:8]])


def test_pool_and_batches_are_functions_of_the_step(trained, glyph_folder):
    first = DiffusionStage(diffusion(glyph_folder, trained), CPU)
    other = DiffusionStage(diffusion(glyph_folder, trained, name="elsewhere"), CPU)
    for step in (0, 3, 5):
        for a, b in zip(first.batch(step), other.batch(step), strict=True):
            assert torch.equal(a, b)
    seen = torch.cat([first.batch(step)[1] for step in (0, 1)])  # one turn through the pool of 8
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, first.pool(0).ids.tolist()))
    assert not torch.equal(first.pool(0).ids, first.pool(1).ids)


def test_diffusion_resumes_to_the_same_bits(trained, glyph_folder):
    from test_loop import final_state

    for _ in itertools.islice(run(diffusion(glyph_folder, trained, name="stopped")), 4):
        pass
    for _ in run(diffusion(glyph_folder, trained, name="stopped")):
        pass
    expected, found = final_state(trained / "diffusion")[0], final_state(trained / "stopped")[0]
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_the_result_is_a_folder_that_loads(trained):
    model = read_folder(trained / "diffusion" / "diffusion")
    assert model.prediction == "v_prediction"
    assert model.vae.config.scaling_factor == 1.0
    assert model.tokenizer.max_length == 32


def test_refusals(trained, glyph_folder):
    with pytest.raises(UsageError, match=r"unknown diffusion\.levels 'unifrom'; did you mean 'uniform'"):
        DiffusionStage(diffusion(glyph_folder, trained, levels="unifrom"), CPU)
    with pytest.raises(UsageError, match=r"diffusion\.pool 10 must be a multiple of optim\.batch 4"):
        DiffusionStage(diffusion(glyph_folder, trained, pool=10), CPU)


def test_scenes_say_what_they_show(glyph_folder):
    scenes = load_scenes(glyph_folder)
    assert [thing.name for thing in scenes.things] == [
        "apple",
        "square",
        "ring",
        "bar",
        "cross",
        "dot",
        "pie",
    ]
    assert len(scenes.glyphs) == 8
    for i in range(300):
        scene = scenes.scene(0, i)
        assert scene == scenes.scene(0, i)
        picture = compose(scene, scenes.glyphs)
        border = {picture.getpixel(p) for p in ((0, 0), (127, 0), (0, 127), (127, 127))}
        if all(placed.side < 0.5 for placed in scene.objects) and len(scene.objects) == 2:
            assert PALETTE[scene.background] in border
        for placed in scene.objects:
            assert placed.phrase in scene.caption
            assert placed.side / 2 <= placed.x + 1e-6 <= 1 - placed.side / 2 + 2e-6
        if scene.background != "white":
            assert scene.background in scene.caption
        words = scene.caption.split()
        if "left of" in scene.caption and scene.caption.find(scene.objects[0].phrase) == 0:
            assert scene.objects[0].x < scene.objects[1].x
        assert words
