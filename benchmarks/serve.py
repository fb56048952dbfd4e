"""Serving: step-level batching beside one job at a time and beside batching whole requests.

    python benchmarks/serve.py --out out/serve            # about ten minutes on two cores
    python benchmarks/serve.py --seconds 20 --loads 0.9   # a look

A mix of short jobs (4 steps) and long ones (50 steps) arrives at random (Poisson, the same arrivals for all) at a share
of what one-at-a-time can do, which is measured first. All three draw the same pictures with the same code; they differ
in who shares a forward:

    alone      one picture at a time, in the order of arrival
    requests   whatever waits when the machine falls idle is drawn together, and leaves together
    steps      the service's own queue and lane

Written as a table: throughput, median and 99th percentile of the latency of short and of long jobs. Also measured: what
the promise costs that a picture is, to the last bit, the one that it would be alone (`--exact-cost`).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from mezzotint.pipeline import Picture, Pipeline
from mezzotint.request import Request
from mezzotint.serve.keys import ANYBODY
from mezzotint.serve.lane import Lane
from mezzotint.serve.service import Service
from mezzotint.serve.settings import Limits, Settings

SHORT, LONG = 4, 50  # steps
SHARE = 0.8  # of short ones
TOGETHER = 8


@dataclass
class Job:
    """One arrival, and when it was done."""

    at: float
    steps: int
    seed: int
    done: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def fields(self) -> dict[str, object]:
        return {"prompt": "a red apple", "seed": self.seed, "num_inference_steps": self.steps}

    def finish(self) -> None:
        self.done = time.monotonic()
        self.over.set()


def arrivals(rate: float, seconds: float, seed: int = 0) -> list[Job]:
    """Jobs at `rate` a second for so many seconds."""
    chance, at, jobs = random.Random(seed), 0.0, []
    while (at := at + chance.expovariate(rate)) < seconds:
        jobs.append(Job(at, SHORT if chance.random() < SHARE else LONG, len(jobs)))
    return jobs


def played(jobs: list[Job], submit: Callable[[Job], None]) -> float:
    """Hands in the jobs at their times and waits for all; seconds from the first to the last."""
    begun = time.monotonic()
    for job in jobs:
        time.sleep(max(0.0, begun + job.at - time.monotonic()))
        job.at = time.monotonic()
        submit(job)
    for job in jobs:
        job.over.wait()
    return time.monotonic() - begun


def draw(pipeline: Pipeline, job: Job) -> None:
    for event in pipeline.generate(Request(**job.fields)):
        if isinstance(event, Picture):
            job.finish()


def alone(pipeline: Pipeline, jobs: list[Job]) -> float:
    with ThreadPoolExecutor(1) as pool:
        return played(jobs, lambda job: void(pool.submit(draw, pipeline, job)))


def requests(pipeline: Pipeline, jobs: list[Job]) -> float:
    """Jobs of equal steps cannot be told from here which will come: whoever waits is drawn together, and the batch
    takes as long as its longest; all of it leaves then."""
    waiting: list[Job] = []
    changed, ended = threading.Condition(), threading.Event()
    lane = Lane(TOGETHER)
    shared = lane.shared(pipeline)

    def serve() -> None:
        with ThreadPoolExecutor(TOGETHER) as pool:
            while True:
                with changed:
                    changed.wait_for(lambda: bool(waiting) or ended.is_set(), 0.1)
                    batch, waiting[:] = waiting[:TOGETHER], waiting[TOGETHER:]
                if not batch and ended.is_set():
                    return
                drawn = [pool.submit(_member, lane, shared, Request(**job.fields)) for job in batch]
                for one in drawn:
                    one.result()
                for job in batch:
                    job.finish()

    def submit(job: Job) -> None:
        with changed:
            waiting.append(job)
            changed.notify_all()

    thread = threading.Thread(target=serve)
    thread.start()
    took = played(jobs, submit)
    ended.set()
    thread.join()
    lane.close()
    return took


def _member(lane: Lane, pipeline: Pipeline, request: Request) -> None:
    with lane.member():
        for _ in pipeline.generate(request):
            pass


def steps(model: str, jobs: list[Job]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            data=Path(folder), models=(model,), device="cpu", running=TOGETHER, drain=1.0,
            limits=Limits(waiting=100_000, deadline=86_400.0),
        )  # fmt: skip
        service = Service(settings)
        ids: dict[str, Job] = {}
        tell = service._end

        def ended(live: object, state: str, why: str) -> None:
            tell(live, state, why)  # type: ignore[arg-type]
            assert state == "done", why
            ids[live.job.id].finish()  # type: ignore[attr-defined]

        service._end = ended  # type: ignore[method-assign]
        service.start()

        def submit(job: Job) -> None:
            with service._lock:
                ids[service.submit(ANYBODY, job.fields).id] = job

        took = played(jobs, submit)
        service.stop()
        return took


def void(_: object) -> None:
    return None


def told(name: str, load: float, jobs: list[Job], took: float) -> dict[str, object]:
    row: dict[str, object] = {
        "how": name,
        "load": load,
        "jobs": len(jobs),
        "per_second": round(len(jobs) / took, 3),
    }
    for kind, count in (("short", SHORT), ("long", LONG)):
        waits = sorted(job.done - job.at for job in jobs if job.steps == count)
        if waits:
            row[f"{kind}_median"] = round(statistics.median(waits), 3)
            row[f"{kind}_p99"] = round(waits[min(len(waits) - 1, int(0.99 * len(waits)))], 3)
    return row


def exact_cost(pipeline: Pipeline, repeats: int) -> dict[str, float]:
    """Seconds of a picture in company of seven, with the promise and without."""
    found = {}
    for name, exact in (("held to the bit", True), ("not held", False)):
        lane = Lane(TOGETHER, exact=exact)
        member = partial(_member, lane, lane.shared(pipeline))
        times = []
        for _ in range(repeats + 1):
            begun = time.monotonic()
            with ThreadPoolExecutor(TOGETHER) as pool:
                wanted = [
                    Request(prompt="a red apple", seed=i, num_inference_steps=10) for i in range(TOGETHER)
                ]
                list(pool.map(member, wanted))
            times.append((time.monotonic() - begun) / TOGETHER)
        lane.close()
        found[name] = statistics.median(times[1:])
    return found


def lane_cost(pipeline: Pipeline, repeats: int) -> dict[str, float]:
    """Seconds of a picture of 20 steps by itself, and as the only one in a lane, in turns: what the lane costs."""
    lane = Lane(TOGETHER)
    ways = {"by itself": pipeline, "alone in the lane": lane.shared(pipeline)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(repeats + 1):
        for name, one in ways.items():
            begun = time.monotonic()
            _member(lane, one, Request(prompt="a red apple", seed=i, num_inference_steps=20))
            times[name].append(time.monotonic() - begun)
    lane.close()
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


def compared(rows: list[dict[str, object]]) -> list[str]:
    """For each load, step-level batching beside the other two."""
    lines = []
    for load in dict.fromkeys(row["load"] for row in rows):
        at = {str(row["how"]): row for row in rows if row["load"] == load}
        for other in ("alone", "requests"):
            shares = [
                float(at[one][name]) / float(at[two][name])  # type: ignore[arg-type]
                for name, one, two in (("short_p99", other, "steps"), ("per_second", "steps", other))
                if name in at[one] and at[two].get(name)  # of few jobs there may be no short one
            ]
            if len(shares) == 2:
                lines.append(
                    f"At {load:g} of capacity, steps beside {other}: P99 of short jobs {shares[0]:.1f} times better, "
                    f"throughput {shares[1]:.2f} times as high."
                )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--seconds", type=float, default=50.0, help="of arrivals at each load")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.9, 1.5])
    parser.add_argument("--out", type=Path, help="a folder for the table")
    parser.add_argument(
        "--exact-cost", type=int, default=5, metavar="N", help="times that the promise is measured"
    )
    given = parser.parse_args()
    pipeline = Pipeline.load(given.model, device="cpu")
    warm = [Job(0.0, count, 1) for count in (SHORT, LONG) for _ in range(2)]
    seconds = {}
    for job in warm:
        begun = time.monotonic()
        draw(pipeline, job)
        seconds[job.steps] = time.monotonic() - begun
    capacity = 1 / (SHARE * seconds[SHORT] + (1 - SHARE) * seconds[LONG])
    print(f"one at a time: {seconds[SHORT]:.2f} s and {seconds[LONG]:.2f} s, {capacity:.3f} jobs a second")
    rows = []
    for load in given.loads:
        for name, run in (("alone", alone), ("requests", requests), ("steps", None)):
            jobs = arrivals(load * capacity, given.seconds)
            took = run(pipeline, jobs) if run else steps(given.model, jobs)
            rows.append(told(name, load, jobs, took))
            print(json.dumps(rows[-1]), flush=True)
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in columns) + " |" for row in rows]
    lines += ["", *compared(rows)]
    if given.exact_cost:
        took = lane_cost(pipeline, given.exact_cost)
        lines += [
            "",
            "Seconds of a picture of 20 steps: " + ", ".join(f"{s:.3f} {n}" for n, s in took.items()),
        ]
        cost = exact_cost(pipeline, given.exact_cost)
        measured = ", ".join(f"{seconds:.3f} {name}" for name, seconds in cost.items())
        lines += ["", f"Seconds of a picture of 10 steps among {TOGETHER}: {measured}"]
    lines += [
        "",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, short = {SHORT} steps, long = {LONG}",
    ]
    print("\n".join(lines))
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "serve.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
