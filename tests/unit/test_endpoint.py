"""Real requests to a real endpoint on loopback."""

from __future__ import annotations

import errno
import gzip
import http.client
import logging
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from watcher.errors import SettingError
from watcher.telemetry import metrics_endpoint as module
from watcher.telemetry.metrics_endpoint import MAX_CONNECTIONS, PORTS_TRIED, MetricsEndpoint

WAIT_SECONDS = 60


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("watcher_tasks_processed_total", "Tasks.", ("worker",), registry=registry).labels("marie").inc(3)
    return registry


@contextmanager
def serving(
    registry: CollectorRegistry, port: int = 0, port_was_set: bool = True, **more: Any
) -> Iterator[MetricsEndpoint]:
    endpoint = MetricsEndpoint(registry, "127.0.0.1", port, port_was_set, **{"ready": lambda: (True, "ready")} | more)
    endpoint.start()
    try:
        yield endpoint
    finally:
        endpoint.stop()


@pytest.fixture
def endpoint(registry: CollectorRegistry) -> Iterator[MetricsEndpoint]:
    with serving(registry) as running:
        yield running


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint waits for its clients longer than these tests do, so that only what is tested ends them."""
    monkeypatch.setattr(module._Handler, "timeout", 3600.0)


def ask(endpoint: MetricsEndpoint, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=WAIT_SECONDS)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def dial(endpoint: MetricsEndpoint) -> socket.socket:
    return socket.create_connection(("127.0.0.1", endpoint.port), timeout=WAIT_SECONDS)


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@contextmanager
def listener(port: int = 0) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", port)) as taken:
        yield taken.getsockname()[1]


def test_metrics_are_served_as_prometheus_text(endpoint: MetricsEndpoint) -> None:
    status, headers, body = ask(endpoint, "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b'watcher_tasks_processed_total{worker="marie"} 3.0\n' in body


def test_metrics_are_compressed_for_a_client_that_wants_it(endpoint: MetricsEndpoint) -> None:
    _, headers, body = ask(endpoint, "/metrics", **{"Accept-Encoding": "gzip"})
    assert headers["content-encoding"] == "gzip"
    assert b"watcher_tasks_processed_total" in gzip.decompress(body)


def test_metrics_are_openmetrics_for_a_client_that_wants_it(endpoint: MetricsEndpoint) -> None:
    _, headers, body = ask(endpoint, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert headers["content-type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_only_the_named_metrics_are_sent_when_asked(endpoint: MetricsEndpoint) -> None:
    _, _, body = ask(endpoint, "/metrics?name[]=something_else")
    assert b"watcher_tasks_processed_total" not in body


def test_a_metric_that_cannot_be_gathered_is_a_500_and_one_line_in_the_log(
    registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def collect(self) -> Any:
            raise RuntimeError("odd")

    registry.register(Broken())  # type: ignore[arg-type]
    logger = logging.getLogger("watcher.telemetry.metrics_endpoint")
    logger.addHandler(caplog.handler)
    try:
        with serving(registry) as endpoint:
            status, _, body = ask(endpoint, "/metrics")
            assert ask(endpoint, "/healthz")[0] == 200
    finally:
        logger.removeHandler(caplog.handler)
    assert status == 500
    assert b"the log says why" in body
    assert "metrics could not be gathered" in caplog.text
    assert "RuntimeError: odd" in caplog.text
    assert "Traceback" not in capfd.readouterr().err


def test_readiness_follows_what_the_worker_says(registry: CollectorRegistry) -> None:
    answers = iter([(True, "ready"), (False, "draining"), (True, "ready")])
    with serving(registry, ready=lambda: next(answers)) as endpoint:
        seen = [ask(endpoint, "/readyz")[::2] for _ in range(3)]
    assert seen == [(200, b"ready\n"), (503, b"draining\n"), (200, b"ready\n")]


def test_a_readiness_that_cannot_be_told_is_no(registry: CollectorRegistry) -> None:
    def ready() -> tuple[bool, str]:
        raise KeyError("gone")

    with serving(registry, ready=ready) as endpoint:
        status, _, body = ask(endpoint, "/readyz")
    assert status == 503
    assert b"KeyError" in body


def test_health_does_not_depend_on_readiness(registry: CollectorRegistry) -> None:
    with serving(registry, ready=lambda: (False, "held")) as endpoint:
        assert ask(endpoint, "/healthz")[::2] == (200, b"ok\n")


def test_health_says_no_when_the_worker_says_it_hangs(registry: CollectorRegistry) -> None:
    with serving(registry, alive=lambda: (False, "no beat for 70 s")) as endpoint:
        assert ask(endpoint, "/healthz")[::2] == (503, b"no beat for 70 s\n")


def test_a_probe_may_use_head(endpoint: MetricsEndpoint) -> None:
    with dial(endpoint) as probe:
        probe.sendall(b"HEAD /readyz HTTP/1.0\r\n\r\n")
        answer = read_all(probe)
    assert answer.startswith(b"HTTP/1.0 200 OK")
    assert b"Content-Length: 6\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("path", ["/", "/metrics/../../etc/passwd", "/healthz/x"])
def test_other_paths_are_not_found(endpoint: MetricsEndpoint, path: str) -> None:
    assert ask(endpoint, path)[0] == 404


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
def test_other_methods_are_refused(endpoint: MetricsEndpoint, path: str) -> None:
    assert ask(endpoint, path, "DELETE")[0] == 405


def test_nothing_is_printed_about_requests_good_or_bad(
    endpoint: MetricsEndpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    ask(endpoint, "/metrics")
    ask(endpoint, "/nowhere")
    with dial(endpoint) as garbage:
        garbage.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
        read_all(garbage)
    dial(endpoint).close()
    ask(endpoint, "/metrics")
    assert capfd.readouterr() == ("", "")


def test_port_0_takes_a_free_one_and_tells_which(registry: CollectorRegistry) -> None:
    with serving(registry, port=0) as endpoint:
        assert endpoint.port > 0
        assert ask(endpoint, "/healthz")[0] == 200


def test_a_busy_port_that_the_user_set_is_refused_with_what_to_do(registry: CollectorRegistry) -> None:
    with listener() as port, pytest.raises(SettingError) as caught:
        MetricsEndpoint(registry, "127.0.0.1", port, True, lambda: (True, "")).start()
    assert f"METRICS_PORT={port} is in use by another process" in str(caught.value)
    assert "set 0 for any free port" in str(caught.value)


def test_a_busy_default_port_gives_the_next_free_one(registry: CollectorRegistry) -> None:
    with listener() as port, serving(registry, port, port_was_set=False) as endpoint:
        assert port < endpoint.port <= port + PORTS_TRIED
        assert ask(endpoint, "/healthz")[0] == 200


def test_two_workers_with_the_default_port_both_serve(registry: CollectorRegistry) -> None:
    with listener() as port:
        pass
    with (
        serving(registry, port, port_was_set=False) as one,
        serving(registry, port, port_was_set=False) as other,
    ):
        assert one.port != other.port
        assert ask(one, "/healthz")[0] == ask(other, "/healthz")[0] == 200


def test_no_free_port_at_all_is_refused(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def busy(host: str, port: int, app: object) -> None:
        tried.append(port)
        raise OSError(errno.EADDRINUSE, "in use")

    monkeypatch.setattr(module, "_Server", busy)
    with pytest.raises(SettingError, match="ports 9090 to 9190"):
        MetricsEndpoint(registry, "127.0.0.1", 9090, False, lambda: (True, "")).start()
    assert tried == list(range(9090, 9191))
    tried.clear()
    with pytest.raises(SettingError, match="ports 65530 to 65535"):
        MetricsEndpoint(registry, "127.0.0.1", 65_530, False, lambda: (True, "")).start()
    assert tried[-1] == 65_535


@pytest.mark.parametrize("host", ["203.0.113.7", "a..b"])
def test_an_address_that_is_not_ours_is_refused_by_name(registry: CollectorRegistry, host: str) -> None:
    with pytest.raises(SettingError, match=f"METRICS_HOST={host} cannot be used"):
        MetricsEndpoint(registry, host, 0, False, lambda: (True, "")).start()


def test_starting_asks_no_name_server(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("getfqdn may take half a minute"))
    with serving(registry) as endpoint:
        assert ask(endpoint, "/healthz")[0] == 200


def test_slow_clients_do_not_delay_others(endpoint: MetricsEndpoint) -> None:
    with dial(endpoint) as silent, dial(endpoint) as half:
        half.sendall(b"GET /metrics HT")
        silent.sendall(b"")
        assert ask(endpoint, "/metrics")[0] == 200


def test_the_oldest_connection_goes_when_there_are_too_many(endpoint: MetricsEndpoint, patient: None) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(dial(endpoint)) for _ in range(MAX_CONNECTIONS)]
        assert ask(endpoint, "/healthz")[0] == 200
        assert slow[0].recv(1) == b""
        slow[-1].sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert slow[-1].recv(15) == b"HTTP/1.0 200 OK"


def test_a_client_that_stays_silent_is_dropped(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert module._Handler.timeout == module.CLIENT_TIMEOUT_SECONDS
    monkeypatch.setattr(module._Handler, "timeout", 0.05)
    with serving(registry) as endpoint, dial(endpoint) as silent:
        assert silent.recv(1) == b""
    assert capfd.readouterr() == ("", "")


def test_a_client_that_does_not_take_its_answer_is_dropped(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    Counter("big_total", "x" * 20_000_000, registry=registry)  # more than the sockets between us buffer
    monkeypatch.setattr(module._Handler, "timeout", 0.05)
    ended = threading.Event()
    true_end = module._Server.shutdown_request

    def end(self: Any, request: Any) -> None:
        true_end(self, request)
        ended.set()

    monkeypatch.setattr(module._Server, "shutdown_request", end)
    with serving(registry) as endpoint, dial(endpoint) as deaf:
        deaf.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert ended.wait(WAIT_SECONDS)
    assert capfd.readouterr() == ("", "")


def test_stopping_cuts_off_who_is_connected_and_frees_the_port(registry: CollectorRegistry, patient: None) -> None:
    with serving(registry) as endpoint, dial(endpoint) as silent, dial(endpoint) as half:
        half.sendall(b"GET /metrics HT")
        assert ask(endpoint, "/healthz")[0] == 200
        endpoint.stop()
        assert silent.recv(1) == b""
        assert half.recv(1) == b""
        assert "metrics" not in [thread.name for thread in threading.enumerate()]
        with listener(endpoint.port):
            pass
        endpoint.stop()


def test_the_threads_do_not_keep_the_process_alive(endpoint: MetricsEndpoint) -> None:
    with dial(endpoint):
        assert ask(endpoint, "/healthz")[0] == 200
        ours = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
        assert ours
        assert all(thread.daemon for thread in ours)


def test_an_idle_endpoint_waits_without_a_timeout(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []
    waiting = threading.Semaphore(0)

    class Watched(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> Any:
            waits.append(timeout)
            waiting.release()
            return super().select(timeout)

    monkeypatch.setattr(module.selectors, "DefaultSelector", Watched)
    with serving(registry) as endpoint:
        assert waiting.acquire(timeout=WAIT_SECONDS)
        assert ask(endpoint, "/healthz")[0] == 200
        assert waiting.acquire(timeout=WAIT_SECONDS)
        assert waits == [None, None]


def test_running_out_of_descriptors_does_not_spin(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    failed = threading.Event()
    true_accept = socket.socket.accept

    def accept(self: socket.socket) -> Any:
        calls.append(1)
        if len(calls) == 1:
            failed.set()
            raise OSError(errno.EMFILE, "too many open files")
        return true_accept(self)

    monkeypatch.setattr(socket.socket, "accept", accept)
    monkeypatch.setattr(module, "_BREATH_SECONDS", 3600.0)
    with serving(registry) as endpoint, dial(endpoint):
        assert failed.wait(WAIT_SECONDS)
        endpoint.stop()  # must not have to wait for the breath to end
        assert len(calls) == 1


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/"])
def test_a_page_in_a_browser_reads_nothing_under_a_name_of_its_own(endpoint: MetricsEndpoint, path: str) -> None:
    status, _, body = ask(endpoint, path, Host="evil.example")
    assert status == 403 and b"METRICS_ALLOWED_HOSTS" in body and b"marie" not in body


def test_a_name_that_the_setting_allows_is_answered(registry: CollectorRegistry) -> None:
    with serving(registry, allowed_hosts=("metrics.example.org",)) as endpoint:
        assert ask(endpoint, "/metrics", Host="metrics.example.org:80")[0] == 200
        assert ask(endpoint, "/metrics", Host="evil.example")[0] == 403
