"""diffusers' PNDM begun half way: that it is wrong, and that `compat.pndm` is as wrong."""

import diffusers
import pytest
import torch

from mezzotint.compat.pndm import plms
from mezzotint.diffusion.samplers import SAMPLERS

N = 10
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PICTURE = torch.linspace(-1, 1, 6, dtype=torch.float64)[None]
NOISE = torch.tensor([[0.3, -1.2, 0.8, 0.1, 1.9, -0.4]], dtype=torch.float64)


def guesses(x, sigma, cond=None):
    """A net that has seen pictures of unit variance."""
    return x / (1 + sigma.reshape(-1, 1) ** 2) + 0.1 * torch.sin(x)


def laid_out(kind="epsilon"):
    made = diffusers.PNDMScheduler(
        **BETAS, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False, prediction_type=kind
    )
    made.alphas_cumprod = made.alphas_cumprod.double()
    made.final_alpha_cumprod = made.final_alpha_cumprod.double()
    made.set_timesteps(N)
    return made


def levels_of(made):
    abar = torch.cat([made.alphas_cumprod[made.timesteps.unique().flip(0)], made.final_alpha_cumprod[None]])
    return ((1 - abar) / abar).sqrt().tolist()


def theirs(made, denoise, strength, kind="epsilon"):
    """As StableDiffusionImg2ImgPipeline has it: the last of the timesteps, begun from the picture with noise."""
    begin = N - min(int(N * strength), N)
    timesteps = made.timesteps[begin:]
    z = made.add_noise(PICTURE, NOISE, timesteps[:1])
    for t in timesteps:
        a, s = made.alphas_cumprod[t].sqrt(), (1 - made.alphas_cumprod[t]).sqrt()
        d = denoise(z / a, (s / a).reshape(1))
        eps = (z / a - d) / (s / a)
        z = made.step(eps if kind == "epsilon" else a * eps - s * d, t, z).prev_sample
    return z


STRENGTHS = (0.1, 0.3, 0.6, 0.9, 1.0)  # 1, 3, 6, 9 and all of 10 steps


class Watch:
    """A net that knows the picture, and remembers the noise that it saw in what it was shown."""

    def __init__(self):
        self.noise = []

    def __call__(self, x, sigma, cond=None):
        self.noise.append((x - PICTURE) / sigma.reshape(-1, 1))
        return PICTURE.expand_as(x)

    def off(self):
        """How far what it saw was from the noise that was put in."""
        return max(float((seen - NOISE).abs().max()) for seen in self.noise)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_what_noise_a_net_is_shown(strength):
    """Whoever knows the picture must see the same noise at every level that it is told of."""
    made = laid_out()
    taken, levels = (
        int(N * strength),
        torch.tensor(levels_of(made), dtype=torch.float64)[N - int(N * strength) :],
    )
    mine, their = Watch(), Watch()
    *_, last = SAMPLERS["pndm"](mine, PICTURE + levels[0] * NOISE, levels)
    assert mine.off() < 1e-9
    torch.testing.assert_close(last.x, PICTURE + levels[-1] * NOISE)
    theirs(made, their, strength)
    if taken in (1, N):  # the one has no time to be wrong, the other is the whole list
        assert their.off() < 1e-6
    else:
        assert their.off() > 0.1


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_it_is_as_wrong(strength, kind):
    made = laid_out(kind)
    levels = levels_of(made)
    told = [0, 1, *range(1, N)][N - int(N * strength) :]
    x = PICTURE + levels[told[0]] * NOISE
    steps = list(plms(levels, told, kind)(guesses, x, torch.tensor(levels[told[0] :])))
    assert [step.i for step in steps] == list(range(len(told) - 1))
    amplitude = (1 + steps[-1].sigma ** 2) ** -0.5
    torch.testing.assert_close(
        amplitude * steps[-1].x, theirs(made, guesses, strength, kind), atol=1e-6, rtol=0
    )
