"""The native API over HTTP: accepted jobs end once, in the pictures that the command line makes."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from mezzotint import Pipeline
from mezzotint.formats.image import read_recipe, save_image
from mezzotint.request import Request


def sse(response):
    """(event, data) of a stream."""
    name = None
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def test_a_job_from_acceptance_to_pictures(shared, model):
    accepted = shared.post(num_images=3, seed=5, negative_prompt="cats")
    assert accepted.status_code == 202
    job = accepted.json()
    assert job["request"]["sampler"] == "dpmpp_2m"  # settled when it is accepted
    done = shared.wait(job["id"])
    assert done["state"] == "done"
    assert [picture["seed"] for picture in done["pictures"]] == [5, 6, 7]
    alone = Pipeline.load(model, device="cpu")("a red apple", negative_prompt="cats", seed=6)[0]
    png = shared.client.get(done["pictures"][1]["url"]).content
    assert np.array_equal(pixels(png), np.asarray(alone))
    recipe = read_recipe(png)
    assert recipe == done["pictures"][1]["recipe"]
    assert Request.of_recipe(recipe).seed == 6


def test_events_tell_of_steps_and_show_the_picture_on_its_way(shared):
    job = shared.post(num_inference_steps=60, sampler="heun").json()["id"]
    with shared.client.stream("GET", f"/api/jobs/{job}/events?previews=true") as response:
        told = list(sse(response))
    names = [name for name, _ in told]
    assert names[-1] == "end"
    assert told[-1][1]["state"] == "done"
    assert names.count("picture") == 1
    levels = [data["sigma"] for name, data in told if name == "step" and data["step"]]
    assert levels == sorted(levels, reverse=True)
    assert levels[-1] == 0
    previews = [data for name, data in told if name == "preview"]
    assert previews
    assert pixels(base64.b64decode(previews[0]["png"])).shape == (16, 16, 3)
    with shared.client.stream("GET", f"/api/jobs/{job}/events") as response:  # told again to who comes late
        assert [name for name, _ in sse(response)] == ["picture", "end"]


def file_of(image, kind="PNG"):
    held = io.BytesIO()
    image.save(held, kind)
    return held.getvalue()


def test_a_job_that_works_on_a_picture(shared, model):
    given = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    data = file_of(given)
    fields = {"task": "img2img", "prompt": "cats", "strength": 0.5, "seed": 4}
    accepted = shared.post(image=base64.b64encode(data).decode(), **fields)
    assert accepted.status_code == 202, accepted.text
    done = shared.wait(accepted.json()["id"])
    made = shared.client.get(done["pictures"][0]["url"]).content
    alone = Pipeline.load(model, device="cpu").img2img(given, "cats", strength=0.5, seed=4)[0]
    assert np.array_equal(pixels(made), np.asarray(alone))
    assert b"compositeWithTrainedAlgorithmicMedia" in made
    assert shared.client.get(f"/api/jobs/{done['id']}/inputs/image").content == data
    assert shared.client.get(f"/api/jobs/{done['id']}/inputs/prompt").status_code == 404


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("/etc/passwd", "base64"),
        ({"path": "/etc/passwd"}, "base64"),
        ("http://127.0.0.1/", "base64"),
        (base64.b64encode(b"no picture at all").decode(), "is not a picture"),
        (base64.b64encode(file_of(Image.new("1", (5000, 5000)))).decode(), "pixels"),
    ],
)
def test_pictures_from_afar_are_bytes_in_bounds_and_never_paths(shared, image, says):
    answer = shared.post(task="img2img", image=image)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_a_prompt_or_a_recipe_cannot_name_a_path_either(shared, tmp_path):
    """A LoRA's tag, or the recipe in a picture that is varied, may say /etc/passwd; nobody looks there."""
    there = tmp_path / "there.safetensors"
    there.write_bytes(b"")
    for path in (str(there), "/nowhere.safetensors"):  # both hear the same: no way to ask what exists
        recipe = {"task": "text2img", "prompt": "cats", "loras": [{"name": path, "weight": 1.0}]}
        red = Image.new("RGB", (16, 16), "red")
        forged = save_image(tmp_path / "forged.png", red, recipe, replace=True)
        image = base64.b64encode(forged.read_bytes()).decode()
        for fields in (
            {"prompt": f"cats <lora:{path}:1>"},
            {"task": "vary", "prompt": "", "image": image},
            {"loras": [path]},
            {"loras": [{"name": path}]},
            {"embeddings": [path]},
        ):
            answer = shared.post(**fields)
            assert answer.status_code == 400
            assert "is a path" in answer.json()["error"]["message"]


def test_a_canvas_is_bounded_before_it_is_made(shared):
    image = base64.b64encode(file_of(Image.new("RGB", (16, 16), "red"))).decode()
    answer = shared.post(task="outpaint", image=image, left=2_000_000_000)
    assert answer.status_code == 400
    assert "pixels are more" in answer.json()["error"]["message"]


def test_a_task_that_differentiates_runs_beside_the_lane(shared):
    held = Image.new("RGBA", (16, 16), "red")
    held.paste((0, 0, 0, 0), (8, 0, 16, 16))
    image = base64.b64encode(file_of(held)).decode()
    job = shared.post(task="inpaint", image=image, method="guide").json()
    ended = shared.wait(job["id"])
    assert ended["state"] == "done", ended["error"]


def test_how_it_works(shared):
    sinks = shared.client.post(
        "/api/forward?frames=5", content=file_of(Image.new("RGB", (300, 200), "red"))
    ).json()
    assert sinks["frames"][0]["sigma"] == 0
    assert Image.open(io.BytesIO(base64.b64decode(sinks["frames"][0]["picture"]))).size == (256, 171)
    found = shared.client.post("/api/reverse", json={"prompt": "two green cats", "seed": 1}).json()
    assert found["words"] == ["two", "green", "cats"]
    assert len(found["frames"]) == 4
    assert {len(frame["attention"]) for frame in found["frames"]} == {3}
    assert (
        shared.client.post("/api/reverse", json={"prompt": "cats", "num_inference_steps": 999}).status_code
        == 400
    )


def test_pictures_are_marked_and_verified(shared, model):
    done = shared.wait(shared.post(seed=8, width=96, height=96).json()["id"])
    png = shared.client.get(done["pictures"][0]["url"]).content
    assert done["pictures"][0]["recipe"]["mark"] is True
    told = shared.client.post("/api/verify", content=png).json()
    assert (told["label"], told["recipe"]["seed"]) == ("trainedAlgorithmicMedia", 8)
    assert 0 < told["mark"]["chance"] <= 1  # in a picture that is all noise it drowns; see test_mark
    alone = Pipeline.load(model, device="cpu")("a red apple", seed=8, width=96, height=96, mark=True)[0]
    assert np.array_equal(pixels(png), np.asarray(alone))


def test_recipes_are_read(shared):
    done = shared.wait(shared.post(seed=8).json()["id"])
    png = shared.client.get(done["pictures"][0]["url"]).content
    assert shared.client.post("/api/read", content=png).json()["recipe"]["seed"] == 8
    assert shared.client.post("/api/read", content=file_of(Image.new("RGB", (8, 8)))).status_code == 400


@pytest.mark.parametrize(
    ("fields", "says", "param"),
    [
        ({"sampler": "eular"}, "unknown sampler 'eular'; did you mean 'euler'", None),
        ({"stepps": 3}, "unknown field of a request 'stepps'", "stepps"),
        ({"seed": -1}, "seed (--seed) is -1: input should be greater than or equal to 0", "seed"),
        ({"seed": "1"}, "seed (--seed) is '1': input should be a valid integer", "seed"),
        ({"width": 17}, "width 17 is not a multiple of 2", None),
        ({"num_inference_steps": 251}, "num_inference_steps is 251; this service takes at most 250", None),
        ({"num_images": 17}, "num_images is 17; this service takes at most 16", None),
        ({"model": "/etc"}, "unknown model '/etc'", None),
        ({"model": "../tiny"}, "unknown model '../tiny'", None),
        ({"prompt": "apple " * 500}, "at most 32 chunks", None),
        ({"prompt": "a" * 40_000}, "prompt has 40000 characters", None),
    ],
)
def test_what_cannot_be_done_is_a_400_that_names_it(shared, fields, says, param):
    answer = shared.post(**fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert says in error["message"]
    assert error["param"] == param


def test_a_client_that_hangs_up_in_the_middle_is_no_mistake_of_ours(shared, caplog):
    head = "POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    with socket.create_connection(("127.0.0.1", shared.port)) as line:
        line.sendall(f'{head}{{"pro'.encode())
        time.sleep(0.3)
    until = time.monotonic() + 20
    while 'status="499"' not in (told := shared.client.get("/metrics").text):
        assert time.monotonic() < until
    assert 'status="500"' not in told
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_cancel_stops_what_runs_and_what_waits(start):
    running = start(running=1)
    first = running.post(num_inference_steps=200).json()["id"]
    running.wait(first, until=("running",))
    second = running.post(num_inference_steps=200).json()["id"]
    for job in (second, first):
        running.client.post(f"/api/jobs/{job}/cancel")
        assert running.wait(job, seconds=3)["state"] == "cancelled"
    assert running.client.get(f"/api/jobs/{first}").json()["pictures"] == []


def test_a_deadline_that_passes_ends_the_job(start):
    running = start(running=1)
    job = running.post(num_inference_steps=250, num_images=16, deadline=0.3).json()["id"]
    ended = running.wait(job)
    assert ended["state"] == "expired"
    assert "deadline" in ended["error"]


def test_a_full_queue_says_when_to_come_back(start):
    running = start(running=1, limits={"waiting": 2})
    answers = [running.post(num_inference_steps=200, num_images=8) for _ in range(6)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert [answer.status_code for answer in answers[:3]] == [202] * 3 or answers[2].status_code == 429
    assert refused
    assert int(refused[0].headers["retry-after"]) >= 1
    for answer in answers:
        if answer.status_code == 202:
            running.client.post(f"/api/jobs/{answer.json()['id']}/cancel")


def test_a_mistake_while_drawing_fails_that_job_alone(start, monkeypatch):
    running = start()
    from mezzotint.serve import service

    keep = service.encode_image

    def broken(image, recipe, **knobs):
        if recipe["seed"] == 13:
            raise RuntimeError("out of luck")
        return keep(image, recipe, **knobs)

    monkeypatch.setattr(service, "encode_image", broken)
    jobs = [running.post(seed=seed).json()["id"] for seed in (12, 13, 14)]
    ends = [running.wait(job) for job in jobs]
    assert [end["state"] for end in ends] == ["done", "failed", "done"]
    assert "out of luck" in ends[1]["error"]


def test_removed_jobs_are_gone(shared):
    job = shared.post().json()["id"]
    picture = shared.wait(job)["pictures"][0]
    assert shared.client.delete(f"/api/jobs/{job}").status_code == 204
    assert shared.client.get(f"/api/jobs/{job}").status_code == 404
    assert shared.client.get(picture["url"]).status_code == 404
    assert picture["url"] not in {one["url"] for one in shared.client.get("/api/pictures").json()}


def test_a_picture_that_was_given_goes_with_the_last_job_that_has_it(shared):
    image = base64.b64encode(file_of(Image.new("RGB", (16, 16), "teal"))).decode()
    first, second = (shared.post(task="img2img", image=image, seed=seed).json()["id"] for seed in (1, 2))
    sha256 = shared.wait(first)["request"]["image"]["sha256"]
    shared.wait(second)
    kept = shared.service.settings.data / "uploads" / sha256
    shared.client.delete(f"/api/jobs/{first}")
    assert kept.exists()
    assert shared.client.get(f"/api/jobs/{second}/inputs/image").status_code == 200
    shared.client.delete(f"/api/jobs/{second}")
    assert not kept.exists()


def test_stopped_in_good_order_it_goes_on_where_it_was(start):
    first = start(running=2, drain=0.0)
    jobs = [first.post(num_inference_steps=40, num_images=2, seed=i).json()["id"] for i in range(3)]
    time.sleep(0.2)
    first.stop()
    second = start(running=8)
    for job in jobs:
        ended = second.wait(job)
        assert ended["state"] == "done"
        assert [picture["number"] for picture in ended["pictures"]] == [0, 1]


def serving(data, model, port):
    source = Path(__file__).resolve().parents[2] / "src"
    command = [sys.executable, "-m", "mezzotint", "serve", "-m", str(model), "--data", str(data)]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--device", "cpu", "--running", "3"],
        env=os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            if httpx2.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return process
        except httpx2.TransportError:
            time.sleep(0.05)
    process.kill()
    raise AssertionError("it did not start")


@pytest.mark.slow
def test_killed_under_load_every_accepted_job_ends_once(tmp_path, model):
    """SIGKILL twice while clients keep posting; whoever had a 202 finds the job's pictures, whole, in the end."""
    port, accepted, states = 20_000 + os.getpid() % 20_000, [], {}

    def client(i):
        for k in range(4):
            try:
                body = {
                    "prompt": "a red apple",
                    "seed": 100 * i + k,
                    "num_inference_steps": 20,
                    "num_images": 2,
                }
                answer = httpx2.post(f"http://127.0.0.1:{port}/api/jobs", json=body, timeout=60)
                if answer.status_code == 202:
                    accepted.append(answer.json()["id"])
            except httpx2.TransportError:
                time.sleep(0.3)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            process = serving(tmp_path, model, port)
            clients = [pool.submit(client, i) for i in range(4)]
            until, before = time.monotonic() + 60, len(accepted)
            while len(accepted) < before + 2 and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(0.3)
            process.send_signal(signal.SIGKILL)
            process.wait()
            for one in clients:
                one.result()
    process = serving(tmp_path, model, port)
    try:
        until = time.monotonic() + 300
        while len(states) < len(accepted):
            assert time.monotonic() < until, (
                f"{len(accepted) - len(states)} of {len(accepted)} jobs have not ended"
            )
            for job in set(accepted) - states.keys():
                found = httpx2.get(f"http://127.0.0.1:{port}/api/jobs/{job}").json()
                if found["state"] not in ("queued", "running"):
                    states[job] = found
        assert len(accepted) >= 4
        assert {found["state"] for found in states.values()} == {"done"}
        for found in states.values():
            assert [picture["number"] for picture in found["pictures"]] == [0, 1]
            for picture in found["pictures"]:
                png = httpx2.get(f"http://127.0.0.1:{port}{picture['url']}").content
                assert read_recipe(png)["seed"] == picture["seed"]
        log = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
        ends = [line["job"] for line in log if line["what"] == "done"]
        assert len(ends) == len(set(ends))
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_job_that_takes_the_process_down_is_given_up(start, model):
    first = start(drain=0.0)
    job = first.post(num_inference_steps=250, num_images=16).json()["id"]
    first.wait(job, until=("running",))
    first.stop()
    from mezzotint.serve.store import Store

    store = Store(first.service.settings.data)
    for _ in range(3):
        store.start(job)
        store._db.execute("UPDATE jobs SET state = 'queued' WHERE id = ?", (job,))
    store._db.execute("UPDATE jobs SET state = 'running' WHERE id = ?", (job,))
    store.close()
    ended = start().wait(job)
    assert ended["state"] == "failed"
    assert "went down" in ended["error"]
