"""Own one supervised process: start it, listen to it, ask it to end, and decide what follows its end.

It leads a session of its own, so Ctrl-C at the terminal reaches the supervisor alone, which ends everything in order.
Its output comes through one pipe. A thread waits for its end (processes sends the KILL when a grace is over); all else
is the loop's. When the supervisor is killed the process goes on and finishes its work: see `adopted_children`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from watcher.clock import Clock
from watcher.formats.heartbeat import UNSEEN_SENDER
from watcher.policy.restart import EXIT_DRAINED, EXIT_NAME_TAKEN, EXIT_SHORTAGE, Restarts, RestartVerdict, words_of
from watcher.supervisor.adopted_children import AdoptedChild, find
from watcher.supervisor.child_health import ChildHealth, Condition
from watcher.supervisor.child_log import Lines, Say
from watcher.system.processes import Child, spawn
from watcher.telemetry.events import (
    ChildAwaited,
    ChildEnded,
    ChildGivenUp,
    ChildLeft,
    ChildRestarting,
    ChildStarted,
    Emit,
)

_READ_BYTES = 64 << 10
#: What is read from one process before the others get their turn.
_READS_IN_A_ROW = 16


@dataclass(frozen=True, slots=True)
class Charge:
    """What to run: `name` is for people (`marie`, `marie@2`), `beat` is the file in which it says how it is.

    `takes_its_time`: asked once to end it finishes what it runs, however long that takes; so at a stop the supervisor
    keeps the grace and asks again.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    beat: Path
    takes_its_time: bool = False


class SupervisedChild:
    """The process of one charge, and its record."""

    def __init__(self, charge: Charge, restarts: Restarts, say: Say, clock: Clock, emit: Emit) -> None:
        self.charge = charge
        self.restarts = restarts
        self.health = ChildHealth(charge.beat)
        #: Set whenever no process of it runs.
        self.over = asyncio.Event()
        self.over.set()
        #: When it is to be started (monotonic); None: not before somebody says so.
        self.start_at: float | None = None
        #: Why none runs, for people.
        self.reason = "not started yet"
        #: It failed for good or ended badly: the supervisor's own exit code tells so.
        self.has_failed = False
        self.adopted: AdoptedChild | None = None
        self.on_change: Callable[[], None] = lambda: None
        self._say = say
        self._clock = clock
        self._emit = emit
        self._child: Child | None = None
        self._started_at = 0.0
        self._is_asked = False
        self._pipe: int | None = None
        self._lines = Lines()

    @property
    def name(self) -> str:
        return self.charge.name

    @property
    def is_up(self) -> bool:
        return self._child is not None

    @property
    def is_ending(self) -> bool:
        """It was asked to end and has not yet."""
        return self._child is not None and self._is_asked

    @property
    def is_starting(self) -> bool:
        """It does not work yet: it has not beaten, or its next start is due."""
        return self.start_at is not None or (self.is_up and not self.health.has_beaten)

    def uptime(self) -> float:
        return self._clock.monotonic() - self._started_at

    def start(self) -> None:
        """Start its process, which must not run. Where the system refuses, a later start is planned."""
        self.start_at = None
        self.let_adopted_go()
        self.health.forget()
        self.restarts.began()
        self._is_asked = False
        try:
            self._child = self._spawn()
        except OSError as error:
            self._plan(EXIT_SHORTAGE, f"cannot be started: {error.strerror or error}")
            return
        self._started_at = self._clock.monotonic()
        self.has_failed = False
        self.over.clear()
        self._emit(ChildStarted(self.name, self._child.pid))
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._wait, args=(self._child, loop), name=f"wait-{self.name}", daemon=True).start()

    def end(self, grace_seconds: float) -> None:
        """Ask it to end (TERM); KILL follows after the grace. Again: now, which for a worker means no more waiting."""
        self.start_at = None
        if self._child is not None:
            self._is_asked = True
            self._ask(self._child, grace_seconds)

    @staticmethod
    def _ask(child: Child, grace_seconds: float) -> None:
        """A worker alone: a command that it is just starting is of its group until it has a session of its own."""
        child.end(grace_seconds, leader_alone=True)

    def hurry_in(self, seconds: float, grace_seconds: float) -> None:
        """Ask its present process again after a while, if it is still there then."""
        child = self._child

        def hurry() -> None:
            if child is not None and self._child is child:
                self._ask(child, grace_seconds)

        asyncio.get_running_loop().call_later(seconds, hurry)

    def look(self) -> Condition:
        """How it is now, also for its record of restarts."""
        now = self._clock.monotonic()
        self.health.look(None if self._child is None else self._child.pid, now)
        condition = self.health.condition(now)
        if self._child is not None:
            self.restarts.is_well(condition.is_alive, now)
            return condition
        if self.adopted is not None:
            return Condition(False, False, f"served by pid {self.adopted.pid}, which outlived its supervisor")
        due = "" if self.start_at is None else f", next start in {max(0.0, self.start_at - now):.0f} s"
        return Condition(False, False, self.reason + due)

    def finds_adopted(self) -> bool:
        """Whether a process of it that outlived its supervisor is there; then it is waited for."""
        self.health.look(None, self._clock.monotonic())
        found = find(self.health.fields)
        if found is not None:
            self.wait_for(found)
        return found is not None

    def wait_for(self, adopted: AdoptedChild) -> None:
        """Start nothing until this process has ended."""
        self.let_adopted_go()
        self.adopted = adopted
        self.start_at = None
        self._emit(ChildAwaited(self.name, adopted.pid, "it finishes what it has; SIGHUP or a stop ends it sooner"))

    def let_adopted_go(self) -> None:
        if self.adopted is not None:
            self.adopted.close()
            self.adopted = None

    # --- the process

    def _spawn(self) -> Child:
        out, into = os.pipe2(os.O_CLOEXEC)
        try:
            os.set_blocking(out, False)
            environment = {os.fsencode(name): os.fsencode(text) for name, text in self.charge.environment.items()}
            child = spawn(self.charge.argv, environment, None, None, into, into, is_agent=False)
        except BaseException:
            os.close(out)
            raise
        finally:
            os.close(into)
        self._pipe = out
        self._lines = Lines()
        asyncio.get_running_loop().add_reader(out, self._read)
        return child

    def _read(self, reads: int = _READS_IN_A_ROW) -> None:
        for _ in range(reads):
            if self._pipe is None:
                return
            try:
                data = os.read(self._pipe, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._close_pipe()
                return
            for line in self._lines.feed(data):
                self._say(self.name, line)

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            asyncio.get_running_loop().remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = None
        for line in self._lines.end():
            self._say(self.name, line)

    def _wait(self, child: Child, loop: asyncio.AbstractEventLoop) -> None:
        """The waiting thread."""
        code = child.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            loop.call_soon_threadsafe(self._ended, child, code)

    # --- its end

    def _ended(self, child: Child, code: int | None) -> None:
        assert code is not None  # it was waited for without a limit
        self._read(reads=1 << 12)  # its last words, and not what a process that inherited the pipe says for ever
        self._close_pipe()
        self._child = None
        self.over.set()
        if self._is_asked:
            self.reason = "stopped" if code == EXIT_DRAINED else words_of(code)
            # TERM ends a process that has not yet set up what it does on TERM; nothing was begun then.
            self.has_failed = code not in (EXIT_DRAINED, -15)
            self._emit(ChildEnded(self.name, child.pid, self.reason))
        else:
            self.health.look(child.pid, self._clock.monotonic())
            self._plan(code, "", by_anybody=str(self.health.fields.get("reason")).endswith(UNSEEN_SENDER))
        self.on_change()

    def _plan(self, code: int, detail: str, *, by_anybody: bool = False) -> None:
        now = self._clock.monotonic()
        decision = self.restarts.ended(code, now, by_anybody=by_anybody)
        self.reason = detail or decision.reason
        if code == EXIT_NAME_TAKEN and self.finds_adopted():
            return
        if decision.delay_seconds is None:
            self.has_failed = decision.verdict is RestartVerdict.GIVE_UP
            self._emit((ChildGivenUp if self.has_failed else ChildLeft)(self.name, self.reason))
            return
        self.start_at = now + decision.delay_seconds
        self._emit(ChildRestarting(self.name, self.reason, self.restarts.crashes, decision.delay_seconds))
