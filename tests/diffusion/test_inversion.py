"""Back to the noise and down again: exact with BDIA, nearly so with DDIM; FlowEdit moves what the prompts differ by."""

import pytest
import torch

from mezzotint.diffusion.edit import flow_edit
from mezzotint.diffusion.grids import karras
from mezzotint.diffusion.inversion import bdia, invert_bdia, invert_ddim
from mezzotint.diffusion.process import VarianceExploding
from mezzotint.diffusion.samplers import SAMPLERS
from mezzotint.diffusion.types import Cond
from oracle import Gaussian, gaussian, mixture

PROCESS = VarianceExploding(0.03, 15.0)


@pytest.mark.parametrize("steps", [20, 50])
def test_the_round_trip_is_exact_where_ddim_s_is_an_order_worse(steps):
    target, sigmas = mixture(16, 6, seed=1), karras(PROCESS, steps)
    x0 = target.sample(64, torch.Generator().manual_seed(0)).float()
    start = invert_bdia(target.denoise, x0, sigmas, Cond())
    *_, back = bdia(start.second)(target.denoise, start.x, sigmas, Cond())
    *_, ddim = SAMPLERS["ddim"](
        target.denoise, invert_ddim(target.denoise, x0, sigmas, Cond()), sigmas, Cond()
    )
    assert back.i == steps - 1
    assert back.sigma == 0
    ours, theirs = ((step.x - x0).abs().max() for step in (back, ddim))
    assert ours < 1e-3
    assert theirs > 10 * ours


def test_what_is_found_is_the_noise():
    """At the top stands about what the equation solved upwards has there."""
    target, sigmas = gaussian(8, seed=2), karras(PROCESS, 60)
    x0 = target.sample(32, torch.Generator().manual_seed(0))
    top = float(sigmas[0])
    start = invert_bdia(target.denoise, x0, sigmas, Cond())
    assert ((start.x - target.flow(x0, 0.0, top)) / top).abs().max() < 0.15
    assert abs(float(start.x.std()) / top - 1) < 0.2


def test_one_evaluation_a_step():
    target, sigmas, calls = gaussian(4), karras(PROCESS, 10), []

    def counted(x, sigma, cond):
        calls.append(1)
        return target.denoise(x, sigma)

    start = invert_bdia(counted, target.sample(2, torch.Generator().manual_seed(0)), sigmas, Cond())
    assert len(calls) == 10
    list(bdia(start.second)(counted, start.x, sigmas, Cond()))
    assert len(calls) == 19


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun"])
def test_flow_edit_moves_by_what_the_answers_differ_by(sampler):
    old = gaussian(6, seed=1)
    shift = torch.linspace(-1, 1, 6).double()
    new = Gaussian(old.mean + shift, old.cov)
    x0 = old.sample(16, torch.Generator().manual_seed(0))

    def noise(step):
        return torch.randn(16, 6, generator=torch.Generator().manual_seed(step)).double()

    sigmas = karras(PROCESS, 40)
    # the difference itself follows the equation of a Gaussian around `shift`, from 0 at the top
    left = Gaussian(0 * shift, old.cov).flow(-shift[None], float(sigmas[0]), 0.0)[0]
    for target, moved in ((new, shift + left), (old, 0 * shift)):
        denoise = flow_edit(target.denoise, old.denoise, Cond(), x0, sigmas, noise)
        *_, last = SAMPLERS[sampler](denoise, x0, sigmas, Cond(), noise=noise)
        assert torch.allclose(last.x, x0 + moved, atol=0.02)
