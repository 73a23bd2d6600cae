"""Own the list of warm handlers: which exist, which are free, which callers wait for one. One lock guards it.

Callers take a handler, use it, and give it back or report it lost; `pool_keeper` adds new ones
and takes old ones out. A handler is handed out only if it has said nothing that nobody asked for. At most
`max_waiting` callers wait; the next one is refused.

Raises PoolFull, PoolClosed, NotWarm (no handler ever answered: run the command in another way), and WireBroken when the
caller is stopped while it waits or no handler can be started now.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from watcher.clock import Clock
from watcher.errors import WatcherError
from watcher.policy.after_attempt import Failure
from watcher.policy.pool_size import PoolLimits, restart_delay, size_after_request
from watcher.runner.runner_interface import MAX_ATTEMPT_OUTPUT_BYTES
from watcher.runner.warm.handler_process import Start, WarmProcess
from watcher.runner.warm.pipes import WireBroken


class PoolFull(WatcherError):
    """Too many requests wait already. Reaction: refuse this one."""


class PoolClosed(WatcherError):
    """The pool is shut down, or was not started. Reaction: give the request back."""


class NotWarm(WatcherError):
    """The command cannot be kept warm: it does not speak the protocol. Reaction: run it once for each task."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What a pool needs to know. Seconds and bytes; 0 turns a limit on age, requests or memory off.

    `mark_prefix` begins the mark of every handler and must be nobody else's; `busy_lock` is the path of the lock whose
    descriptor handlers inherit; `max_printed_bytes` is what a handler may print for one request, both streams together.
    """

    start: Start
    mark_prefix: str
    limits: PoolLimits = field(default_factory=lambda: PoolLimits(1, 3, 10))
    busy_lock: str = ""
    request_seconds: float = 300.0
    start_seconds: float = 30.0
    health_seconds: float = 30.0
    ping_seconds: float = 10.0
    monitor_seconds: float = 5.0
    idle_seconds: float = 60.0
    grace_seconds: float = 5.0
    max_requests: int = 10_000
    max_age_seconds: float = 3600.0
    max_memory_bytes: int = 1 << 30
    max_waiting: int = 1000
    max_printed_bytes: int = MAX_ATTEMPT_OUTPUT_BYTES
    backoff_seconds: tuple[float, float] = (0.5, 30.0)
    cold_seconds: tuple[float, float] = (60.0, 3600.0)


@dataclass(slots=True)
class Ticket:
    """One request, so that it can be stopped from another thread; `failure` and `why` are the stopper's notes."""

    process: WarmProcess | None = None
    is_stopped: bool = False
    failure: Failure | None = None
    why: str | None = None


@dataclass(slots=True)
class Removal:
    """A handler that leaves: why, and whether that was a failure. `is_over`: its process has been ended already."""

    process: WarmProcess
    reason: str
    detail: str = ""
    failed: bool = False
    is_over: bool = False


@dataclass(slots=True)
class Books:
    """What is known, all under the lock of FreeHandlers. `idle` is a stack, so that what is not needed stays unused."""

    size: int
    members: list[WarmProcess] = field(default_factory=list)
    idle: list[WarmProcess] = field(default_factory=list)
    leaving: list[Removal] = field(default_factory=list)
    waiting: int = 0
    is_open: bool = False
    was_warm: bool = False
    cold: str | None = None
    failures_in_a_row: int = 0
    cold_looks: int = 0
    start_at: float = float("-inf")
    downs: int = 0
    down_detail: str = ""
    checks_asked: int = 0
    checks_done: int = 0


class FreeHandlers:
    """The books and who may change them. `nudge` wakes the keeper."""

    def __init__(self, settings: PoolSettings, clock: Clock, nudge: Callable[[], None]) -> None:
        self.settings = settings
        self.books = Books(settings.limits.nominal)
        lock = threading.RLock()
        self.changed = threading.Condition(lock)
        #: For health checks alone: a handler that comes back wakes one waiter, which must be one that can use it.
        self.checked = threading.Condition(lock)
        self._clock = clock
        self._nudge = nudge

    # --- callers

    def take(self, ticket: Ticket) -> WarmProcess:
        """A free handler, for this ticket alone; blocks until there is one. See the module for what it raises."""
        books = self.books
        with self.changed:
            downs, is_waiting = books.downs, False
            try:
                while True:
                    self._check(ticket, downs)
                    process = self._free_one()
                    if process is not None:
                        ticket.process = process
                        return process
                    if not is_waiting:
                        self._queue()
                        is_waiting = True
                    self.changed.wait()
            finally:
                books.waiting -= is_waiting

    def give_back(self, process: WarmProcess, ticket: Ticket) -> None:
        """It has answered well."""
        books = self.books
        with self.changed:
            ticket.process = None
            books.failures_in_a_row = 0
            process.idle_since = self._clock.monotonic()
            reason = "answered_twice" if process.is_tainted else self.wear(process)
            if ticket.is_stopped:
                reason = "stopped"
            if len(books.members) > books.size:
                reason = reason or "not_needed"
            if reason is None:
                process.state = "idle"
                books.idle.append(process)
                self.changed.notify()
            else:
                self.remove(Removal(process, reason))

    def lost(self, removal: Removal, ticket: Ticket) -> None:
        """It has failed, and its process was ended."""
        with self.changed:
            ticket.process = None
            self.remove(removal)

    def stop(self, ticket: Ticket) -> None:
        """Have the ticket's caller come back at once."""
        with self.changed:
            ticket.is_stopped = True
            if ticket.process is not None:
                ticket.process.abort()
            else:
                self.changed.notify_all()

    # --- everybody, under the lock

    def remove(self, removal: Removal) -> None:
        """Take the handler out of the pool; `pool_keeper` ends it."""
        if removal.process in self.books.members:
            self.books.members.remove(removal.process)
        if removal.process in self.books.idle:
            self.books.idle.remove(removal.process)
        self.books.leaving.append(removal)
        if removal.failed:
            self.count_failure()
        self._nudge()

    def count_failure(self) -> None:
        """One more in a row: the next start waits longer."""
        books = self.books
        books.failures_in_a_row += 1
        delay = restart_delay(books.failures_in_a_row, *self.settings.backoff_seconds)
        books.start_at = max(books.start_at, self._clock.monotonic() + delay)

    def wear(self, process: WarmProcess) -> str | None:
        """Why it must be replaced although it works, or None."""
        settings = self.settings
        age = self._clock.monotonic() - process.began
        if 0 < settings.max_requests <= process.requests:
            return "max_requests"
        if 0 < settings.max_age_seconds <= age:
            return "max_age"
        if 0 < settings.max_memory_bytes <= process.memory_bytes() and process.requests:
            return "max_memory"
        return None

    def _check(self, ticket: Ticket, downs: int) -> None:
        books = self.books
        if ticket.is_stopped:
            raise WireBroken("stopped", "ended on request")
        if not books.is_open:
            raise PoolClosed("the pool of handlers is not running; start it, or give the request to another one")
        if books.cold is not None:
            raise NotWarm(books.cold)
        if books.downs != downs:
            raise WireBroken("handler_not_started", books.down_detail)

    def _free_one(self) -> WarmProcess | None:
        while self.books.idle:
            process = self.books.idle.pop()
            if process.is_quiet():
                process.state = "busy"
                return process
            process.state = "failed"
            detail = "it ended, or wrote to its standard output, while it had nothing to do"
            self.remove(Removal(process, "unasked", detail, failed=True))
        return None

    def _queue(self) -> None:
        books = self.books
        if books.waiting >= self.settings.max_waiting:
            raise PoolFull(
                f"{books.waiting} requests wait for {len(books.members)} handlers, which is the limit; "
                "make the pool larger (HANDLER_POOL_SIZE, HANDLER_POOL_MAX) or send fewer at once"
            )
        books.waiting += 1
        books.size = size_after_request(self.settings.limits, books.size)
        if len(books.members) < books.size:
            self._nudge()
