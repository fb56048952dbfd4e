"""Stable Diffusion 1.5 at full size, with random weights: one guided step and one decoding, by each program.

A folder in the layout of SD 1.5 (float16, as it is shipped) is made first. Then each side runs in a process of its
own, in turn, on the same latents and text states: it is timed from its start to the end of its first step, then warm.
Answers are compared with those of diffusers in float32, the first side. What is not installed, or ends in a crash, is
left out, and said.

    python benchmarks/sd15.py [--sizes 512 256] [--steps 2] [--rounds 1] [--threads 2] [--sides ...] [--out TABLE.md]

`--small` takes a net of the same kind a thousand times smaller, to see that everything runs. All sides take about 12
minutes on two quiet cores with AMX, four of them for the compiled one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from generate import hardware  # beside this file

if (
    TYPE_CHECKING
):  # the process that starts the others stays small: a child's ru_maxrss counts its parent's, too
    from torch import Tensor

FACTOR = 8  # pixels to a latent
TIME = 500.0
BASE = "diffusers float32"


class Model(NamedTuple):
    """What a side is asked."""

    step: Callable[[Tensor], Tensor]  # latents [2, 4, h, w], null and prompt -> the U-Net's answer, float32
    decode: Callable[[Tensor], Tensor]  # [1, 4, h, w] -> [1, 3, H, W]


@dataclass(frozen=True)
class Measured:
    """One process."""

    side: str
    first: float  # seconds from the start of the process to the end of its first step
    step: dict[int, float]  # pixels -> seconds of a guided step, median
    decode: dict[int, float]
    peak: int  # bytes
    answers: str  # folder


def make(folder: Path, small: bool) -> None:
    """The checkpoint, with random weights."""
    import torch

    from mezzotint.diffusion.process import VariancePreserving
    from mezzotint.formats.checkpoint import Checkpoint
    from mezzotint.formats.folder import write_folder
    from mezzotint.formats.scheduler import Plan
    from mezzotint.formats.tokenizer import Tokenizer, train_bpe
    from mezzotint.nets import AutoencoderKL, CLIPTextConfig, CLIPTextModel, UNet, UNetConfig, VAEConfig

    torch.manual_seed(0)
    vocab, merges = train_bpe(["a red apple on a table"] * 3, 540)
    tokenizer = Tokenizer(vocab, merges, max_length=77)
    widths = (32, 64) if small else (320, 640, 1280, 1280)
    vae_widths = (32, 32, 32, 32) if small else (128, 256, 512, 512)
    dim = 64 if small else 768
    unet = UNetConfig(
        sample_size=64,
        cross_attention_dim=dim,
        block_out_channels=widths,
        down_block_types=(*("CrossAttnDownBlock2D",) * (len(widths) - 1), "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * (len(widths) - 1)),
    )
    vae = VAEConfig(
        block_out_channels=vae_widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    text = CLIPTextConfig(
        hidden_size=dim,
        intermediate_size=4 * dim,
        num_attention_heads=dim // 64,
        num_hidden_layers=2 if small else 12,
        projection_dim=dim,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
        pad_token_id=tokenizer.pad,
    )
    plan = Plan(VariancePreserving(), "epsilon", "pndm", {}, "leading", {"steps_offset": 1})
    nets = UNet(unet).eval(), AutoencoderKL(vae).eval(), CLIPTextModel(text).eval()
    write_folder(folder, Checkpoint(*nets, tokenizer, plan), dtype=torch.float16)


def mezzotint_side(folder: Path, how: str) -> Model:
    """`how`: a precision, or an engine."""
    import torch

    import mezzotint
    from mezzotint.diffusion.types import Cond
    from mezzotint.engine import ENGINES

    knobs = {"engine": how} if how in ENGINES else {"precision": how}
    pipeline = mezzotint.load(folder, device="cpu", **knobs)
    t = torch.full((2,), TIME)
    cond = pipeline.denoiser.net.prepared(
        Cond(text=states(folder))
    )  # as the pipeline does, once for all steps

    def step(z: Tensor) -> Tensor:
        return pipeline.denoiser.net(z, t, cond).float()

    return Model(step, lambda z: pipeline.codec.vae.decode(z.to(pipeline.codec.vae.dtype)).float())


def diffusers_side(folder: Path, how: str) -> Model:
    """`how`: "float32" as its documentation has it; "tuned"; "compiled"."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    dtype = torch.float32 if how == "float32" else torch.bfloat16
    if how != "float32":
        unet, vae = (net.to(dtype=dtype, memory_format=torch.channels_last) for net in (unet, vae))
    run: Any = unet
    if how == "compiled":
        import torch._inductor.config as inductor

        inductor.freezing = True
        run = torch.compile(unet)
    text, t = states(folder).to(dtype), torch.full((2,), TIME)

    def step(z: Tensor) -> Tensor:
        return run(z.to(dtype), t, encoder_hidden_states=text, return_dict=False)[0].float()

    return Model(step, lambda z: vae.decode(z.to(dtype), return_dict=False)[0].float())


def openvino_side(folder: Path, how: str) -> Model:
    """`how`: "bf16" or "f32"; each size is compiled with static shapes when it is first asked for."""
    import openvino
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    core = openvino.Core()
    threads = int(os.environ["OMP_NUM_THREADS"])
    hints = {"INFERENCE_PRECISION_HINT": how, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").eval()
    text, t = states(folder), torch.full((2,), TIME)

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, z: Tensor, text: Tensor) -> Tensor:
            return self.unet(z, t, encoder_hidden_states=text, return_dict=False)[0]

    class Decode(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, z: Tensor) -> Tensor:
            return self.vae.decode(z, return_dict=False)[0]

    made: dict[Any, Any] = {}

    def compiled(net: torch.nn.Module, *given: Tensor) -> Tensor:
        key = type(net).__name__, given[0].shape
        if key not in made:
            shapes = [openvino.PartialShape(list(each.shape)) for each in given]
            with torch.no_grad():
                model = openvino.convert_model(net.eval(), example_input=given, input=shapes)
            made[key] = core.compile_model(model, "CPU", hints)
        return torch.from_numpy(made[key]([each.numpy() for each in given])[0].copy())

    return Model(lambda z: compiled(Step(), z, text), lambda z: compiled(Decode(), z))


SIDES: dict[str, tuple[Callable[[Path, str], Model], str]] = {
    BASE: (diffusers_side, "float32"),
    "diffusers tuned, bfloat16": (diffusers_side, "tuned"),
    "diffusers compiled, bfloat16": (diffusers_side, "compiled"),
    "openvino float32": (openvino_side, "f32"),
    "openvino bfloat16": (openvino_side, "bf16"),
    "mezzotint float32": (mezzotint_side, "float32"),
    "mezzotint default": (mezzotint_side, "auto"),
    "mezzotint openvino": (mezzotint_side, "openvino"),
    "mezzotint openvino-int8": (mezzotint_side, "openvino-int8"),
}
COMPILED = "diffusers compiled, bfloat16"  # takes minutes for each size: the first one alone


def states(folder: Path) -> Tensor:
    """Text states [2, 77, D]."""
    import torch

    dim = json.loads((folder / "unet" / "config.json").read_text())["cross_attention_dim"]
    return torch.randn(2, 77, dim, generator=torch.Generator().manual_seed(1))


def latents(rows: int, size: int) -> Tensor:
    import torch

    z = torch.randn(rows, 4, size // FACTOR, size // FACTOR, generator=torch.Generator().manual_seed(size))
    return z.contiguous(memory_format=torch.channels_last)


def measure(side: str, folder: Path, sizes: Sequence[int], steps: int, begun: float, out: Path) -> Measured:
    """Run one side in this process, which was started at `begun` (seconds since the epoch)."""
    import numpy as np
    import torch

    start, how = SIDES[side]
    guard = torch.no_grad if side == BASE else torch.inference_mode
    took: dict[str, dict[int, float]] = {"step": {}, "decode": {}}
    with guard():
        model = start(folder, how)
        first = 0.0
        for size in sizes[:1] if side == COMPILED else sizes:
            for name, run, rows in (("step", model.step, 2), ("decode", model.decode, 1)):
                z = latents(rows, size)
                answer = run(z)
                first = first or time.time() - begun
                seconds = []
                for _ in range(steps if name == "step" else max(1, steps // 2)):
                    clock = time.perf_counter()
                    run(z)
                    seconds.append(time.perf_counter() - clock)
                took[name][size] = median(seconds)
                out.mkdir(parents=True, exist_ok=True)
                np.save(out / f"{name}-{size}.npy", answer.numpy())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Measured(side, first, took["step"], took["decode"], peak, str(out))


def limit(folder: Path, sizes: Sequence[int]) -> dict[int, float]:
    """Seconds of a step if all of it ran at the rate of a large bfloat16 matrix product."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from mezzotint.diffusion.types import Cond
    from mezzotint.formats.folder import read_configs
    from mezzotint.nets import UNet

    a, best = torch.ones(2048, 2048, dtype=torch.bfloat16), float("inf")
    for _ in range(10):
        clock = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - clock)
    config = read_configs(folder).unet
    with torch.device("meta"):
        net = UNet(config)
    text, found = states(folder).to("meta"), {}
    for size in sizes:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(latents(2, size).to("meta"), torch.zeros(2, device="meta"), Cond(text=text))
        found[size] = counter.get_total_flops() * best / (2 * 2048**3)
    return found


class Apart(NamedTuple):
    """How far the answers of two sides are from each other."""

    largest: float  # of the step's answers, in their deviations
    step: float  # PSNR of the step's answers, dB
    decoded: float  # PSNR of the decoded pictures, dB


def apart(ours: Path, theirs: Path, size: int) -> Apart:
    import numpy as np

    (a, b), (p, q) = (
        [np.load(side / f"{name}-{size}.npy") for side in (ours, theirs)] for name in ("step", "decode")
    )
    return Apart(float(abs(a - b).max() / b.std()), psnr(a, b), psnr(p, q))


def psnr(ours: Any, theirs: Any) -> float:
    """dB, by the range of values that theirs have."""
    import numpy as np

    error = float(np.square(ours - theirs).mean())
    return 10 * float(np.log10(np.ptp(theirs) ** 2 / error)) if error else float("inf")


def table(runs: Sequence[Measured], sizes: Sequence[int], limits: dict[int, float]) -> str:
    """Markdown: a row per side, medians over its processes."""
    columns = [f"step {s}, s | of diffusers | decode {s}, s" for s in sizes]
    ends = [
        "to first step, s",
        "peak memory, GiB",
        f"largest difference of a step, {sizes[0]}",
        "step, dB",
        "decoded, dB",
    ]
    lines = [
        "| program | " + " | ".join(columns + ends) + " |",
        "|---|" + "---:|" * (3 * len(sizes) + len(ends)),
    ]
    base = [run for run in runs if run.side == BASE]
    for side in dict.fromkeys(run.side for run in runs):
        mine = [run for run in runs if run.side == side]
        cells = []
        for size in sizes:
            if size not in mine[0].step:
                cells += ["", "", ""]
                continue
            seconds = median(run.step[size] for run in mine)
            share = f"{seconds / median(run.step[size] for run in base):.2f}" if base else ""
            cells += [f"{seconds:.3g}", share, f"{median(run.decode[size] for run in mine):.3g}"]
        cells += [f"{median(run.first for run in mine):.1f}", f"{max(run.peak for run in mine) / 2**30:.2f}"]
        if base:
            found = apart(Path(mine[0].answers), Path(base[0].answers), sizes[0])
            cells += [f"{found.largest:.1e}", f"{found.step:.0f}", f"{found.decoded:.0f}"]
        else:
            cells += ["", "", ""]
        lines.append(f"| {side} | " + " | ".join(cells) + " |")
    told = ", ".join(f"{seconds:.3g} s at {size}" for size, seconds in limits.items())
    return "\n".join(lines) + f"\n\nA step at the rate of a bfloat16 matrix product of 2048 x 2048: {told}."


def child(part: str, given: argparse.Namespace, *more: str) -> Any:
    """What a part says as JSON, run in a process of its own.

    None, and a line on stderr, for a side that needs a package that is not there, or that crashed.
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--part", part, "--steps", str(given.steps)]
    command += ["--folder", str(given.folder), "--sizes", *map(str, given.sizes), *more]
    environment = os.environ | {"OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1"}
    environment["MEZZOTINT_CACHE"] = str(given.cache)  # empty: graphs are made anew
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    crashed = f"ended by signal {-done.returncode}" if done.returncode < 0 else ""
    absent = (
        "not installed"
        if "No module named 'openvino'" in done.stderr or "needs OpenVINO" in done.stderr
        else ""
    )
    if part in SIDES and (crashed or absent):
        print(f"{part}: {crashed or absent}", file=sys.stderr)
        return None
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 256], help="pixels of a side")
    parser.add_argument("--steps", type=int, default=2, help="steps that each process takes on the clock")
    parser.add_argument("--rounds", type=int, default=1, help="processes for each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), help="all if not given")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is kept, or is already")
    parser.add_argument("--small", action="store_true", help="a thousand times smaller, to see that it runs")
    parser.add_argument("--out", type=Path, help="also write the table to this file (Markdown)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--answers", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part == "make":
        make(given.folder, given.small)
        print("null")
    elif given.part == "limit":
        print(json.dumps(limit(given.folder, given.sizes)))
    elif given.part:
        done = measure(given.part, given.folder, given.sizes, given.steps, given.begun, given.answers)
        print(json.dumps(asdict(done)))
    else:
        compare(given)


def compare(given: argparse.Namespace) -> None:
    """Every process in turn, then the table."""
    with tempfile.TemporaryDirectory() as name:
        given.folder, given.cache = given.folder or Path(name) / "model", Path(name) / "cache"
        if not given.folder.exists():
            child("make", given, *(["--small"] if given.small else []))
        runs: list[Measured] = []
        for i in range(given.rounds):
            for side in given.sides or SIDES:
                answers = str(Path(name) / f"{i}-{side}")
                done = child(side, given, "--begun", repr(time.time()), "--answers", answers)
                if done is None:
                    continue
                numbered = {
                    key: {int(size): s for size, s in done[key].items()} for key in ("step", "decode")
                }
                runs.append(Measured(**done | numbered))
                print(f"{side}: {done['step']}", file=sys.stderr, flush=True)
        limits = {int(size): seconds for size, seconds in child("limit", given).items()}
        text = f"{table(runs, given.sizes, limits)}\n\n{about(given.threads)}\n"
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")


def about(threads: int) -> str:
    """Hardware, versions, commit, day."""
    folder = Path(__file__).resolve().parent
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True, check=False
    )
    packages = [hardware(threads)]
    packages += [f"openvino {version('openvino')}"] if find_spec("openvino") else []
    packages += [f"commit {done.stdout.strip()}"] if done.returncode == 0 else []
    return f"{', '.join(packages)}; random weights, float16 on disk; {time.strftime('%Y-%m-%d')}"


if __name__ == "__main__":
    main()
