"""Memory that a run takes, measured beside what `mezzotint.memory` says it will be.

Each run is a process of its own: a model is loaded, then a picture is drawn in one step. The highest resident size is
read after loading and after drawing (Linux keeps it, and lets a process begin it anew); what drawing adds to the size
after loading is compared with the estimate.

    python benchmarks/memory.py [--models emoji FOLDER] [--sizes 128 256] [--precisions float32 bfloat16]

`python benchmarks/sd15.py --part make --folder FOLDER` writes a model of Stable Diffusion 1.5's size, random weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

MIB = 2**20


def resident(which: str) -> int:
    """Bytes: `VmRSS` now, `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def begin_anew() -> None:
    """The highest resident size is what it is now."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(model: str, size: int, precision: str, engine: str) -> dict[str, float]:
    """One run, in bytes."""
    import mezzotint
    from mezzotint import Request, memory

    bare = resident("VmRSS")
    begin_anew()
    pipeline = mezzotint.load(model, device="cpu", precision=precision, engine=engine)
    loaded, loading = resident("VmRSS"), resident("VmHWM")
    request = Request(prompt="a red apple", seed=1, num_inference_steps=1, width=size, height=size)
    estimate = memory.need(pipeline, pipeline.settle(request), 1)
    begin_anew()
    list(pipeline.generate(request, together=1))
    return {
        "weights": loaded - bare,
        "loading": loading - bare,
        "estimate": estimate.total,
        "filters": estimate.remembered,
        "drawing": resident("VmHWM") - loaded,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["emoji"], help="embedded names, folders, files")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256], help="pixels of a side")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        model, size, precision = given.one
        print(json.dumps(measure(model, int(size), precision, given.engine)))
        return
    print(
        "| model | size | precision | weights, MiB | peak of loading | drawing adds, MiB | estimate | ratio |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for model in given.models:
        for precision in given.precisions:
            for size in given.sizes:
                command = [sys.executable, __file__, "--engine", given.engine]
                command += ["--one", model, str(size), precision]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
                run = json.loads(done.stdout.splitlines()[-1])
                cells = [
                    Path(model).name,
                    str(size),
                    precision,
                    f"{run['weights'] / MIB:.0f}",
                    f"{run['loading'] / run['weights']:.2f}",
                    f"{run['drawing'] / MIB:.0f}",
                    f"{run['estimate'] / MIB:.0f}",
                    f"{run['estimate'] / run['drawing']:.2f}",
                ]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
