"""Textual inversion: the new rows alone are learned, and what is learned means the same to us and to diffusers."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file
from test_denoising import config, places  # noqa: F401 - a fixture
from test_loop import final_state

import kinds
from mezzotint.diffusion.noise import INITIAL, image_noise
from mezzotint.errors import UsageError
from mezzotint.formats.folder import read_folder
from mezzotint.pipeline import Pipeline
from mezzotint.training.watch import run
from mezzotint.training.words import TEMPLATES, EmbeddingStage, file_name, first_vectors

CPU = torch.device("cpu")


def word(places, out, start=None, **changes):  # noqa: F811
    model = {"start": str(start or places / "tiny"), "weight": "simple", "guidance": 2.0}
    embedding = {"word": "<wall>", "vectors": 2, "start": "apple", "templates": ("{}", "a {}", "a red {}")}
    embedding |= changes.pop("embedding", {})
    keys = {"optim": {"steps": 6, "lr": 1e-2}, "dataset": {"dropout": 0.0}} | changes
    return config(out, places / "captions", model, stage="embedding", embedding=embedding, **keys)


def ready(settings):
    stage = EmbeddingStage(settings, CPU)
    for _ in stage.prepare():
        pass
    stage.ready()
    return stage


def test_only_the_new_rows_are_learned_and_a_stopped_run_ends_in_the_same_bits(places, tmp_path):  # noqa: F811
    stage = ready(word(places, tmp_path / "whole"))
    assert {k: tuple(v.shape) for k, v in stage.words.named_parameters()} == {
        "embedding.text_encoder": (2, 24)
    }
    batch = stage.batch(0)
    (loss,) = stage.losses(batch, 0)
    loss.value.backward()
    nets = [stage.model.unet, stage.model.codec.vae, stage.model.teller.encoders[0][0]]
    assert all(p.grad is None for net in nets for p in net.parameters())
    assert stage.words.embedding["text_encoder"].grad.abs().min() > 0
    for _ in run(word(places, tmp_path / "whole")):
        pass
    for _ in itertools.islice(run(word(places, tmp_path / "stopped")), 3):
        pass
    for _ in run(word(places, tmp_path / "stopped")):
        pass
    expected, found = final_state(tmp_path / "whole")[0], final_state(tmp_path / "stopped")[0]
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    written = {file.name for file in (tmp_path / "stopped" / "embedding").iterdir()}
    assert {"README.md", "learned_embeds.safetensors", "wall.safetensors"} <= written
    learned = load_file(tmp_path / "whole" / "embedding" / "learned_embeds.safetensors")
    assert torch.equal(learned["<wall>"], expected["ema.words.embedding.text_encoder"])


def test_it_learns(places, tmp_path):  # noqa: F811
    """The loss of the same pictures under the same noise, with the word as it began and as it became."""
    settings = word(places, tmp_path, optim={"steps": 30, "lr": 5e-2, "ema": 0.8})
    stage = ready(settings)
    before = stage.validate().loss
    for _ in run(settings):
        pass
    average = final_state(tmp_path)[0]["ema.words.embedding.text_encoder"]
    stage.words.load_state_dict({"embedding.text_encoder": average})
    assert stage.validate().loss < before - 1e-3


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_diffusers_draws_the_same_pictures_with_it(places, tmp_path, kind):  # noqa: F811
    folder, _ = kinds.saved(kind, tmp_path)
    settings = word(places, tmp_path / "run", folder, optim={"steps": 4, "lr": 0.3})
    for _ in run(settings):
        pass
    result = tmp_path / "run" / "embedding"
    fields = {"num_inference_steps": 3, "guidance_scale": 4.0}
    if kind == "sd1":
        theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
        theirs.load_textual_inversion(result, weight_name="learned_embeds.safetensors")
        prompt, file = "a red <wall> and <wall>", result / "learned_embeds.safetensors"
    else:
        theirs = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
        prompt, file = "a red wall and wall", result / "wall.safetensors"
        vectors = load_file(file)
        for key, end in (("clip_l", ""), ("clip_g", "_2")):
            encoder, tokenizer = getattr(theirs, f"text_encoder{end}"), getattr(theirs, f"tokenizer{end}")
            theirs.load_textual_inversion(
                vectors[key], token="wall", text_encoder=encoder, tokenizer=tokenizer
            )
    theirs.set_progress_bar_config(disable=True)
    ours = Pipeline.load(folder, device="cpu")
    drawn = ours(prompt, seed=3, embeddings=[str(file)], **fields)[0]
    plain = ours(prompt, seed=3, **fields)[0]
    size = ours.defaults.width // ours.codec.factor
    latents = image_noise(3, INITIAL, (4, size, size))[None]
    expected = theirs(prompt, latents=latents, **fields).images[0]
    difference = np.abs(np.asarray(drawn).astype(int) - np.asarray(expected))
    assert difference.max() <= 1
    assert not np.array_equal(np.asarray(drawn), np.asarray(plain))


def test_captions(places, tmp_path):  # noqa: F811
    for kind in ("object", "style"):
        long = word(places, tmp_path, embedding={"templates": kind})
        with pytest.raises(UsageError, match="a text of this model holds 10 tokens"):
            EmbeddingStage(long, CPU)
        assert all("{}" in template for template in TEMPLATES[kind])
    templates = {"templates": ["{} {caption}", "{}"]}
    stage = EmbeddingStage(word(places, tmp_path, embedding=templates), CPU)
    record = next(r for r in stage.pictures.records if r.path.name == "red-0.png")
    assert record.captions == ("<wall> a red wall", "<wall> red", "<wall>")
    settings = word(places, tmp_path, embedding={"word": "wall", "templates": "own"})
    with pytest.raises(UsageError, match="the word wall is not heard in the caption 'blue'"):
        EmbeddingStage(settings, CPU)


def test_first_vectors(places):  # noqa: F811
    model = read_folder(places / "tiny")
    table = model.text_encoder.text_model.embeddings.token_embedding.weight
    draw = torch.Generator().manual_seed(0)
    one, two = (model.tokenizer.tokens(text)[0] for text in ("red", "green"))

    def first(start, count):
        return first_vectors(model.text_encoder, model.tokenizer, start, count, draw)

    assert torch.equal(first("red", 2), table[[one, one]])
    assert torch.equal(first("red green", 3), table[[one, two, one]])
    torch.testing.assert_close(first("red green", 1)[0], table[[one, two]].mean(0))
    drawn = first("", 400)
    torch.testing.assert_close(drawn.std(0), table.std(0), rtol=0.2, atol=0)
    assert not drawn.requires_grad


def test_names_and_refusals(places, tmp_path):  # noqa: F811
    assert [file_name(name) for name in ("<zorple>", "my toy", "<>")] == ["zorple", "my-toy", "word"]
    for changes, message in (
        ({"word": ""}, r"needs embedding\.word"),
        ({"word": "apple"}, "'apple' is one that the model knows already"),
        ({"vectors": 11}, "a text of this model holds 10"),
        ({"templates": ["a picture"]}, "is not heard in the caption 'a picture'"),
    ):
        with pytest.raises(UsageError, match=message):
            EmbeddingStage(word(places, tmp_path, embedding=changes), CPU)
    with pytest.raises(UsageError, match="changes no weight"):
        EmbeddingStage(word(places, tmp_path, prior={"prompt": "a wall"}), CPU)
