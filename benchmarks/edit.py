"""Editing: image to image and inpainting by mezzotint and by diffusers, from one folder, with as many evaluations.

Each side runs in processes of its own, in turn: a process is timed from its start until the model is ready, edits once
to warm up, then edits on the clock. `replace` holds what is known as diffusers does; `langevin` is what mezzotint takes
unless told otherwise, with three further evaluations a step where they change something. diffusers' inpainting asks for
U-Nets of 4 or 9 channels and is told that the embedded one has 4, which changes nothing else. That both draw the same
is held by tests/tasks. Last, an inpainting is timed from the command to the picture on disk.

    python benchmarks/edit.py [--model emoji] [--pictures 4] [--rounds 3] [--threads 2] [--steps 20] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from generate import hardware, run

PROMPT, STRENGTH, SEED = "a cat face", 0.5, 7
TASKS = {
    "img2img": ("mezzotint", "diffusers"),
    "replace": ("mezzotint", "diffusers"),
    "langevin": ("mezzotint",),
}
Edit = Callable[[], object]


@dataclass(frozen=True)
class Measured:
    """One process."""

    task: str
    side: str
    start: float  # seconds from the start of the process until the model is ready
    seconds: float  # for a picture, median
    processor: float  # the same in processor time
    peak: int  # bytes


def pictures(size: int) -> tuple[Any, Any]:
    """A picture, and a mask of its right half."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:size, 0:size] / size
    ring = abs(np.hypot(x - 0.5, y - 0.5) - 0.3) < 0.1
    pixels = np.stack([np.where(ring, 220, 255 * x), np.where(ring, 30, 255 * y), 200 * (1 - x)], -1)
    mask = Image.new("L", (size, size))
    mask.paste(255, (size // 2, 0, size, size))
    return Image.fromarray(pixels.astype(np.uint8)), mask


def mezzotint_side(model: Path, task: str, steps: int) -> Edit:
    """What its README tells to write."""
    import mezzotint

    pipe = mezzotint.load(model, device="cpu")
    picture, mask = pictures(pipe.defaults.width)
    asked: dict[str, Any] = {"seed": SEED, "num_inference_steps": steps}
    if task == "img2img":
        return lambda: pipe.img2img(picture, PROMPT, strength=STRENGTH, **asked)
    return lambda: pipe.inpaint(picture, PROMPT, mask=mask, method=task, **asked)


def diffusers_side(model: Path, task: str, steps: int) -> Edit:
    """What its documentation tells to write."""
    import diffusers

    kind = "Img2Img" if task == "img2img" else "Inpaint"
    pipe = getattr(diffusers, f"StableDiffusion{kind}Pipeline").from_pretrained(model, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    scale = json.loads((model / "mezzotint.json").read_text())["guidance_scale"]
    picture, mask = pictures(pipe.unet.config.sample_size * pipe.vae_scale_factor)
    asked: dict[str, Any] = {"prompt": PROMPT, "image": picture, "guidance_scale": scale}
    if task == "img2img":  # it takes a share of the steps, we take as many as asked for
        return lambda: pipe(strength=STRENGTH, num_inference_steps=round(steps / STRENGTH), **asked)
    pipe.unet.register_to_config(in_channels=4)
    size = {"width": picture.width, "height": picture.height}
    return lambda: pipe(mask_image=mask, strength=1.0, num_inference_steps=steps, **size, **asked)


SIDES = {"mezzotint": mezzotint_side, "diffusers": diffusers_side}


def measure(given: argparse.Namespace) -> Measured:
    """One side and task in this process."""
    side, task = given.part
    edit = SIDES[side](Path(given.model), task, given.steps)
    start = time.time() - given.begun
    edit()
    clocks = [(time.perf_counter(), time.process_time())]
    for _ in range(given.pictures):
        edit()
        clocks.append((time.perf_counter(), time.process_time()))
    seconds, processor = (median(b[i] - a[i] for a, b in pairwise(clocks)) for i in (0, 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Measured(task, side, start, seconds, processor, peak)


def compare(given: argparse.Namespace) -> Iterator[Measured]:
    """Every process in turn, as often as there are rounds."""
    common = ["--model", str(given.model), "--pictures", str(given.pictures), "--steps", str(given.steps)]
    for _ in range(given.rounds):
        for task, sides in TASKS.items():
            for side in sides:
                words = [sys.executable, str(Path(__file__).resolve()), *common, "--part", side, task]
                yield Measured(**json.loads(run([*words, "--begun", repr(time.time())], given.threads)))


def to_disk(given: argparse.Namespace, folder: Path) -> float:
    """Seconds from the command to the inpainted picture on disk."""
    picture, mask = pictures(128)
    picture.save(folder / "picture.png")
    mask.save(folder / "mask.png")
    words = [sys.executable, "-m", "mezzotint", "inpaint", str(folder / "picture.png"), PROMPT]
    words += ["--mask", str(folder / "mask.png"), "-m", str(given.model), "-o", str(folder / "out.png"), "-f"]
    begun = time.perf_counter()
    run(words, given.threads)
    return time.perf_counter() - begun


def table(runs: list[Measured], disk: list[float]) -> str:
    """Markdown."""
    lines = [
        "| task | program | s / picture (fastest - slowest run) | speed | processor s / picture | start-up s "
        "| peak memory |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for task, sides in TASKS.items():
        of = {side: [r for r in runs if (r.task, r.side) == (task, side)] for side in sides}
        base = median(r.seconds for r in of.get("diffusers", of["mezzotint"]))
        for side, mine in of.items():
            seconds = [r.seconds for r in mine]
            lines.append(
                f"| {task} | {side} | {median(seconds):.3f} ({min(seconds):.3f} - {max(seconds):.3f}) "
                f"| {base / median(seconds):.2f} | {median(r.processor for r in mine):.2f} "
                f"| {median(r.start for r in mine):.2f} | {max(r.peak for r in mine) / 2**20:.0f} MiB |"
            )
    lines += [
        "",
        f"Command to inpainted picture on disk: {median(disk):.2f} s ({min(disk):.2f} - {max(disk):.2f})",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="emoji", help="an embedded model's name, or a diffusers folder")
    parser.add_argument("--pictures", type=int, default=4, help="times that each process edits on the clock")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each task and side")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="what was measured as JSON instead of a table")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        print(json.dumps(asdict(measure(given))))
        return
    embedded = Path(__file__).resolve().parents[1] / "src" / "mezzotint" / "models" / given.model
    given.model = embedded if embedded.exists() else Path(given.model).resolve()
    runs = []
    for done in compare(given):
        runs.append(done)
        print(f"{done.task}, {done.side}: {done.seconds:.3f} s a picture", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as name:
        disk = [to_disk(given, Path(name)) for _ in range(given.rounds)]
    if given.json:
        print(
            json.dumps(
                {"hardware": hardware(given.threads), "to_disk": disk, "runs": [asdict(r) for r in runs]}
            )
        )
    else:
        print(f"{table(runs, disk)}\n\n{hardware(given.threads)}")


if __name__ == "__main__":
    main()
