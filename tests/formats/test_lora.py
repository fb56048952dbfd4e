"""LoRA files: what diffusers and PEFT write and make of them, and what they make of ours."""

import json
import re

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

import kinds
from mezzotint.errors import MezzotintError
from mezzotint.formats.folder import read_folder
from mezzotint.formats.lora import Lora, aliases, read_lora, spread, write_lora
from mezzotint.nets.lowrank import LowRank, changed

UNET_LAYERS = ["to_q", "to_v", "to_out.0", "ff.net.2", "proj_in", "conv1", "time_emb_proj"]
TEXT_LAYERS = ["q_proj", "out_proj", "fc1"]
PIPELINES = {"sd1": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def model(request, tmp_path_factory):
    """A folder of diffusers', and our nets with its weights."""
    folder, _ = kinds.saved(request.param, tmp_path_factory.mktemp(request.param))
    checkpoint = read_folder(folder)
    nets = {"unet": checkpoint.unet} | {name: net for name, (net, _) in checkpoint.encoders.items()}
    return request.param, folder, nets


def fresh(model):
    kind, folder, _ = model
    pipeline = PIPELINES[kind].from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def text_parts(pipeline):
    return {name: net for name, net in pipeline.components.items() if name.startswith("text_encoder")}


def named(state):
    """Weights under our names, whichever version of transformers wrote them."""
    return {name.removeprefix("text_model."): tensor for name, tensor in state.items()}


def compare(pipeline, nets, before):
    """The weights of two models that wear the same LoRA; that they differ from the bare ones."""
    for component, net in nets.items():
        state = getattr(pipeline, component).state_dict()
        theirs = named(
            {name.replace(".base_layer", ""): t for name, t in state.items() if "lora_" not in name}
        )
        ours, bare = named(net.state_dict()), named(before[component].state_dict())
        moved = 0
        for name, weight in ours.items():
            if "position_ids" in name:
                continue
            torch.testing.assert_close(
                weight,
                theirs[name],
                rtol=1e-5,
                atol=1e-6,
                msg=lambda text, at=f"{component}.{name}": f"{at}: {text}",
            )
            moved += not torch.equal(weight, bare[name])
        assert moved, component


def worn(nets, lora, weight):
    return {
        component: changed(
            net, {name: [(change, weight)] for name, change in lora.layers.get(component, {}).items()}
        )
        for component, net in nets.items()
    }


@pytest.mark.parametrize("dora", [False, True])
def test_what_diffusers_writes_changes_the_same_weights(model, tmp_path, dora):
    kind, _, nets = model
    pipeline = fresh(model)
    torch.manual_seed(1)
    parts = {"unet": pipeline.unet} | text_parts(pipeline)
    layers, metadata = {}, {}
    for name, net in parts.items():
        config = LoraConfig(
            r=4,
            lora_alpha=6,
            target_modules=UNET_LAYERS if name == "unet" else TEXT_LAYERS,
            rank_pattern={"to_q": 3, "q_proj": 2},
            alpha_pattern={"to_v": 1.5},
            use_dora=dora,
        )
        net.add_adapter(config)
        for key, weight in net.named_parameters():
            if "lora_" in key:
                weight.data += 0.1 * torch.randn_like(weight)
        layers[f"{name}_lora_layers"] = get_peft_model_state_dict(net)
        metadata[f"{name}_lora_adapter_metadata"] = net.peft_config["default"].to_dict()
    PIPELINES[kind].save_lora_weights(tmp_path, **layers, **metadata)
    ours = read_lora(tmp_path / "pytorch_lora_weights.safetensors", nets)
    for net in parts.values():
        for layer in net.modules():
            if isinstance(layer, LoraLayer):
                layer.merge()
    compare(pipeline, worn(nets, ours, 1.0), nets)


def random_lora(nets, *, dora=False, alpha=None):
    torch.manual_seed(2)
    layers = {}
    for component, net in nets.items():
        wanted = UNET_LAYERS if component == "unet" else TEXT_LAYERS
        for i, (name, module) in enumerate(net.named_modules()):
            if not name.endswith(tuple(wanted)) or not isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                continue
            outs, ins, *size = module.weight.shape
            rank = 2 + i % 3
            layers.setdefault(component, {})[name] = LowRank(
                0.2 * torch.randn(rank, ins, *size),
                0.2 * torch.randn(outs, rank, *[1] * len(size)),
                alpha=alpha or 1.0 + i % 2,
                magnitude=torch.rand(outs, 1) + 0.5 if dora else None,
            )
    return Lora(layers, {"made": "here"})


@pytest.mark.parametrize(("dialect", "dora"), [("diffusers", False), ("diffusers", True), ("kohya", False)])
def test_what_we_write_diffusers_makes_the_same_of(model, tmp_path, dialect, dora):
    _, _, nets = model
    # of kohya's alphas diffusers 0.42 hears one for all layers alone (it looks for others under names that it changed),
    # and of DoRA in text encoders it loses the lengths
    nets = {"unet": nets["unet"]} if dora else nets
    lora = random_lora(nets, dora=dora, alpha=3.0 if dialect == "kohya" else None)
    write_lora(tmp_path / "a.safetensors", lora, dialect=dialect)
    pipeline = fresh(model)
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    pipeline.fuse_lora(components=list(nets), lora_scale=1.0 if dora else 0.6)
    pipeline.unload_lora_weights()
    compare(pipeline, worn(nets, lora, 1.0 if dora else 0.6), nets)


@pytest.mark.parametrize("dialect", ["diffusers", "kohya"])
@pytest.mark.parametrize("dora", [False, True])
def test_there_and_back(model, tmp_path, dialect, dora):
    _, _, nets = model
    lora = random_lora(nets, dora=dora)
    write_lora(tmp_path / "a.safetensors", lora, dialect=dialect)
    again = read_lora(tmp_path / "a.safetensors", nets)
    assert again.metadata["made"] == "here"
    assert {c: set(layers) for c, layers in again.layers.items()} == {
        c: set(la) for c, la in lora.layers.items()
    }
    for component, layers in lora.layers.items():
        for name, change in layers.items():
            other = again.layers[component][name]
            assert torch.equal(other.down, change.down)
            assert torch.equal(other.up, change.up)
            assert other.scale == pytest.approx(change.scale)
            assert not dora or torch.equal(other.magnitude, change.magnitude)
    write_lora(tmp_path / "b.safetensors", again, dialect=dialect)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_older_names_of_diffusers(model, tmp_path):
    _, _, nets = model
    layer = next(name for name in dict(nets["unet"].named_modules()) if name.endswith("attn1.to_out.0"))
    text = "text_model.encoder.layers.0.self_attn"
    width = nets["unet"].get_submodule(layer).weight.shape[0]
    states = nets["text_encoder"].get_submodule(f"{text}.q_proj").weight.shape[0]
    a, b, c, d = torch.randn(2, width), torch.randn(width, 2), torch.randn(2, states), torch.randn(states, 2)
    old = layer.removesuffix(".to_out.0")
    spellings = [
        {
            f"unet.{old}.processor.to_out_lora.down.weight": a,
            f"unet.{old}.processor.to_out_lora.up.weight": b,
            f"text_encoder.{text}.q_proj.lora_linear_layer.down.weight": c,
            f"text_encoder.{text}.q_proj.lora_linear_layer.up.weight": d,
        },
        {
            f"unet.{layer}.lora.down.weight": a,
            f"unet.{layer}.lora.up.weight": b,
            f"text_encoder.{text}.to_q_lora.down.weight": c,
            f"text_encoder.{text}.to_q_lora.up.weight": d,
        },
        {
            f"base_model.model.unet.{layer}.lora_A.default.weight": a,
            f"base_model.model.unet.{layer}.lora_B.default.weight": b,
            f"text_encoder.{text.removeprefix('text_model.')}.q_proj.lora_A.weight": c,
            f"text_encoder.{text.removeprefix('text_model.')}.q_proj.lora_B.weight": d,
        },
        {
            f"lora_unet_{spread(layer)}.lora_down.weight": a,
            f"lora_unet_{spread(layer)}.lora_up.weight": b,
            f"lora_te1_{spread(text)}_q_proj.lora_down.weight": c,
            f"lora_te1_{spread(text)}_q_proj.lora_up.weight": d,
        },
    ]
    for i, tensors in enumerate(spellings):
        save_file(tensors, tmp_path / f"{i}.safetensors")
        lora = read_lora(tmp_path / f"{i}.safetensors", nets)
        assert torch.equal(lora.layers["unet"][layer].down, a)
        assert torch.equal(lora.layers["unet"][layer].up, b)
        assert torch.equal(lora.layers["text_encoder"][f"{text}.q_proj"].down, c)


def test_names_of_the_latent_diffusion_code(model, tmp_path):
    """As kohya's scripts name SDXL's layers; diffusers has its own table for them."""
    kind, _, nets = model
    if kind != "sdxl":
        pytest.skip("of SDXL they are")
    other = {layer: name for name, layer in aliases(nets["unet"]).items()}
    changes = {
        layer: change
        for layer, change in random_lora({"unet": nets["unet"]}, alpha=2.0).layers["unet"].items()
        if "attentions" in layer or "resnets" in layer
    }
    tensors = {}
    for layer, change in changes.items():
        assert other[layer].startswith(("input_blocks", "middle_block", "output_blocks"))
        tensors[f"lora_unet_{other[layer]}.lora_down.weight"] = change.down
        tensors[f"lora_unet_{other[layer]}.lora_up.weight"] = change.up
        tensors[f"lora_unet_{other[layer]}.alpha"] = torch.tensor(change.alpha)
    save_file(tensors, tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors", nets, aliases=aliases(nets["unet"]))
    assert lora.layers["unet"].keys() == changes.keys()
    pipeline = fresh(model)
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    pipeline.fuse_lora(components=["unet"])
    pipeline.unload_lora_weights()
    compare(pipeline, worn({"unet": nets["unet"]}, lora, 1.0), nets)


def test_a_file_of_peft_itself(model, tmp_path):
    kind, _, nets = model
    if kind != "sd1":
        pytest.skip("one kind is enough")
    from peft import get_peft_model

    pipeline = fresh(model)
    torch.manual_seed(3)
    wrapped = get_peft_model(
        pipeline.unet,
        LoraConfig(r=4, lora_alpha=6, target_modules=["to_k"], use_rslora=True, init_lora_weights=False),
    )
    wrapped.save_pretrained(tmp_path)
    lora = read_lora(tmp_path / "adapter_model.safetensors", nets)
    merged = wrapped.merge_and_unload()
    ours = worn({"unet": nets["unet"]}, lora, 1.0)["unet"]
    for name, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, merged.state_dict()[name], rtol=1e-5, atol=1e-6)


# --- what is wrong ---


def sd1_layer(nets):
    return "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k" if len(nets) == 2 else None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"drop": ".lora_B.weight"}, "lacks its 'up' part"),
        (
            {"rename": ("attn2.to_k", "attn2.to_x")},
            r"has no place in this model, the nearest is 'unet\..*attn2\.to_[kqv]'",
        ),
        ({"rename": ("lora_A.weight", "on_input")}, r"belongs to \(IA\)\^3, which is not supported"),
        ({"rename": ("lora_A.weight", "elephant")}, "is no part of a LoRA"),
        ({"add": {"unet.x.alpha": torch.tensor(1.0)}}, "has no place"),
        ({"shape": (4, 7)}, "for which the model's weight"),
        ({"clear": True}, "holds no weights"),
    ],
)
def test_wrong_files_are_told_in_one_line(model, tmp_path, changes, says):
    kind, _, nets = model
    if kind != "sd1":
        pytest.skip("one kind is enough")
    layer = f"unet.{sd1_layer(nets)}"
    tensors = {f"{layer}.lora_A.weight": torch.randn(4, 64), f"{layer}.lora_B.weight": torch.randn(64, 4)}
    if "drop" in changes:
        tensors = {key: t for key, t in tensors.items() if not key.endswith(changes["drop"])}
    if "rename" in changes:
        tensors = {key.replace(*changes["rename"]): t for key, t in tensors.items()}
    if "shape" in changes:
        tensors[f"{layer}.lora_A.weight"] = torch.randn(*changes["shape"])
    tensors = {} if "clear" in changes else tensors | changes.get("add", {})
    save_file(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(MezzotintError, match=says) as caught:
        read_lora(tmp_path / "wrong.safetensors", nets)
    assert str(caught.value).count("\n") == 0
    assert "wrong.safetensors" in str(caught.value)


def test_a_lora_for_another_kind_of_model(model, tmp_path):
    kind, _, nets = model
    if kind != "sdxl":
        pytest.skip("one way is enough")
    write_lora(tmp_path / "xl.safetensors", random_lora(nets), dialect="kohya")
    with pytest.raises(MezzotintError, match="made for another kind of model"):
        read_lora(tmp_path / "xl.safetensors", {"unet": nets["unet"], "text_encoder": nets["text_encoder"]})


def test_names_that_two_keys_claim_and_pickled_files(model, tmp_path):
    _, _, nets = model
    layer = next(name for name in dict(nets["unet"].named_modules()) if name.endswith("attn2.to_q"))
    tensors = {
        f"unet.{layer}.lora_A.weight": torch.randn(1, 64),
        f"unet.{layer}.lora.down.weight": torch.randn(1, 64),
    }
    save_file(tensors, tmp_path / "twice.safetensors")
    with pytest.raises(MezzotintError, match="says again what another key has said"):
        read_lora(tmp_path / "twice.safetensors", nets)
    (tmp_path / "old.pt").write_bytes(b"\x80")
    with pytest.raises(MezzotintError, match="pickled code, which is never opened"):
        read_lora(tmp_path / "old.pt", nets)


def test_diffusers_dialect_has_no_third_part(tmp_path):
    change = LowRank(torch.randn(2, 4, 1, 1), torch.randn(4, 2, 1, 1), mid=torch.randn(2, 2, 3, 3))
    with pytest.raises(MezzotintError, match="three parts, which diffusers cannot read"):
        write_lora(tmp_path / "a.safetensors", Lora({"unet": {"conv": change}}))
    assert not list(tmp_path.iterdir())
    write_lora(tmp_path / "a.safetensors", Lora({"unet": {"conv": change}}), dialect="kohya")
    assert "lora_unet_conv.lora_mid.weight" in load_file(tmp_path / "a.safetensors")


def test_settings_are_in_the_header(model, tmp_path):
    _, _, nets = model
    write_lora(tmp_path / "a.safetensors", random_lora(nets))
    from safetensors import safe_open

    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert {re.split(r"\.", key)[0] for key in settings} == set(nets)
    assert settings["unet.use_dora"] is False
