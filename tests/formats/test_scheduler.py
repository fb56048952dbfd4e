"""Every class of scheduler that we read: the same noise levels as diffusers, and nothing ignored."""

import inspect
import json
import math
import warnings

import diffusers
import pytest
import torch

from mezzotint.diffusion.grids import GRIDS, sigma_grid
from mezzotint.diffusion.process import VariancePreserving
from mezzotint.diffusion.samplers import SAMPLERS
from mezzotint.errors import UsageError
from mezzotint.formats.scheduler import NAMES, ROWS, Plan, from_config, to_config

SD15 = {  # as the released file has it, keys of no effect included
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
NEEDED = {"PNDMScheduler": {"skip_prk_steps": True}}
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def theirs(name, **config):
    if "clip_sample" in inspect.signature(getattr(diffusers, name)).parameters:
        config = {"clip_sample": False} | config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name)(**NEEDED.get(name, {}), **config)


def saved(scheduler):
    return json.loads(scheduler.to_json_string())


def levels(scheduler, n):
    """The distinct noise levels [n + 1] at which a scheduler of diffusers stops."""
    scheduler.set_timesteps(n)
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.double()
        return torch.cat([sigmas[:1], sigmas[1:][sigmas.diff() != 0]])
    t = torch.as_tensor(scheduler.timesteps).unique().flip(0)
    abar = scheduler.alphas_cumprod.double()
    last = getattr(scheduler, "final_alpha_cumprod", torch.ones(())).double()
    if isinstance(scheduler, diffusers.LCMScheduler):
        last = torch.ones(()).double()  # the last step there gives the estimate itself
    abar = torch.cat([abar[t.long()], last[None]])
    return ((1 - abar) / abar).sqrt()


def ours(plan, n):
    return sigma_grid(plan.grid, plan.process, n, **plan.grid_knobs)


SPACINGS = [{"timestep_spacing": "leading", "steps_offset": 1}, {"timestep_spacing": "leading"}]
SPACINGS += [{"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}]


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_levels_of_every_class(name, spacing):
    scheduler = theirs(name, **SD, **spacing)
    plan = from_config(saved(scheduler))
    for n in (2, 4, 10, 25, 50):
        expected = levels(scheduler, n)
        if expected[-1] > 0 and expected[-2] == expected[-1]:
            expected = torch.cat([expected[:-1], torch.zeros(1)])  # they stand still, we go to 0
        got = ours(plan, n)
        if spacing == {"timestep_spacing": "leading"} and len(got) == len(expected) + 1:
            got = got[:-1]  # a last step from t = 0 to t = 0 is none there; ours leads on to 0
        torch.testing.assert_close(got, expected.double(), rtol=3e-4, atol=1e-6)


CURVED = [row.name for row in ROWS if "use_karras_sigmas" in row.defaults]


@pytest.mark.parametrize("curve", ["karras", "exponential"])
@pytest.mark.parametrize("name", sorted(set(CURVED)))
def test_curves_of_every_class(name, curve):
    key = f"use_{curve}_sigmas"
    scheduler = theirs(name, **SD, **{key: True}, timestep_spacing="linspace")
    plan = from_config(saved(scheduler))
    assert plan.grid == curve
    for n in (4, 25):
        expected = levels(scheduler, n)
        if name == "DEISMultistepScheduler":
            expected = torch.cat([expected, torch.zeros(1)])  # they stand still at the end, we go to 0
        torch.testing.assert_close(ours(plan, n), expected.double(), rtol=3e-4, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.01, "num_train_timesteps": 500},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.1, 0.2, 0.3, 0.4]},
        {**SD, "rescale_betas_zero_snr": True},
    ],
    ids=str,
)
def test_noise_schedules(config):
    if "trained_betas" in config:
        config["num_train_timesteps"] = len(config["trained_betas"])
    scheduler = theirs("DPMSolverMultistepScheduler", **config)
    plan = from_config(saved(scheduler))
    expected = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(plan.process.alphas_cumprod, expected, rtol=1e-4, atol=1e-8)


def test_ends():
    leading = {"timestep_spacing": "leading", "steps_offset": 1}
    for end, last in (("zero", 0.0), ("sigma_min", VariancePreserving().sigma_min)):
        for name in ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
            plan = from_config({"_class_name": name, **SD, "final_sigmas_type": end} | leading)
            assert ours(plan, 5)[-1].item() == last
    for name in ("DDIMScheduler", "PNDMScheduler"):
        for one, last in ((True, 0.0), (False, VariancePreserving().sigma_min)):
            config = {
                "_class_name": name,
                **SD,
                **NEEDED.get(name, {}),
                "set_alpha_to_one": one,
                **leading,
            }
            assert ours(from_config(config), 5)[-1].item() == last


def test_stable_diffusion():
    plan = from_config(SD15)
    sigma_min = VariancePreserving().sigma_min
    assert plan == Plan(
        VariancePreserving(), "epsilon", "pndm", {}, "leading", {"steps_offset": 1, "final": sigma_min}
    )


@pytest.mark.parametrize(
    ("config", "sampler", "knobs"),
    [
        ({}, "dpmpp_2m", {}),
        ({"solver_type": "heun", "lower_order_final": False}, "dpmpp_2m",
         {"solver": "heun", "lower_order_final": False}),
        ({"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde", {}),
        ({"solver_order": 3}, "dpmpp_3m", {}),
        ({"_class_name": "UniPCMultistepScheduler", "solver_order": 3, "disable_corrector": [0]}, "unipc",
         {"order": 3, "disable_corrector": (0,)}),
        ({"_class_name": "DEISMultistepScheduler"}, "deis", {"order": 2}),
        ({"_class_name": "DDPMScheduler", "variance_type": "fixed_large"}, "ddpm", {"variance": "large"}),
        ({"_class_name": "LCMScheduler"}, "lcm", {}),
    ],
)  # fmt: skip
def test_samplers_and_knobs(config, sampler, knobs):
    plan = from_config({"_class_name": "DPMSolverMultistepScheduler"} | config)
    assert (plan.sampler, plan.sampler_knobs) == (sampler, knobs)


def test_every_row_names_what_there_is():
    for row in ROWS:
        known = inspect.signature(SAMPLERS[row.sampler]).parameters
        assert {*row.passed.values(), *row.knobs} <= known.keys()
        assert set(inspect.signature(getattr(diffusers, row.name)).parameters) >= row.defaults.keys() - {"_"}


@pytest.mark.parametrize("name", NAMES)
def test_defaults_are_those_of_diffusers(name):
    silent = {"_class_name": name, **NEEDED.get(name, {})}
    assert from_config(silent) == from_config(saved(theirs(name)))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"_class_name": "EulerDiscreteSheduler"},
            "EulerDiscreteSheduler'; did you mean 'EulerDiscreteScheduler'",
        ),
        ({}, "unknown class in scheduler config 'None'"),
        ({"beta_sart": 0.1}, "key in scheduler config 'beta_sart'; did you mean 'beta_start'"),
        ({"beta_schedule": "laplace"}, "unknown beta_schedule in scheduler config 'laplace'"),
        ({"prediction_type": "v-prediction"}, "'v-prediction'; did you mean 'v_prediction'"),
        ({"timestep_spacing": "leeding"}, "did you mean 'leading'"),
        (
            {"algorithm_type": "dpmsolver"},
            "'algorithm_type' = 'dpmsolver' is not supported, only 'dpmsolver[+][+]'",
        ),
        ({"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, "'solver_order' = 3 is not supported"),
        ({"solver_order": 4}, "'solver_order' = 4 is not supported"),
        ({"thresholding": True}, "'thresholding' = True is not supported"),
        ({"use_lu_lambdas": True}, "use_lu_lambdas"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"lambda_min_clipped": -5.1}, "lambda_min_clipped"),
        ({"final_sigmas_type": "one"}, "final_sigmas_type"),
        ({"use_karras_sigmas": True, "use_exponential_sigmas": True}, "karras and exponential exclude"),
        ({"use_beta_sigmas": True}, "'use_beta_sigmas' = True is not supported"),
        ({"beta_start": "0.1"}, "'beta_start' = '0.1' is of the wrong type"),
        ({"num_train_timesteps": True}, "'num_train_timesteps' = True is of the wrong type"),
        ({"trained_betas": [0.1, "x"]}, "trained_betas"),
        ({"use_karras_sigmas": 1}, "use_karras_sigmas"),
        ({"beta_start": 2.0, "beta_schedule": "linear"}, "betas between 0 and 1"),
        (
            {"_class_name": "DDIMScheduler", "clip_sample": True},
            "clip_sample' = True .* set it to false, as diffusers",
        ),
        (
            {"_class_name": "DDPMScheduler", "variance_type": "learned_range"},
            "'learned_range' is not supported",
        ),
        ({"_class_name": "PNDMScheduler"}, "'skip_prk_steps' = False is not supported, only True"),
        ({"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"}, "interpolation_type"),
        (
            {"_class_name": "EulerDiscreteScheduler", "sigma_min": 0.1},
            "'sigma_min' needs one of use_karras_sigmas",
        ),
        ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}, "'solver_type' = 'bh1'"),
    ],
    ids=str,
)
def test_what_is_refused(config, says):
    whole = {"_class_name": "DPMSolverMultistepScheduler"} | config if config else {}
    with pytest.raises(UsageError, match=says) as caught:
        from_config(whole)
    assert "\n" not in str(caught.value)


def test_keys_of_other_classes_have_no_effect():
    config = {"_class_name": "DPMSolverMultistepScheduler", **SD}
    assert from_config(config | {"skip_prk_steps": False, "clip_sample": True}) == from_config(config)


SIGMA_MIN = VariancePreserving().sigma_min
PLANS = [
    Plan(),
    Plan(VariancePreserving(zero_snr=True), "v_prediction"),
    Plan(VariancePreserving("cosine", 0.0001, 0.02), "sample", "ddim"),
    Plan(VariancePreserving(trained_betas=(0.1, 0.2, 0.3), steps=3), grid="karras"),
    Plan(sampler="pndm", grid="leading", grid_knobs={"steps_offset": 1, "final": SIGMA_MIN}),
    Plan(sampler="dpmpp_2m", sampler_knobs={"solver": "heun"}, grid="linspace", grid_knobs={"spare": 1}),
    Plan(sampler="dpmpp_2m_sde", grid="exponential"),
    Plan(sampler="euler", grid="karras", grid_knobs={"sigma_min": 0.1, "final": SIGMA_MIN}),
    Plan(sampler="ddpm", sampler_knobs={"variance": "large"}, grid="leading"),
    Plan(sampler="unipc", sampler_knobs={"order": 3, "disable_corrector": (0, 1)}),
    Plan(sampler="lcm", grid="distilled"),
    Plan(sampler="heun", grid="linspace", grid_knobs={"whole": False}),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.sampler}-{plan.grid}")
def test_written_plan_is_read_by_both(plan, tmp_path):
    config = to_config(plan)
    assert from_config(json.loads(json.dumps(config))) == plan
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        scheduler = getattr(diffusers, config["_class_name"]).from_pretrained(tmp_path)
    kept = saved(scheduler)
    unlike = {key for key in config if key != "_class_name" and kept.get(key) != config[key]}
    assert unlike <= {"lambda_min_clipped"}  # infinite: JSON of diffusers has a string for it
    n = min(5, plan.process.steps)
    torch.testing.assert_close(ours(plan, n), levels(scheduler, n).double(), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (Plan(sampler="ipndm"), "unknown sampler that diffusers has a class for 'ipndm'"),
        (Plan(grid="distilled"), "DPMSolverMultistepScheduler of diffusers cannot express the plan"),
        (Plan(grid="leading"), "cannot express the plan"),  # theirs leaves one out
        (Plan(sampler="ddim", sampler_knobs={"eta": 1.0}), "cannot express the plan"),
        (Plan(grid="karras", grid_knobs={"rho": 3.0}), "cannot express the plan"),
        (Plan(VariancePreserving(zero_snr=True), sampler="heun"), "cannot express the plan"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.sampler,
)
def test_what_diffusers_cannot_express(plan, says):
    with pytest.raises(UsageError, match=says):
        to_config(plan)


def test_table_of_grids_is_used_up():
    """A grid that no file can name is one that the table forgot; beta and flow are not in these files."""
    assert GRIDS.keys() - {plan.grid for plan in PLANS} == {"beta", "flow"}
    assert math.isclose(ours(Plan(), 1)[0], VariancePreserving().sigma_max)
