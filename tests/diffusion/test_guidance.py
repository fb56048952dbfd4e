"""Guidance: the textbook combinations, their price in evaluations, and rows that never touch each other."""

from __future__ import annotations

import pytest
import torch

import oracle
from mezzotint.diffusion.guidance import autoguidance, cfg, composed, interval, per_image, saying, staged
from mezzotint.diffusion.prediction import PREDICTIONS
from mezzotint.diffusion.types import Cond


class Recorder:
    """A denoiser that depends on everything it is given, row by row, and counts calls and rows."""

    def __init__(self, gain: float = 0.5) -> None:
        self.gain, self.rows = gain, []

    def __call__(self, x, sigma, cond):
        self.rows.append(len(x))
        shift = sum(field.flatten(1).mean(1) for field in cond if field is not None)
        return self.gain * x / (1 + sigma[:, None, None, None]) + shift[:, None, None, None] * torch.cos(x)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def x():
    return draw(3, 2, 4, 4)


@pytest.fixture
def sigma():
    return torch.tensor([0.5, 2.0, 9.0], dtype=torch.float64)


@pytest.fixture
def cond():
    return Cond(text=draw(3, 5, 6, seed=1), concat=draw(3, 1, 4, 4, seed=2))


NULL = Cond(text=draw(1, 5, 6, seed=3))


@pytest.mark.parametrize("scale", [0.0, 0.7, 3.0, 7.5])
def test_cfg_is_its_equation_at_the_price_of_one_call(x, sigma, cond, scale):
    model = Recorder()
    got = cfg(model, scale, NULL)(x, sigma, cond)
    assert model.rows == [6]
    null = Cond(text=NULL.text.expand(3, -1, -1), concat=cond.concat)  # what null does not say stays
    weak, strong = model(x, sigma, null), model(x, sigma, cond)
    torch.testing.assert_close(got, weak + scale * (strong - weak))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_several_at_once_are_a_sum_of_their_noises(x, sigma, cond, scale):
    """eps0 + scale * sum of w (eps - eps0) (Liu et al. 2022, eq. 11), of texts of unequal lengths, in one call."""
    model, level = Recorder(), sigma[:, None, None, None]
    texts = [(Cond(text=draw(1, length, 6, seed=length)), weight) for length, weight in ((5, 1.2), (5, -0.5))]

    def eps(text):
        told = Cond(text=text.expand(3, -1, -1), concat=cond.concat)
        return (x - model(x, sigma, told)) / level

    null = eps(NULL.text)
    total = null + scale * sum(weight * (eps(part.text) - null) for part, weight in texts)
    model.rows.clear()
    got = composed(model, scale, texts, NULL)(x, sigma, cond)
    assert model.rows == [9]
    torch.testing.assert_close(got, x - level * total)
    alone = composed(model, scale, [(cond._replace(concat=None), 1.0)], NULL, rescale=0.3)(x, sigma, cond)
    torch.testing.assert_close(alone, cfg(model, scale, NULL, rescale=0.3)(x, sigma, cond))


def test_cfg_of_a_null_for_each_row(x, sigma, cond):
    nulls = Cond(text=draw(3, 5, 6, seed=4))
    got = cfg(Recorder(), 4.0, nulls)(x, sigma, cond)
    for i in range(3):
        row = slice(i, i + 1)
        alone = cfg(Recorder(), 4.0, Cond(text=nulls.text[row]))(
            x[row], sigma[row], cond.map(lambda f, row=row: f[row])
        )
        torch.testing.assert_close(got[row], alone)


def test_scale_one_is_off_and_free(x, sigma, cond):
    model = Recorder()
    assert cfg(model, 1.0, NULL) is model
    assert autoguidance(model, Recorder(0.1), 1.0) is model


def test_a_null_without_its_prompt_is_refused(x, sigma, cond):
    with pytest.raises(ValueError, match="lacks"):
        cfg(Recorder(), 2.0, Cond(label=torch.zeros(1)))(x, sigma, cond)


def test_guiding_gaussians_gives_the_gaussian_of_the_products():
    """For p(x|c) = N(m, 1) and p(x) = N(0, 1), guided scores are those of N(scale m, 1): known in closed form."""
    m = torch.tensor([1.0, -2.0], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)

    def model(x, sigma, cond):
        given = oracle.Gaussian(m, eye).denoise(x, sigma)
        free = oracle.Gaussian(0 * m, eye).denoise(x, sigma)
        return torch.where(cond.label[:, None] == 1, given, free)

    x, sigma = draw(5, 2), draw(5, seed=1).exp()
    got = cfg(model, 3.0, Cond(label=torch.zeros(1)))(x, sigma, Cond(label=torch.ones(5)))
    torch.testing.assert_close(got, oracle.Gaussian(3 * m, eye).denoise(x, sigma))


def test_autoguidance_walks_away_from_the_bad_model(x, sigma, cond):
    good, bad = Recorder(0.5), Recorder(0.3)
    got = autoguidance(good, bad, 2.5)(x, sigma, cond)
    weak, strong = bad(x, sigma, cond), good(x, sigma, cond)
    torch.testing.assert_close(got, weak + 2.5 * (strong - weak))


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("how", ["cfg", "autoguidance"])
def test_rescaling_is_that_of_its_paper(x, sigma, cond, how, phi):
    model, bad = Recorder(), Recorder(0.1)
    column = sigma.reshape(3, 1, 1, 1)
    c_skip, c_out = PREDICTIONS["v_prediction"](column)
    weak = Cond(text=NULL.text.expand(3, -1, -1), concat=cond.concat)
    weak = model(x, sigma, weak) if how == "cfg" else bad(x, sigma, cond)
    v_weak, v = ((d - c_skip * x) / c_out for d in (weak, model(x, sigma, cond)))
    v_cfg = v_weak + 6 * (v - v_weak)
    v_rescaled = v_cfg * v.std(dim=(1, 2, 3), keepdim=True) / v_cfg.std(dim=(1, 2, 3), keepdim=True)  # eq. 15
    expected = c_skip * x + c_out * (phi * v_rescaled + (1 - phi) * v_cfg)  # eq. 16
    guided = (
        cfg(model, 6.0, NULL, rescale=phi) if how == "cfg" else autoguidance(model, bad, 6.0, rescale=phi)
    )
    torch.testing.assert_close(guided(x, sigma, cond), expected)


def test_an_interval_guides_inside_and_saves_outside(x, cond):
    model = Recorder()
    guided = interval(cfg(model, 5.0, NULL), model, 1.0, 4.0)
    for level, rows in ((0.5, 3), (1.0, 3), (1.1, 6), (4.0, 6), (4.1, 3)):
        sigma = torch.full((3,), level, dtype=torch.float64)
        model.rows.clear()
        got = guided(x, sigma, cond)
        assert model.rows == [rows]
        expected = model if rows == 3 else cfg(model, 5.0, NULL)
        assert torch.equal(got, expected(x, sigma, cond))


def test_rows_at_different_levels_choose_for_themselves(x, sigma, cond):
    model = Recorder()
    got = interval(cfg(model, 5.0, NULL), model, 1.0, 4.0)(x, sigma, cond)
    inside = cfg(model, 5.0, NULL)(x, sigma, cond)
    outside = model(x, sigma, cond)
    torch.testing.assert_close(got, torch.stack([outside[0], inside[1], outside[2]]))


def test_they_compose(x, sigma, cond):
    """Autoguidance of two models that are each guided, within an interval, image by image."""
    good, bad = Recorder(0.5), Recorder(0.3)
    whole = autoguidance(cfg(good, 3.0, NULL), cfg(bad, 2.0, NULL), 1.5)
    got = per_image(interval(whole, good, 1.0, 4.0))(x, sigma, cond)
    assert good.rows == [1, 2, 1]
    assert bad.rows == [2]
    torch.testing.assert_close(got[1], whole(x, sigma, cond)[1])
    torch.testing.assert_close(got[0], good(x, sigma, cond)[0])


class Convolutional(torch.nn.Module):
    """A net whose batched kernels differ from its single ones: convolution, normalisation, attention, linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 48, 3, padding=1), torch.nn.GroupNorm(4, 48), torch.nn.SiLU()
        )
        self.out, self.text = torch.nn.Conv2d(48, 3, 3, padding=1), torch.nn.Linear(7, 48)

    def forward(self, x, sigma, cond):
        h = self.layers(x) + sigma[:, None, None, None]
        b, c, height, width = h.shape
        text = self.text(cond.text)
        q = h.flatten(2).transpose(1, 2)
        h = (
            torch.nn.functional.scaled_dot_product_attention(q, text, text)
            .transpose(1, 2)
            .reshape(b, c, height, width)
        )
        return self.out(h)


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_an_image_of_a_batch_is_the_image_alone_bit_for_bit(scale):
    net = Convolutional()
    denoise = per_image(cfg(net, scale, Cond(text=draw(1, 5, 7, seed=9).float()), rescale=0.5))
    with torch.inference_mode():
        x, sigma, text = (
            draw(7, 3, 13, 11).float(),
            draw(7, seed=1).exp().float(),
            draw(7, 5, 7, seed=2).float(),
        )
        batch = denoise(x, sigma, Cond(text=text))
        for i in range(7):
            fresh = [field[i : i + 1].clone() for field in (x, sigma, text)]
            assert torch.equal(batch[i : i + 1], denoise(*fresh[:2], Cond(text=fresh[2])))


# --- texts ---


def test_a_text_that_is_shorter_is_filled_up_and_hidden():
    seen = []

    def spy(x, sigma, cond):
        seen.append(cond)
        return x

    cond, null = Cond(text=torch.ones(2, 5, 3)), Cond(text=torch.ones(1, 2, 3))
    cfg(spy, 2.0, null)(torch.zeros(2, 1), torch.ones(2), cond)
    assert seen[0].mask.tolist() == [[True, True, False, False, False], [True] * 5] * 2
    assert seen[0].text.sum((1, 2)).tolist() == [6, 15, 6, 15]
    cfg(spy, 2.0, Cond(text=torch.ones(1, 5, 3)))(torch.zeros(2, 1), torch.ones(2), cond)
    assert seen[1].mask is None
    hidden = cond._replace(mask=torch.tensor([[True] * 3 + [False] * 2] * 2))
    cfg(spy, 2.0, Cond(text=torch.ones(1, 5, 3)))(torch.zeros(2, 1), torch.ones(2), hidden)
    assert seen[2].mask.sum(1).tolist() == [5, 3, 5, 3]  # what one text hides, the other does not


def test_stages_are_chosen_by_the_noise_level():
    sigmas = torch.tensor([8.0, 4.1, 2.3, 1.0, 0.0], dtype=torch.float64)
    stages = [lambda x, sigma, cond, i=i: torch.full_like(x, i) for i in range(4)]
    denoise = staged(stages, sigmas)
    levels = torch.tensor([99, 8, 5, 4.1, 3, 2.3, 1.5, 1.0, 0.5, 1e-9])
    answers = denoise(torch.zeros(len(levels), 2), levels, Cond())
    assert answers[:, 0].tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    for level, answer in zip(levels, answers, strict=True):
        assert torch.equal(denoise(torch.zeros(1, 2), level[None], Cond())[0], answer)


def test_saying_replaces_the_text_alone():
    def spy(x, sigma, cond):
        return cond

    concat = torch.zeros(3, 1)
    heard = saying(spy, Cond(text=torch.ones(1, 2, 4), pooled=torch.ones(1, 5)))(
        torch.zeros(3, 1),
        torch.ones(3),
        Cond(text=torch.zeros(3, 9, 4), mask=torch.ones(3, 9), concat=concat),
    )
    assert (heard.text.shape, heard.pooled.shape, heard.mask) == ((3, 2, 4), (3, 5), None)
    assert heard.concat is concat
    label = torch.zeros(3)
    for text, expected in ((Cond(), [0, 0, 0]), (Cond(label=torch.ones(1)), [1, 1, 1])):
        heard = saying(spy, text)(torch.zeros(3, 1), torch.ones(3), Cond(label=label))
        assert heard.label.tolist() == expected


def test_several_classes_at_once_are_each_its_own():
    def answer(x, sigma, cond):
        return cond.label[:, None].expand_as(x)

    zero, parts = torch.zeros(2, 1), [(Cond(label=torch.tensor([label])), 1.0) for label in (3.0, 5.0)]
    cond = Cond(label=torch.full((2,), 3.0))
    got = composed(answer, 1.0, parts, Cond(label=torch.tensor([1.0])))(zero, torch.ones(2), cond)
    assert got.flatten().tolist() == [1 + 2 + 4] * 2


def test_what_is_made_of_one_text_alone_is_not_taken_for_the_other():
    heard = []

    def denoise(x, sigma, cond):
        heard.append(cond)
        return x

    x, sigma, text, keys = torch.randn(1, 2, 4, 4), torch.ones(1), torch.randn(1, 3, 5), torch.randn(1, 3, 7)
    plain, made = Cond(text=text), Cond(text=text, keys=keys)
    for null, cond in ((plain, made), (made, plain), (made, made)):
        cfg(denoise, 3.0, null)(x, sigma, cond)
    assert [each.keys is None for each in heard] == [True, True, False]
