"""Training on a folder of pictures: our loop, a diffusers + accelerate script, and `denoising-diffusion-pytorch`.

Speed: the same U-Net (unconditional, pixels) with the same first weights, batch, pictures and precision, one process
for each trainer, in turn; images per second, peak memory, the loader's wait, and what a checkpoint costs.
Quality for cost: every trainer has the same minutes and its own settings for the rest; its pictures are judged by a
classifier that none of them trained, by the Frechet distance of features to pictures that nobody trained on.

    pip install --no-deps denoising-diffusion-pytorch ema-pytorch pytorch-fid einops
    pip install --no-deps torchvision==0.28.*       # the one that goes with the torch in use
    python benchmarks/trainers.py speed --data cifar10/train [--steps 10] [--rounds 3] [--batch 64]
    python benchmarks/trainers.py quality --data cifar10/train --judge cifar10/test --minutes 60 --seeds 3
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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from mezzotint.training.config import TrainConfig

SIDE = 32  # pixels
WARMING = 2  # steps before the clock counts
BETWEEN = 500  # steps between checkpoints, the default of two of the three
BATCH = 64
SHARE = 0.97  # of the minutes that steps are planned for, where a schedule has to know how many
SAMPLER_STEPS = 50  # of the others' DDIM; their default of 1000 would take longer than the training


class Step(NamedTuple):
    seconds: float
    wait: float  # of them, for data


@dataclass(frozen=True)
class Measured:
    """One process."""

    side: str
    images_per_second: float
    wait: float  # share of a step
    checkpoint: float  # share of the time, at one every `BETWEEN` steps
    peak: int  # bytes
    parameters: int


def our_config(folder: Path, data: Path, given: argparse.Namespace, *, own: bool) -> TrainConfig:
    """`own`: with our settings for such pictures; else those that the others have."""
    from mezzotint.training.config import read_config

    settings = {
        "data": data,
        "out": folder / f"run-{given.seed}",
        "seed": given.seed,
        "dataset.resolution": SIDE,
        "dataset.held_out": 0.0,
        "dataset.aspect": 1.0,
        "model.condition": "none",
        "model.half": "false",
        "optim.steps": 1_000_000,
        "optim.batch": given.batch,
        "run.precision": given.precision,
        "run.checkpoint": 1_000_000,
        "run.pictures": 1_000_000,
        "run.validate_every": 1_000_000,
        "run.device": given.device,
    }
    if not own:
        settings |= {"model.process": "variance_preserving", "model.schedule": "linear", "optim.lr": 1e-4}
        settings |= {"model.prediction": "epsilon", "model.weight": "simple", "model.levels": "uniform"}
        settings |= {"optim.optimiser": "adamw", "optim.weight_decay": 1e-6, "optim.spike": 0.0}
    return read_config(None, [f"{k}={v}" for k, v in settings.items()], preset="class-conditional")


def prepare(folder: Path, data: Path, given: argparse.Namespace) -> None:
    """Write the net that all begin with."""
    import torch

    from mezzotint.training.denoising import DenoisingStage

    stage = DenoisingStage(our_config(folder, data, given, own=False), torch.device("cpu"))
    stage.model.write(folder / "model", {}, dtype=None)


def find_torchvision() -> Any:
    """Make `import torchvision` work where its compiled operators are those of another build of torch.

    The transforms need none of them, but its import declares two; what is returned keeps them while it lives.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


def their_net(folder: Path) -> nn.Module:
    """The same net as diffusers has it, called as the other two call theirs."""
    from diffusers import UNet2DConditionModel
    from torch import nn

    class Plain(nn.Module):
        channels = out_dim = 3
        self_condition = False

        def __init__(self) -> None:
            super().__init__()
            self.net = UNet2DConditionModel.from_pretrained(folder / "model" / "unet")

        def forward(self, x: Tensor, time: Tensor, x_self_cond: None = None) -> Tensor:
            return self.net(x, time, None, return_dict=False)[0]

    return Plain()


class Ours:
    """`mezzotint train`."""

    def __init__(self, folder: Path, data: Path, given: argparse.Namespace, *, own: bool) -> None:
        import torch

        from mezzotint.training.denoising import DenoisingStage
        from mezzotint.training.loop import Trainer
        from mezzotint.training.watch import keep_freed_memory

        keep_freed_memory()
        self.make = lambda steps: our_config(folder, data, given, own=own).model_copy(
            update={
                "optim": our_config(folder, data, given, own=own).optim.model_copy(update={"steps": steps})
            }
        )
        device = torch.device(given.device)
        self.stage = DenoisingStage(self.make(1_000_000), device)
        self.net: nn.Module = self.stage.model.unet
        self.trainer = Trainer(self.stage, self.make(1_000_000), device)

    def plan(self, steps: int) -> None:
        self.trainer.config = self.make(steps)

    def steps(self) -> Iterator[Step]:
        for stats in self.trainer.steps():
            yield Step(stats.seconds, stats.wait)

    def save(self) -> None:
        self.trainer.save()

    def draw(self, count: int) -> Iterator[Tensor]:
        """Pictures [B, 3, H, W] in [0, 1]."""
        import torch

        from mezzotint.training.watch import averaged

        with averaged(self.trainer):
            for at in range(0, count, BATCH):
                seeds = range(at, min(at + BATCH, count))
                made = self.stage.generate([""] * len(seeds), list(seeds))
                yield torch.from_numpy(made).permute(0, 3, 1, 2).float() / 255


class Accelerated:
    """What diffusers' example of unconditional training does, with its defaults."""

    def __init__(self, folder: Path, data: Path, given: argparse.Namespace, *, own: bool) -> None:
        self.operators = find_torchvision()
        import torch
        from accelerate import Accelerator
        from diffusers import DDPMScheduler
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel
        from torchvision import transforms
        from torchvision.datasets import ImageFolder

        torch.manual_seed(given.seed)
        mixed = {"float32": "no", "bfloat16": "bf16"}[given.precision]
        self.accelerator = Accelerator(cpu=given.device == "cpu", mixed_precision=mixed)
        look = [transforms.Resize(SIDE), transforms.CenterCrop(SIDE), transforms.RandomHorizontalFlip()]
        look += [transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
        pictures = ImageFolder(str(data), transforms.Compose(look))
        loader = torch.utils.data.DataLoader(pictures, given.batch, shuffle=True, drop_last=True)
        net = their_net(folder)
        self.ema = EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)
        optimiser = torch.optim.AdamW(
            net.parameters(), 1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        self.schedule = lambda steps: get_scheduler(
            "cosine", optimiser, num_warmup_steps=500, num_training_steps=steps
        )
        self.rate = self.schedule(1_000_000)
        self.scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        self.net, self.optimiser, self.loader = self.accelerator.prepare(net, optimiser, loader)
        self.ema.to(self.accelerator.device)
        self.folder = folder / f"accelerate-{given.seed}"

    def plan(self, steps: int) -> None:
        self.rate = self.schedule(steps)

    def steps(self) -> Iterator[Step]:
        import torch
        import torch.nn.functional as F

        begun = time.perf_counter()
        while True:
            for clean, _ in self.loader:
                wait = time.perf_counter() - begun
                noise = torch.randn_like(clean)
                t = torch.randint(0, 1000, (len(clean),), device=clean.device)
                with self.accelerator.accumulate(self.net):
                    said = self.net(self.scheduler.add_noise(clean, noise, t), t)
                    loss = F.mse_loss(said.float(), noise.float())
                    self.accelerator.backward(loss)
                    self.accelerator.clip_grad_norm_(self.net.parameters(), 1.0)
                    self.optimiser.step()
                    self.rate.step()
                    self.optimiser.zero_grad()
                self.ema.step(self.net.parameters())
                loss.detach().item()
                yield Step(time.perf_counter() - begun, wait)
                begun = time.perf_counter()

    def save(self) -> None:
        self.accelerator.save_state(str(self.folder))

    def draw(self, count: int) -> Iterator[Tensor]:
        import torch
        from diffusers import DDIMScheduler

        self.ema.copy_to(self.net.parameters())
        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(SAMPLER_STEPS)
        with torch.no_grad():
            for at in range(0, count, BATCH):
                x = torch.randn(min(BATCH, count - at), 3, SIDE, SIDE, device=self.accelerator.device)
                for t in scheduler.timesteps:
                    x = scheduler.step(self.net(x, t.to(x.device)), t, x).prev_sample
                yield (x / 2 + 0.5).clamp(0, 1).float().cpu()


class Lucid:
    """The trainer of `denoising-diffusion-pytorch`, with its defaults."""

    def __init__(self, folder: Path, data: Path, given: argparse.Namespace, *, own: bool) -> None:
        self.operators = find_torchvision()
        import torch
        from denoising_diffusion_pytorch import GaussianDiffusion, Trainer

        torch.manual_seed(given.seed)
        net = their_net(folder)
        diffusion = GaussianDiffusion(net, image_size=SIDE, sampling_timesteps=SAMPLER_STEPS)
        results = folder / f"lucid-{given.seed}"
        results.mkdir(parents=True, exist_ok=True)
        knobs = {"amp": True, "mixed_precision_type": "bf16"} if given.precision == "bfloat16" else {}
        self.trainer = Trainer(
            diffusion,
            str(data),
            train_batch_size=given.batch,
            train_num_steps=1_000_000,
            save_and_sample_every=1_000_000,
            results_folder=str(results),
            calculate_fid=False,
            **knobs,
        )
        self.net = net

    def plan(self, steps: int) -> None:
        """Its rate is constant."""

    def steps(self) -> Iterator[Step]:
        """A step is what lies between two askings for data, which its own `train` does once a step."""
        from threading import Semaphore, Thread

        asked, go = Semaphore(0), Semaphore(0)
        times: list[tuple[float, float]] = []
        source = self.trainer.dl

        class Ended(Exception):
            pass

        class Told:
            ended = False

            def __iter__(self) -> Told:
                return self

            def __next__(self) -> Any:
                asked.release()
                go.acquire()
                if self.ended:
                    raise Ended
                begun = time.perf_counter()
                batch = next(source)
                times.append((begun, time.perf_counter()))
                return batch

        told = Told()
        self.trainer.dl = told

        def train() -> None:
            try:
                self.trainer.train()
            except Ended:
                pass
            finally:
                asked.release()

        thread = Thread(target=train, daemon=True)
        thread.start()
        asked.acquire()
        try:
            while True:
                go.release()
                asked.acquire()  # it asks for the next batch: the step is done
                if not thread.is_alive():
                    raise SystemExit("denoising-diffusion-pytorch ended before its time")
                begun, got = times[-1]
                yield Step(time.perf_counter() - begun, got - begun)
        finally:
            told.ended = True
            go.release()
            thread.join()

    def save(self) -> None:
        self.trainer.save(1)

    def draw(self, count: int) -> Iterator[Tensor]:
        import torch

        with torch.inference_mode():
            for at in range(0, count, BATCH):
                yield self.trainer.ema.ema_model.sample(batch_size=min(BATCH, count - at)).float().cpu()


SIDES: dict[str, Callable[..., Any]] = {
    "mezzotint": Ours,
    "accelerate": Accelerated,
    "denoising-diffusion-pytorch": Lucid,
}


# --- speed ---


def measure(side: str, folder: Path, data: Path, given: argparse.Namespace) -> Measured:
    """One side, in this process."""
    running = SIDES[side](folder, data, given, own=False)
    taken = [step for _, step in zip(range(WARMING + given.steps), running.steps(), strict=False)][WARMING:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    begun = time.perf_counter()
    running.save()
    saving = time.perf_counter() - begun
    seconds = median(step.seconds for step in taken)
    return Measured(
        side,
        given.batch / seconds,
        median(step.wait for step in taken) / seconds,
        saving / (saving + BETWEEN * seconds),
        peak,
        sum(p.numel() for p in running.net.parameters()),
    )


def speed(given: argparse.Namespace) -> Iterator[Measured]:
    """Every side in a process of its own, in turn, as often as there are rounds."""
    with tempfile.TemporaryDirectory() as folder:
        in_a_process(given, Path(folder), "prepare")
        for _ in range(given.rounds):
            for side in given.sides:
                yield Measured(**in_a_process(given, Path(folder), side))


def speed_table(runs: Iterable[Measured]) -> str:
    lines = [
        "| trainer | images / s (slowest - fastest run) | ratio | waiting for data | checkpoints | peak memory |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    by_side: dict[str, list[Measured]] = {}
    for run in runs:
        by_side.setdefault(run.side, []).append(run)
    rates = {side: median(run.images_per_second for run in mine) for side, mine in by_side.items()}
    others = [rate for side, rate in rates.items() if side != "mezzotint"]
    for side, mine in by_side.items():
        each = [run.images_per_second for run in mine]
        ratio = f"{rates[side] / max(others):.2f}" if others else ""
        lines.append(
            f"| {side} | {rates[side]:.1f} ({min(each):.1f} - {max(each):.1f}) | {ratio} "
            f"| {median(run.wait for run in mine):.1%} | {median(run.checkpoint for run in mine):.2%} "
            f"| {max(run.peak for run in mine) / 2**20:.0f} MiB |"
        )
    return "\n".join(lines)


# --- quality for cost ---


def trained_and_drawn(side: str, folder: Path, data: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Train for the minutes, write the pictures; in this process."""
    import torch

    from mezzotint.formats.tensors import write_tensors

    running = SIDES[side](folder, data, given, own=True)
    end = time.perf_counter() + given.minutes * 60
    done: list[float] = []
    for step in running.steps():
        done.append(step.seconds)
        if len(done) == WARMING + 5:  # now it is known how many there will be
            left = (end - time.perf_counter()) * SHARE / median(done[WARMING:])
            running.plan(max(len(done) + 1, len(done) + int(left)))
        if time.perf_counter() > end:
            break
    pictures = torch.cat(list(running.draw(given.samples)))
    file = folder / f"{side}-{given.seed}.safetensors"
    write_tensors(file, {"pictures": pictures.contiguous()}, replace=True)
    return {"file": str(file), "steps": len(done), "images": len(done) * given.batch}


def read_pictures(folder: Path, *, most: int) -> tuple[Tensor, Tensor]:
    """(pictures [N, 3, H, W] in [0, 1], classes [N]) of class folders, spread over them."""
    import numpy as np
    import torch

    from mezzotint.data.sources import read_records
    from mezzotint.data.views import View, seen

    records = read_records(folder)
    records = records[:: max(1, len(records) // most)][:most]
    names = sorted({record.extra["class"] for record in records})
    pixels = np.stack([seen(record.open(), View((SIDE, SIDE))).pixels for record in records])
    labels = torch.tensor([names.index(record.extra["class"]) for record in records])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, labels


def trained_judge(pictures: Tensor, labels: Tensor, *, epochs: int) -> nn.Module:
    """A classifier, whose last layer but one says what a picture looks like."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.manual_seed(0)
    widths = (3, 32, 64, 128, 128)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(widths[-1], int(labels.max()) + 1)
    both = nn.Sequential(body, head)
    steps = epochs * -(-len(pictures) // 128)
    optimiser = torch.optim.AdamW(both.parameters(), 2e-3, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(pictures)).split(128):
            x = pictures[rows]
            x = x.flip(-1) if float(torch.rand(())) < 0.5 else x
            shift = [int(n) for n in torch.randint(-3, 4, (2,))]
            loss = F.cross_entropy(both(x.roll(shift, (2, 3))), labels[rows], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
    return body.eval()


def features(judge: nn.Module, pictures: Tensor) -> np.ndarray:
    """[N, D] float64."""
    import torch

    with torch.no_grad():
        return torch.cat([judge(part) for part in pictures.split(256)]).double().numpy()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2) (Dowson and Landau 1982; Heusel et al. 2017)."""
    import numpy as np

    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_b @ root), 0, None)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def quality(given: argparse.Namespace) -> str:
    """Markdown: the distance of each trainer's pictures, mean and spread over the seeds."""
    from mezzotint.formats.tensors import read_tensors

    pictures, labels = read_pictures(given.judge, most=2 * given.samples)
    judge = trained_judge(pictures[::2], labels[::2], epochs=given.judge_epochs)
    true = features(judge, pictures[1::2])
    floor = frechet(features(judge, read_pictures(given.data, most=given.samples)[0]), true)
    lines = ["| trainer | pictures seen | distance (mean ± sd over seeds) | each |", "|---|---:|---:|---|"]
    with tempfile.TemporaryDirectory() as folder:
        in_a_process(given, Path(folder), "prepare")
        for side in given.sides:
            runs = []
            for seed in range(given.seeds):
                runs.append(in_a_process(given, Path(folder), side, seed=seed))
                made = read_tensors(Path(runs[-1]["file"]))["pictures"]
                runs[-1]["distance"] = frechet(features(judge, made), true)
                print(json.dumps({"side": side, "seed": seed} | runs[-1]), file=sys.stderr, flush=True)
            found = [run["distance"] for run in runs]
            spread = f" ± {stdev(found):.3f}" if len(found) > 1 else ""
            images = median(run["images"] for run in runs)
            each = ", ".join(f"{distance:.3f}" for distance in found)
            lines.append(f"| {side} | {images:,.0f} | {mean(found):.3f}{spread} | {each} |")
    return "\n".join([*lines, f"| (pictures that were trained on) | | {floor:.3f} | |"])


# --- processes ---


def in_a_process(given: argparse.Namespace, folder: Path, part: str, *, seed: int = 0) -> dict[str, Any]:
    """What this file prints when it is run again as one part."""
    words = [given.mode, f"--part={part}", f"--folder={folder}", f"--data={given.data}", f"--seed={seed}"]
    words += [
        f"--{name}={getattr(given, name)}" for name in ("batch", "steps", "precision", "device", "minutes")
    ]
    words += [f"--samples={given.samples}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=("speed", "quality"))
    parser.add_argument("--data", type=Path, required=True, help="class folders of pictures to train on")
    parser.add_argument("--judge", type=Path, help="others, half of them for the judge, half to compare with")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=60.0, help="of training, for each trainer and seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--judge-epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part == "prepare":
        prepare(given.folder, given.data, given)
        print("{}")
    elif given.part and given.mode == "speed":
        print(json.dumps(asdict(measure(given.part, given.folder, given.data, given))))
    elif given.part:
        print(json.dumps(trained_and_drawn(given.part, given.folder, given.data, given)))
    elif given.mode == "speed":
        print(speed_table(speed(given)))
    elif given.judge is None:
        parser.error("quality needs --judge: class folders of pictures that are not trained on")
    else:
        print(quality(given))


if __name__ == "__main__":
    main()
