"""Autoencoders of any pictures: eyes that learn without labels, a critic held in balance, what is written."""

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as TheirAutoencoder
from test_denoising import NET, config, places, trained  # noqa: F401 - a fixture
from test_loop import final_state

from mezzotint.diffusion.noise import generator
from mezzotint.errors import MezzotintError, UsageError
from mezzotint.nets.critics import Critic, Eyes, EyesConfig, unlikeness
from mezzotint.pipeline import Pipeline
from mezzotint.training.autoencoder import AutoencoderStage, balanced, hinge
from mezzotint.training.features import read_eyes, told_apart, varied
from mezzotint.training.model import open_autoencoder
from mezzotint.training.watch import run

CPU = torch.device("cpu")
VAE = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
    "sample_size": 16,
}
EYES = {"widths": [8, 16], "norm_num_groups": 4, "features": 16}


def settings(places, out, stage="autoencoder", net=VAE, **changes):  # noqa: F811
    dataset = {"resolution": 16, "aspect": 1.0} | changes.pop("dataset", {})
    optim = {"steps": 6, "batch": 4} | changes.pop("optim", {})
    keys = {"stage": stage, "dataset": dataset, "optim": optim, **changes}
    return config(out, places / "classes", {}, net=net, **keys)


def finished(chosen, stop=None):
    return [now.stats for now in itertools.islice(run(chosen), stop)]


@pytest.fixture(scope="module")
def eyes(places, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("eyes")
    stats = finished(settings(places, out, "features", EYES, optim={"steps": 40, "batch": 8, "lr": 1e-2}))
    return out / "features", stats


def test_eyes_learn_to_tell_pictures_apart(eyes):
    folder, stats = eyes
    assert np.mean([s.loss for s in stats[-8:]]) < 0.9 * np.mean([s.loss for s in stats[:8]])
    assert all(0 <= s.parts["found"] <= 1 for s in stats)
    net = read_eyes(folder, CPU)
    assert not any(p.requires_grad for p in net.parameters())
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    near, far = (x + spread * torch.randn_like(x) for spread in (0.05, 0.5))
    assert unlikeness(net, x, x) == 0
    assert 0 < unlikeness(net, near, x) < unlikeness(net, far, x) < 4
    torch.testing.assert_close(net(x).norm(dim=1), torch.ones(2))


def test_the_loss_of_views_against_its_definition():
    torch.manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(3, 5), dim=1) for _ in range(2))
    views = [*a, *b]
    expected = 0.0
    for i, one in enumerate(views):
        other = (i + 3) % 6
        weights = [math.exp(float(one @ view) / 0.2) for j, view in enumerate(views) if j != i]
        expected -= math.log(math.exp(float(one @ views[other]) / 0.2) / sum(weights)) / 6
    loss, _ = told_apart(a, b, torch.arange(3))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    twice, _ = told_apart(a[[0, 0, 1]], b[[0, 0, 1]], torch.tensor([7, 7, 8]))
    assert torch.isfinite(twice)


def test_views_are_functions_of_their_generator():
    x = torch.rand(3, 16, 16) * 2 - 1
    views = [varied(x, generator("view", seed)) for seed in (1, 1, 2)]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    assert all(view.shape == x.shape and view.abs().max() <= 1 for view in views)


def test_hinge_and_balance():
    assert float(hinge(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.5]))) == pytest.approx(
        0.5 * (0.5 + 0.75)
    )
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    weight = balanced((w * 6).sum(), (w * 2).sum(), w)
    assert float(weight) == pytest.approx(3, rel=1e-3)
    assert not weight.requires_grad
    torch.manual_seed(0)
    assert Critic(8, 2)(torch.randn(2, 3, 16, 16)).shape == (2, 1, 4, 4)
    assert Eyes(EyesConfig.from_dict(EYES)).multiple == 2


def test_all_parts_together_stop_and_go_on(places, eyes, tmp_path):  # noqa: F811
    """The critic joins in the last half; a run that was stopped before and after ends in the same bits."""
    keys = {"vae": {"features": eyes[0], "adversarial": 0.5, "critic": 8, "crop": 16}}
    keys["dataset"] = {"resolution": 20}
    whole = finished(settings(places, tmp_path / "whole", **keys))
    assert ["balance" in s.parts for s in whole] == [False] * 3 + [True] * 3
    assert all("unlikeness" in s.parts for s in whole)
    assert all(math.isfinite(s.loss) and s.parts.get("balance", 1) > 0 for s in whole)
    for stop in (2, 2, None):
        finished(settings(places, tmp_path / "stopped", **keys), stop)
    expected, found = final_state(tmp_path / "whole")[0], final_state(tmp_path / "stopped")[0]
    assert any(key.startswith("optim.critic.exp_avg.") for key in expected)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    assert (tmp_path / "whole" / "pictures" / "00000002.png").exists()


def test_the_critic_learns_and_moves_the_decoder(places, tmp_path):  # noqa: F811
    stage = AutoencoderStage(settings(places, tmp_path, vae={"adversarial": 1.0, "critic": 8}), CPU)
    losses = stage.losses(stage.batch(0), 5)
    first = next(losses)
    first.value.backward()
    assert first.player == "vae"
    assert all(p.grad is None for p in stage.critic.parameters())
    second = next(losses)
    assert second.player == "critic"
    grads = {name: p.grad.clone() for name, p in stage.net.named_parameters()}
    second.value.backward()
    assert all(p.grad is not None for p in stage.critic.parameters())
    assert all(torch.equal(p.grad, grads[name]) for name, p in stage.net.named_parameters())


def test_the_result_opens_everywhere(places, tmp_path):  # noqa: F811
    chosen = settings(
        places, tmp_path, optim={"steps": 60, "batch": 8, "lr": 5e-3}, vae={"equivariance": 0.0}
    )
    stats = finished(chosen)
    assert np.mean([s.loss for s in stats[-5:]]) < 0.75 * np.mean([s.loss for s in stats[:5]])
    folder = tmp_path / "autoencoder"
    theirs = TheirAutoencoder.from_pretrained(folder, local_files_only=True)
    ours = open_autoencoder(str(folder), CPU)
    stage = AutoencoderStage(chosen, CPU)
    seen = torch.cat([stage._there_and_back(i)[0] for i in stage.pictures.split.train])
    with torch.no_grad():
        latent = theirs.encode(seen).latent_dist.mean
        torch.testing.assert_close(ours.encode(seen)[0], latent, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.decode(latent), theirs.decode(latent).sample, rtol=1e-4, atol=1e-4)
        untrained = stage.net.decode(stage.net.encode(seen)[0])
        errors = [float((made - seen).abs().mean()) for made in (ours.decode(latent), untrained)]
        assert errors[0] < 0.6 * errors[1]
    model = {"condition": "class", "vae": str(folder)}
    assert abs(float(latent.mean())) < 0.01  # over what was trained on, each channel alike
    assert 0.98 < float(latent.std()) < 1.02
    pipe, _ = trained(config(tmp_path / "model", places / "classes", model, net=NET))
    assert pipe("red", seed=1)[0].size == (16, 16)


def test_the_decoder_alone(places, tmp_path):  # noqa: F811
    vae = {"start": places / "tiny", "decoder_only": True}
    chosen = settings(places, tmp_path, net={}, vae=vae)
    stage = AutoencoderStage(chosen, CPU)
    before = {k: v.clone() for k, v in stage.net.state_dict().items()}
    finished(chosen)
    pipe = Pipeline.load(tmp_path / "autoencoder", device="cpu")
    assert pipe("a red wall", seed=1)[0].size == (16, 16)
    assert pipe.defaults.guidance_scale == 3.0  # the model's own card
    after = pipe.codec.vae.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed
    assert all(k.startswith(("decoder.", "post_quant_conv.")) for k in changed)


def test_refusals(places, tmp_path):  # noqa: F811
    for changes, message in (
        ({"net": VAE, "vae": {"start": places / "tiny"}}, r"net is given beside vae\.start"),
        ({"net": {}, "vae": {"decoder_only": True}}, r"name a model or its folder in vae\.start"),
        ({"vae": {"features": tmp_path}}, "holds no features"),
    ):
        with pytest.raises(MezzotintError, match=message):
            AutoencoderStage(settings(places, tmp_path, **changes), CPU)
    small = AutoencoderStage(settings(places, tmp_path, vae={"crop": 3}), CPU)
    with pytest.raises(
        UsageError, match=r"windows of 0 x 0 pixels are too small, 4 is the least; raise vae\.crop"
    ):
        small.batch(0)
