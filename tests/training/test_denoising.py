"""Models of any pictures: each kind is trained for a few steps, opened by `Pipeline.load`, and draws."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from PIL import Image
from test_loop import final_state

from mezzotint.errors import UsageError
from mezzotint.pipeline import Pipeline
from mezzotint.training.config import TrainConfig
from mezzotint.training.denoising import DenoisingStage
from mezzotint.training.order import Order
from mezzotint.training.watch import run
from mezzotint.training.world import Share
from tiny import write_tiny

CPU = torch.device("cpu")
NET = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}
TEXT_NET = NET | {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 2,
}
COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30)}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with pictures in class folders, the same with captions, and a tiny model."""
    root = tmp_path_factory.mktemp("places")
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for i in range(8):
            pixels = np.clip(np.array(colour) + rng.integers(-25, 25, (18 + i % 3, 20, 3)), 0, 255)
            for folder in (root / "classes" / name, root / "captions"):
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}-{i}.png")
            (root / "captions" / f"{name}-{i}.txt").write_text(f"a {name} wall\n{name}\n")
    write_tiny(root / "tiny")
    return root


def config(out, data, model=None, **changes):
    optim = {"steps": 4, "batch": 4, "lr": 2e-3, "warmup": 1} | changes.pop("optim", {})
    run = {"precision": "float32", "checkpoint": 2, "pictures": 2, "validate_every": 2}
    keys = {"stage": "model", "data": data, "out": out, "optim": optim, "run": run | changes.pop("run", {})}
    keys["dataset"] = {"resolution": 16, "held_out": 0.2} | changes.pop("dataset", {})
    keys["model"] = {"steps": 3, "half": False} | (model or {})
    return TrainConfig.model_validate(keys | changes)


def trained(settings):
    """The pipeline of a finished run, and the steps' stats."""
    stats = [now.stats for now in run(settings)]
    assert all(math.isfinite(s.loss) for s in stats)
    return Pipeline.load(settings.out / settings.stage, device="cpu"), stats


@pytest.mark.parametrize(
    ("process", "prediction"),
    [("variance_preserving", "epsilon"), ("edm", "edm"), ("flow", "flow")],
)
def test_classes_of_pixels(places, tmp_path, process, prediction):
    model = {"condition": "class", "process": process, "prediction": prediction, "weight": "simple"}
    settings = config(tmp_path, places / "classes", model, net=NET)
    pipe, _ = trained(settings)
    assert pipe.encoder.classes == ("blue", "green", "red")
    assert (pipe.defaults.width, pipe.codec.factor) == (16, 1)
    picture, other = pipe("red", seed=1)[0], pipe("blue", seed=1)[0]
    assert picture.size == (16, 16)
    assert np.array_equal(np.asarray(picture), np.asarray(pipe("red", seed=1)[0]))
    assert not np.array_equal(np.asarray(picture), np.asarray(other))
    with pytest.raises(UsageError, match="unknown class 'rde'; did you mean 'red'"):
        pipe("rde")
    assert (tmp_path / "pictures" / "00000002.png").exists()
    looks = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    validation = next(look["validation"] for look in looks if "validation" in look)
    assert len(validation["train"]) == 8
    assert set(validation) == {"train", "held_out"}


def test_the_pipeline_draws_what_training_drew(places, tmp_path):
    model = {"condition": "class", "prediction": "epsilon", "guidance": 2.0}
    settings = config(tmp_path, places / "classes", model, net=NET)
    pipe, _ = trained(settings)
    stage = DenoisingStage(settings, CPU)
    stage.model.unet.load_state_dict(pipe_state(tmp_path / "model"))
    ours = stage.generate(["red"], [5])[0]
    theirs = np.asarray(pipe("red", seed=5)[0])
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def pipe_state(folder):
    from mezzotint.formats.native import read_native

    return read_native(folder).unet.state_dict()


def test_nothing_is_told(places, tmp_path):
    pipe, _ = trained(config(tmp_path, places / "captions", {"condition": "none"}, net=NET))
    assert pipe("", seed=1)[0].size == (16, 16)
    with pytest.raises(UsageError, match="trained without words"):
        pipe("a red wall")


def test_texts_of_latents_from_nothing(places, tmp_path):
    model = {"vae": str(places / "tiny"), "text": str(places / "tiny"), "prompts": ("a red wall",)}
    settings = config(tmp_path, places / "captions", model, net=TEXT_NET, dataset={"flip": True})
    pipe, _ = trained(settings)
    assert (tmp_path / "model" / "model_index.json").read_text().count("StableDiffusionPipeline") == 1
    assert pipe("a red wall", seed=1)[0].size == (16, 16)
    store = DenoisingStage(settings, CPU)
    assert store._missing() == ({}, {})  # everything was kept
    picture = next((places / "captions").glob("red-0.png"))
    kept = picture.read_bytes()
    Image.new("RGB", (20, 20), "white").save(picture)
    changed = DenoisingStage(settings, CPU)
    assert sorted(i for i, _ in changed._missing()[0].values()) == [
        i for i, r in enumerate(changed.pictures.records) if r.path == picture for _ in range(2)
    ]
    picture.write_bytes(kept)


def test_texts_of_pixels_and_of_flows(places, tmp_path):
    model = {"text": str(places / "tiny"), "process": "flow", "prediction": "flow", "weight": "simple"}
    pipe, _ = trained(config(tmp_path, places / "captions", model, net=TEXT_NET))
    assert pipe("a red wall", seed=1)[0].size == (16, 16)


def test_a_model_goes_on(places, tmp_path):
    settings = config(tmp_path, places / "captions", {"start": str(places / "tiny")}, optim={"lr": 1e-3})
    pipe, _ = trained(settings)
    before = Pipeline.load(places / "tiny", device="cpu")
    assert pipe.plan == before.plan
    first, second = (p("a red wall", seed=1, num_inference_steps=4)[0] for p in (pipe, before))
    assert not np.array_equal(np.asarray(first), np.asarray(second))
    again = config(tmp_path / "again", places / "classes", {"start": str(tmp_path / "model")})
    assert trained(again)[0]("red wall", seed=1)


def test_it_learns(places, tmp_path):
    model = {"condition": "class", "prediction": "sample", "weight": "simple", "levels": "lognormal"}
    settings = config(tmp_path, places / "classes", model, net=NET, optim={"steps": 80, "batch": 8})
    pipe, stats = trained(settings)
    assert np.mean([s.loss for s in stats[-10:]]) < 0.3 * np.mean([s.loss for s in stats[:5]])
    for name, colour in COLOURS.items():
        drawn = np.asarray(pipe(name, seed=3, num_inference_steps=8)[0]).mean((0, 1))
        assert drawn.argmax() == np.argmax(colour)


def test_stopped_resumed_and_in_parts_it_is_the_same_run(places, tmp_path):
    model = {"vae": str(places / "tiny"), "text": str(places / "tiny")}

    def settings(name, **changes):
        dataset = {"crop": "random", "flip": True, "aspect": 2.0, "resolution": 16}
        return config(tmp_path / name, places / "captions", model, net=TEXT_NET, dataset=dataset, **changes)

    for _ in run(settings("whole")):
        pass
    for stop in (1, 3):
        for _ in itertools.islice(run(settings("stopped")), stop):
            pass
    for _ in run(settings("stopped", run={"workers": 3})):
        pass
    expected, found = final_state(tmp_path / "whole")[0], final_state(tmp_path / "stopped")[0]
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    for _ in run(settings("parts", optim={"accumulate": 2})):
        pass
    found = final_state(tmp_path / "parts")[0]
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-5)
    stage = DenoisingStage(settings("whole"), CPU)
    whole = stage.batch(3)
    halves = [stage.batch(3, Share(part, 2)) for part in range(2)]
    assert torch.equal(torch.cat([half.eps for half in halves]), whole.eps)
    assert torch.equal(torch.cat([half.x0 for half in halves]), whole.x0)
    assert torch.equal(torch.cat([half.sigma for half in halves]), whole.sigma)
    assert halves[0].captions + halves[1].captions == whole.captions


def test_order_sees_everything_and_keeps_buckets_apart():
    kinds = ["a"] * 13 + ["b"] * 6 + ["c"]
    order = Order(kinds, 4, "x", 0)
    seen = [order(step) for step in range(order.steps_per_epoch * 30)]
    assert order.steps_per_epoch == 3 + 1 + 1
    assert all(len({kinds[i] for i in batch}) == 1 and len(batch) == 4 for batch in seen)
    assert {i for batch in seen for i in batch} == set(range(20))
    epoch = [i for batch in seen[:5] for i in batch if kinds[i] != "c"]
    assert len(epoch) == len(set(epoch))
    assert seen[:5] != seen[5:10]
    assert [Order(kinds, 4, "x", 0)(step) for step in (7, 2)] == [seen[7], seen[2]]


@pytest.mark.parametrize(
    ("data", "model", "changes", "message"),
    [
        ("classes", {"condition": "text"}, {}, "model.text must name a model"),
        ("captions", {"condition": "class"}, {}, "pictures have no class"),
        (
            "classes",
            {"condition": "class", "weight": "snr"},
            {},
            "unknown model.weight 'snr'; did you mean 'min_snr'",
        ),
        ("classes", {"condition": "class"}, {"net": NET | {"in_channels": 3}}, r"net\.in_channels follows"),
        ("classes", {"condition": "class"}, {"net": TEXT_NET}, "blocks that look at a text"),
        (
            "captions",
            {"start": "TINY", "prediction": "flow"},
            {},
            "model.prediction is given beside model.start",
        ),
        ("captions", {"condition": "none"}, {"dataset": {"resolution": 1}}, "less than 2, the smallest"),
        (
            "classes",
            {"condition": "class", "prompts": ("rde",)},
            {},
            "unknown class 'rde'; did you mean 'red'",
        ),
    ],
)
def test_refusals(places, tmp_path, data, model, changes, message):
    model = {k: str(places / "tiny") if v == "TINY" else v for k, v in model.items()}
    changes = changes if "start" in model else {"net": NET} | changes
    with pytest.raises(UsageError, match=message):
        DenoisingStage(config(tmp_path, places / data, model, **changes), CPU)


def test_silent_pictures_are_refused(places, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (20, 20)).save(tmp_path / "data" / f"{name}.png")
    (tmp_path / "data" / "a.txt").write_text("a black square")
    with pytest.raises(UsageError, match=r"1 of 2 pictures have no caption, the first is .*b\.png"):
        DenoisingStage(config(tmp_path, tmp_path / "data", {"start": str(places / "tiny")}), CPU)


DIT = {"kind": "dit", "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "patch_size": 2}


@pytest.mark.parametrize("condition", ["none", "class", "text"])
@pytest.mark.parametrize("latent", [False, True])
def test_transformers_of_everything(places, tmp_path, condition, latent):
    """Each is trained, opens, draws what it is told, and opens in diffusers with the same answer."""
    model = {"condition": condition, "process": "flow", "prediction": "flow", "weight": "simple"}
    model |= {"text": str(places / "tiny")} if condition == "text" else {}
    model |= {"vae": str(places / "tiny"), "process": "variance_preserving"} if latent else {}
    model["prediction"] = "v_prediction" if latent else "flow"
    data = places / ("classes" if condition == "class" else "captions")
    pipe, _ = trained(config(tmp_path, data, model, net=DIT, optim={"lr": 1e-2, "optimiser": "muon"}))
    said = {"none": ("", ""), "class": ("red", "blue"), "text": ("a red wall", "a blue wall")}[condition]
    first, second = (np.asarray(pipe(text, seed=1, guidance_scale=2.0)[0]) for text in said)
    assert first.shape == (16, 16, 3)
    assert np.array_equal(first, second) == (condition == "none")
    theirs = DiTTransformer2DModel if condition != "text" else PixArtTransformer2DModel
    net = theirs.from_pretrained(tmp_path / "model", subfolder="transformer", local_files_only=True)
    z, t = torch.randn(2, pipe.codec.channels, *[16 // pipe.codec.factor] * 2), torch.tensor([3.0, 700.0])
    cond = pipe.encoder(said[0]).map(lambda field: field.expand(2, *field.shape[1:]))
    with torch.no_grad():
        ours = pipe.denoiser.net(z, t, cond)
        if condition == "text":
            expected = net(z, cond.text, t).sample
        else:
            label = cond.label if cond.label is not None else torch.zeros(2, dtype=torch.long)
            expected = net(z, t, label).sample
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_transformer_that_is_told_nothing_goes_on(places, tmp_path):
    for name, model in (
        ("first", {"condition": "none"}),
        ("on", {"start": str(tmp_path / "first" / "model")}),
    ):
        net = {} if "start" in model else DIT
        trained(config(tmp_path / name, places / "captions", model, net=net, optim={"steps": 1}))


def test_a_transformer_goes_on_and_resumes(places, tmp_path):
    for name, stop in (("whole", None), ("stopped", 3)):
        settings = config(tmp_path / name, places / "classes", {"condition": "class"}, net=DIT)
        for _ in itertools.islice(run(settings), stop):
            pass
    for _ in run(settings):
        pass
    expected, found = final_state(tmp_path / "whole")[0], final_state(tmp_path / "stopped")[0]
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    start = {"start": str(tmp_path / "whole" / "model")}
    pipe, _ = trained(config(tmp_path / "on", places / "classes", start))
    assert pipe("red", seed=1)[0].size == (16, 16)
    with pytest.raises(UsageError, match=r"unknown net\.kind 'dti'; did you mean 'dit'"):
        DenoisingStage(config(tmp_path, places / "classes", {"condition": "none"}, net={"kind": "dti"}), CPU)


def test_a_weight_of_noise_levels_is_learned(places, tmp_path):
    model = {"condition": "class", "uncertainty": True, "process": "variance_exploding", "prediction": "edm"}
    settings = config(tmp_path, places / "classes", model, net=NET)
    pipe, _ = trained(settings)
    assert pipe("red", seed=1)[0].size == (16, 16)
    state = final_state(tmp_path)[0]
    assert state["net.levels.weight"].abs().max() > 0
    stage = DenoisingStage(settings, CPU)
    stage.levels.load_state_dict({k[11:]: v for k, v in state.items() if k.startswith("net.levels.")})
    batch = stage.batch(0)
    first, second = stage.losses(batch, 0)
    error = stage.errors(batch)
    together = stage.levels(error, batch.sigma).mean()
    (one, two) = (torch.autograd.grad(loss, stage.levels.weight)[0] for loss in (together, second.value))
    torch.testing.assert_close(one, two)
    conv = stage.model.unet.conv_in.weight
    (one, two) = (
        torch.autograd.grad(loss, conv)[0]
        for loss in (stage.levels(stage.errors(batch), batch.sigma).mean(), first.value)
    )
    torch.testing.assert_close(one, two)
    with pytest.raises(UsageError, match=r"model\.uncertainty is for the stage 'model', not for 'lora'"):
        DenoisingStage(
            config(tmp_path, places / "captions", {"start": "emoji", "uncertainty": True}, stage="lora"), CPU
        )
