"""Who may come in, how often, and from where."""

import contextlib
import json
import threading

import httpx2
import pytest

from mezzotint.cli import run
from mezzotint.errors import MezzotintError, UsageError
from mezzotint.serve.keys import Caller, Keys, TooMany
from mezzotint.serve.store import Store


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    yield store
    store.close()


def test_a_key_is_shown_once_and_kept_as_a_hash(store, tmp_path):
    keys = Keys(store)
    assert keys.caller(None).role == "admin"  # no keys: whoever reaches the service
    key = keys.add("ann", quota=3)
    assert keys.caller(key) == Caller("ann", "user", None, 3)
    assert keys.caller(key[:-1]) is None
    assert keys.caller(None) is None
    assert key.encode() not in b"".join(path.read_bytes() for path in tmp_path.glob("mezzotint.sqlite*"))
    with pytest.raises(UsageError, match="already"):
        keys.add("ann")
    keys.add("root", role="admin")
    keys.revoke("ann")
    assert keys.caller(key) is None


def test_a_rate_is_a_bucket_that_fills(store):
    now = [0.0]
    keys = Keys(store, clock=lambda: now[0])
    caller = Caller("ann", "user", rate=6)
    for _ in range(6):
        keys.spend(caller)
    with pytest.raises(TooMany) as caught:
        keys.spend(caller)
    assert caught.value.seconds == pytest.approx(10)
    now[0] = 10.1
    keys.spend(caller)
    with pytest.raises(TooMany):
        keys.spend(caller)


def test_keys_roles_rate_and_quota_over_http(start):
    running = start()
    keys = running.service.keys
    ann, bob = keys.add("ann", quota=2), keys.add("bob", rate=1)
    root = keys.add("root", role="admin")

    def ask(method, path, key, **given):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return running.client.request(method, path, headers=headers, **given)

    body = {"json": {"prompt": "cats", "seed": 1}}
    refused = ask("POST", "/api/jobs", None, **body)
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
    assert ask("POST", "/api/jobs", "mz-wrong", **body).status_code == 401
    job = ask("POST", "/api/jobs", ann, **body).json()["id"]
    assert ask("GET", f"/api/jobs/{job}", bob).status_code == 404
    assert ask("GET", f"/api/jobs/{job}", root).status_code == 200
    assert ask("GET", "/api/jobs", bob).json() == []
    assert [one["id"] for one in ask("GET", "/api/jobs", ann).json()] == [job]
    assert ask("GET", "/metrics", ann).status_code == 403
    assert "mezzotint_jobs" in ask("GET", "/metrics", root).text
    over = ask("POST", "/api/jobs", ann, json={"prompt": "cats", "num_images": 2})
    assert over.status_code == 429
    assert "quota" in over.json()["error"]["message"]
    assert ask("POST", "/api/jobs", bob, **body).status_code == 202
    late = ask("POST", "/api/jobs", bob, **body)
    assert late.status_code == 429
    assert 1 <= int(late.headers["retry-after"]) <= 60
    basic = running.client.get("/api/jobs", auth=("anybody", ann))
    assert basic.status_code == 200
    for line in (running.service.settings.data / "audit.jsonl").read_text().splitlines():
        assert json.loads(line)["who"] in ("ann", "bob")
        assert "cats" not in line


def test_other_sites_pages_and_names_are_refused(shared):
    names = ("evil.example", "127.evil.example", "127.0.0.1.evil.example", "[", "localhost.evil.example")
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        *({"host": name} for name in names),
    ):
        answer = shared.client.get("/api/info", headers=headers)
        assert answer.status_code == 403
    assert shared.client.get("/api/info", headers={"origin": shared.url}).status_code == 200
    for name in ("localhost", "127.0.0.2:7860", "[::1]:7860"):
        assert shared.client.get("/healthz", headers={"host": name}).status_code == 200


def test_a_site_that_the_operator_named_may_call(start):
    running = start(origins=("https://shop.example",))
    answer = running.client.get("/api/info", headers={"origin": "https://shop.example"})
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    asked = running.client.options("/api/jobs", headers={"origin": "https://shop.example"})
    assert asked.status_code == 204
    assert running.client.get("/api/info", headers={"origin": "https://shop.example.evil"}).status_code == 403


def test_headers_and_request_ids(shared):
    answer = shared.client.get("/", headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    forged = shared.client.get("/healthz", headers={"x-request-id": "a b"}).headers["x-request-id"]
    assert forged != "a b"


def test_a_mistake_of_ours_is_told_under_its_requests_id(start, monkeypatch, caplog):
    def broken(data):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("mezzotint.serve.native.read_recipe", broken)
    answer = start().client.post("/api/read", content=b"x", headers={"x-request-id": "mine-2"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "mine-2")
    assert "out of luck" not in answer.text
    (record,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert record.request_id == "mine-2"
    assert "out of luck" in str(record.exc_info[1])


def test_a_text_of_any_name_is_bounded(shared):
    for name in ("prompt_to", "source_prompt", "reweight"):
        answer = shared.post(**{name: "a" * 40_000})
        assert f"{name} has 40000 characters" in answer.json()["error"]["message"]
    answer = shared.client.post("/api/reverse", json={"prompt": "a" * 40_000})
    assert "prompt has 40000 characters" in answer.json()["error"]["message"]


def test_a_folder_has_one_service(shared, model, tmp_path, capsys):
    other = Store(shared.service.settings.data)  # as `mezzotint keys` opens it
    with pytest.raises(MezzotintError, match="another service"):
        other.claim()
    other.close()
    assert run(["serve", "-m", str(model), "--data", str(shared.service.settings.data)]) == 1
    assert "another service" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(["keys", "list", "--data", str(tmp_path / "file")]) == 1
    assert "cannot be used" in capsys.readouterr().err


def test_a_wrong_method_hears_the_right_ones(shared):
    answer = shared.client.put("/api/jobs")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
    assert answer.json()["error"]["message"] == "Method Not Allowed"


def test_uploads_are_bounded(start):
    running = start(limits={"upload_bytes": 1000})
    assert running.client.post("/api/read", content=b"x" * 1001).status_code == 413
    assert running.client.post("/api/read", content=b"x" * 5000).status_code == 413

    def endless():
        while True:
            yield b"x" * 10_000

    done = threading.Event()

    def send():
        with contextlib.suppress(httpx2.TransportError):  # hung up on: as good
            assert running.client.post("/api/read", content=endless()).status_code == 413
        done.set()

    threading.Thread(target=send, daemon=True).start()
    assert done.wait(10)


def test_a_wider_address_needs_a_key(tmp_path, capsys):
    assert run(["serve", "--host", "0.0.0.0", "--data", str(tmp_path)]) == 2
    assert "mezzotint keys add" in capsys.readouterr().err


def test_keys_by_command_line(tmp_path, capsys):
    data = ["--data", str(tmp_path)]
    assert run(["keys", "add", "ann", "--role", "admin", "--rate", "10", *data]) == 0
    key = capsys.readouterr().out.strip()
    store = Store(tmp_path)
    assert Keys(store).caller(key) == Caller("ann", "admin", 10.0, None)
    store.close()
    assert run(["keys", "list", *data]) == 0
    assert capsys.readouterr().out == "ann  role admin  rate 10.0\n".replace("ann", "name ann")
    assert run(["keys", "revoke", "ann", *data]) == 0
    assert run(["keys", "revoke", "ann", *data]) == 2
    assert run(["keys", "add", "x", "--role", "king", *data]) == 2
