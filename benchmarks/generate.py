"""Generation: the same pictures by mezzotint and by diffusers, from one folder, with the same seeds, steps and sampler.

Each side runs in processes of its own, in turn (A B A B ...), for each size of batch: a process is timed from its start
until the model is ready, draws once to warm up, then draws on the clock. Seconds are medians over processes of medians.
The pictures are compared value by value. Last, each program is timed from the command to the picture on disk.

    python benchmarks/generate.py [--model emoji] [--batches 1 8] [--pictures 4] [--rounds 3] [--threads 2] [--json]
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
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if (
    TYPE_CHECKING
):  # the process that starts the others stays small: a child's ru_maxrss counts its parent's, too
    from numpy import ndarray

PROMPT = "a red apple"
SEED = 7
AGREED = 1  # of 255: as far as two roundings of one picture may be apart
Draw = Callable[[int], "ndarray"]  # how many, from the seed on -> uint8 [B, H, W, 3]


@dataclass(frozen=True)
class Measured:
    """One process."""

    side: str
    batch: int
    start: float  # seconds from the start of the process until the model is ready
    seconds: float  # for a picture, median
    processor: float  # seconds of processor time for a picture, over all threads, median
    peak: int  # bytes
    pictures: str  # file


@dataclass(frozen=True)
class Row:
    """The rounds of one side and one size of batch together."""

    side: str
    batch: int
    seconds: float
    fastest: float
    slowest: float
    processor: float
    start: float
    peak: int


def mezzotint_side(model: Path, grid: str | None) -> Draw:
    """What its README tells to write."""
    import mezzotint

    pipeline = mezzotint.load(model, device="cpu")

    def draw(count: int) -> ndarray:
        import numpy as np

        return np.stack([np.asarray(p) for p in pipeline(PROMPT, seed=SEED, num_images=count, grid=grid)])

    return draw


def diffusers_side(model: Path, grid: str | None) -> Draw:
    """What its documentation tells to write; the first noise is ours, so that the pictures can be compared."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(model, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = _scheduler(model, grid)
    said = json.loads((model / "mezzotint.json").read_text())

    def draw(count: int) -> ndarray:
        import numpy as np

        made = pipeline(
            PROMPT,
            num_images_per_prompt=count,
            num_inference_steps=said["num_inference_steps"],
            guidance_scale=said["guidance_scale"],
            latents=_noise(count, pipeline.unet.config.in_channels, pipeline.unet.config.sample_size),
        )
        return np.stack([np.asarray(image) for image in made.images])

    return draw


SIDES: dict[str, Callable[[Path, str | None], Draw]] = {
    "mezzotint": mezzotint_side,
    "diffusers": diffusers_side,
}


def _scheduler(model: Path, grid: str | None) -> Any:
    """The folder's own, on another grid if one is given."""
    import diffusers

    config = json.loads((model / "scheduler" / "scheduler_config.json").read_text())
    if grid is not None:
        from dataclasses import replace

        from mezzotint.formats.scheduler import from_config, to_config

        config = to_config(replace(from_config(config), grid=grid, grid_knobs={}))
    return getattr(diffusers, config["_class_name"]).from_config(config)


def _noise(count: int, channels: int, side: int) -> Any:
    from mezzotint.diffusion.noise import INITIAL, batch_noise

    return batch_noise(range(SEED, SEED + count), (channels, side, side))(INITIAL)


def measure(
    side: str, model: Path, grid: str | None, batch: int, pictures: int, begun: float, out: Path
) -> Measured:
    """Run one side in this process, which was started at `begun` (seconds since the epoch)."""
    draw = SIDES[side](model, grid)
    start = time.time() - begun
    made = draw(batch)
    clocks = [(time.perf_counter(), time.process_time())]
    for _ in range(pictures):
        draw(batch)
        clocks.append((time.perf_counter(), time.process_time()))
    made.tofile(out)
    took = [[(after[i] - before[i]) / batch for before, after in pairwise(clocks)] for i in (0, 1)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Measured(side, batch, start, median(took[0]), median(took[1]), peak, str(out))


def run(command: Sequence[str], threads: int) -> str:
    """The last line that a command prints."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout.splitlines()[-1]


def part(side: str, folder: Path, batch: int, given: argparse.Namespace) -> Measured:
    """One side in a process of its own."""
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--part",
        side,
        "--out",
        str(folder / f"{side}-{batch}"),
    ]
    command += ["--model", str(given.model), "--batches", str(batch), "--pictures", str(given.pictures)]
    command += ["--grid", given.grid] if given.grid else []
    return Measured(**json.loads(run([*command, "--begun", repr(time.time())], given.threads)))


def to_disk(side: str, folder: Path, given: argparse.Namespace) -> float:
    """Seconds from the command to one picture on disk."""
    out = str(folder / "picture.png")
    if side == "mezzotint":
        command = [
            sys.executable,
            "-m",
            "mezzotint",
            "generate",
            PROMPT,
            "-m",
            str(given.model),
            "-o",
            out,
            "-f",
        ]
    else:
        script = (
            "import sys; from diffusers import StableDiffusionPipeline as P\n"
            "model, prompt, steps, scale, out = sys.argv[1:]\n"
            "pipe = P.from_pretrained(model, local_files_only=True)\n"
            "pipe(prompt, num_inference_steps=int(steps), guidance_scale=float(scale)).images[0].save(out); print(out)"
        )
        said = json.loads((given.model / "mezzotint.json").read_text())
        numbers = [str(said["num_inference_steps"]), str(said["guidance_scale"])]
        command = [sys.executable, "-c", script, str(given.model), PROMPT, *numbers, out]
    begun = time.perf_counter()
    run(command, given.threads)
    return time.perf_counter() - begun


def summary(runs: Sequence[Measured]) -> list[Row]:
    """A row per size of batch and side."""
    rows = []
    for batch, side in dict.fromkeys((run.batch, run.side) for run in runs):
        mine = [run for run in runs if (run.batch, run.side) == (batch, side)]
        seconds = [run.seconds for run in mine]
        rows.append(
            Row(
                side,
                batch,
                median(seconds),
                min(seconds),
                max(seconds),
                processor=median(run.processor for run in mine),
                start=median(run.start for run in mine),
                peak=max(run.peak for run in mine),
            )
        )
    return rows


def apart(runs: Sequence[Measured], batch: int) -> tuple[int, float]:
    """The largest difference between the sides' values, of 255, and the share of values that differ at all."""
    import numpy as np

    files = {run.side: run.pictures for run in runs if run.batch == batch}
    ours, theirs = (np.fromfile(files[side], np.uint8).astype(int) for side in SIDES)
    return int(abs(ours - theirs).max()), float((ours != theirs).mean())


def table(rows: Sequence[Row], disk: dict[str, list[float]]) -> str:
    """Markdown."""
    lines = [
        "| batch | program | s / picture (fastest - slowest run) | speed | processor s / picture | start-up s | ratio "
        "| peak memory |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        base = next(r for r in rows if (r.batch, r.side) == (row.batch, "diffusers"))
        lines.append(
            f"| {row.batch} | {row.side} | {row.seconds:.3f} ({row.fastest:.3f} - {row.slowest:.3f}) "
            f"| {base.seconds / row.seconds:.2f} | {row.processor:.2f} | {row.start:.2f} "
            f"| {row.start / base.start:.2f} | {row.peak / 2**20:.0f} MiB |"
        )
    lines += ["", "| program | command to picture on disk, s (fastest - slowest) |", "|---|---:|"]
    lines += [f"| {side} | {median(s):.2f} ({min(s):.2f} - {max(s):.2f}) |" for side, s in disk.items()]
    return "\n".join(lines)


def hardware(threads: int) -> str:
    """One line: processor, threads, versions."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    processor = names[0].split(":", 1)[1].strip() if names else platform.processor()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    return (
        f"{processor}, {threads} of {os.cpu_count()} threads; Python {platform.python_version()}, {packages}"
    )


def compare(given: argparse.Namespace, folder: Path) -> Iterator[Measured]:
    """Every process in turn, as often as there are rounds."""
    for _ in range(given.rounds):
        for batch in given.batches:
            for side in SIDES:
                yield part(side, folder, batch, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="emoji", help="an embedded model's name, or a diffusers folder")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--pictures", type=int, default=4, help="times that each process draws on the clock")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each side and size of batch")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--grid",
        default="trailing",
        help="of both sides, with whole timesteps: diffusers rounds others, we do not",
    )
    parser.add_argument("--json", action="store_true", help="rows and facts as JSON instead of a table")
    parser.add_argument("--part", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        model, batch = Path(given.model), given.batches[0]
        done = measure(given.part, model, given.grid, batch, given.pictures, given.begun, given.out)
        print(json.dumps(asdict(done)))
        return

    embedded = Path(__file__).resolve().parents[1] / "src" / "mezzotint" / "models" / given.model
    given.model = embedded if embedded.exists() else Path(given.model).resolve()
    runs: list[Measured] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for done in compare(given, folder):
            runs.append(done)
            print(
                f"{done.side}, batch {done.batch}: {done.seconds:.3f} s a picture, {done.processor:.2f} s of processor "
                f"time, start-up {done.start:.2f} s, {done.peak / 2**20:.0f} MiB",
                file=sys.stderr,
                flush=True,
            )
        differ = {batch: apart(runs, batch) for batch in given.batches}
        disk: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(given.rounds):
            for side in SIDES:
                disk[side].append(to_disk(side, folder, given))
    rows = summary(runs)
    if given.json:
        facts = {"hardware": hardware(given.threads), "apart": differ, "to_disk": disk}
        print(json.dumps(facts | {"rows": [asdict(row) for row in rows]}, indent=2))
    else:
        print(f"{table(rows, disk)}\n\n{hardware(given.threads)}")
        for batch, (most, share) in differ.items():
            print(
                f"pictures, batch {batch}: apart by at most {most} of 255, {share:.2%} of the values differ"
            )
    if max(most for most, _ in differ.values()) > AGREED:
        raise SystemExit(f"the two sides do not draw the same pictures: {differ}")


if __name__ == "__main__":
    main()
