"""Run several workers and the listener as child processes: start, restart, roll, scale and stop them.

The loop looks once a second or when something happens: it starts what is due, asks every process how it is, scales, and
says once a minute who is healthy. SIGHUP restarts all, one after the other, and goes on only when the new one beats.
SIGTERM and Ctrl-C drain the workers, then end the listener; a second signal means now, a third one kills.

When it stops, no process that it started or adopted is alive. When it is killed, the workers go on and finish what
they have; the next supervisor waits for them, says so, and ends them when it is asked to end itself.
What to do is decided in policy/restart and policy/scaling. Raises nothing: what cannot be started is said and retried.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from watcher import __version__
from watcher.clock import Clock
from watcher.settings.worker import WatcherConfig
from watcher.supervisor.adopted_children import AdoptedChild
from watcher.supervisor.child import SupervisedChild
from watcher.supervisor.instances import WorkerInstances
from watcher.system import processes
from watcher.system.machine_load import Machine
from watcher.system.signals import Reactions, signals
from watcher.telemetry.events import (
    ChildrenRolled,
    Emit,
    LeftoversKilled,
    RollBrokenOff,
    SupervisorStarted,
    SupervisorStopped,
    SupervisorStopping,
    passed_over,
)
from watcher.telemetry.logs import LOGGER_NAME

#: After the grace of a worker: its kill grace, a second try to store outcomes, and the time to start and end Python.
_MARGIN_SECONDS = 30.0
#: A drained instance may take as long as its longest task.
_A_DAY_SECONDS = 86_400.0
_KILL_NOW_AT = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for, beside the settings. Seconds.

    `least` instances of each worker at first, at most `most`; None: each is one process without an instance.
    `start_timeout`: how long a roll waits for the first beat of a new process. `flags` are for every process, too.
    """

    workers: tuple[str, ...]
    with_listener: bool
    least: int
    most: int | None
    grow_after: float
    shrink_after: float
    start_timeout: float
    report_every: float
    flags: tuple[str, ...] = ()


class Supervisor:
    """The loop. `listener` is None where none is to run."""

    def __init__(
        self,
        wanted: Wanted,
        config: WatcherConfig,
        workers: Sequence[WorkerInstances],
        listener: SupervisedChild | None,
        machine: Machine,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self._wanted = wanted
        self._config = config
        self._look_interval = min(1.0, max(0.1, config.heartbeat_interval / 2))
        self._workers = workers
        self._listener = listener
        self._machine = machine
        self._clock = clock
        self._emit = emit
        self._log = logging.getLogger(LOGGER_NAME)
        self._flag = asyncio.Event()
        self._signals = 0
        self._stop_reason = ""
        self._is_roll_wanted = False
        self._roll: asyncio.Task[None] | None = None
        self._report_due = 0.0
        self._strays: list[AdoptedChild] = []

    async def run(self) -> int:
        """Serve until told to stop, or until nothing is left to serve; returns the exit code: 1 if something failed."""
        signals.attach(
            asyncio.get_running_loop(), Reactions(self.stop, self._stop_now, self.roll), passed_over(self._emit)
        )
        who = f"{', '.join(self._wanted.workers)} below {self._config.watcher_root}"
        self._emit(SupervisorStarted(os.getpid(), f"version {__version__}, {who}"))
        self._report_due = self._clock.monotonic() + self._wanted.report_every
        self._adopt()
        for child in self._all():
            if child.adopted is None:
                child.start()
        while not self._signals and not self._is_all_out():
            self._turn()
            await self._nap(self._pause())
        await self._stop()
        has_failed = any(child.has_failed for child in self._all())
        self._emit(SupervisorStopped(self._stop_reason or "nothing is left to watch"))
        return 1 if has_failed else 0

    def stop(self, reason: str) -> None:
        """First call: drain all and end. Second: end what runs now. Third: kill. Loop thread."""
        self._signals += 1
        self._stop_reason = self._stop_reason or reason
        if self._signals > 1:
            kills = self._signals >= _KILL_NOW_AT
            for child in self._everybody():
                child.end(0 if kills else self._short_grace())
            for adopted in self._adopted():
                adopted.signal(signal.SIGKILL if kills else signal.SIGTERM)
        self._flag.set()

    def _stop_now(self, reason: str) -> None:
        while self._signals < _KILL_NOW_AT - 1:
            self.stop(reason)

    def roll(self) -> None:
        """Restart all, one after the other. Loop thread."""
        self._is_roll_wanted = True
        self._flag.set()

    # --- what outlived an earlier supervisor

    def _adopt(self) -> None:
        """Wait for those whose place is here, and have the others end when they are done with what they run."""
        for worker in self._workers:
            self._strays += worker.adopt()
        if self._listener is not None:
            self._listener.finds_adopted()
        for stray in self._strays:
            stray.end(self._clock.monotonic(), _A_DAY_SECONDS, 2 * _A_DAY_SECONDS)

    def _adopted(self) -> list[AdoptedChild]:
        """Those that still live."""
        for stray in [stray for stray in self._strays if stray.has_ended()]:
            self._strays.remove(stray)
            stray.close()
        return self._strays + [w.adopted for w in self._all() if w.adopted is not None and not w.adopted.has_ended()]

    # --- one turn

    def _turn(self) -> None:
        self._sweep()
        now = self._clock.monotonic()
        for child in self._everybody():
            child.on_change = self._flag.set
            if child.adopted is not None and child.adopted.has_ended():
                child.start_at = now
            if child.start_at is not None and now >= child.start_at:
                child.start()
            child.look()
        if self._roll is not None and self._roll.done():
            self._roll.result()  # a defect in it must be seen
            self._roll = None
        if self._roll is None and self._is_roll_wanted:
            self._is_roll_wanted = False
            self._roll = asyncio.create_task(self._roll_all())
        elif self._roll is None:
            self._scale(now)
        if now >= self._report_due:
            self._report_due = now + self._wanted.report_every
            self._report()

    def _scale(self, now: float) -> None:
        if any(worker.scaler is not None for worker in self._workers):
            busy = self._machine.look()
            for worker in self._workers:
                worker.scale(busy, now, _A_DAY_SECONDS)

    def _sweep(self) -> None:
        """Commands of a worker that was killed became our children: end them, their worker's heirs run them again.

        On the loop thread, because a process that is just being started here must not look adopted.
        """
        killed = processes.sweep()
        if killed:
            self._emit(LeftoversKilled("", killed))

    async def _nap(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._flag.wait()
        except TimeoutError:
            pass
        self._flag.clear()

    def _pause(self) -> float:
        now = self._clock.monotonic()
        dues = [child.start_at - now for child in self._all() if child.start_at is not None]
        return max(0.01, min([self._look_interval, self._report_due - now, *dues]))

    def _all(self) -> list[SupervisedChild]:
        """Those that should run: the workers, then the listener."""
        children = [child for worker in self._workers for child in worker.children()]
        return children + ([self._listener] if self._listener is not None else [])

    def _everybody(self) -> list[SupervisedChild]:
        retiring = [child for worker in self._workers for child in worker.everybody() if child not in worker.children()]
        return self._all() + retiring

    def _is_all_out(self) -> bool:
        if self._roll is not None or self._adopted():
            return False
        return not any(child.is_up or child.start_at is not None for child in self._all())

    def _report(self) -> None:
        looks = [(child, child.look()) for child in self._all()]
        well = ", ".join(f"{child.name}:{child.uptime() / 60:.1f}m" for child, how in looks if how.is_healthy)
        ill = ", ".join(f"{child.name}: {how.reason}" for child, how in looks if not how.is_healthy)
        line = f"Workers healthy: [{well}]" + (f"; not healthy: [{ill}]" if ill else "")
        self._log.log(logging.WARNING if ill else logging.INFO, "%s", line, extra={"event": "workers.healthy"})

    # --- a roll

    async def _roll_all(self) -> None:
        children = self._all()
        for number, child in enumerate(children, start=1):
            broken_off = await self._roll_one(child)
            if broken_off is not None:
                self._emit(RollBrokenOff(len(children) - number, broken_off))
                return
        self._emit(ChildrenRolled(len(children)))

    async def _roll_one(self, child: SupervisedChild) -> str | None:
        """Drain it, start it, wait for its first beat; returns why the roll must end here, if it must."""
        child.restarts.forget()
        if child.adopted is not None:
            await self._relieve(child)
        elif child.is_up:
            self._ask(child)
            await child.over.wait()
        if self._signals:
            return "asked to stop"
        if not child.is_up:
            child.start()
        deadline = self._clock.monotonic() + self._wanted.start_timeout
        while not child.look().is_alive:
            if self._signals:
                return "asked to stop"
            if not child.is_up:
                return f"{child.name} does not come up ({child.reason})"
            if self._clock.monotonic() > deadline:
                return f"{child.name} has not beaten within {self._wanted.start_timeout:g} s"
            await asyncio.sleep(min(0.1, self._look_interval))
        return None

    async def _relieve(self, child: SupervisedChild) -> None:
        """Have the process that outlived its supervisor end; the turn after that starts ours, if we do not."""
        assert child.adopted is not None  # asked by the caller
        child.adopted.end(self._clock.monotonic(), self._config.shutdown_grace, self._grace())
        while child.adopted is not None and not child.adopted.has_ended() and not self._signals:
            child.adopted.push(self._clock.monotonic())
            await asyncio.sleep(self._look_interval)

    # --- the end

    async def _stop(self) -> None:
        self._emit(SupervisorStopping(self._stop_reason or "nothing is left", sum(w.is_up for w in self._everybody())))
        workers = [child for child in self._everybody() if child is not self._listener]
        await self._end_all(workers)
        if self._listener is not None:
            await self._end_all([self._listener])
        if self._roll is not None:
            self._roll.cancel()
            await asyncio.gather(self._roll, return_exceptions=True)
        self._sweep()

    async def _end_all(self, children: Sequence[SupervisedChild]) -> None:
        """Ask all at once, and wait for all."""
        for child in children:
            if not child.health.has_beaten and child.adopted is None:
                child.finds_adopted()  # it was just about to find its name taken
            self._ask(child)
        for adopted in self._adopted():
            adopted.end(self._clock.monotonic(), self._config.shutdown_grace, self._grace())
        while any(child.is_up for child in children) or self._adopted():
            await self._nap(self._look_interval)
            self._sweep()
            for adopted in self._adopted():
                adopted.push(self._clock.monotonic())

    def _ask(self, child: SupervisedChild) -> None:
        """Have it drain and end. One that drains already is not asked twice: that would mean now."""
        if not child.is_ending:
            child.end(self._grace())
        if child.charge.takes_its_time:
            child.hurry_in(self._config.shutdown_grace, self._short_grace())

    def _grace(self) -> float:
        """What a worker needs for its own grace, its commands' and one more try to store what it has."""
        return 2 * self._config.shutdown_grace + self._config.kill_grace + _MARGIN_SECONDS

    def _short_grace(self) -> float:
        return self._config.kill_grace + _MARGIN_SECONDS
