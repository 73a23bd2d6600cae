"""The real endpoint beside real workers: a post becomes a result, whatever callers send and whoever is killed."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import itertools
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import REPOSITORY, Json, Site, names
from tests.waiting import wait_for

TOKEN = "a-token-for-tests-0123"
SECRET = "a secret of this hook"
HOOKS = """
[hooks.github]
worker = "marie"
secret_env = "GITHUB_SECRET"
description = "Review {{pull_request.title}}"
events = ["pull_request"]
"""
_JSON = {"Content-Type": "application/json"}


class Endpoint:
    """Starts `python -m watcher webhook` on a site, again and again."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.popen: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.log = site.home / "webhook.log"

    def start(self, *arguments: str, **settings: Any) -> None:
        port_file = self.site.home / "port"
        port_file.unlink(missing_ok=True)
        chosen = {"PYTHONPATH": REPOSITORY, "GITHUB_SECRET": SECRET, "LOG_LEVEL": "INFO", **settings}
        with self.log.open("ab") as log:
            self.popen = popen = subprocess.Popen(
                [sys.executable, "-m", "watcher", "webhook", "--port", "0", "--port-file", str(port_file), *arguments],
                cwd=self.site.home, env=self.site.environment(chosen), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

        def is_up() -> bool:
            assert popen.poll() is None, self.log.read_text()[-3000:]
            return port_file.exists()

        wait_for("the endpoint to be up", is_up)
        self.port = int(port_file.read_text())

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, seconds: float = 120
    ) -> tuple[int, Any, dict[str, str]]:
        """One request on a connection of its own: status, body (JSON if it is), headers in lower case."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, raw, {**(_JSON if raw is not None else {}), **(headers or {})})
            answer = connection.getresponse()
            text = answer.read()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, json.loads(text) if "json" in found.get("content-type", "") else text, found
        finally:
            connection.close()

    def post(self, **fields: Any) -> tuple[int, Json]:
        status, body, _ = self.call("POST", "/tasks", {"worker": "marie", "description": "x", **fields})
        return status, body

    def deliver(self, payload: Any, delivery: str, secret: str = SECRET) -> tuple[int, Json]:
        raw = json.dumps(payload).encode()
        signature = hmac.new(secret.encode(), raw, hashlib.sha256).hexdigest()
        headers = {
            "X-Hub-Signature-256": f"sha256={signature}", "X-GitHub-Delivery": delivery,
            "X-GitHub-Event": "pull_request",
        }  # fmt: skip
        status, body, _ = self.call("POST", "/webhook/github", raw, headers)
        return status, body

    def raw(self, data: bytes, seconds: float = 120) -> bytes:
        """Send these bytes and read to the end of the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # it has heard enough
                connection.sendall(data)
            return drain(connection)

    def stop(self) -> int:
        assert self.popen is not None
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(120)

    def kill(self) -> None:
        assert self.popen is not None
        self.popen.kill()
        self.popen.wait()


def drain(connection: socket.socket) -> bytes:
    """All that comes until the other side closes, or resets because it was sent more than it read."""
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            pieces.append(piece)
    return b"".join(pieces)


@pytest.fixture
def endpoint(site: Site) -> Iterator[Endpoint]:
    made = Endpoint(site)
    site.inbox("marie")
    (site.home / "hooks.toml").write_text(HOOKS)
    yield made
    if made.popen is not None and made.popen.poll() is None:
        made.kill()


def test_a_post_becomes_a_result_that_a_long_poll_gets(site: Site, endpoint: Endpoint) -> None:
    site.start("marie")
    endpoint.start()
    status, accepted = endpoint.post(description="Say hello", metadata={"n": 1}, priority="high")
    assert (status, accepted["status"], accepted["is_copy"]) == (202, "accepted", False)
    # It would look again at the end of its wait, but this caller has gone by then: the news must wake it.
    status, result, _ = endpoint.call("GET", f"/results/{accepted['task_id']}?wait=60", seconds=55)
    assert (status, result["status"], result["stdout"], result["metadata"]) == (200, "completed", "Say hello", {"n": 1})
    status, state, _ = endpoint.call("GET", f"/tasks/{accepted['task_id']}?worker=marie")
    assert (status, state["state"], state["has_ended"]) == (200, "completed", True)
    status, seen, _ = endpoint.call("GET", "/workers")
    assert [(one["worker"], one["state"], one["done"]) for one in seen["workers"]] == [("marie", "healthy", 1)]
    assert endpoint.stop() == 0


def test_a_task_that_waits_for_whatever_reason_is_known_and_its_copy_is_no_second_task(
    endpoint: Endpoint, site: Site
) -> None:
    endpoint.start()
    wanted = {
        "held": {}, "scheduled": {"not_before": "2990-01-01T00:00:00Z"}, "blocked": {"dependencies": ["nobody"]},
        "waiting": {},
    }  # fmt: skip
    for state, fields in wanted.items():
        task = {"task_id": state, "worker": "marie", "description": "x", **fields}
        assert endpoint.call("POST", "/tasks", task, _JSON)[0] == 202
        if state == "held":
            assert site.run("hold", "held").returncode == 0
        status, told, _ = endpoint.call("GET", f"/tasks/{state}")
        assert (status, told["state"], told["has_ended"]) == (200, state, False)
        assert endpoint.call("GET", f"/results/{state}")[0] == 202
        assert endpoint.call("POST", "/tasks", task, _JSON)[0] == 200, "the same again is a copy"
    assert names(site.root / "tasks" / "marie") == ["blocked.json", "scheduled.json", "waiting.json"]


def test_a_stream_tells_of_tasks_and_goes_on_where_it_was_left(site: Site, endpoint: Endpoint) -> None:
    endpoint.start()
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=120)
    connection.request("GET", "/events")
    stream = connection.getresponse()
    assert stream.getheader("Content-Type") == "text/event-stream; charset=utf-8"
    assert stream.readline() == b"retry: 2000\n"
    endpoint.post(task_id="told", description="do not tell this")
    site.start("marie")
    told = []
    while not told or told[-1].get("event") != "task.settled":
        line = stream.readline().decode().strip()
        assert "do not tell" not in line
        if line.startswith("id: "):
            told.append({"id": line[4:]})
        elif line.startswith("event: "):
            told[-1]["event"] = line[7:]
    kinds = [one["event"] for one in told]
    assert sorted(kinds) == ["task.accepted", "task.settled", "task.started"]
    connection.close()
    _, rest, _ = endpoint.call("GET", "/events?wait=0", headers={"Last-Event-ID": told[0]["id"]})
    assert [line[7:] for line in rest.decode().splitlines() if line.startswith("event: ")] == kinds[1:]
    _, rest, _ = endpoint.call("GET", "/events?wait=0", headers={"Last-Event-ID": "ffffffff-3"})
    assert b"event: events.missed" in rest


def test_a_stop_ends_polls_and_streams_with_whole_answers_and_code_0(site: Site, endpoint: Endpoint) -> None:
    endpoint.start(ENABLE_METRICS="true", METRICS_PORT=_free_port(), SHUTDOWN_GRACE=3600)
    _, accepted = endpoint.post()
    with ThreadPoolExecutor() as pool:
        poll = pool.submit(endpoint.call, "GET", f"/results/{accepted['task_id']}?wait=60", seconds=120)
        stream = pool.submit(endpoint.call, "GET", "/events", seconds=120)
        wait_for("both to be open", lambda: "watcher_webhook_waiting_requests 2.0" in _scrape(endpoint))
        assert endpoint.stop() == 0
        assert poll.result()[0] == 202
        assert stream.result()[0] == 200


def test_a_delivery_that_comes_again_is_one_task_also_after_a_restart_and_its_result(
    site: Site, endpoint: Endpoint
) -> None:
    endpoint.start("--hooks", "hooks.toml")
    payload = {"pull_request": {"title": "one"}}
    first = endpoint.deliver(payload, "d-1")
    assert first[0] == 202
    assert endpoint.deliver(payload, "d-1") == (200, {**first[1], "is_copy": True})
    assert endpoint.deliver({"pull_request": {"title": "two"}}, "d-1")[0] == 409
    assert endpoint.deliver(payload, "d-2")[1]["task_id"] != first[1]["task_id"]
    endpoint.kill()
    site.start("marie")
    assert site.result(first[1]["task_id"])["stdout"] == "Review one"
    endpoint.start("--hooks", "hooks.toml")
    assert endpoint.deliver(payload, "d-1") == (200, {**first[1], "is_copy": True})
    # The database alone knows it when the result is gone, the result alone when the database is.
    results = site.root / "results" / "marie"
    (results / f"{first[1]['task_id']}.json").rename(site.home / "kept.json")
    assert endpoint.deliver(payload, "d-1")[0] == 200
    endpoint.stop()
    (site.home / "kept.json").rename(results / f"{first[1]['task_id']}.json")
    for name in names(site.root / "state"):
        (site.root / "state" / name).unlink()
    endpoint.start("--hooks", "hooks.toml")
    assert endpoint.deliver(payload, "d-1")[0] == 200
    wait_for("the other one to be taken", lambda: site.pending() == [])
    assert len(site.results()) <= 2, "d-1 has not become a task again"


def test_an_idempotency_key_names_a_task_and_other_content_is_a_conflict(endpoint: Endpoint, site: Site) -> None:
    endpoint.start()
    body = {"worker": "marie", "description": "x"}
    key = {"Idempotency-Key": "order 7"}
    first = endpoint.call("POST", "/tasks", body, key)
    again = endpoint.call("POST", "/tasks", body, key)
    assert (first[0], again[0], again[1]["task_id"]) == (202, 200, first[1]["task_id"])
    assert endpoint.call("POST", "/tasks", {**body, "description": "y"}, key)[0] == 409
    assert endpoint.call("POST", "/tasks", body, {"Idempotency-Key": "\xe9"})[0] == 422
    assert endpoint.call("POST", "/tasks", {**body, "task_id": "a"}, key)[0] == 202  # it names itself
    assert len(site.pending()) == 2


@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", f"Basic {TOKEN}", "Bearer \xe9\xe9", f"Bearer {TOKEN}x"]
)
def test_without_its_token_nothing_is_told_or_taken(endpoint: Endpoint, site: Site, authorization: str | None) -> None:
    endpoint.start(WEBHOOK_TOKEN=TOKEN)
    headers = {} if authorization is None else {"Authorization": authorization}
    body = {"worker": "marie", "description": "x"}
    for method, path in (("GET", "/workers"), ("GET", "/tasks/a"), ("GET", "/results/a"), ("GET", "/events")):
        assert endpoint.call(method, path, None, headers)[0] == 401
    assert endpoint.call("POST", "/tasks", body, headers)[0] == 401
    assert site.pending() == []
    good = {"Authorization": f"Bearer {TOKEN}"}
    assert endpoint.call("POST", "/tasks", body, {**good, "Host": "any.example"})[0] == 202
    raw = json.dumps({"worker": "marie", "description": "signed"}).encode()
    signature = hmac.new(TOKEN.encode(), raw, hashlib.sha256).hexdigest()
    assert endpoint.call("POST", "/tasks", raw, {"X-Hub-Signature-256": f"sha256={signature}"})[0] == 202
    assert TOKEN not in endpoint.log.read_text()


@pytest.mark.parametrize("signature", [None, "", "sha256=", "sha256=" + "0" * 64, "sha1=abc", "\xe9" * 71])
def test_a_hook_takes_nothing_that_is_not_signed_with_its_secret(
    endpoint: Endpoint, site: Site, signature: str | None
) -> None:
    endpoint.start("--hooks", "hooks.toml", WEBHOOK_TOKEN=TOKEN)
    headers = {"Authorization": f"Bearer {TOKEN}"}  # a token is no signature
    if signature is not None:
        headers["X-Hub-Signature-256"] = signature
    status, body, _ = endpoint.call("POST", "/webhook/github", {"pull_request": {"title": "x"}}, headers)
    assert (status, body["reason"]) == (401, "unauthorized")
    assert endpoint.deliver({"pull_request": {"title": "x"}}, "d", "another secret here")[0] == 401
    assert site.pending() == []
    assert SECRET not in endpoint.log.read_text()


def test_pages_of_a_browser_cannot_give_tasks_to_a_local_endpoint(endpoint: Endpoint, site: Site) -> None:
    endpoint.start()
    body = json.dumps({"worker": "marie", "description": "x"}).encode()
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        assert endpoint.call("POST", "/tasks", body, {"Host": host})[0] in (400, 403)
        assert endpoint.call("GET", "/workers", None, {"Host": host})[0] in (400, 403)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert endpoint.call("POST", "/tasks", body, {"Content-Type": kind})[0] == 415
    for path in ("/healthz", "/openapi.json", "/docs", "/events?wait=0", "/tasks/x", "/results/x"):
        assert endpoint.call("GET", path, None, {"Host": "evil.example"})[0] == 403
    assert endpoint.call("POST", "/tasks", body, {"Content-Type": "application/x+json"})[0] == 415
    for headers in (
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:3000"}, {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "Cross-Site"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"},
    ):  # fmt: skip
        assert endpoint.call("POST", "/tasks", body, {**_JSON, **headers})[1]["reason"] == "cross_site"
    assert "access-control-allow-origin" not in endpoint.call("OPTIONS", "/tasks", None, {"Origin": "http://x"})[2]
    assert site.pending() == []
    assert endpoint.call("GET", "/workers", None, {"Host": f"LOCALHOST:{endpoint.port}"})[0] == 200
    ours = {"Origin": f"http://127.0.0.1:{endpoint.port}", "Sec-Fetch-Site": "same-origin"}
    assert endpoint.call("POST", "/tasks", body, {**_JSON, **ours})[0] == 202


def test_a_token_speaks_for_a_post_from_wherever_and_for_every_kind_of_json(endpoint: Endpoint) -> None:
    endpoint.start(WEBHOOK_TOKEN=TOKEN)
    headers = {"Content-Type": "application/cloudevents+json", "Origin": "http://x", "Sec-Fetch-Site": "cross-site"}
    headers |= {"Authorization": f"Bearer {TOKEN}", "Host": "tasks.example.org"}
    assert endpoint.call("POST", "/tasks", {"worker": "marie", "description": "x"}, headers)[0] == 202
    assert endpoint.call("GET", "/healthz", None, {"Host": "tasks.example.org"})[0] == 200


@pytest.mark.parametrize("worker", ["../x", "anga", ".hidden", "", None, 7, "marie/..", "m" * 65])
def test_a_post_reaches_only_workers_that_are_allowed(endpoint: Endpoint, site: Site, worker: Any) -> None:
    site.inbox("anga")
    endpoint.start("--workers", "marie")
    before = sorted(path for path in site.root.rglob("*") if "state" not in path.parts)
    assert endpoint.post(worker=worker)[0] in (404, 422)
    assert sorted(path for path in site.root.rglob("*") if "state" not in path.parts) == before


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"{", 400), (b"\xff", 400), (b'{"a":1,"a":2}', 400), (b"[" * 1500, 400), (b"[]", 422),
        (b'{"worker":"marie"}', 422), (b'{"worker":"marie","description":" "}', 422),
        (b'{"worker":"marie","description":"x","timeout":-1}', 422),
        (b'{"worker":"marie","description":"x","task_id":"../../a"}', 422),
        (b'{"worker":"marie","description":"\\u0000"}', 400), (b'{"worker":"marie","description":"\\ud800"}', 400),
        (b'{"worker":"marie","description":"' + b"x" * 3000 + b'"}', 413),
    ],
)  # fmt: skip
def test_what_is_no_task_is_refused_and_leaves_nothing(shared_endpoint: Endpoint, body: bytes, status: int) -> None:
    found, answer, headers = shared_endpoint.call("POST", "/tasks", body)
    assert (found, headers["content-type"]) == (status, "application/problem+json")
    assert answer["reason"]
    assert os.listdir(shared_endpoint.site.inbox()) == []


@pytest.fixture(scope="module")
def shared_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """One for tests that put nothing in; it is impatient and takes small bodies."""
    site = Site(tmp_path_factory.mktemp("webhook"))
    site.inbox("marie")
    made = Endpoint(site)
    made.start(WEBHOOK_READ_TIMEOUT=5, MAX_TASK_BYTES=2000, WEBHOOK_MAX_CONNECTIONS=40)
    yield made
    made.stop()
    site.close()


HEAD = b"POST /tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_slow_and_huge_senders_are_answered_and_cut_off(shared_endpoint: Endpoint) -> None:
    assert shared_endpoint.raw(b"POST /tasks HT").startswith(b"HTTP/1.1 408 ")
    assert shared_endpoint.raw(b"").startswith(b"HTTP/1.1 408 ")
    assert shared_endpoint.raw(HEAD + b"Content-Length: 20\r\n\r\n{").startswith(b"HTTP/1.1 408 ")
    assert shared_endpoint.raw(HEAD + b"Content-Length: 1000000000000\r\n\r\n{").startswith(b"HTTP/1.1 413 ")
    assert shared_endpoint.raw(HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n{")[9:12] in (b"400", b"413")
    chunks = b"400\r\n" + b" " * 1024 + b"\r\n"
    assert shared_endpoint.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks * 3).startswith(b"HTTP/1.1 413 ")
    assert shared_endpoint.raw(b"GET / HTTP/1.1\r\n" + b"A: " + b"a" * 200_000)[9:12] in (b"400", b"")
    assert shared_endpoint.raw(b"\x16\x03\x01 no http\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert shared_endpoint.call("GET", "/healthz")[0] == 200


def test_idle_connections_make_room_for_those_that_ask(shared_endpoint: Endpoint) -> None:
    held = [socket.create_connection(("127.0.0.1", shared_endpoint.port)) for _ in range(120)]
    try:
        assert shared_endpoint.call("GET", "/healthz")[0] == 200
    finally:
        for connection in held:
            connection.close()


def test_a_full_inbox_puts_posts_off_and_takes_them_when_there_is_room(endpoint: Endpoint, site: Site) -> None:
    endpoint.start(WEBHOOK_MAX_PENDING=3)
    answers = [endpoint.post(task_id=f"t{number}")[0] for number in range(5)]
    assert answers == [202, 202, 202, 429, 429]
    assert endpoint.post(task_id="t1")[0] == 200  # it is in already
    assert endpoint.call("POST", "/tasks", {"worker": "marie", "description": "x"})[2]["retry-after"] == "5"
    site.start("marie")
    wait_for("room", lambda: endpoint.post(task_id="t9")[0] == 202)


def test_many_posts_at_once_are_all_there_once_with_copies_told_apart(endpoint: Endpoint, site: Site) -> None:
    endpoint.start()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: endpoint.post(task_id=f"t{n % 50}"), range(200)))
    assert sorted(status for status, _ in answers) == [200] * 150 + [202] * 50
    assert site.pending() == sorted(f"t{number}" for number in range(50))
    assert site.leftovers() == []


def test_what_was_acknowledged_before_kills_is_run_exactly_once(endpoint: Endpoint, site: Site) -> None:
    """Senders repeat a delivery until it is acknowledged; the endpoint is killed under them again and again."""
    site.start(
        "marie", AGENT_COMMAND=site.script('cat; echo "$WATCHER_TASK_ID" >> "$SITE/notes"'), MAX_CONCURRENT_TASKS=2
    )
    endpoint.start()
    acknowledged: set[str] = set()
    is_over = threading.Event()

    def send(sender: int) -> None:
        number = 0
        while not is_over.is_set():
            task_id = f"s{sender}-{number}"
            try:
                status, _ = endpoint.post(task_id=task_id, description=task_id)
            except (OSError, http.client.HTTPException):
                time.sleep(0.01)  # it is being killed and started
                continue
            assert status in (200, 202), status
            acknowledged.add(task_id)
            number += 1

    with ThreadPoolExecutor(6) as pool:
        senders = [pool.submit(send, sender) for sender in range(6)]
        try:
            for _ in range(4):
                goal = len(acknowledged) + 15
                wait_for("posts to be taken", lambda goal=goal: len(acknowledged) >= goal)  # type: ignore[misc]
                endpoint.kill()
                endpoint.start()
        finally:
            is_over.set()
        for one in senders:
            one.result(120)
    wait_for("all results", lambda: acknowledged <= set(site.results()))
    # Those that a kill kept from being acknowledged run too.
    wait_for("all to be taken", lambda: site.pending() == [])
    site.pass_beats(2)
    site.beat_that(lambda beat: (beat["active_tasks"], beat["queue_size"]) == (0, 0), what="of a worker with no task")
    wait_for("the last results", lambda: set(site.noted()) == set(site.results()))
    runs = Counter(site.noted())
    assert {runs[task_id] for task_id in acknowledged} == {1}
    assert sorted(runs) == sorted(site.results())
    assert site.dead_letters() == []
    hidden = [name for name in os.listdir(site.inbox()) if name.startswith(".submit-")]
    assert len(hidden) <= 4 * 6  # at most what was being written at each kill; a later start sweeps it


def test_an_open_address_needs_a_token_or_signed_hooks(endpoint: Endpoint, site: Site) -> None:
    def refusal(*arguments: str, **settings: Any) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "watcher", "webhook", "--port", "0", "--host", "0.0.0.0", *arguments],
            cwd=site.home, env=site.environment({"PYTHONPATH": REPOSITORY, **settings}), capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
        assert done.returncode == 2
        return done.stderr

    assert "set WEBHOOK_TOKEN" in refusal()
    (site.home / "open.toml").write_text("[hooks.a]\nworker='marie'\ndescription='x'\n")
    assert "hooks without a secret: a" in refusal("--hooks", "open.toml")
    short = refusal(WEBHOOK_TOKEN="short-one")
    assert "16 characters" in short
    assert "short-one" not in short
    endpoint.start("--host", "0.0.0.0", "--hooks", "hooks.toml")
    assert endpoint.deliver({"pull_request": {"title": "x"}}, "d")[0] == 202
    assert endpoint.post()[0] == 403  # no token is set, and this is not the loopback only
    assert endpoint.call("GET", "/workers")[0] == 403


def test_log_says_where_the_metrics_are_for_the_usual_port_may_be_taken(endpoint: Endpoint) -> None:
    endpoint.start(ENABLE_METRICS="true", METRICS_PORT=0)
    started = next(
        line for line in map(json.loads, endpoint.log.read_text().splitlines()) if "webhook.st" in line["event"]
    )
    found = re.search(r"metrics on port ([0-9]+)", started["detail"])
    assert found is not None, started
    connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
    connection.request("GET", "/metrics")
    assert b"watcher_webhook_requests_total" in connection.getresponse().read()
    connection.close()


def test_metrics_count_requests_by_route_and_status(endpoint: Endpoint) -> None:
    endpoint.start(ENABLE_METRICS="true", METRICS_PORT=_free_port())
    endpoint.post()
    endpoint.call("GET", "/tasks/none")
    endpoint.call("GET", "/no/such/path")
    for line in (
        'watcher_webhook_requests_total{method="GET",route="other",status="404"} 1.0',
        'watcher_webhook_requests_total{method="POST",route="/tasks",status="202"} 1.0',
        'watcher_webhook_requests_total{method="GET",route="/tasks/{task_id}",status="404"} 1.0',
        'watcher_webhook_request_duration_seconds_count{route="/tasks"} 1.0',
        'watcher_webhook_tasks_total{outcome="accepted",source="tasks"} 1.0',
    ):
        wait_for(f"{line}, which is counted after its answer", lambda line=line: line in _scrape(endpoint))  # type: ignore[misc]


_PORTS: list[int] = []


def _free_port() -> int:
    """One that no other process gets by asking for any, so that it is still free when the endpoint takes it."""
    for port in itertools.count(10_000 + os.getpid() % 3000 * 3):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            _PORTS.append(port)
            return port
    raise AssertionError("no end of ports")


def _scrape(endpoint: Endpoint) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", _PORTS[-1], timeout=120)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def test_without_its_packages_the_command_says_what_to_install(site: Site, tmp_path: Path) -> None:
    (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError('no', name='starlette')")
    path = f"{tmp_path}{os.pathsep}{REPOSITORY}"
    done = subprocess.run(
        [sys.executable, "-m", "watcher", "webhook"], cwd=site.home, env=site.environment({"PYTHONPATH": path}),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "pip install 'watcher-suite[web]'" in done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed, which the examples use")
def test_the_examples_of_the_docs_do_what_they_say(endpoint: Endpoint, site: Site) -> None:
    text = (REPOSITORY / "docs" / "webhook.md").read_text()
    (site.home / "hooks.toml").write_text(text.split("```toml\n")[1].split("```")[0])
    secret = {"GITHUB_WEBHOOK_SECRET": SECRET}
    site.start("marie")
    endpoint.start("--hooks", "hooks.toml", **secret)
    scripts = [part.split("```")[0] for part in text.split("```sh\n")[1:]]
    outputs = []
    for script in [one for one in scripts if "curl" in one]:
        local = script.replace("127.0.0.1:8787", f"127.0.0.1:{endpoint.port}")
        done = subprocess.run(
            ["/bin/sh", "-euc", local], env=site.environment(secret), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    posted, result, delivered, events = outputs
    assert json.loads(posted)["status"] == "accepted"
    assert json.loads(result)["stdout"] == "Say hello"
    delivery = json.loads(delivered)
    assert site.result(delivery["task_id"])["stdout"] == "Review Add a test: https://example.com/1"
    assert site.result(delivery["task_id"])["metadata"] == {"number": 1}
    assert events.startswith("retry: 2000")


def test_endpoint_out_of_descriptors_waits_says_so_once_and_goes_on(endpoint: Endpoint) -> None:
    endpoint.start()
    assert endpoint.popen is not None
    pid = endpoint.popen.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + 2, before[1]))
    held = [socket.create_connection(("127.0.0.1", endpoint.port)) for _ in range(30)]
    try:
        wait_for("a word about it", lambda: "no connection is accepted" in endpoint.log.read_text())
        assert endpoint.log.read_text().count("no connection is accepted") == 1
        assert "Traceback" not in endpoint.log.read_text()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert endpoint.call("GET", "/healthz")[0] == 200
    finally:
        for connection in held:
            connection.close()
    assert endpoint.post()[0] == 202


def test_more_connections_than_the_process_may_open_are_refused_at_the_start(site: Site) -> None:
    """The limit is given to `sh`, which hands it on."""
    command = f"ulimit -n 256; exec {sys.executable} -m watcher webhook"
    environment = site.environment({"WEBHOOK_PORT": "0"}) | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        env=environment,
        cwd=site.home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "WEBHOOK_MAX_CONNECTIONS=512" in done.stderr and "set at most 192" in done.stderr


def test_bodies_of_very_many_values_are_refused_and_hold_nobody_up(endpoint: Endpoint) -> None:
    endpoint.start()
    many = b'{"worker": "marie", "description": "x", "metadata": {"m": [' + b"[]," * 300_000 + b"[]]}}"
    most = b'{"worker": "marie", "description": "x", "metadata": {"m": [' + b"[]," * 40_000 + b"[]]}}"
    with ThreadPoolExecutor(20) as pool:
        posts = [pool.submit(endpoint.call, "POST", "/tasks", body) for body in (many, most) * 10]
        assert endpoint.call("GET", "/healthz")[0] == 200
        answers = [post.result()[:2] for post in posts]
    assert {(status, answer.get("reason")) for status, answer in answers} == {(400, "invalid_json"), (202, None)}
