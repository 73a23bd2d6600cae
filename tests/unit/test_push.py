"""Statistics go to a real server: exactly, in order, bounded; and its failures stay there."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from tests.waiting import wait_for
from watcher.telemetry.events import TaskDropped, TaskSettled
from watcher.telemetry.statistics_push import PushLimits, StatisticsPush, body_of

#: Nothing here is to be dropped because the machine is busy.
FAST = PushLimits(per_second=10_000, timeout_seconds=60.0, pauses_seconds=(0.01, 0.01), drain_seconds=60.0)


class Server:
    """A loopback server that remembers what it got. `answers` are its statuses, then 204 for ever."""

    def __init__(self, answers: list[int] | None = None, hangs: threading.Event | None = None) -> None:
        self.got: list[tuple[str, str, dict[str, str], bytes]] = []
        self.connections: set[Any] = set()
        found, statuses = self, iter(answers or [])

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PATCH(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                found.connections.add(self.client_address)
                found.got.append((self.command, self.path, dict(self.headers), body))
                if hangs is not None:
                    hangs.wait(60)
                    return
                status = next(statuses, 204)
                self.send_response(status)
                if status in (301, 307):
                    self.send_header("Location", f"http://127.0.0.1:{found.port}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def url(self, path: str = "/agents/{worker}") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, _, _, body in self.got]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


MakeServer = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[MakeServer]:
    servers: list[Server] = []
    release = threading.Event()

    def make(answers: list[int] | None = None, hangs: bool = False) -> Server:
        servers.append(Server(answers, release if hangs else None))
        return servers[-1]

    yield make
    release.set()
    for server in servers:
        server.close()


def settled(number: int = 1, **facts: Any) -> TaskSettled:
    known: dict[str, Any] = {
        "task_id": f"t{number}", "status": "completed", "reason": None, "provider": "claude", "attempts": 1,
        "retry_count": 0, "duration_seconds": number / 1000, "dead_lettered": False, "exit_code": 0,
    }  # fmt: skip
    return TaskSettled(**known | facts)


def pushed(url: str, *events: TaskSettled, limits: PushLimits = FAST, token: str = "") -> StatisticsPush:
    push = StatisticsPush(url, token, "marie", None, limits)
    push.start()
    for event in events:
        push(event)
    return push


def test_each_outcome_is_told_exactly_in_order_over_one_connection(serve: MakeServer) -> None:
    server = serve()
    push = pushed(server.url(), *(settled(n, exit_code=n % 3) for n in range(1, 51)))
    push.close()
    assert server.bodies() == [{"task_duration": n, "exit_code": n % 3, "increment_count": True} for n in range(1, 51)]
    assert {(method, path) for method, path, _, _ in server.got} == {("PATCH", "/agents/marie")}
    assert {headers["Content-Type"] for _, _, headers, _ in server.got} == {"application/json"}
    assert len(server.connections) == 1 and push.numbers() == (50, 0)


def test_body_has_whole_milliseconds_and_a_number_for_no_exit_code() -> None:
    assert body_of(settled(duration_seconds=1.2345, exit_code=None)) == (
        b'{"task_duration":1234,"exit_code":-1,"increment_count":true}'
    )
    assert body_of(settled(duration_seconds=0.0, exit_code=-15)) == (
        b'{"task_duration":0,"exit_code":-15,"increment_count":true}'
    )


def test_names_in_the_address_are_quoted_and_have_a_stand_in(serve: MakeServer) -> None:
    server = serve()
    push = StatisticsPush(server.url("/a/{worker}/{instance}/{agent_id}?x={agent_id}"), "", "marie", "pod/1", FAST)
    push.start()
    push(settled(agent_id="ü /?#&"))
    push(settled())
    push.close()
    quoted = "%C3%BC%20%2F%3F%23%26"
    assert [path for _, path, _, _ in server.got] == [
        f"/a/marie/pod%2F1/{quoted}?x={quoted}", "/a/marie/pod%2F1/marie?x=marie",
    ]  # fmt: skip


def test_token_is_sent_as_bearer_and_nothing_is_when_there_is_none(serve: MakeServer) -> None:
    server = serve()
    pushed(server.url(), settled(), token="s3cret").close()
    pushed(server.url(), settled()).close()
    assert [headers.get("Authorization") for _, _, headers, _ in server.got] == ["Bearer s3cret", None]


def test_only_settled_tasks_are_told(serve: MakeServer) -> None:
    server = serve()
    push = pushed(server.url())
    push(TaskDropped("t", "duplicate"))
    push.close()
    assert server.got == []


def test_server_that_fails_for_a_while_is_asked_again(serve: MakeServer) -> None:
    server = serve([500, 429])
    push = pushed(server.url(), settled(1), settled(2))
    push.close()
    assert [body["task_duration"] for body in server.bodies()] == [1, 1, 1, 2]
    assert push.numbers() == (2, 0)


def test_after_three_tries_an_outcome_is_dropped_counted_and_said_once(
    serve: MakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve([503] * 300)
    logging.getLogger("watcher").propagate = True
    with caplog.at_level("WARNING", logger="watcher"):
        push = pushed(server.url(), *(settled(n) for n in range(100)), token="s3cret")
        wait_for("all to be given up", lambda: push.dropped == 100)
        first = len(caplog.records)
        push.close()
    assert len(server.got) == 300
    assert first == 1 and "status 503" in caplog.text, "one line, and the rest at the stop"
    assert [record.dropped for record in caplog.records] == [1, 99]  # type: ignore[attr-defined]
    assert all("status 503" in record.getMessage() for record in caplog.records), "the stop is not why they were lost"
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("status", [400, 401, 404])
def test_refusal_that_no_try_can_change_is_not_repeated(serve: MakeServer, status: int) -> None:
    server = serve([status])
    push = pushed(server.url(), settled(1), settled(2))
    push.close()
    assert (len(server.got), push.numbers()) == (2, (1, 1))


def test_redirect_is_not_followed(serve: MakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server = serve([307])
    logging.getLogger("watcher").propagate = True
    with caplog.at_level("WARNING", logger="watcher"):
        push = pushed(server.url(), settled(1), token="s3cret")
        push.close()
    assert [path for _, path, _, _ in server.got] == ["/agents/marie"] and push.dropped == 1
    assert "status 307; set STATS_URL" in caplog.text


def test_server_that_is_not_there_costs_nothing_but_the_statistics() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        push = pushed(f"http://127.0.0.1:{closed.getsockname()[1]}/", *(settled(n) for n in range(20)))
        wait_for("all to be given up", lambda: push.dropped == 20)
    push.close()
    assert push.numbers() == (0, 20)


def test_connection_that_the_server_closed_is_opened_again(serve: MakeServer) -> None:
    server = serve()
    push = pushed(server.url(), settled(1))
    wait_for("the first", lambda: push.sent == 1)
    sock = push._sender._connection.sock  # type: ignore[union-attr]
    sock.shutdown(socket.SHUT_RDWR)
    push(settled(2))
    wait_for("the second", lambda: push.sent == 2)
    push.close()
    assert push.dropped == 0 and len(server.connections) == 2


def test_queue_that_is_full_drops_the_newest_and_blocks_nobody(serve: MakeServer) -> None:
    server = serve(hangs=True)
    limits = PushLimits(queued=10, per_second=10_000, timeout_seconds=60, drain_seconds=0.1)
    push = pushed(server.url(), settled(0), limits=limits)
    wait_for("the first request", lambda: server.got)
    for number in range(1, 31):
        push(settled(number))
    assert push.dropped == 20
    push.close()
    assert push.numbers() == (0, 31), "what was queued, and what no answer came for, is dropped at the stop"


def test_stop_with_a_server_that_never_answers_ends(serve: MakeServer) -> None:
    server = serve(hangs=True)
    push = pushed(server.url(), settled(1), settled(2), limits=PushLimits(timeout_seconds=60, drain_seconds=0.2))
    wait_for("the first request", lambda: server.got)
    push.close()
    assert push.sent == 0


def test_rate_is_bounded(serve: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("watcher.telemetry.statistics_push.time", SimpleNamespace(monotonic=lambda: 1000.0))
    server = serve()
    waits: list[float] = []
    push = StatisticsPush(
        server.url(), "", "marie", None, PushLimits(per_second=20, timeout_seconds=60.0, drain_seconds=60.0)
    )
    push._wait = waits.append  # type: ignore[method-assign]
    push.start()
    for number in range(30):
        push(settled(number))
    wait_for("all", lambda: push.sent == 30)
    push.close()
    assert waits[1:] == [pytest.approx(1 / 20)] * 29, "each waits for the rest of its share of a second"


class Slow(StatisticsPush):
    """Its thread rests after it has asked whether the worker has stopped: whoever stops may go on meanwhile."""

    asked = threading.Event()
    closed = threading.Event()

    @property
    def _is_closed(self) -> bool:
        found = self.closed.is_set()
        if threading.current_thread() is self._thread:
            self.asked.set()
            self.closed.wait(0.5)
        return found

    @_is_closed.setter
    def _is_closed(self, value: bool) -> None:
        if value:
            self.closed.set()


def test_outcome_whose_time_is_over_at_the_moment_of_the_stop_is_counted_once() -> None:
    push = Slow("http://127.0.0.1:1/", "", "marie", None, PushLimits(drain_seconds=0))
    push._deliver = lambda item: "no answer"  # type: ignore[method-assign]
    push.start()
    push(settled(1))
    assert push.asked.wait(60)
    push.close()
    wait_for("the end of the thread", lambda: not push._thread.is_alive())
    assert push.numbers() == (0, 1)
