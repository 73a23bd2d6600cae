"""Offer a pool of warm handlers: processes that are started once and answer one request after the other.

    pool = HandlerPool(pool_size=3)
    pool.start()
    reply = pool.execute("default", {"description": "say hi"})
    pool.shutdown()

Many threads may call `execute` at once; each gets a handler for itself, or waits for one. A handler that is late,
crashes or breaks the protocol costs the request that it had, is killed with all that it started, and is replaced; the
others go on. An answer never reaches another request than its own. When `shutdown` has returned no process of the pool
is alive; when this process is killed, a guard kills them (`runner.orphan_guard`).

It assumes Linux for that. Besides what `free_handlers` lists, `execute` raises HandlerFault for a request that failed
without an answer, and OSError when the machine has nothing left.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from watcher.clock import Clock, SystemClock
from watcher.errors import WatcherError
from watcher.policy.pool_size import PoolLimits
from watcher.runner.warm import jsonrpc
from watcher.runner.warm.free_handlers import NotWarm, PoolClosed, PoolFull, PoolSettings, Removal, Ticket
from watcher.runner.warm.handler_process import Start, State, WarmProcess
from watcher.runner.warm.jsonrpc import BadAnswer, Executed, RpcError
from watcher.runner.warm.pipes import WireBroken
from watcher.runner.warm.pool_keeper import Keeper
from watcher.telemetry.events import Event

#: A handler that closed its stdout gets this long to end by itself, for its exit code.
_EXIT_SECONDS = 1.0


class HandlerFault(WatcherError):
    """A request ended without an answer. `reason` is `timeout`, `stopped`, `handler_crashed`, `handler_bad_answer`,
    `handler_answer_too_long`, `handler_too_large`, `output_too_large` or `handler_not_started`; `stderr` is what it
    wrote meanwhile."""

    def __init__(self, reason: str, detail: str, exit_code: int | None = None, stderr: str = "", left: int = 0) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.exit_code = exit_code
        self.stderr = stderr
        self.leftovers_killed = left


@dataclass(slots=True)
class Reply:
    """What a handler answered: a result, or an error of JSON-RPC. `printed` is what it wrote to stderr meanwhile."""

    answer: Executed | RpcError
    printed: str
    pid: int


@dataclass(frozen=True, slots=True)
class HandlerState:
    """One handler, for people and tests."""

    pid: int
    state: State
    requests: int
    age_seconds: float
    memory_bytes: int


class HandlerPool:
    """Warm handlers of one command. Without settings the command is the echo of `watcher.handler`, to try it."""

    def __init__(
        self,
        pool_size: int = 3,
        settings: PoolSettings | None = None,
        clock: Clock | None = None,
        tell: Callable[[Event], None] | None = None,
    ) -> None:
        given = settings or default_settings((sys.executable, "-m", "watcher.handler"))
        low, high = given.limits.minimum, given.limits.maximum
        if not low <= pool_size <= high:
            raise ValueError(f"pool_size {pool_size}: give one from {low} to {high}, or other limits in the settings")
        self._settings = replace(given, limits=PoolLimits(low, pool_size, high))
        self._clock = clock or SystemClock()
        self._keeper = Keeper(self._settings, self._clock, tell or _tell_nobody)
        self._handlers = self._keeper.handlers

    def start(self) -> None:
        """Begin to start the handlers, and return at once: requests wait for the first one that is ready. A second
        call does nothing; after `shutdown` it raises PoolClosed."""
        self._keeper.start()

    def execute(
        self,
        handler_name: str,
        event: Mapping[str, Any],
        timeout_seconds: float | None = None,
        ticket: Ticket | None = None,
    ) -> Reply:
        """Have one request answered. Blocks: first until a handler is free, then at most `timeout_seconds` (and never
        more than the pool's own limit). `ticket` lets another thread stop it."""
        ticket = ticket or Ticket()
        limit = self._settings.request_seconds
        limit = limit if timeout_seconds is None else min(limit, timeout_seconds)
        try:
            process = self._handlers.take(ticket)
        except WireBroken as broken:
            raise HandlerFault(broken.reason, broken.detail) from None
        process.wire.allow(self._settings.max_printed_bytes, process.tail)
        began = process.tail.position()
        try:
            answer = self._call(process, {"handler_name": handler_name, "event": dict(event)}, limit)
        except WireBroken as broken:
            raise self._failed(process, ticket, broken, began, limit) from None
        except BaseException as error:
            self._failed(process, ticket, WireBroken("handler_bad_answer", repr(error)), began, limit)
            raise
        process.wire.allow_all()
        process.tail.drain()
        reply = Reply(answer, process.tail.since(began), process.pid)
        self._handlers.give_back(process, ticket)
        return reply

    def stop(self, ticket: Ticket) -> None:
        """Any thread: end this request now; its handler is killed, its `execute` raises HandlerFault `stopped`."""
        self._handlers.stop(ticket)

    def health_check(self) -> list[HandlerState]:
        """Ping every idle handler now, wait for the answers, and say how all of them are. Blocks at most as long as a
        ping may take. The keeper does the same every `health_seconds`; one that does not answer is replaced."""
        books = self._handlers.books
        until = time.monotonic() + self._settings.ping_seconds + self._settings.start_seconds + 1.0
        with self._handlers.changed:
            books.checks_asked += 1
            wanted = books.checks_asked
            self._keeper.nudge()
            while books.is_open and books.checks_done < wanted and time.monotonic() < until:
                self._handlers.checked.wait(0.5)
        return self.states()

    def states(self) -> list[HandlerState]:
        """How the handlers are, without asking them."""
        now = self._clock.monotonic()
        with self._handlers.changed:
            members = list(self._handlers.books.members)
        return [HandlerState(p.pid, p.state, p.requests, now - p.began, p.memory_bytes()) for p in members]

    def scale(self, size: int) -> int:
        """Have `size` handlers, as far as the limits allow; returns how many that will be. Busy ones finish first."""
        with self._handlers.changed:
            self._handlers.books.size = self._settings.limits.clamp(size)
            self._keeper.nudge()
            return self._handlers.books.size

    def waiting(self) -> int:
        """How many requests wait for a handler."""
        return self._handlers.books.waiting

    def cold(self) -> str | None:
        """Why the command cannot be kept warm, or None."""
        return self._handlers.books.cold

    def nudge(self) -> None:
        """Have the keeper look now; for clocks that are driven by hand."""
        self._keeper.nudge()

    def shutdown(self) -> None:
        """End the pool: `shutdown`, then TERM, then KILL for each handler, and whatever they left. Blocks. Requests
        under way are stopped, waiting ones get PoolClosed."""
        self._keeper.stop()

    def _call(self, process: WarmProcess, params: dict[str, Any], seconds: float) -> Executed | RpcError:
        # It is replaced above the limit, between two tasks; a task may need more for a while, but not any amount.
        answer = process.call(jsonrpc.EXECUTE, params, seconds, 2 * self._settings.max_memory_bytes)
        if isinstance(answer, RpcError):
            return answer
        try:
            return jsonrpc.parse_executed(answer)
        except BadAnswer as bad:
            raise WireBroken("handler_bad_answer", str(bad)) from None

    def _failed(
        self, process: WarmProcess, ticket: Ticket, broken: WireBroken, began: int, limit: float
    ) -> HandlerFault:
        """End the handler and say what happened."""
        process.state = "failed"
        has_crashed = broken.reason == "handler_crashed"
        code = process.end(_EXIT_SECONDS if has_crashed else 0.0, self._settings.grace_seconds)
        detail = f"handler {process.pid}: {broken.detail}"
        if broken.reason == "timeout":
            detail = f"handler {process.pid}: no answer within {limit:g} s; it was ended"
        elif broken.reason == "handler_too_large":
            detail += ", twice HANDLER_MAX_MEMORY; it was ended; raise the setting, or give it smaller tasks"
        elif has_crashed:
            detail += "" if code is None else f"; exit code {code}" if code >= 0 else f"; ended by signal {-code}"
            last = process.tail.last_line()
            detail += f"; its last output: {last}" if last else ""
        removal = Removal(process, broken.reason, detail, failed=broken.reason != "stopped", is_over=True)
        stderr = process.tail.since(began)
        self._handlers.lost(removal, ticket)
        return HandlerFault(broken.reason, detail, code if has_crashed else None, stderr, process.leftovers)


def default_settings(argv: tuple[str, ...]) -> PoolSettings:
    """Settings for a pool outside of a worker: the whole environment, this folder, marks of its own."""
    environment = {os.fsencode(name): os.fsencode(value) for name, value in os.environ.items()}
    return PoolSettings(Start(argv, environment), f"{secrets.token_hex(16)}.h")


def _tell_nobody(event: Event) -> None:
    """Nobody asked."""


__all__ = [
    "HandlerFault", "HandlerPool", "HandlerState", "NotWarm", "PoolClosed", "PoolFull", "PoolSettings", "Reply",
    "Ticket", "default_settings",
]  # fmt: skip
