"""Send each outcome to a server: `PATCH {STATS_URL}` with duration, exit code, and that the task counts one more.

A listener that only puts what it hears into a queue; one thread sends it, in order, over one kept connection, a bounded
number a second. The worker never waits for it: what does not fit into the queue, and what a server does not take after
a few tries, is dropped, counted and said, once a minute at most. At the stop what is queued gets two seconds.

A request whose answer was lost is sent again, so a server may count a task twice: the figures are hints, results are
the truth. Redirects are not followed, and the token is neither logged nor sent anywhere else.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import queue
import threading
import time
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urlsplit

from watcher.telemetry.events import Event, TaskSettled

#: Outcomes that may wait for the server.
MAX_QUEUED = 1000
#: A server of statistics must not be flooded by a backlog of short tasks.
MAX_PER_SECOND = 50
TRIES = 3
TIMEOUT_SECONDS = 5.0
#: Between the tries; also how long a server in trouble is left alone.
PAUSES_SECONDS = (0.5, 2.0)
#: What is queued when the worker stops gets so long.
DRAIN_SECONDS = 2.0
SAY_EVERY_SECONDS = 60.0
#: For a task that never ran, or whose exit code nobody knows.
NO_EXIT_CODE = -1
#: An answer is read so far that the connection can be used again; a longer one closes it.
_MAX_ANSWER_BYTES = 64 << 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PushLimits:
    """The bounds above, so that a test need not wait for them."""

    queued: int = MAX_QUEUED
    per_second: float = MAX_PER_SECOND
    timeout_seconds: float = TIMEOUT_SECONDS
    pauses_seconds: tuple[float, ...] = PAUSES_SECONDS
    drain_seconds: float = DRAIN_SECONDS


@dataclass(frozen=True, slots=True)
class _Item:
    url: str
    body: bytes


class StatisticsPush:
    """Call it with every event; `start` first, `close` last. Any thread may ask for the numbers."""

    def __init__(
        self, url: str, token: str, worker: str, instance: str | None, limits: PushLimits | None = None
    ) -> None:
        self._url = url
        self._worker = worker
        self._instance = instance
        self._limits = limits or PushLimits()
        self._sender = _Sender(token, self._limits.timeout_seconds)
        self._queue: queue.Queue[_Item | None] = queue.Queue(self._limits.queued)
        self._stopping = threading.Event()
        self._ends_at = float("inf")
        self._thread = threading.Thread(target=self._run, name="statistics", daemon=True)
        self._say_at = float("-inf")
        self._unsaid, self._unsaid_why = 0, ""
        self._taken = self._settled = 0  # of those that were queued; the second is the thread's
        self._is_closed = False
        #: For what several threads count. The last request and the stop run out of time at the same moment, and one of
        #: them alone may count an outcome.
        self._counting = threading.Lock()
        self.sent = 0
        self.dropped = 0

    def start(self) -> None:
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Queue what a settled task has to tell; anything else is no news here. Never blocks."""
        if not isinstance(event, TaskSettled):
            return
        try:
            self._queue.put_nowait(_Item(self._address(event), body_of(event)))
            self._taken += 1
        except queue.Full:
            with self._counting:
                self._drop("more outcomes than the server takes")

    def numbers(self) -> tuple[int, int]:
        """How many were sent, and how many dropped."""
        return self.sent, self.dropped

    def close(self) -> None:
        """Send what is queued, for two seconds at most; the rest is dropped and counted. Blocks."""
        if not self._thread.is_alive():
            return
        self._ends_at = time.monotonic() + self._limits.drain_seconds
        self._stopping.set()
        with contextlib.suppress(queue.Full):  # the thread looks at the time as well
            self._queue.put_nowait(None)
        self._thread.join(self._limits.drain_seconds)
        with self._counting:
            self._is_closed = True  # a thread that still hangs in a request counts nothing any more
            left = self._taken - self._settled
            if left:
                self._drop("the worker has stopped", left)
            if self._unsaid:
                self._say(self._unsaid_why)
        self._sender.close()

    # --- the thread

    def _run(self) -> None:
        due = 0.0
        while (item := self._queue.get()) is not None and time.monotonic() < self._ends_at:
            self._wait(due - time.monotonic())
            due = time.monotonic() + 1.0 / self._limits.per_second
            if not self._settle(self._deliver(item)):
                return
            if self._stopping.is_set() and self._queue.empty():
                return

    def _settle(self, why: str | None) -> bool:
        """Count one; returns False when it was counted as left by `close`."""
        with self._counting:
            if self._is_closed:
                return False
            self._settled += 1
            if why is None:
                self.sent += 1
            else:
                self._drop(why)
            return True

    def _deliver(self, item: _Item) -> str | None:
        """Send one; returns why it could not be, or None."""
        for pause in (*self._limits.pauses_seconds[: TRIES - 1], None):
            left = self._ends_at - time.monotonic()
            if left <= 0:
                return "the worker has stopped"
            why, is_worth_a_try = self._sender.send(item.url, item.body, left)
            if why is None or not is_worth_a_try or pause is None:
                return why
            self._wait(min(pause, self._ends_at - time.monotonic()))
        return why

    def _wait(self, seconds: float) -> None:
        """A pause, which the stop cuts short: then each try that is left is made at once."""
        if seconds > 0:
            self._stopping.wait(seconds)

    # --- what is told

    def _address(self, event: TaskSettled) -> str:
        """A worker without instances, and a task without an agent, stand for themselves under the worker's name."""
        names = {"worker": self._worker, "instance": self._instance, "agent_id": event.agent_id}
        return self._url.format(**{name: quote(text or self._worker, safe="") for name, text in names.items()})

    def _drop(self, why: str, count: int = 1) -> None:
        """Under the lock."""
        self.dropped += count
        self._unsaid += count
        self._unsaid_why = why
        now = time.monotonic()
        if now >= self._say_at:
            self._say_at = now + SAY_EVERY_SECONDS
            self._say(why)

    def _say(self, why: str) -> None:
        count, self._unsaid = self._unsaid, 0
        _log.warning(
            "statistics that could not be sent: %d: %s; tasks are not touched by that",
            count,
            why,
            extra={"event": "statistics.dropped", "dropped": count, "reason": why},
        )


def body_of(event: TaskSettled) -> bytes:
    """What the server gets: whole milliseconds, the exit code, and that this is one task more."""
    code = NO_EXIT_CODE if event.exit_code is None else event.exit_code
    told = {"task_duration": round(event.duration_seconds * 1000), "exit_code": code, "increment_count": True}
    return json.dumps(told, separators=(",", ":")).encode()


class _Sender:
    """One connection at a time, kept while the server keeps it. One thread; `close` may come from another."""

    def __init__(self, token: str, timeout_seconds: float) -> None:
        self._headers = {"Content-Type": "application/json", "User-Agent": "watcher-suite"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._timeout = timeout_seconds
        self._connection: http.client.HTTPConnection | None = None
        self._server: tuple[str, str] | None = None

    def send(self, url: str, body: bytes, left_seconds: float) -> tuple[str | None, bool]:
        """One try: None, or what went wrong in words, and whether another try may help."""
        parts = urlsplit(url)
        where = f"PATCH {parts.scheme}://{parts.netloc}"
        try:
            status = self._exchange(parts, body, min(self._timeout, max(0.05, left_seconds)))
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            return f"{where}: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}", True
        if 200 <= status < 300:
            return None, False
        if 300 <= status < 400:
            return f"{where}: status {status}; set STATS_URL to the address it leads to", False
        return f"{where}: status {status}", status >= 500 or status in (408, 425, 429)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _exchange(self, parts: SplitResult, body: bytes, timeout: float) -> int:
        connection = self._connect(parts, timeout)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("PATCH", target, body, self._headers)
        answer = connection.getresponse()
        answer.read(_MAX_ANSWER_BYTES)
        if not answer.isclosed():
            self.close()
        return answer.status

    def _connect(self, parts: SplitResult, timeout: float) -> http.client.HTTPConnection:
        """A connection with this timeout for each of its steps: the kept one, or a new one."""
        server = (parts.scheme, parts.netloc)
        if self._connection is None or self._server != server:
            self.close()
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            self._connection = kind(parts.hostname or "", parts.port, timeout=timeout)
            self._server = server
        self._connection.timeout = timeout
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout)
        return self._connection
