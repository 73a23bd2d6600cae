"""Keep a pool of handlers in shape, on one thread: start them, ping them, replace them, end them.

One poll loop does it all: first pings, health checks, the stderr of every handler (which is so always drained), the
polite end of those that leave, restarts after failures with growing pauses, and the size of the pool. Callers of the
pool never wait for it while a handler is free. It sleeps until something is due.

Decisions about the size are `policy.pool_size`. It tells what happened through `tell`, on its own thread. When it ends,
no handler is alive. An error of the machine (no descriptors, no memory) is a failed start and is tried again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from watcher.clock import Clock
from watcher.policy.pool_size import restart_delay, size_after_look
from watcher.runner.orphan_guard_client import Guarding
from watcher.runner.warm import jsonrpc
from watcher.runner.warm.free_handlers import FreeHandlers, PoolClosed, PoolSettings, Removal
from watcher.runner.warm.handler_process import WarmProcess
from watcher.runner.warm.pipes import WireBroken
from watcher.telemetry.events import Event, HandlerEnded, HandlerFailed, HandlersCold, HandlerStarted, PoolResized

#: What a handler gets between `shutdown` and TERM.
POLITE_SECONDS = 2.0
#: While handlers leave, the loop looks this often whether they are gone.
_LEAVING_STEP_SECONDS = 0.05
#: A process that ends may close its stderr before its stdout: look so often, 5 ms apart.
_LAST_LOOKS = 10


@dataclass(slots=True)
class _Probe:
    """A ping that is not answered yet; `deadline` is on the machine's monotonic clock."""

    process: WarmProcess
    deadline: float
    is_first: bool


@dataclass(slots=True)
class _Leaver:
    """A handler that was told to end: TERM and KILL follow."""

    removal: Removal
    term_at: float
    kill_at: float
    was_termed: bool = False


class Keeper:
    """Make it, give it its handlers, start it; `stop` ends it and every handler."""

    def __init__(self, settings: PoolSettings, clock: Clock, tell: Callable[[Event], None]) -> None:
        self._settings = settings
        self._clock = clock
        self._tell = tell
        self._handlers = FreeHandlers(settings, clock, self.nudge)
        self._guarding = Guarding(settings.mark_prefix, settings.busy_lock)
        self._wake_fd, self._woken_by = os.pipe()
        for fd in (self._wake_fd, self._woken_by):
            os.set_blocking(fd, False)
        self._poller = select.poll()
        self._poller.register(self._wake_fd, select.POLLIN)
        self._probes: dict[int, _Probe] = {}
        self._tails: dict[int, WarmProcess] = {}
        self._leavers: list[_Leaver] = []
        self._numbers = itertools.count(1)
        self._health_due = clock.monotonic() + settings.health_seconds
        self._look_due = clock.monotonic() + settings.monitor_seconds
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="handler-keeper", daemon=True)

    @property
    def handlers(self) -> FreeHandlers:
        return self._handlers

    def start(self) -> None:
        """Begin to start handlers; do not wait for them. While the pool runs a second call does nothing;
        after `stop` it raises PoolClosed."""
        with self._handlers.changed:
            if self._is_stopping:
                raise PoolClosed("this pool of handlers was shut down and cannot be started again; make a new one")
            if self._handlers.books.is_open:
                return
            self._handlers.books.is_open = True
            self._thread.start()

    def nudge(self) -> None:
        """Any thread: something has changed, look at once."""
        with self._handlers.changed, contextlib.suppress(BlockingIOError):  # it is full of nudges
            if self._woken_by >= 0:
                os.write(self._woken_by, b"x")

    def stop(self) -> None:
        """Close the handlers, end every handler, then the guard and the thread. Blocks until all that is done; a second
        call does nothing."""
        books = self._handlers.books
        with self._handlers.changed:
            books.is_open = False
            for process in books.members:
                if process.state == "busy":
                    process.abort()
            self._handlers.changed.notify_all()
            self._handlers.checked.notify_all()
            self._is_stopping = True
        self.nudge()
        if self._thread.is_alive():
            self._thread.join()
        self._guarding.dismiss()
        with self._handlers.changed:  # a late nudge must not reach somebody else's descriptor
            for fd in (self._wake_fd, self._woken_by):
                if fd >= 0:
                    os.close(fd)
            self._wake_fd = self._woken_by = -1

    # --- the thread

    def _run(self) -> None:
        while not (self._is_stopping and self._is_empty()):
            self._turn()
            for fd, _ in self._poller.poll(self._milliseconds()):
                self._look_at(fd)

    def _turn(self) -> None:
        """All that may be due."""
        self._see_off()
        self._end_leavers()
        self._miss_deadlines()
        if self._is_stopping:
            self._dismiss_idle(0, "shutdown")
            return
        now = self._clock.monotonic()
        if now >= self._look_due:
            self._look_due = now + self._settings.monitor_seconds
            self._look_at_size(now)
        if now >= self._health_due or self._handlers.books.checks_asked > self._handlers.books.checks_done:
            self._health_due = now + self._settings.health_seconds
            self._check_health()
        self._dismiss_idle(self._handlers.books.size, "not_needed")
        self._fill_up(now)

    def _is_empty(self) -> bool:
        with self._handlers.changed:
            books = self._handlers.books
            return not (books.members or books.leaving or self._leavers)

    def _milliseconds(self) -> float:
        """Until something is due. The pool's own clock may be a test's, so its times are only waits from now."""
        now, machine = self._clock.monotonic(), time.monotonic()
        books = self._handlers.books
        waits = [self._health_due - now, self._look_due - now]
        waits += [probe.deadline - machine for probe in self._probes.values()]
        if self._leavers or self._is_stopping:
            waits.append(_LEAVING_STEP_SECONDS)
        if len(books.members) < self._wanted():
            waits.append(books.start_at - now)
        return max(0.0, min(waits)) * 1000 + 1

    def _look_at(self, fd: int) -> None:
        if fd == self._wake_fd:
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 4096)
        elif fd in self._probes:
            self._hear(self._probes[fd])
        elif fd in self._tails:
            process = self._tails[fd]
            if not process.tail.drain():
                self._ended_by_itself(process)
            elif process.wire.has_too_much():
                process.abort()  # whoever waits for its answer sees why

    # --- starting

    def _wanted(self) -> int:
        books = self._handlers.books
        return books.size if books.cold is None else 1

    def _fill_up(self, now: float) -> None:
        books = self._handlers.books
        while len(books.members) < self._wanted() and now >= books.start_at:
            if books.members and books.failures_in_a_row and not books.was_warm:
                return  # first see whether it can be kept warm at all
            try:
                self._guarding.ensure()
                self._start_one(now)
            except OSError as error:
                with self._handlers.changed:
                    self._handlers.count_failure()
                self._start_failed(f"{self._settings.start.argv[0]!r}: {error.strerror or error}")

    def _start_one(self, now: float) -> None:
        process = WarmProcess(self._settings.start, f"{self._settings.mark_prefix}{next(self._numbers)}", now)
        self._tails[process.tail.fd] = process
        self._poller.register(process.tail.fd, select.POLLIN)
        with self._handlers.changed:
            self._handlers.books.members.append(process)
        self._probe(process, self._settings.start_seconds, is_first=True)

    def _probe(self, process: WarmProcess, seconds: float, is_first: bool) -> None:
        probe = _Probe(process, time.monotonic() + seconds, is_first)
        self._probes[process.wire.stdout_fd] = probe
        self._poller.register(process.wire.stdout_fd, select.POLLIN)
        try:
            process.ask(jsonrpc.PING, deadline=time.monotonic())
        except WireBroken as broken:
            self._failed_probe(probe, broken)

    def _hear(self, probe: _Probe) -> None:
        """Something came from a handler that was pinged. What else it says is looked at when it is handed out."""
        try:
            probe.process.wire.fill()
            while (line := probe.process.wire.take_line()) is not None:
                if probe.process.answer_in(line) is not None:
                    self._passed(probe)
                    return
        except WireBroken as broken:
            self._failed_probe(probe, broken)

    def _passed(self, probe: _Probe) -> None:
        """It has answered, be it with an error: it speaks the protocol."""
        self._forget_probe(probe)
        process = probe.process
        handlers, books = self._handlers, self._handlers.books
        with handlers.changed:
            process.state = "idle"
            reason = "answered_twice" if process.is_tainted else handlers.wear(process)
            if reason is not None:
                handlers.remove(Removal(process, reason))
            else:
                books.idle.append(process)
                books.was_warm = True
                books.cold, books.cold_looks = None, 0
                if probe.is_first:
                    process.idle_since = self._clock.monotonic()
                handlers.changed.notify()
            self._close_check()
        if probe.is_first:
            self._tell(HandlerStarted(process.pid))

    def _failed_probe(self, probe: _Probe, broken: WireBroken) -> None:
        self._forget_probe(probe)
        process = probe.process
        process.state = "failed"
        code = process.end(1.0, 0) if broken.reason == "handler_crashed" else process.end(0, 0)
        exited = f"; exit code {code}" if code is not None and broken.reason == "handler_crashed" else ""
        said = process.tail.last_line()
        detail = f"ping: {broken.detail}{exited}" + (f"; its last output: {said}" if said else "")
        with self._handlers.changed:
            self._handlers.remove(Removal(process, broken.reason, detail, failed=True, is_over=True))
            self._close_check()
        if probe.is_first:
            self._start_failed(detail)

    def _start_failed(self, detail: str) -> None:
        """Callers wait for nothing when no handler is there and none can be started."""
        handlers, books = self._handlers, self._handlers.books
        cold = None
        with handlers.changed:
            if books.members:
                return
            if books.was_warm:
                books.downs += 1
                books.down_detail = f"no handler can be started: {detail}"
            else:
                cold = books.cold = f"the command does not stay and answer a ping: {detail}"
                books.cold_looks += 1
                pause = restart_delay(books.cold_looks + 1, *self._settings.cold_seconds)
                books.start_at = self._clock.monotonic() + pause
            handlers.changed.notify_all()
        if cold is not None and books.cold_looks == 1:
            self._tell(HandlersCold(cold))

    # --- health and size

    def _check_health(self) -> None:
        books = self._handlers.books
        with self._handlers.changed:
            idle, books.idle = books.idle, []
            for process in idle:
                process.state = "checking"
        with contextlib.suppress(OSError):  # it is tried again before the next start
            self._guarding.ensure()
        for process in idle:
            self._probe(process, self._settings.ping_seconds, is_first=False)
        with self._handlers.changed:
            self._close_check()

    def _close_check(self) -> None:
        """Under the lock: a check that was asked for is done when no ping is open."""
        if not self._probes:
            self._handlers.books.checks_done = self._handlers.books.checks_asked
            self._handlers.checked.notify_all()

    def _miss_deadlines(self) -> None:
        now = time.monotonic()
        for probe in [one for one in self._probes.values() if now >= one.deadline]:
            limit = self._settings.start_seconds if probe.is_first else self._settings.ping_seconds
            self._failed_probe(probe, WireBroken("timeout", f"no answer within {limit:g} s"))

    def _forget_probe(self, probe: _Probe) -> None:
        if self._probes.pop(probe.process.wire.stdout_fd, None) is not None:
            self._poller.unregister(probe.process.wire.stdout_fd)

    def _look_at_size(self, now: float) -> None:
        books = self._handlers.books
        with self._handlers.changed:
            unused = sum(1 for process in books.idle if now - process.idle_since >= self._settings.idle_seconds)
            was = books.size
            books.size = size_after_look(self._settings.limits, was, books.waiting, unused)
            waiting = books.waiting
        if books.size != was:
            self._tell(PoolResized(books.size, was, waiting))

    def _dismiss_idle(self, size: int, reason: str) -> None:
        books = self._handlers.books
        with self._handlers.changed:
            while len(books.members) > size and books.idle:
                self._handlers.remove(Removal(books.idle[0], reason))
            if self._is_stopping:
                for probe in list(self._probes.values()):
                    self._forget_probe(probe)
                    self._handlers.remove(Removal(probe.process, reason))
        if books.leaving:
            self._see_off()

    # --- leaving

    def _see_off(self) -> None:
        """Begin the end of those that were taken off the handlers."""
        with self._handlers.changed:
            leaving, self._handlers.books.leaving = self._handlers.books.leaving, []
        now = time.monotonic()
        for removal in leaving:
            if removal.is_over:
                self._bury(removal)
                continue
            if not removal.failed:
                removal.process.retire()
            term_at = now if removal.failed else now + POLITE_SECONDS
            self._leavers.append(_Leaver(removal, term_at, term_at + self._settings.grace_seconds))

    def _end_leavers(self) -> None:
        now = time.monotonic()
        for leaver in list(self._leavers):
            process = leaver.removal.process
            process.tail.drain()
            if not process.has_ended() and now < leaver.kill_at:
                if now >= leaver.term_at and not leaver.was_termed:
                    leaver.was_termed = True
                    process.ask_to_end(self._settings.grace_seconds)
                continue
            process.end(0, 0)
            self._leavers.remove(leaver)
            self._bury(leaver.removal)

    def _bury(self, removal: Removal) -> None:
        """Nothing of it is alive: forget it."""
        process = removal.process
        if self._tails.pop(process.tail.fd, None) is not None:
            self._poller.unregister(process.tail.fd)
        process.close()
        left, served = process.leftovers, process.requests
        if removal.failed:
            self._tell(HandlerFailed(process.pid, removal.reason, removal.detail, served, left))
        else:
            self._tell(HandlerEnded(process.pid, removal.reason, served, left))

    def _ended_by_itself(self, process: WarmProcess) -> None:
        """It has closed its stderr, as by ending: look, when it is nobody's just now."""
        del self._tails[process.tail.fd]
        self._poller.unregister(process.tail.fd)
        for _ in range(_LAST_LOOKS):
            with self._handlers.changed:
                if process.state != "idle":
                    return
                if not process.is_quiet():
                    process.state = "failed"
                    detail = "it ended while it had nothing to do"
                    self._handlers.remove(Removal(process, "handler_crashed", detail, failed=True))
                    return
            time.sleep(0.005)
