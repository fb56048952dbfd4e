"""Training: images per second of our loop, and of the same net in a plain diffusers / accelerate script.

Both sides take the U-Net of `configs/emoji.toml` and the text encoder of `configs/emoji-text.toml` with the same
random weights, from one folder, and the same latents and caption ids, which are ready on disk. Each side runs in a
process of its own, in turn (A B A B ...); the figure is the median over the processes of the median step. The first
step of both is on the same pictures, captions, noise and timesteps: its loss and gradient norm show that they do
the same work.

    python benchmarks/train.py [--steps 10] [--rounds 3] [--batch 64] [--threads 2] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

if (
    TYPE_CHECKING
):  # the process that starts the others stays small: a child's ru_maxrss counts its parent's, too
    from torch import Tensor

    from mezzotint.diffusion.types import Cond
    from mezzotint.training.config import TrainConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PRECISIONS = ("float32", "bfloat16")
WARMING = 2  # steps before the clock counts; the first of them is the one that is compared
BATCHES = 8  # different batches of data on disk
TOLERANCE = 1e-3  # relative, of the first loss and gradient norm in float32


class Taken(NamedTuple):
    """One training step, as both sides tell it."""

    loss: float
    grad_norm: float  # before clipping
    wait: float  # seconds spent waiting for data


@dataclass(frozen=True)
class Measured:
    """One process."""

    side: str
    precision: str
    seconds: float  # of a step, median
    processor: float  # seconds of processor time of a step, over all threads, median
    wait: float  # seconds of a step, waiting for data, median
    loss: float  # of the first step
    grad_norm: float  # of the first step
    peak: int  # bytes


@dataclass(frozen=True)
class Row:
    """The rounds of one side in one precision together."""

    precision: str
    side: str
    images_per_second: float
    slowest: float
    fastest: float
    seconds_per_step: float
    processor: float
    wait: float
    loss: float
    grad_norm: float
    peak: int


def training_config(folder: Path, batch: int, precision: str) -> TrainConfig:
    """`configs/emoji.toml` on the data and nets in `folder`, never running out of them."""
    from mezzotint.training.config import read_config

    settings = {
        "data": folder / "glyphs",
        "out": folder / "run",
        "optim.batch": batch,
        "optim.steps": 1_000_000,
        "run.device": "cpu",
        "run.precision": precision,
        "run.checkpoint": 1_000_000,
        "diffusion.vae": folder / "model" / "vae",
        "diffusion.text": folder / "model",
        "diffusion.start": folder / "model" / "unet",
        "diffusion.pool": batch * BATCHES,
        "diffusion.reuse": 1_000_000,
        "diffusion.prediction": "v_prediction",
        "diffusion.weight": "simple",
        "diffusion.levels": "uniform",
        "diffusion.caption_dropout": 0.0,  # the plain script has none
    }
    return read_config(CONFIGS / "emoji.toml", [f"{key}={value}" for key, value in settings.items()])


def prepare(folder: Path, batch: int) -> None:
    """Fill `folder`: a model with random weights, latents and captions, and what our first step is made of."""
    import torch
    from PIL import Image

    from mezzotint.diffusion.noise import generator
    from mezzotint.diffusion.process import VariancePreserving
    from mezzotint.formats.checkpoint import Checkpoint
    from mezzotint.formats.folder import write_folder
    from mezzotint.formats.scheduler import Plan
    from mezzotint.formats.tensors import write_tensors
    from mezzotint.formats.tokenizer import Tokenizer, train_bpe
    from mezzotint.nets import AutoencoderKL, CLIPTextConfig, CLIPTextModel, UNet, UNetConfig, VAEConfig
    from mezzotint.training.config import read_config
    from mezzotint.training.diffusion import DiffusionStage

    torch.manual_seed(0)
    text = read_config(CONFIGS / "emoji-text.toml")
    net = read_config(CONFIGS / "emoji.toml").net
    unet = UNetConfig.from_dict(net)
    tokenizer = Tokenizer(*train_bpe(["a red apple"], 600), max_length=text.text.length)
    special = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.eos}
    sizes = {"vocab_size": text.text.vocabulary, "max_position_embeddings": text.text.length}
    vae = VAEConfig(  # has nothing to do: the latents are there
        latent_channels=unet.in_channels, block_out_channels=(8,), layers_per_block=1, norm_num_groups=8
    )
    nets = (
        UNet(unet),
        AutoencoderKL(vae),
        CLIPTextModel(CLIPTextConfig.from_dict(text.net | sizes | special)),
    )
    write_folder(folder / "model", Checkpoint(*nets, tokenizer, Plan(VariancePreserving(), "v_prediction")))

    draw = generator("benchmark")
    shape = (batch * BATCHES, unet.in_channels, net["sample_size"], net["sample_size"])
    latents = torch.randn(shape, generator=draw).half()
    ids = torch.randint(text.text.vocabulary, (batch * BATCHES, text.text.length), generator=draw)
    (folder / "run" / "cache").mkdir(parents=True)
    write_tensors(folder / "run" / "cache" / "pool-0000.safetensors", {"latents": latents, "ids": ids})

    (folder / "glyphs").mkdir()
    Image.new("RGBA", (128, 128)).save(folder / "glyphs" / "0.png")
    record = {"file_name": "0.png", "text": "apple", "name": "apple", "aliases": [], "keywords": []}
    (folder / "glyphs" / "metadata.jsonl").write_text(json.dumps(record) + "\n")

    stage: Any = DiffusionStage(training_config(folder, batch, "float32"), torch.device("cpu"))
    _, first_ids = stage.batch(0)
    stage.denoiser = witness = Witness()
    next(stage.losses(stage.batch(0), 0))
    x0, eps, sigma = witness.seen
    timesteps = stage.process.time(sigma.double()).round().long()
    first = {"latents": x0, "ids": first_ids, "noise": eps, "timesteps": timesteps}
    write_tensors(folder / "first.safetensors", {k: v.contiguous() for k, v in first.items()})


class Witness:
    """Stands where the denoiser stands, to see what a step trains on."""

    seen: tuple[Tensor, Tensor, Tensor]  # x0, eps, sigma

    def loss(self, x0: Tensor, eps: Tensor, sigma: Tensor, cond: Cond, *, weight: Any) -> Tensor:
        self.seen = x0, eps, sigma
        return sigma


def mezzotint_steps(folder: Path, batch: int, precision: str) -> Iterator[Taken]:
    """Our own loop and stage, as `mezzotint train` runs them."""
    import torch

    from mezzotint.training.diffusion import DiffusionStage
    from mezzotint.training.loop import Trainer

    config = training_config(folder, batch, precision)
    device = torch.device("cpu")
    for stats in Trainer(DiffusionStage(config, device), config, device).steps():
        yield Taken(stats.loss, stats.grad_norm, stats.wait)


def diffusers_steps(folder: Path, batch: int, precision: str) -> Iterator[Taken]:
    """What one writes with diffusers and accelerate, following their documentation on training text to image."""
    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel
    from safetensors.torch import load_file
    from torch.utils.data import DataLoader, TensorDataset
    from transformers import CLIPTextModel

    optim = training_config(folder, batch, precision).optim
    accelerator = Accelerator(cpu=True, mixed_precision={"float32": "no", "bfloat16": "bf16"}[precision])
    weight_dtype = getattr(torch, precision)
    torch.manual_seed(0)
    noise_scheduler = DDPMScheduler.from_pretrained(folder / "model" / "scheduler")
    text_encoder = CLIPTextModel.from_pretrained(folder / "model" / "text_encoder")
    text_encoder.requires_grad_(False).to(accelerator.device, dtype=weight_dtype)
    unet = UNet2DConditionModel.from_pretrained(folder / "model" / "unet").train()
    ema_unet = EMAModel(
        unet.parameters(), decay=optim.ema, model_cls=UNet2DConditionModel, model_config=unet.config
    )
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay
    )
    lr_scheduler = get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=optim.warmup)
    pool = load_file(folder / "run" / "cache" / "pool-0000.safetensors")
    loader = DataLoader(TensorDataset(pool["latents"], pool["ids"]), batch, shuffle=True, drop_last=True)
    unet, optimizer, loader, lr_scheduler = accelerator.prepare(unet, optimizer, loader, lr_scheduler)
    ema_unet.to(accelerator.device)

    first = load_file(folder / "first.safetensors")
    while True:
        begun = time.perf_counter()
        for latents, ids in loader:
            wait = time.perf_counter() - begun
            with accelerator.accumulate(unet):
                latents = latents.float()
                noise = torch.randn_like(latents)
                timesteps = torch.randint(noise_scheduler.config.num_train_timesteps, (len(latents),))
                if first:
                    latents, ids, noise, timesteps = (
                        first.pop(k) for k in ("latents", "ids", "noise", "timesteps")
                    )
                noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
                with torch.no_grad():
                    states = text_encoder(ids, return_dict=False)[0]
                target = noise_scheduler.get_velocity(latents, noise, timesteps)
                prediction = unet(noisy_latents, timesteps, states, return_dict=False)[0]
                loss = F.mse_loss(prediction.float(), target.float())
                mean_loss = accelerator.gather(loss.repeat(batch)).mean().item()
                accelerator.backward(loss)
                grad_norm = accelerator.clip_grad_norm_(unet.parameters(), optim.clip)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            ema_unet.step(unet.parameters())
            yield Taken(mean_loss, float(grad_norm), wait)
            begun = time.perf_counter()


SIDES: dict[str, Callable[[Path, int, str], Iterator[Taken]]] = {
    "mezzotint": mezzotint_steps,
    "diffusers": diffusers_steps,
}


def measure(folder: Path, side: str, precision: str, batch: int, steps: int) -> Measured:
    """Run one side in this process."""
    taken, clocks = [], []
    running = SIDES[side](folder, batch, precision)
    clocks.append((time.perf_counter(), time.process_time()))
    for step in islice(running, WARMING + steps):
        clocks.append((time.perf_counter(), time.process_time()))
        taken.append(step)
    counted = list(pairwise(clocks[WARMING:]))
    unit = 1 if sys.platform == "darwin" else 1024
    return Measured(
        side,
        precision,
        median(after[0] - before[0] for before, after in counted),
        median(after[1] - before[1] for before, after in counted),
        median(step.wait for step in taken[WARMING:]),
        taken[0].loss,
        taken[0].grad_norm,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    )


def in_a_process(threads: int, *arguments: str) -> dict[str, Any]:
    """What this file prints when it is run again with `arguments`."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(
    precisions: Sequence[str], *, steps: int, rounds: int, batch: int, threads: int
) -> Iterator[Measured]:
    """Every process in turn: both sides, one after the other, in each precision, as often as there are rounds."""
    with tempfile.TemporaryDirectory() as folder:
        common = (f"--folder={folder}", f"--batch={batch}", f"--steps={steps}")
        in_a_process(threads, "--part=prepare", *common)
        for _ in range(rounds):
            for precision in precisions:
                for side in SIDES:
                    part = (f"--part={side}", f"--precision={precision}")
                    yield Measured(**in_a_process(threads, *part, *common))


def summary(runs: Sequence[Measured], batch: int) -> list[Row]:
    """A row per precision and side."""
    rows = []
    for precision, side in dict.fromkeys((run.precision, run.side) for run in runs):
        mine = [run for run in runs if (run.precision, run.side) == (precision, side)]
        seconds = [run.seconds for run in mine]
        middle = median(seconds)
        rows.append(
            Row(
                precision,
                side,
                images_per_second=batch / middle,
                slowest=batch / max(seconds),
                fastest=batch / min(seconds),
                seconds_per_step=middle,
                processor=median(run.processor for run in mine),
                wait=median(run.wait for run in mine),
                loss=mine[0].loss,
                grad_norm=mine[0].grad_norm,
                peak=max(run.peak for run in mine),
            )
        )
    return rows


def disagreement(rows: Sequence[Row], precision: str) -> float:
    """The largest relative difference between the sides' first losses and gradient norms."""
    ours, theirs = (next(r for r in rows if (r.precision, r.side) == (precision, side)) for side in SIDES)
    pairs = ((ours.loss, theirs.loss), (ours.grad_norm, theirs.grad_norm))
    return max(abs(a - b) / abs(b) for a, b in pairs)


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| precision | program | images / s (slowest - fastest run) | ratio | processor s / step | waiting for data "
        "| peak memory | first loss | first gradient norm |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        base = next(r for r in rows if (r.precision, r.side) == (row.precision, "diffusers"))
        lines.append(
            f"| {row.precision} | {row.side} "
            f"| {row.images_per_second:.1f} ({row.slowest:.1f} - {row.fastest:.1f}) "
            f"| {row.images_per_second / base.images_per_second:.2f} | {row.processor:.2f} "
            f"| {row.wait * 1e3:.1f} ms of {row.seconds_per_step * 1e3:.0f} | {row.peak / 2**20:.0f} MiB "
            f"| {row.loss:.6f} | {row.grad_norm:.5f} |"
        )
    return "\n".join(lines)


def hardware(threads: int) -> str:
    """One line: processor, threads, versions."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    processor = names[0].split(":", 1)[1].strip() if names else platform.processor()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "accelerate"))
    return (
        f"{processor}, {threads} of {os.cpu_count()} threads; Python {platform.python_version()}, {packages}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=10, help="steps on the clock in each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each side and precision")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", choices=PRECISIONS, help="both, unless one is named")
    parser.add_argument("--json", action="store_true", help="rows and facts as JSON instead of a table")
    parser.add_argument("--part", choices=("prepare", *SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part == "prepare":
        prepare(given.folder, given.batch)
        print("{}")
        return
    if given.part:
        print(
            json.dumps(asdict(measure(given.folder, given.part, given.precision, given.batch, given.steps)))
        )
        return

    precisions = [given.precision] if given.precision else PRECISIONS
    runs = []
    for run in compare(
        precisions, steps=given.steps, rounds=given.rounds, batch=given.batch, threads=given.threads
    ):
        runs.append(run)
        print(
            f"{run.precision} {run.side}: {given.batch / run.seconds:.1f} images / s, first loss {run.loss:.6f}, "
            f"gradient norm {run.grad_norm:.5f}, {run.processor:.2f} s of processor time a step",
            file=sys.stderr,
            flush=True,
        )
    rows = summary(runs, given.batch)
    apart = {precision: disagreement(rows, precision) for precision in precisions}
    if given.json:
        facts = {"hardware": hardware(given.threads), "batch": given.batch, "disagreement": apart}
        print(json.dumps(facts | {"rows": [asdict(row) for row in rows]}, indent=2))
    else:
        print(f"{table(rows)}\n\n{hardware(given.threads)}; batch {given.batch}")
        print("; ".join(f"first step {p}: apart by {d:.1e}" for p, d in apart.items()))
    if apart.get("float32", 0.0) > TOLERANCE:
        raise SystemExit(f"the two sides do not do the same work: {apart['float32']:.1e} apart in float32")


if __name__ == "__main__":
    main()
