"""Run uvicorn with limits that it lacks, so that slow or many clients cost a bounded amount.

A connection that does not send a whole request head in time is answered 408 and closed; a reader that does not read is
cut off; beyond the bound the connection that has waited longest for a head makes room, and when all are busy a new one
gets 503. h11 parses: it is strict about what a request is, and bounds the size of a head (16 KiB here).

Raises SettingError when the address cannot be listened on. There is no TLS: a reverse proxy brings it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from watcher.errors import SettingError

MAX_HEAD_BYTES = 16_384
#: Also how long a connection is read on whose body was refused, so that its sender gets to see the answer.
KEEP_ALIVE_SECONDS = 10
#: For a client that does not read what it asked for.
WRITE_SECONDS = 30.0
_BACKLOG = 512
#: Descriptors beside the connections: folders, files being written, the memory of deliveries, the log.
_OTHER_DESCRIPTORS = 64
#: The least that WEBHOOK_MAX_CONNECTIONS may be.
_FEWEST_CONNECTIONS = 8

#: What accept(2) fails with when this process or the machine is short of something.
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_TELL_SECONDS = 10.0
_log = logging.getLogger(__name__)

_BODY = b'{"type": "about:blank", "title": "%b", "status": %d, "reason": "%b", "detail": "%b"}'


def _raw(status: int, title: bytes, reason: bytes, detail: bytes, more: bytes = b"") -> bytes:
    body = _BODY % (title, status, reason, detail)
    head = (
        b"HTTP/1.1 %d %b\r\nContent-Type: application/problem+json\r\nConnection: close\r\n%bContent-Length: %d\r\n\r\n"
    )
    return head % (status, title, more, len(body)) + body


_TIMED_OUT = _raw(408, b"Request Timeout", b"slow_request", b"the head of the request did not come in time")
_TOO_MANY = _raw(503, b"Service Unavailable", b"too_many_connections", b"try again in a moment", b"Retry-After: 1\r\n")


@dataclass(slots=True)
class ConnectionLimits:
    """What connections may cost. `waiting` are those without a (whole) request, oldest first."""

    max_connections: int
    head_seconds: float
    cut: Callable[[str], None]
    waiting: dict[_Connection, None] = field(default_factory=dict)


class _Connection(H11Protocol):
    """One connection. Its head timer runs whenever no request is being answered and something is owed by the client."""

    limits: ConnectionLimits  # one class is made for each server, see Server

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does this only for sockets that know their protocol's number, which accepted ones do not. Without it
        # an answer waits 40 ms for the acknowledgement of its own head (Nagle's algorithm meets delayed ACK).
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limits.max_connections and not self._make_room():
            self.limits.cut("too_many")
            transport.write(_TOO_MANY)
            transport.close()
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_answering:
            self._head_is_here()
        elif not self.transport.is_closing():
            self._await_head()

    def on_response_complete(self) -> None:
        self._head_is_here()
        super().on_response_complete()  # may go on with a request that came behind this one
        if not self._is_answering and not self.transport.is_closing():
            self.limits.waiting.setdefault(self, None)  # idle: uvicorn's timer ends it, or somebody who needs the room

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(WRITE_SECONDS, self._cut_reader)

    def resume_writing(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        """Start the timer, once: a byte now and then does not set it back."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_seconds, self._cut_sender)
            self.limits.waiting[self] = None

    def _head_is_here(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self.limits.waiting.pop(self, None)

    def _make_room(self) -> bool:
        """Cut off who has waited longest for the head of its request: it is the slow one that stays."""
        oldest = next(iter(self.limits.waiting), None)
        if oldest is None:
            return False
        self.limits.cut("made_room")
        oldest._head_is_here()
        oldest.transport.abort()
        return True

    def _cut_sender(self) -> None:
        self._head_is_here()
        self.limits.cut("slow_head")
        self.transport.write(_TIMED_OUT)
        self.transport.close()

    def _cut_reader(self) -> None:
        self.limits.cut("slow_reader")
        self.transport.abort()


class Server(uvicorn.Server):
    """Serves `app` on a bound socket until `should_exit`; signals are the caller's matter."""

    def __init__(
        self, app: Callable[..., Any], listening: socket.socket, limits: ConnectionLimits, grace_seconds: float
    ) -> None:
        protocol = type("Connection", (_Connection,), {"limits": limits})
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=protocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                # asyncio accepts so often at each turn, and where descriptors are short each time fails and is told.
                backlog=1,
                timeout_keep_alive=max(1, round(min(KEEP_ALIVE_SECONDS, limits.head_seconds))),
                timeout_graceful_shutdown=max(1, round(grace_seconds)),
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            )
        )
        self._socket = listening

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """uvicorn raises the signal again when it has stopped, and the process would not end with 0."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._socket.listen(_BACKLOG)  # as many may wait as before; one is accepted at a time

    async def run_until_stopped(self) -> None:
        asyncio.get_running_loop().set_exception_handler(_Shortage().handle)
        await self.serve(sockets=[self._socket])

    def connection_count(self) -> int:
        return len(self.server_state.connections)


class _Shortage:
    """Tells that connections cannot be accepted, once in ten seconds: asyncio tries again every second."""

    def __init__(self) -> None:
        self._told_at = float("-inf")

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _SHORTAGES:
            loop.default_exception_handler(context)
        elif loop.time() - self._told_at >= _TELL_SECONDS:
            self._told_at = loop.time()
            _log.error(
                "no connection is accepted: %s; trying each second; raise ulimit -n or lower WEBHOOK_MAX_CONNECTIONS",
                error.strerror, extra={"event": "webhook.trouble"},
            )  # fmt: skip


def check_descriptors(max_connections: int) -> None:
    """Raise SettingError when this process may not open so many connections, even with its limit raised as far as it
    may go."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + _OTHER_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return
    at_most = hard - _OTHER_DESCRIPTORS
    if at_most < _FEWEST_CONNECTIONS:
        return  # no setting is to blame: the start meets the shortage and says so
    raise SettingError(
        f"WEBHOOK_MAX_CONNECTIONS={max_connections}: this process may open {hard} files and connections (ulimit -n); "
        f"set at most {at_most}, or raise that limit"
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to this address. Raises SettingError when it cannot be had."""
    try:
        found: list[tuple[Any, ...]] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be looked up
        number = getattr(error, "errno", None)
        what = errno.errorcode.get(number or 0, str(error))
        if number == errno.EADDRINUSE:
            cure = f"WEBHOOK_PORT={port} is in use by another process; set another one, or 0 for any free one"
        elif number == errno.EACCES:
            cure = f"WEBHOOK_PORT={port} is not open to this user; set a port above 1023"
        else:
            cure = f"WEBHOOK_HOST={host} cannot be used; set an address of this machine, such as 127.0.0.1"
        raise SettingError(f"listen on {host}:{port}: {what}: {cure}") from None
