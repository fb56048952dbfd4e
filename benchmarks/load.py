"""Mixed load on a service, with clients that hang up, send rubbish and flood: no lost job, no 500, no leak.

    python benchmarks/load.py --minutes 10 --out out/load

Starts `mezzotint serve` with three keys on a port of this machine, and lets clients of each kind at it at once: honest
ones of all three APIs, one that watches and leaves, one that hangs up, one that cancels and deletes, one that sends
rubbish, one that stops in the middle of a request, one that floods. When the time is over, every job that was accepted
is waited for; then the database, the audit log, the metrics and the process itself are asked what became of it all.
Ends with 1 if a job was lost or ended twice, or a 500 was seen.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mezzotint.serve.keys import Keys
from mezzotint.serve.store import ENDED, Store

PATIENCE = 300.0  # seconds that what was accepted has to end when the time is over
PROMPTS = (
    "a red apple",
    "two green cats",
    "a rocket on a navy background",
    "an owl, (yellow:1.3)",
    "[cat:dog:0.5]",
)


class Seen:
    """What the clients saw, together."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.answers: Counter[tuple[str, int]] = Counter()  # (kind of client, status) -> how often
        self.accepted: set[str] = set()  # ids
        self.hung_up = 0
        self.wrong: list[str] = []  # what must not happen

    def answer(self, kind: str, status: int, body: bytes) -> None:
        with self.lock:
            self.answers[kind, status] += 1
            if status >= 500 and status not in (503, 504):
                self.wrong.append(f"{kind}: {status} {body[:200]!r}")


class Client:
    """One that goes on until the time is over."""

    def __init__(self, kind: str, port: int, key: str, seen: Seen, seed: int) -> None:
        self.kind, self.port, self.key, self.seen = kind, port, key, seen
        self.chance = random.Random(seed)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, data, {"Authorization": f"Bearer {self.key}", **headers})
            answer = connection.getresponse()
            found = answer.status, answer.read()
        finally:
            connection.close()
        self.seen.answer(self.kind, *found)
        return found

    def submit(self, **fields: Any) -> str | None:
        asked = {
            "prompt": self.chance.choice(PROMPTS),
            "num_inference_steps": self.chance.randint(1, 12),
        } | fields
        status, body = self.ask("POST", "/api/jobs", asked)
        if status != 202:
            time.sleep(0.2 if status == 429 else 0)
            return None
        job = str(json.loads(body)["id"])
        with self.seen.lock:
            self.seen.accepted.add(job)
        return job

    def cut(self, data: bytes, seconds: float) -> None:
        """Send these bytes, wait a moment, hang up."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5) as line:
            line.sendall(data)
            time.sleep(seconds)
        with self.seen.lock:
            self.seen.hung_up += 1

    def request(self, path: str, body: bytes, *, length: int | None = None) -> bytes:
        """A request as it goes over the line."""
        size = len(body) if length is None else length
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self.key}\r\n"
        return f"{head}Content-Type: application/json\r\nContent-Length: {size}\r\n\r\n".encode() + body


def native(client: Client) -> None:
    job = client.submit(num_images=client.chance.randint(1, 3))
    while job and json.loads(client.ask("GET", f"/api/jobs/{job}")[1])["state"] not in ENDED:
        time.sleep(0.3)


def openai(client: Client) -> None:
    body = {"prompt": client.chance.choice(PROMPTS), "quality": "low", "stream": client.chance.random() < 0.5}
    client.ask("POST", "/v1/images/generations", body)


def a1111(client: Client) -> None:
    body = {"prompt": client.chance.choice(PROMPTS), "steps": 6, "width": 128, "height": 128, "cfg_scale": 5}
    client.ask("POST", "/sdapi/v1/txt2img", body)
    client.ask("GET", "/sdapi/v1/progress")


def watches(client: Client) -> None:
    if job := client.submit():
        head = f"GET /api/jobs/{job}/events?previews=true HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        client.cut(f"{head}Authorization: Bearer {client.key}\r\n\r\n".encode(), client.chance.random())


def hangs_up(client: Client) -> None:
    path, body = client.chance.choice(
        [
            ("/v1/images/generations", {"prompt": "a red apple", "stream": True, "partial_images": 3}),
            ("/v1/images/generations", {"prompt": "a red apple"}),
            ("/sdapi/v1/txt2img", {"prompt": "a red apple", "steps": 30, "width": 128, "height": 128}),
        ]
    )
    client.cut(client.request(path, json.dumps(body).encode()), client.chance.random())


def cancels(client: Client) -> None:
    if job := client.submit(num_inference_steps=40):
        time.sleep(client.chance.random())
        client.ask("POST", f"/api/jobs/{job}/cancel")


def stops_midway(client: Client) -> None:
    whole = client.request(
        "/api/jobs", b'{"prompt": "a red apple"}', length=client.chance.choice([25, 10**6])
    )
    client.cut(whole[: client.chance.randrange(1, len(whole))], client.chance.random())


def rubbish(client: Client) -> None:
    chance = client.chance
    noise = chance.randbytes(chance.choice([0, 1, 100, 100_000]))
    path = chance.choice(
        ["/api/jobs", "/v1/images/generations", "/v1/images/edits", "/sdapi/v1/txt2img", "/sdapi/v1/img2img",
         "/sdapi/v1/png-info", "/api/read", "/api/verify", "/api/forward", "/api/reverse", "/../../etc/passwd"]
    )  # fmt: skip
    value = chance.choice(
        [-1, 10**12, 1e308, "", "x" * 40_000, None, [], {}, [[[]]], "/etc/passwd", "http://[::1]/", True]
    )
    name = chance.choice(
        ["prompt", "seed", "num_inference_steps", "width", "image", "init_images", "mask", "loras", "n", "steps",
         "task", "sampler", "size", "batch_size", "no_such_field"]
    )  # fmt: skip
    body = chance.choice([noise, b"{", b"[1, 2", json.dumps({"prompt": "x", name: value}).encode()])
    kind = chance.choice(["application/json", "multipart/form-data; boundary=x", "image/png", ""])
    status, answered = client.ask("POST", path, body, **{"Content-Type": kind})
    if status == 202:  # it was not so bad after all
        with client.seen.lock:
            client.seen.accepted.add(json.loads(answered)["id"])
    if chance.random() < 0.3:
        client.cut(noise, 0.1)


def floods(client: Client) -> None:
    client.submit(deadline=20.0)


def strangers(client: Client) -> None:
    client.ask("POST", "/api/jobs", {"prompt": "a red apple"}, Authorization="Bearer mz-nobody")
    time.sleep(0.2)


KINDS: tuple[Callable[[Client], None], ...] = (
    native, native, openai, a1111, watches, hangs_up, cancels, stops_midway, rubbish, floods, strangers,
)  # fmt: skip


def until(end: float, client: Client, act: Callable[[Client], None]) -> None:
    while time.monotonic() < end:
        try:
            act(client)
        except (OSError, http.client.HTTPException) as error:
            with client.seen.lock:
                client.seen.answers[client.kind, 0] += 1
            if "refused" in str(error):
                client.seen.wrong.append(f"{client.kind}: {error}")
                return


def process(pid: int) -> dict[str, float]:
    """What the system says of a process: memory in MB, threads, open files."""
    status = Path(f"/proc/{pid}/status").read_text()
    told = dict(line.split(":", 1) for line in status.splitlines())
    return {
        "MB": int(told["VmRSS"].split()[0]) / 1024,
        "threads": int(told["Threads"]),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
    }


def free_port() -> int:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])


def ready(port: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        time.sleep(0.2)
    raise SystemExit("the server did not start")


def ended(data: Path, seconds: float) -> Counter[str]:
    """How many jobs stand how, when all have ended or the time for that is over."""
    end = time.monotonic() + seconds
    while True:
        with sqlite3.connect(data / "mezzotint.sqlite") as db:
            states = Counter(dict(db.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state")))
        if not states["queued"] + states["running"] or time.monotonic() > end:
            return states
        time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--out", type=Path, help="a folder for the table")
    given = parser.parse_args()
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
    seen, port = Seen(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        store = Store(data)
        names = {"ann": None, "bob": None, "flooder": 3000.0}
        keys = {name: Keys(store).add(name, rate=rate) for name, rate in names.items()}
        store.close()
        command = [sys.executable, "-m", "mezzotint", "serve", "-m", given.model, "--data", folder, "--port", str(port),
                   "--device", "cpu", "--waiting", "30", "--deadline", "120"]  # fmt: skip
        log = (data / "log").open("wb")
        server = subprocess.Popen(command, stderr=log, stdout=log)
        try:
            ready(port, server)
            first = Client("first", port, keys["ann"], seen, 0)
            native(first)
            rows = [("start", process(server.pid))]
            end = time.monotonic() + 60 * given.minutes
            clients = [
                Client(
                    act.__name__, port, keys["flooder" if act is floods else ("ann", "bob")[i % 2]], seen, i
                )
                for i, act in enumerate(KINDS)
            ]
            threads = [
                threading.Thread(target=until, args=(end, client, act))
                for client, act in zip(clients, KINDS, strict=True)
            ]
            for thread in threads:
                thread.start()
            while (left := end - time.monotonic()) > 0:
                time.sleep(min(60.0, left))
                rows.append(
                    (
                        f"after {given.minutes - max(0, end - time.monotonic()) / 60:.1f} min",
                        process(server.pid),
                    )
                )
            for thread in threads:
                thread.join()
            states = ended(data, PATIENCE)
            native(first)
            rows.append(("all ended", process(server.pid)))
        finally:
            server.terminate()
            stopped = server.wait(120)
            log.close()
        with sqlite3.connect(data / "mezzotint.sqlite") as db:
            known = {row[0] for row in db.execute("SELECT id FROM jobs")}
        audit = [json.loads(line) for line in (data / "audit.jsonl").read_text().splitlines()]
        ends = Counter(line["job"] for line in audit if line["what"] in ENDED and "job" in line)
        logged = (data / "log").read_bytes()
        trouble = sum(b'"level": "error"' in line for line in logged.splitlines())
    lost = len(seen.accepted - known) + states["queued"] + states["running"]
    twice = sum(count > 1 for count in ends.values())
    by_status = Counter(dict.fromkeys((0, 500), 0))
    for (_, status), count in seen.answers.items():
        by_status[status] += count
    lines = [
        f"{given.minutes:g} minutes, {len(KINDS)} clients, {given.model}", "", "| | |", "|---|---|",
        f"| jobs accepted | {sum(states.values())} |",
        *(f"| of these {state} | {states[state]} |" for state in ENDED),
        f"| lost | {lost} |", f"| ended twice | {twice} |",
        f"| errors in the log | {trouble} |", f"| connections that a client hung up | {seen.hung_up} |",
        *(f"| answers {status or 'cut off by the server'} | {by_status[status]} |" for status in sorted(by_status)),
        "", "| moment | MB | threads | open files |", "|---|---|---|---|",
        *(f"| {name} | {told['MB']:.0f} | {told['threads']:.0f} | {told['files']:.0f} |" for name, told in rows),
        "", f"told to stop, it ended with {stopped}",
    ]  # fmt: skip
    print("\n".join([*lines, *seen.wrong[:20]]))
    if given.out:
        (given.out / "load.log").write_bytes(logged)
        (given.out / "load.md").write_text("\n".join(lines) + "\n")
    return int(bool(lost or twice or trouble or seen.wrong or stopped))


if __name__ == "__main__":
    sys.exit(main())
