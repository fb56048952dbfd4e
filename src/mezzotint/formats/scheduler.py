"""How a checkpoint is meant to be sampled: diffusers' `scheduler_config.json` and our plan, both ways.

The file names a class that is noise schedule, prediction, timesteps and solver in one; here these are values that
know nothing of each other. A row of the table below says for a class, at certain values of its keys, which of our
samplers it is. What the class reads and we do not compute is refused; the keys of other classes, which programs
leave in such files, have no effect there and have none here.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..diffusion.grids import GRIDS
from ..diffusion.prediction import PREDICTIONS
from ..diffusion.process import Process, VariancePreserving
from ..diffusion.samplers import SAMPLERS
from ..diffusion.schedules import SCHEDULES
from ..errors import UsageError, unknown

Values = Mapping[str, tuple[Any, ...]]
WHAT = "scheduler config"


@dataclass(frozen=True)
class Plan:
    """What a net was trained on, and the sampler and sigma grid to take if the user names none.

    Knobs are arguments of `SAMPLERS[sampler]` and of `GRIDS[grid]` that are not their defaults.
    """

    process: Process = field(default_factory=VariancePreserving)
    prediction: str = "epsilon"
    sampler: str = "dpmpp_2m"
    sampler_knobs: Mapping[str, Any] = field(default_factory=dict)
    grid: str = "trailing"
    grid_knobs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A diffusers scheduler at those values of its keys at which it is one of our samplers."""

    name: str
    sampler: str
    defaults: Mapping[str, Any]  # the keys that it reads; what counts where the file is silent
    only: Values = field(default_factory=dict)  # what we compute of a key's values, the one to write first
    passed: Mapping[str, str] = field(
        default_factory=dict
    )  # keys that are knobs of our sampler under another name
    knobs: Mapping[str, Any] = field(default_factory=dict)  # knobs that make our sampler this class
    spare: int = 0  # timesteps are laid out for one more step, and the lowest is left out
    whole: bool = True  # timesteps are rounded


COMMON = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
}
LEADING = COMMON | {"timestep_spacing": "leading"}
MILD = {"beta_start": 0.00085, "beta_end": 0.012}
ZERO_SNR = {"rescale_betas_zero_snr": False}
CURVES = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential"}
SPACINGS = ("leading", "linspace", "trailing")
CURVED = dict.fromkeys((*CURVES, "use_beta_sigmas"), False)
ENDS = {"sigma_min": None, "sigma_max": None}
THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
# diffusers' default is to clip, which its Stable Diffusion pipelines correct: latents have no bounds.
CLIP = {"clip_sample": False, "clip_sample_range": 1.0}
FLOW = {
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
MULTISTEP = COMMON | CURVED | THRESHOLD | FLOW | {"solver_order": 2, "lower_order_final": True}
OFF: Values = {
    "use_beta_sigmas": (
        False,
    ),  # quantiles of sigma there; our grid `beta` has those of time, as the paper does
    "clip_sample": (False,),
    "thresholding": (False,),
    "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,),
}

EULER = COMMON | CURVED | ENDS | ZERO_SNR | {"final_sigmas_type": "zero"}
EULER |= {"interpolation_type": "linear", "timestep_type": "discrete"}
DDPM = LEADING | ZERO_SNR | CLIP | THRESHOLD | {"variance_type": "fixed_small"}
DPM = (
    MULTISTEP
    | ZERO_SNR
    | {
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "euler_at_final": False,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "use_lu_lambdas": False,
        "variance_type": None,
    }
)
DPM_ONLY: Values = {
    "solver_type": ("midpoint", "heun"),
    "euler_at_final": (False,),
    "lambda_min_clipped": (-math.inf,),
    "use_lu_lambdas": (False,),
    "variance_type": (None,),
}
DPM_PASSED = {"solver_type": "solver", "lower_order_final": "lower_order_final"}
UNIPC = (
    MULTISTEP
    | ENDS
    | ZERO_SNR
    | {
        "solver_type": "bh2",
        "predict_x0": True,
        "disable_corrector": [],
        "solver_p": None,
        "final_sigmas_type": "zero",
        "shift_terminal": None,
    }
)


def _dpm(sampler: str, algorithms: tuple[str, ...], order: int) -> Row:
    only = dict(DPM_ONLY) | {"algorithm_type": algorithms, "solver_order": (order,)}
    return Row("DPMSolverMultistepScheduler", sampler, DPM, only, DPM_PASSED, spare=1)


ROWS = (
    _dpm("dpmpp_2m", ("dpmsolver++", "deis"), 2),
    _dpm("dpmpp_3m", ("dpmsolver++", "deis"), 3),
    _dpm("dpmpp_2m_sde", ("sde-dpmsolver++",), 2),
    Row("DDIMScheduler", "ddim", LEADING | ZERO_SNR | CLIP | THRESHOLD | {"set_alpha_to_one": True}),
    Row("DDPMScheduler", "ddpm", DDPM, {"variance_type": ("fixed_small", "fixed_small_log")}),
    Row("DDPMScheduler", "ddpm", DDPM, {"variance_type": ("fixed_large",)}, knobs={"variance": "large"}),
    Row(
        "PNDMScheduler",
        "pndm",
        LEADING | {"skip_prk_steps": False, "set_alpha_to_one": False},
        {"skip_prk_steps": (True,)},
        {"prediction_type": "averaged"},  # it averages what the net answers, whatever that is
    ),
    Row(
        "EulerDiscreteScheduler",
        "euler",
        EULER,
        {"interpolation_type": ("linear",), "timestep_type": ("discrete",)},
        whole=False,
    ),
    Row("EulerAncestralDiscreteScheduler", "euler_ancestral", COMMON | ZERO_SNR, whole=False),
    Row("HeunDiscreteScheduler", "heun", COMMON | MILD | CURVED | CLIP, whole=False),
    Row("KDPM2DiscreteScheduler", "dpm2", COMMON | MILD | CURVED, whole=False),
    Row("KDPM2AncestralDiscreteScheduler", "dpm2_ancestral", COMMON | MILD | CURVED, whole=False),
    Row("LMSDiscreteScheduler", "lms", COMMON | CURVED, whole=False),
    Row(
        "UniPCMultistepScheduler",
        "unipc",
        UNIPC,
        {
            "solver_type": ("bh2", "midpoint", "heun", "logrho"),  # the last three mean bh2 there
            "predict_x0": (True,),
            "solver_p": (None,),
            "shift_terminal": (None,),
        },
        {
            "solver_order": "order",
            "lower_order_final": "lower_order_final",
            "disable_corrector": "disable_corrector",
        },
        spare=1,
    ),
    Row(
        "DEISMultistepScheduler",
        "deis",
        MULTISTEP | {"algorithm_type": "deis", "solver_type": "logrho"},
        {
            "algorithm_type": ("deis", "dpmsolver", "dpmsolver++"),  # names of other classes mean deis there,
            "solver_type": ("logrho", "midpoint", "heun", "bh1", "bh2"),  # and logrho
        },
        {"solver_order": "order", "lower_order_final": "lower_order_final"},
        spare=1,
    ),
    Row(
        "LCMScheduler",
        "lcm",
        LEADING
        | MILD
        | ZERO_SNR
        | CLIP
        | THRESHOLD
        | {
            "beta_schedule": "scaled_linear",
            "original_inference_steps": 50,
            "set_alpha_to_one": True,
            "timestep_scaling": 10.0,
        },
        {"timestep_scaling": (10.0,)},
    ),
)
NAMES = sorted({row.name for row in ROWS})
KEYS = {key for row in ROWS for key in row.defaults}
BETAS = {"squaredcos_cap_v2": "cosine"} | {name: name for name in SCHEDULES if name != "cosine"}


def from_config(config: Mapping[str, Any]) -> Plan:
    """The plan that a scheduler_config.json describes.

    Raises UsageError, naming the key, for an unknown class or key and for a value that we do not compute.
    """
    name = str(config.get("_class_name"))
    if name not in NAMES:
        raise unknown(f"class in {WHAT}", name, NAMES)
    for key in config:
        if key not in KEYS and not key.startswith("_"):
            raise unknown(f"key in {WHAT}", key, KEYS)
    row = _row([row for row in ROWS if row.name == name], config)
    c = _values(row, config)
    if c["beta_schedule"] not in BETAS:
        raise unknown(f"beta_schedule in {WHAT}", c["beta_schedule"], BETAS)
    if c["prediction_type"] not in PREDICTIONS:
        raise unknown(f"prediction_type in {WHAT}", c["prediction_type"], PREDICTIONS)
    process = VariancePreserving(
        schedule=BETAS[c["beta_schedule"]],
        beta_start=c["beta_start"],
        beta_end=c["beta_end"],
        steps=c["num_train_timesteps"],
        zero_snr=c.get("rescale_betas_zero_snr", False),
        trained_betas=tuple(c["trained_betas"] or ()),
    )
    grid, knobs = _grid(row, c)
    if _ends_low(row, c):
        knobs["final"] = process.sigma_min
    return Plan(
        process,
        c["prediction_type"],
        row.sampler,
        _changed(
            SAMPLERS[row.sampler],
            dict(row.knobs) | {knob: _frozen(c[key]) for key, knob in row.passed.items()},
        ),
        grid,
        _changed(GRIDS[grid], knobs),
    )


def to_config(plan: Plan) -> dict[str, Any]:
    """The scheduler_config.json of a plan: read back, it is the same plan, and diffusers samples by it.

    Raises UsageError if diffusers has no class for the sampler, or none that samples as planned.
    """
    if not isinstance(plan.process, VariancePreserving):
        raise UsageError(f"{WHAT}: the process {type(plan.process).__name__} has no such file here")
    rows = [row for row in ROWS if row.sampler == plan.sampler]
    if not rows:
        raise unknown("sampler that diffusers has a class for", plan.sampler, {row.sampler for row in ROWS})
    for row in rows:
        for low in (False, True):
            config = _written(row, plan, plan.process, low)
            if from_config(config) == plan:
                return config
    raise UsageError(
        f"{rows[0].name} of diffusers cannot express the plan: sampler {plan.sampler} {dict(plan.sampler_knobs)}, "
        f"grid {plan.grid} {dict(plan.grid_knobs)}; choose others for the file"
    )


def _row(rows: list[Row], config: Mapping[str, Any]) -> Row:
    """The row whose values the config has; else the error about the first key that fits none."""
    for row in rows:
        if all(config.get(key, row.defaults[key]) in known for key, known in _only(row).items()):
            return row
    for key in _only(rows[0]):
        known = [value for row in rows for value in _only(row)[key]]
        given = config.get(key, rows[0].defaults[key])
        if given not in known:
            raise _refused(key, given, known)
    keys = [key for key, known in _only(rows[0]).items() if any(_only(row)[key] != known for row in rows)]
    given = " with ".join(f"'{key}' = {config.get(key, rows[0].defaults[key])!r}" for key in keys)
    raise UsageError(f"{WHAT}: {given} is not supported; choose another sampler")


def _only(row: Row) -> Values:
    return {key: known for key, known in OFF.items() if key in row.defaults} | dict(row.only)


def _refused(key: str, given: Any, known: list[Any]) -> UsageError:
    hint = "; set it to false, as diffusers itself does for latent models" if key == "clip_sample" else ""
    return UsageError(
        f"{WHAT}: '{key}' = {given!r} is not supported, only {' or '.join(map(repr, known))}{hint}"
    )


def _values(row: Row, config: Mapping[str, Any]) -> dict[str, Any]:
    """All keys that the class reads, each of the type that its default has."""
    values = {}
    for key, default in row.defaults.items():
        value = values[key] = config.get(key, default)
        kind: type | tuple[type, ...] = type(default)
        if key == "trained_betas":
            kind = (list, tuple, type(None))
        elif key in ENDS:
            kind = (int, float, type(None))
        elif isinstance(default, float):
            kind = (int, float)
        fits = isinstance(value, kind) and (isinstance(default, bool) or not isinstance(value, bool))
        numbers = (
            value if key in ("trained_betas", "disable_corrector") and isinstance(value, list | tuple) else ()
        )
        if not fits or not all(isinstance(number, int | float) for number in numbers):
            raise UsageError(f"{WHAT}: '{key}' = {value!r} is of the wrong type; such is {default!r}")
    return values


def _grid(row: Row, c: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    curves = [grid for key, grid in CURVES.items() if c.get(key)]
    if len(curves) > 1:
        raise UsageError(f"{WHAT}: {' and '.join(curves)} exclude each other; keep one of them true")
    ends = {key: c[key] for key in ENDS if c.get(key) is not None}
    if curves:
        return curves[0], ends
    if ends:
        raise UsageError(f"{WHAT}: '{next(iter(ends))}' needs one of {', '.join(CURVES)}")
    if row.sampler == "lcm":
        return "distilled", {"stops": c["original_inference_steps"]}
    spacing = c["timestep_spacing"]
    if spacing == "leading":
        return spacing, {"steps_offset": c["steps_offset"], "spare": row.spare}
    if spacing == "linspace":
        return spacing, {"spare": row.spare, "whole": row.whole}
    if spacing == "trailing":
        return spacing, {}
    raise unknown(f"timestep_spacing in {WHAT}", spacing, SPACINGS)


def _ends_low(row: Row, c: Mapping[str, Any]) -> bool:
    """Whether sampling ends at the lowest level that was trained, not at 0."""
    if c.get("final_sigmas_type", "zero") not in ("zero", "sigma_min"):
        raise _refused("final_sigmas_type", c["final_sigmas_type"], ["zero", "sigma_min"])
    if row.sampler in ("deis", "lcm"):
        return row.sampler == "deis"
    return c.get("final_sigmas_type") == "sigma_min" or not c.get("set_alpha_to_one", True)


def _written(row: Row, plan: Plan, process: VariancePreserving, low: bool) -> dict[str, Any]:
    knobs = plan.grid_knobs
    theirs = {ours: name for name, ours in BETAS.items()}
    inverse = {knob: key for key, knob in row.passed.items()}
    wanted = {
        **{key: known[0] for key, known in _only(row).items()},
        **{inverse[knob]: value for knob, value in plan.sampler_knobs.items() if knob in inverse},
        **{key: plan.grid == grid for key, grid in CURVES.items()},
        **{key: knobs.get(key) for key in ENDS},
        "num_train_timesteps": process.steps,
        "beta_start": process.beta_start,
        "beta_end": process.beta_end,
        "beta_schedule": theirs[process.schedule],
        "trained_betas": list(process.trained_betas) or None,
        "rescale_betas_zero_snr": process.zero_snr,
        "prediction_type": plan.prediction,
        "timestep_spacing": plan.grid if plan.grid in SPACINGS else "linspace",
        "steps_offset": knobs.get(
            "steps_offset", 0 if plan.grid == "leading" else 1
        ),  # 1: else diffusers warns
        "original_inference_steps": knobs.get("stops", 50),
        "final_sigmas_type": "sigma_min" if low else "zero",
        "set_alpha_to_one": not low,
    }
    values = {key: wanted.get(key, default) for key, default in row.defaults.items()}
    return {"_class_name": row.name} | {key: _thawed(values[key]) for key in sorted(values)}


def _changed(function: Callable[..., Any], knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs that are not the defaults of `function`."""
    known = inspect.signature(function).parameters
    return {knob: value for knob, value in knobs.items() if value != known[knob].default}


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _thawed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
