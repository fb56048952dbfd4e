"""Engines: OpenVINO's answers are torch's, and what it cannot do is done by torch."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mezzotint import Pipeline, Request, engine
from mezzotint.diffusion.samplers import SAMPLERS
from mezzotint.diffusion.types import Cond
from mezzotint.engine import Graphed, realiser
from mezzotint.errors import UsageError
from mezzotint.nets import UNet, UNetConfig
from mezzotint.nets.lowrank import LowRank, changed
from tiny import WIDTH, tiny_checkpoint, write_tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def openvino():
    return pytest.importorskip("openvino", reason="OpenVINO is not installed (extra `openvino`)")


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """The graphs of this file are kept in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv(engine.CACHE, str(folder))
        yield folder / "openvino"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pair(openvino, cached, folder):
    """The same model, computed by torch and by OpenVINO."""
    return [Pipeline.load(folder, device="cpu", engine=name) for name in ("torch", "openvino")]


@pytest.fixture(scope="module")
def graphed(openvino, cached):
    return Graphed(tiny_checkpoint().unet)


def told(rows, length=12, seed=0):
    return Cond(text=torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(seed)))


def deviation(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.std())


def test_an_engine_that_is_unknown_not_installed_or_of_no_use_is_one_line(monkeypatch):
    with pytest.raises(UsageError, match="unknown engine 'openvin'; did you mean 'openvino'"):
        realiser("openvin", "float32", CPU)
    with pytest.raises(UsageError, match="computes on processors, not on 'cuda'"):
        realiser("openvino", "float32", torch.device("cuda"))
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install mezzotint\[openvino\]"):
        realiser("openvino", "float32", CPU)
    monkeypatch.setattr(engine, "find_spec", lambda name: True)
    with pytest.raises(UsageError, match="computes U-Nets, and this model is"):
        realiser("openvino", "float32", CPU)(torch.nn.Identity())
    unet = tiny_checkpoint().unet
    assert realiser("torch", "float32", CPU)(unet) is unet


@pytest.mark.parametrize(
    ("rows", "height", "width", "length"), [(1, 8, 8, 12), (2, 8, 8, 12), (4, 16, 8, 24)]
)
def test_answers_are_those_of_torch(graphed, rows, height, width, length):
    torch.manual_seed(0)
    z, t, cond = torch.randn(rows, 4, height, width), torch.linspace(1, 900, rows), told(rows, length)
    with torch.inference_mode():
        assert deviation(graphed(z, t, cond), graphed.unet(z, t, cond)) < 1e-4


def test_hidden_words_stay_hidden(graphed):
    torch.manual_seed(0)
    z, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([500.0, 500.0]), told(2)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[0, 5:] = False
    with torch.inference_mode():
        hidden, seen = (graphed(z, t, cond._replace(mask=each)) for each in (mask, None))
        assert deviation(hidden, graphed.unet(z, t, cond._replace(mask=mask))) < 1e-4
    assert torch.equal(hidden[1], seen[1])
    assert not torch.equal(hidden[0], seen[0])


def test_rows_do_not_depend_on_how_many_pairs_there_are(graphed):
    torch.manual_seed(0)
    z, t, cond = torch.randn(6, 4, 8, 8), torch.linspace(1, 900, 6), told(6)
    with torch.inference_mode():
        together = graphed(z, t, cond)
        alone = graphed(z[2:4], t[2:4], cond.map(lambda field: field[2:4]))
    assert torch.equal(together[2:4], alone)


COMMON = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
    "cross_attention_dim": WIDTH,
}
TEXT = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SIZED = {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 60,
    "transformer_layers_per_block": 2,
}
CLASSES = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "attention_head_dim": 16,
    "num_class_embeds": 10,
    "resnet_time_scale_shift": "scale_shift",
}
KINDS = {
    "inpainting": (TEXT | {"in_channels": 9}, {"concat": torch.ones(2, 5, 8, 8)}),
    "sized": (TEXT | SIZED, {"pooled": torch.ones(2, 60)}),
    "classes": (CLASSES, {"text": None, "label": torch.tensor([3, 7])}),
    "text beside": (TEXT | {"addition_embed_type": "text", "addition_embed_type_num_heads": 2}, {}),
}


@pytest.mark.parametrize(
    "kind", ["sized", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "sized")]
)
def test_every_kind_of_model_has_a_graph(openvino, cached, kind):
    torch.manual_seed(1)
    config, more = KINDS[kind]
    unet = UNet(UNetConfig(**COMMON | config)).eval()
    z, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([10.0, 800.0]), told(2)._replace(**more)
    with torch.inference_mode():
        assert deviation(Graphed(unet)(z, t, cond), unet(z, t, cond)) < 1e-4


def test_gradients_and_watched_attention_are_the_unets_own(graphed):
    z, t, cond = torch.randn(1, 4, 8, 8, requires_grad=True), torch.tensor([500.0]), told(1)
    graphed(z, t, cond).sum().backward()
    assert z.grad is not None
    seen = []

    def control(place, q, k, v, heads, mask):
        seen.append(place.cross)
        return q

    with torch.inference_mode():
        graphed(z.detach(), t, cond, control=control)
    assert True in seen


def test_a_change_of_weights_is_another_graph_and_the_same_weights_are_the_same(graphed, cached):
    unet = graphed.unet
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
    outs, ins = unet.get_submodule(layer).weight.shape
    change = LowRank(torch.randn(2, ins), torch.randn(outs, 2))
    worn = Graphed(changed(unet, {layer: [(change, 1.0)]}))
    assert worn.key != graphed.key
    assert Graphed(tiny_checkpoint().unet).key == graphed.key
    assert len({Graphed(unet, how).key for how in ("bfloat16", "float16")} | {graphed.key}) == 2
    assert Graphed(unet, int8=True).key != graphed.key
    z, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([5.0, 900.0]), told(2)
    with torch.inference_mode():
        assert deviation(worn(z, t, cond), worn.unet(z, t, cond)) < 1e-4
        assert deviation(worn(z, t, cond), graphed(z, t, cond)) > 1e-3


def test_a_graph_on_disk_is_not_made_again_and_few_are_kept(openvino, cached, monkeypatch):
    z, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([5.0, 900.0]), told(2)
    with torch.inference_mode():
        first = Graphed(tiny_checkpoint().unet)(z, t, cond)
        with monkeypatch.context() as patch:
            patch.setattr(engine, "traced", None)
            assert torch.equal(Graphed(tiny_checkpoint().unet)(z, t, cond), first)
        monkeypatch.setattr(engine, "KEPT", 1)
        other = Graphed(tiny_checkpoint().unet, int8=True)
        other(z, t, cond)
    assert [one.name for one in cached.iterdir()] == [other.key]


@pytest.mark.parametrize(("how", "least"), [({"precision": "bfloat16"}, 30), ({"int8": True}, 30)])
def test_fewer_bits_are_nearly_the_same(openvino, cached, how, least, monkeypatch):
    monkeypatch.setattr(engine, "LEAST", 64)
    z, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([5.0, 900.0]), told(2)
    unet = tiny_checkpoint().unet
    with torch.inference_mode():
        ours, theirs = Graphed(unet, **how)(z, t, cond), unet(z, t, cond)
    error = float((ours - theirs).square().mean() / theirs.var())
    assert error > 0
    assert 10 * np.log10(1 / error) > least


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_pictures_are_those_of_torch_with_every_sampler(pair, sampler):
    ours, theirs = (
        np.asarray(one("a red apple", negative_prompt="cats", seed=3, sampler=sampler)[0]).astype(int)
        for one in pair
    )
    assert abs(ours - theirs).max() <= 1


def test_a_picture_of_a_batch_is_the_picture_alone(pair):
    _, pipeline = pair
    together = pipeline("a red apple", seed=3, num_images=3)
    assert together[2].tobytes() == pipeline("a red apple", seed=5)[0].tobytes()


def test_a_recipe_says_who_computed(pair):
    for pipeline in pair:
        settled = pipeline.settle(Request(prompt="a red apple", seed=1))
        assert pipeline.recipe(settled)["engine"] == pipeline.engine


def test_a_lora_is_worn(openvino, cached, folder, tmp_path):
    unet = tiny_checkpoint().unet
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
    outs, ins = unet.get_submodule(layer).weight.shape
    torch.manual_seed(0)
    name = f"lora_unet_{layer.replace('.', '_')}"
    file = {f"{name}.lora_up.weight": torch.randn(outs, 2), f"{name}.lora_down.weight": torch.randn(2, ins)}
    save_file(file, tmp_path / "ink.safetensors")
    pipelines = [
        Pipeline.load(folder, device="cpu", engine=name, extras=[tmp_path]) for name in ("torch", "openvino")
    ]
    ours, theirs = (np.asarray(one("a red apple", seed=3, loras=["ink"])[0]).astype(int) for one in pipelines)
    bare = np.asarray(pipelines[0]("a red apple", seed=3)[0]).astype(int)
    assert abs(ours - theirs).max() <= 1
    assert abs(ours - bare).max() > 1
