"""LoRAs and embeddings in pictures: on and off to the last bit, told in the recipe, found by name, replayed."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mezzotint import Pipeline, Request
from mezzotint.cli import run
from mezzotint.errors import MezzotintError, UsageError
from mezzotint.extras import FOLDERS, extra_names
from mezzotint.formats.embedding import Embedding, write_embedding
from mezzotint.formats.image import read_recipe
from mezzotint.formats.lora import Lora, short_hash, write_lora
from mezzotint.formats.recipe import infotext, parse_infotext
from mezzotint.nets.lowrank import LowRank
from mezzotint.pipeline import Picture
from tiny import WIDTH, write_tiny

MID = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.0.resnets.0.conv1"
TEXT = "text_model.encoder.layers.0.mlp.fc1"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    monkeypatch.delenv(FOLDERS, raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, folder):
    """A folder of LoRAs and embeddings for the tiny model."""
    shelf = tmp_path_factory.mktemp("shelf")
    nets = Pipeline.load(folder, device="cpu").wardrobe
    torch.manual_seed(0)

    def change(net, layer, size):
        weight = net.get_submodule(layer).weight
        outs, ins, *kernel = weight.shape
        return LowRank(size * torch.randn(2, ins, *kernel), size * torch.randn(outs, 2, *[1] * len(kernel)))

    for name, size in (("ink", 0.5), ("chalk", 0.7)):
        layers = {
            "unet": {layer: change(nets.unet, layer, size) for layer in (MID, CONV)},
            "text_encoder": {TEXT: change(nets.texts["text_encoder"], TEXT, size)},
        }
        write_lora(shelf / "loras" / f"{name}.safetensors", Lora(layers), dialect="kohya")
    write_embedding(
        shelf / "thing.safetensors", Embedding("thing", {"": torch.randn(2, WIDTH)}), dialect="a1111"
    )
    return shelf


@pytest.fixture
def pipeline(folder, shelf):
    return Pipeline.load(folder, device="cpu", extras=[shelf])


def pictures(pipeline, **fields):
    request = Request.parse({"prompt": "a red apple", "seed": 1} | fields)
    return [event for event in pipeline.generate(request) if isinstance(event, Picture)]


def same(left, right):
    return np.array_equal(np.asarray(left.image), np.asarray(right.image))


def test_on_and_off_to_the_last_bit(pipeline, shelf):
    weights = {name: tensor.clone() for name, tensor in pipeline.denoiser.net.state_dict().items()}
    bare = pictures(pipeline)[0]
    ink = pictures(pipeline, loras=["ink"])[0]
    assert not same(bare, ink)
    assert same(bare, pictures(pipeline)[0])
    assert same(bare, pictures(pipeline, loras=["ink:0"])[0])
    assert all(
        torch.equal(tensor, weights[name]) for name, tensor in pipeline.denoiser.net.state_dict().items()
    )
    both = pictures(pipeline, loras=["ink:0.5", "chalk:-0.3"])[0]
    assert not same(both, ink)
    assert same(ink, pictures(pipeline, loras=["ink"])[0])
    fresh = Pipeline.load(pipeline.folder, device="cpu", extras=[shelf])
    assert same(both, pictures(fresh, loras=[str(shelf / "loras/ink.safetensors:0.5"), "chalk:-0.3"])[0])


def test_other_kinds_of_changes_too(pipeline, shelf):
    weight = pipeline.wardrobe.unet.get_submodule(MID).weight
    half = [size // 2 for size in weight.shape]
    for name, parts in {
        "loha": {
            f"hada_w{i}_{end}": (half[0] * 2, 2) if end == "a" else (2, half[1] * 2)
            for i in (1, 2)
            for end in "ab"
        },
        "lokr": {"lokr_w1": (2, 2), "lokr_w2_a": (half[0], 3), "lokr_w2_b": (3, half[1])},
        "oft": {"oft_blocks": (2, half[0], half[0])},
    }.items():
        key = "lora_unet_" + MID.replace(".", "_")
        torch.manual_seed(3)
        save_file(
            {f"{key}.{role}": torch.randn(size) for role, size in parts.items()},
            shelf / f"{name}.safetensors",
        )
    bare = pictures(pipeline)[0]
    worn = [
        pictures(pipeline, loras=loras)[0]
        for loras in (["loha"], ["lokr"], ["oft"], ["loha:0.5", "oft:2", "ink"])
    ]
    assert not any(same(one, other) for i, one in enumerate([bare, *worn]) for other in worn[i:])
    assert same(bare, pictures(pipeline)[0])
    assert same(worn[-1], pictures(pipeline, prompt="a red apple<lora:loha:.5><lora:oft:2><lora:ink:1>")[0])
    for name in ("loha", "lokr", "oft"):
        (shelf / f"{name}.safetensors").unlink()


def test_what_is_worn_is_what_its_definition_says(pipeline):
    settled = pipeline.settle(Request.parse({"loras": [{"name": "ink", "weight": 0.5, "text_weight": 2}]}))
    worn = pipeline.wearing(settled)
    from safetensors.torch import load_file

    file = load_file(pipeline.wardrobe.folders[0] / "loras" / "ink.safetensors")
    for net, bare, layer, key, weight in (
        (worn.denoiser.net, pipeline.denoiser.net, MID, "lora_unet_", 0.5),
        (worn.encoder.encoders[0][0], pipeline.encoder.encoders[0][0], TEXT, "lora_te_", 2.0),
    ):
        name = key + layer.replace(".", "_")
        delta = file[f"{name}.lora_up.weight"] @ file[f"{name}.lora_down.weight"]
        expected = bare.get_submodule(layer).weight + weight * delta
        torch.testing.assert_close(net.get_submodule(layer).weight.data, expected.data)


def test_a_picture_of_a_batch_is_that_of_its_seed_alone(pipeline):
    fields = {
        "loras": ["ink:0.7"],
        "embeddings": ["thing"],
        "prompt": "a (thing:1.2) on a [red:green:0.5] cat",
    }
    batch = pictures(pipeline, seed=5, num_images=5, **fields)
    assert all(same(picture, pictures(pipeline, seed=5 + i, **fields)[0]) for i, picture in enumerate(batch))
    assert not same(batch[0], pictures(pipeline, seed=5, **(fields | {"embeddings": []}))[0])


def test_tags_in_the_prompt_are_loras_of_the_request(pipeline):
    tagged = pictures(pipeline, prompt="a red <lora:ink:0.5> apple<lora:chalk:0.2:0.7>")[0]
    listed = pictures(
        pipeline,
        prompt="a red  apple",
        loras=["ink:0.5", {"name": "chalk", "weight": 0.7, "text_weight": 0.2}],
    )[0]
    assert same(tagged, listed)
    assert tagged.recipe["prompt"] == "a red  apple"
    assert [lora["name"] for lora in tagged.recipe["loras"]] == ["ink", "chalk"]
    with pytest.raises(UsageError, match="the negative prompt has a LoRA tag"):
        pictures(pipeline, negative_prompt="<lora:ink:1>")


def test_the_recipe_makes_the_picture_again_with_the_same_files(pipeline, shelf, tmp_path):
    fields = {"loras": [f"{shelf}/loras/ink.safetensors:0.6"], "embeddings": ["thing"], "prompt": "a thing"}
    first = pictures(pipeline, **fields)[0]
    recipe = json.loads(json.dumps(first.recipe))
    assert recipe["loras"][0]["name"] == "ink"
    assert str(shelf) not in json.dumps(recipe)
    again = pictures(pipeline, **Request.of_recipe(recipe).model_dump())[0]
    assert same(first, again)
    assert again.recipe == first.recipe
    elsewhere = Pipeline.load(pipeline.folder, device="cpu")
    with pytest.raises(UsageError, match="unknown LoRA 'ink': no folder is known to look in"):
        elsewhere.settle(Request.of_recipe(recipe))
    (tmp_path / "ink.safetensors").write_bytes((shelf / "loras" / "chalk.safetensors").read_bytes())
    (tmp_path / "thing.safetensors").write_bytes((shelf / "thing.safetensors").read_bytes())
    other = Pipeline.load(pipeline.folder, device="cpu", extras=[tmp_path])
    with pytest.raises(MezzotintError, match=r"ink.safetensors is not the LoRA that the recipe means"):
        other.settle(Request.of_recipe(recipe))


def test_other_tools_read_the_loras_in_the_prompt(pipeline):
    recipe = pictures(pipeline, loras=["ink:0.6", {"name": "chalk", "weight": 1, "text_weight": 0.5}])[
        0
    ].recipe
    text = infotext(recipe)
    assert text.startswith("a red apple <lora:ink:0.6> <lora:chalk:0.5:1>\n")
    ink, chalk = (
        short_hash(pipeline.wardrobe.folders[0] / "loras" / f"{name}.safetensors")
        for name in ("ink", "chalk")
    )
    assert f'Lora hashes: "ink: {ink}, chalk: {chalk}"' in text
    assert parse_infotext(text)["lora_hashes"] == f"ink: {ink}, chalk: {chalk}"
    settled = pipeline.settle(Request(prompt=parse_infotext(text)["prompt"]))
    assert [(lora.name, lora.weights) for lora in settled.loras] == [("ink", (0.6, 0.6)), ("chalk", (1, 0.5))]


def test_where_they_are_looked_up(folder, shelf, monkeypatch):
    monkeypatch.setenv(FOLDERS, f"/nowhere:{shelf}")
    bare = Pipeline.load(folder, device="cpu")
    assert bare.settle(Request.parse({"loras": ["ink"]})).loras[0].sha256
    assert extra_names("LoRA") == ["chalk", "ink", "thing"]
    with pytest.raises(UsageError, match=r"unknown LoRA 'inc'; did you mean 'ink'\?"):
        bare.settle(Request.parse({"loras": ["inc:0.5"]}))
    with pytest.raises(UsageError, match=r"LoRA missing/ink.safetensors: there is no such file"):
        bare.settle(Request.parse({"loras": ["missing/ink.safetensors"]}))
    with pytest.raises(MezzotintError, match="'emb_params' is no part of a LoRA"):
        bare.settle(Request.parse({"loras": ["thing"]}))
    with pytest.raises(UsageError, match=r"loras \(--lora\) is .*1000"):
        Request.parse({"loras": ["ink:1000"]})


def test_whoever_may_not_open_files_gives_names_alone():
    for path in ("/etc/passwd", "../x", "a/b", "ink.safetensors", "x.PT"):
        for field in ("loras", "embeddings"):
            for given in (path, {"name": path}):
                with pytest.raises(UsageError, match="is a path; a request gives the name"):
                    Request.parse({field: [given]}, files=False)
    assert Request.parse({"loras": ["ink:0.5"]}, files=False).loras[0].weight == 0.5


def test_a_tag_is_a_name_and_never_a_path(pipeline, shelf):
    with pytest.raises(UsageError, match="is a path"):
        pipeline.settle(Request(prompt=f"<lora:{shelf}/loras/ink.safetensors:1>"))


def test_the_embedded_model_wears_loras_too(tmp_path):
    pipeline = Pipeline.load("emoji", device="cpu", extras=[tmp_path])
    layer = next(name for name, _ in pipeline.wardrobe.unet.named_modules() if name.endswith("attn2.to_v"))
    outs, ins = pipeline.wardrobe.unet.get_submodule(layer).weight.shape
    torch.manual_seed(0)
    change = LowRank(torch.randn(2, ins), torch.randn(outs, 2))
    write_lora(tmp_path / "a.safetensors", Lora({"unet": {layer: change}}))
    fields = {"num_inference_steps": 2, "guidance_scale": 3.0}
    bare, worn = pictures(pipeline, **fields)[0], pictures(pipeline, loras=["a"], **fields)[0]
    assert not same(bare, worn)
    assert same(bare, pictures(pipeline, **fields)[0])


def test_command_line(folder, shelf, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["generate", "a thing", "-m", str(folder), "--seed", "3", "-o", "a.png", "--lora-dir", str(shelf)]
    flags = ["--lora", "ink:0.5", "--lora", "chalk:0.2:0.4", "--embedding", "thing"]
    assert run([*words, *flags]) == 0
    recipe = read_recipe(tmp_path / "a.png")
    assert [(one["name"], one["weight"], one["text_weight"]) for one in recipe["loras"]] == [
        ("ink", 0.5, None),
        ("chalk", 0.4, 0.2),
    ]
    assert run(["replay", "a.png", "-m", str(folder), "--lora-dir", str(shelf)]) == 0
    assert "identical" in capsys.readouterr().out
    assert run(["replay", "a.png", "-m", str(folder)]) == 2
    assert "unknown LoRA 'ink'" in capsys.readouterr().err
    (tmp_path / "old.pt").write_bytes(b"\x80")
    assert run([*words[:-4], "-o", "b.png", "--embedding", "old.pt"]) == 1
    assert "old.pt is pickled code, which is never opened" in capsys.readouterr().err
