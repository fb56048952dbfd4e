"""LoRA and prior preservation: what is learned is in the file, the model itself is untouched."""

import itertools

import numpy as np
import pytest
import torch
from test_denoising import NET, config, places, trained  # noqa: F401 - a fixture
from test_loop import final_state

from mezzotint.diffusion.types import Cond
from mezzotint.errors import UsageError
from mezzotint.formats.folder import read_folder
from mezzotint.formats.lora import read_lora
from mezzotint.nets.blocks import channels_last
from mezzotint.nets.lowrank import changed
from mezzotint.training.adapters import LoraStage
from mezzotint.training.history import read_history
from mezzotint.training.watch import run

CPU = torch.device("cpu")


def lora(places, out, **changes):  # noqa: F811
    model = {"start": str(places / "tiny"), "weight": "simple"}
    keys = {"optim": {"steps": 6, "lr": 1e-2}, "dataset": {"caption": "a wall"}} | changes
    return config(out, places / "captions", model, stage="lora", **keys)


def test_the_file_holds_what_was_learned(places, tmp_path):  # noqa: F811
    settings = lora(places, tmp_path, lora={"rank": 4, "alpha": 2.0, "unet": ["to_q", "conv1"]})
    for _ in run(settings):
        pass
    fresh = read_folder(places / "tiny")
    file = tmp_path / "lora" / "lora.safetensors"
    learned = read_lora(file, {"unet": fresh.unet}).layers["unet"]
    assert {name.rpartition(".")[2] for name in learned} == {"to_q", "conv1"}
    assert all((change.rank, change.alpha) == (4, 2.0) for change in learned.values())
    stage = LoraStage(settings, CPU)
    before = {k: v.clone() for k, v in stage.model.unet.state_dict().items()}
    averages, _ = final_state(tmp_path)
    stage.adapters.load_state_dict({k[9:]: v for k, v in averages.items() if k.startswith("ema.lora.")})
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0])
    cond = Cond(text=torch.randn(2, 5, 24))
    with torch.no_grad():
        beside = stage.model.unet(z, t, cond)
        inside = changed(fresh.unet, {name: [(change, 1.0)] for name, change in learned.items()})(z, t, cond)
        plain = fresh.unet(z, t, cond)
    torch.testing.assert_close(beside, inside, rtol=1e-4, atol=1e-5)
    assert (plain - inside).abs().max() > 1e-3
    assert all(torch.equal(v, before[k]) for k, v in stage.model.unet.state_dict().items())


def test_it_begins_at_the_model_and_resumes(places, tmp_path):  # noqa: F811
    settings = lora(places, tmp_path / "whole", lora={"text_encoder": ["q_proj", "fc1"], "dialect": "kohya"})
    stage = LoraStage(settings, CPU)
    z, t, cond = torch.randn(1, 4, 8, 8), torch.tensor([30.0]), Cond(text=torch.randn(1, 5, 24))
    with torch.no_grad():
        untouched = channels_last(read_folder(places / "tiny").unet)
        assert torch.equal(stage.model.unet(z, t, cond), untouched(z, t, cond))
    for _ in run(settings):
        pass
    stopped = lora(places, tmp_path / "stopped", lora={"text_encoder": ["q_proj", "fc1"], "dialect": "kohya"})
    for _ in itertools.islice(run(stopped), 3):
        pass
    for _ in run(stopped):
        pass
    expected, found = final_state(tmp_path / "whole")[0], final_state(tmp_path / "stopped")[0]
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    model = read_folder(places / "tiny")
    nets = {"unet": model.unet, "text_encoder": model.text_encoder}
    learned = read_lora(tmp_path / "whole" / "lora" / "lora.safetensors", nets).layers["text_encoder"]
    assert {name.rpartition(".")[2] for name in learned} == {"q_proj", "fc1"}
    assert any(change.up.abs().max() > 0 for change in learned.values())


def test_prior_pictures_are_drawn_once_and_trained_on(places, tmp_path):  # noqa: F811
    prior = {"prompt": "a cat", "pictures": 5}
    settings = lora(places, tmp_path, prior=prior)
    stats = [now.stats for now in run(settings)]
    assert all("prior" in s.parts for s in stats)
    assert len(list((tmp_path / "prior").glob("*.png"))) == 5
    stage = LoraStage(settings, CPU)
    batch = stage.batch(0)
    assert set(batch.prior.captions) <= {"a cat", ""}
    assert batch.prior.x0.shape == batch.x0.shape
    assert max(stage.pictures.split.train) < stage.pictures.own == len(stage.pictures.records) - 5
    card = (tmp_path / "lora" / "README.md").read_text()
    assert "pictures trained on" in card
    assert '"prompt": "a cat"' in card
    assert read_history(tmp_path).steps


def test_refusals(places, tmp_path):  # noqa: F811
    with pytest.raises(UsageError, match=r"unknown layer in lora\.unet 'to_kk'; did you mean 'to_k'"):
        LoraStage(lora(places, tmp_path, lora={"unet": ["to_kk"]}), CPU)
    with pytest.raises(UsageError, match="name no layer"):
        LoraStage(lora(places, tmp_path, lora={"unet": []}), CPU)
    with pytest.raises(UsageError, match=r"needs model\.start"):
        LoraStage(config(tmp_path, places / "captions", {"condition": "none"}, net=NET), CPU)


def test_a_caption_for_all(places, tmp_path):  # noqa: F811
    model = {"start": str(places / "tiny")}
    for picture in (places / "captions").glob("red-*.png"):
        (tmp_path / "five").mkdir(exist_ok=True)
        (tmp_path / "five" / picture.name).write_bytes(picture.read_bytes())
    settings = config(
        tmp_path / "run", tmp_path / "five", model, dataset={"caption": "a sks wall", "dropout": 0.0}
    )
    _, stats = trained(settings)
    assert np.isfinite(stats[-1].loss)
