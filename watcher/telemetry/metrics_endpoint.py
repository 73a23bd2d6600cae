"""Serve /metrics for Prometheus, and /healthz and /readyz for probes.

One daemon thread waits for connections and never wakes by itself; each request has a daemon thread too. So a
worker whose loop hangs still answers, and a slow client delays nobody: one read or write may take 10 s, and
beyond 64 open connections the oldest is cut off. Nothing is printed about requests.

Starting raises SettingError when the address cannot be listened on. There is no TLS and no password:
METRICS_HOST is 127.0.0.1 by default, where only requests to the loopback's names (and METRICS_ALLOWED_HOSTS) are
answered: no page in a browser shall read the counts and the names of workers and providers that are told.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import selectors
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from watcher.errors import SettingError
from watcher.telemetry.allowed_hosts import Hosts

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

#: How far above METRICS_PORT a free port is looked for when the user set none: a hundred workers a machine.
PORTS_TRIED = 100
#: For one read or one write of a client.
CLIENT_TIMEOUT_SECONDS = 10.0
#: A scraper and a few probes need five. The oldest is cut off, since it is the slow one that stays.
MAX_CONNECTIONS = 64
#: Before accepting is tried again when descriptors or memory are short; without it the thread would spin.
_BREATH_SECONDS = 1.0
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})

Answer = Callable[[], tuple[bool, str]]

_log = logging.getLogger(__name__)


class MetricsEndpoint:
    """Serves `registry` on `host` and `port` from `start()` to `stop()`; `port` is then the one it got.

    A port in use raises SettingError when the user set it (`port_was_set`); otherwise the next free one of
    the 100 above it is taken. Port 0 is any free one. `ready` and `alive` say yes or no and why, on a
    request's thread; no is status 503. Without `alive`, /healthz says only that the process answers, which
    one with a hung loop does as well.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        host: str,
        port: int,
        port_was_set: bool,
        ready: Answer,
        alive: Answer | None = None,
        allowed_hosts: tuple[str, ...] = (),
    ) -> None:
        self.host = host
        self.port = port
        self._port_was_set = port_was_set
        self._app = _router(make_wsgi_app(registry), ready, alive or (lambda: (True, "ok")), Hosts(host, allowed_hosts))
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen and answer. Raises SettingError when the address or port cannot be had."""
        self._server = self._listen()
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve, name="metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and cut off who is connected, at once. A second call does nothing."""
        if self._server is None or self._thread is None:
            return
        self._server.stop_serving()
        self._thread.join()
        self._server.server_close()
        self._server = self._thread = None

    def _listen(self) -> _Server:
        last = self.port if self._port_was_set or self.port == 0 else min(self.port + PORTS_TRIED, 65_535)
        for port in range(self.port, last + 1):
            try:
                return _Server(self.host, port, self._app)
            except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be looked up
                if getattr(error, "errno", None) != errno.EADDRINUSE or self._port_was_set:
                    raise SettingError(self._refusal(port, error)) from error
        raise SettingError(
            f"listen on {self.host}, ports {self.port} to {last}: EADDRINUSE on every one; "
            "set METRICS_PORT=0 to take any free port, or ENABLE_METRICS=false"
        )

    def _refusal(self, port: int, error: OSError | UnicodeError) -> str:
        number = getattr(error, "errno", None)
        where = f"listen on {self.host}:{port}: {errno.errorcode.get(number or 0, error)}"
        if number == errno.EADDRINUSE:
            return (
                f"METRICS_PORT={port} is in use by another process: {where}; "
                "set another port, set 0 for any free port, or remove the setting to take the next free port"
            )
        if number == errno.EACCES:
            return f"METRICS_PORT={port} is not open to this user: {where}; set a port above 1023"
        return (
            f"METRICS_HOST={self.host} cannot be used: {where}; "
            "set an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all of them"
        )


def _router(metrics: WSGIApplication, ready: Answer, alive: Answer, hosts: Hosts) -> WSGIApplication:
    probes = {"/healthz": alive, "/readyz": ready}

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        # A request without Host (HTTP/1.0) comes from no browser.
        if "HTTP_HOST" in environ and not hosts.answers(environ["HTTP_HOST"]):
            status, text = (
                "403 Forbidden",
                "ask for localhost, or name this host in METRICS_ALLOWED_HOSTS",
            )
        elif path != "/metrics" and path not in probes:
            status, text = "404 Not Found", "there are /metrics, /healthz and /readyz"
        elif method != "GET" and (method != "HEAD" or path == "/metrics"):
            status, text = "405 Method Not Allowed", "use GET"
        elif path == "/metrics":
            try:
                return metrics(environ, start_response)  # it gathers everything before it starts to answer
            except Exception:  # noqa: BLE001 - a scrape that fails must be seen in the log, not end in wsgiref
                _log.warning("metrics could not be gathered", exc_info=True)
                status, text = "500 Internal Server Error", "metrics could not be gathered; the log says why"
        else:
            yes, text = _ask(probes[path])
            status = "200 OK" if yes else "503 Service Unavailable"
        body = f"{text}\n".encode("utf-8", "backslashreplace")
        start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
        return [] if method == "HEAD" else [body]

    return app


def _ask(answer: Answer) -> tuple[bool, str]:
    try:
        return answer()
    except Exception as error:  # noqa: BLE001 - a probe gets an answer whatever is wrong here, and it is no
        return False, f"cannot tell: {type(error).__name__}: {error}"


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_TIMEOUT_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a request every few seconds is no event."""

    def get_stderr(self) -> Any:
        return io.StringIO()  # wsgiref's traceback of a client that went away while it was answered


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """Listens once it is made; `serve` runs on a thread of its own until `stop_serving`."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = MAX_CONNECTIONS
    timeout = 0  # of handle_request, which is called when a connection is there

    def __init__(self, host: str, port: int, app: WSGIApplication) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, None] = {}  # oldest first
        super().__init__((str(address[0]), port), _Handler)
        self.socket.setblocking(False)  # a client may leave between the wake-up and the accept
        self.set_app(app)
        self._stopped, self._stop = os.pipe()

    def server_bind(self) -> None:
        # HTTPServer would look up our own name here, and a name server that is down takes half a minute.
        socketserver.TCPServer.server_bind(self)
        self.server_name = str(self.server_address[0])
        self.server_port = self.server_address[1]
        self.setup_environ()

    def serve(self) -> None:
        """Take connections until told to stop. serve_forever would wake twice a second to look at a flag."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            selector.register(self._stopped, selectors.EVENT_READ)
            while True:
                awake = [key.fd for key, _ in selector.select()]
                if self._stopped in awake:
                    break
                self.handle_request()
        os.close(self._stopped)

    def stop_serving(self) -> None:
        os.close(self._stop)  # the other end becomes readable

    def server_close(self) -> None:
        super().server_close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            _cut_off(connection)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            connection, address = super().get_request()
        except OSError as error:
            if error.errno in _SHORTAGES:
                with selectors.DefaultSelector() as selector:
                    selector.register(self._stopped, selectors.EVENT_READ)
                    selector.select(_BREATH_SECONDS)
            raise
        with self._lock:
            if len(self._connections) >= MAX_CONNECTIONS:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
                _cut_off(oldest)
            self._connections[connection] = None
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say it at DEBUG only: a client that left or took too long is not worth a traceback on stderr."""
        _log.debug("the request of %s ended early", client_address, exc_info=True)


def _cut_off(connection: socket.socket) -> None:
    with suppress(OSError):  # it may have ended by itself
        connection.shutdown(socket.SHUT_RDWR)


class EndpointSettings(Protocol):
    """What the settings say of the endpoint. A port that nobody set may give way to another when it is taken."""

    @property
    def metrics_host(self) -> str: ...
    @property
    def metrics_port(self) -> int: ...
    @property
    def port_was_set(self) -> bool: ...
    @property
    def allowed_hosts(self) -> tuple[str, ...]: ...


def start_endpoint(
    registry: CollectorRegistry, wanted: EndpointSettings, ready: Answer, alive: Answer, log: logging.Logger
) -> MetricsEndpoint:
    """Serve the metrics; says so when they had to take another port than the default."""
    endpoint = MetricsEndpoint(
        registry, wanted.metrics_host, wanted.metrics_port, wanted.port_was_set, ready, alive, wanted.allowed_hosts
    )
    endpoint.start()
    if endpoint.port != wanted.metrics_port != 0:
        text = "port %d is taken; metrics are on port %d"
        log.warning(text, wanted.metrics_port, endpoint.port, extra={"event": "metrics.port_moved"})
    return endpoint
