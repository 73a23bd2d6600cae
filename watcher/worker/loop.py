"""Run one worker's loop: wait for files, have them run, write heartbeats, and leave nothing behind at a stop.

The loop has one flag. Events, finished attempts and timers set it; the loop then looks at what was named, scans when
a scan is due, lets the executor fill its slots, and beats. Everything that decides is elsewhere. Whatever may take long
(a scan, many files at once) is done in slices, one a turn, so that the worker beats and obeys however much there is.

Raises LockLost when the worker's folder or its locks were taken away; the caller starts a fresh incarnation.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from watcher.clock import Clock
from watcher.errors import LockLost, WorkerTrouble
from watcher.formats.heartbeat import HeartbeatStatus
from watcher.policy import scan_interval as scanning
from watcher.store.heartbeat_writer import Pulse
from watcher.store.layout import HOLDS
from watcher.system import no_links, processes
from watcher.system.inotify import Waker
from watcher.system.process_fence import IN_FORCE, fence
from watcher.telemetry.events import (
    BudgetUnbound,
    Emit,
    FenceMissing,
    HintFailed,
    LeftoversKilled,
    StallNotWatched,
    TroubleBegan,
    TroubleEnded,
    WakeDegraded,
    WorkerDraining,
    WorkerStarted,
    WorkerStopped,
)
from watcher.worker.executor import Executor
from watcher.worker.operator_commands import ControlDesk
from watcher.worker.parts import WorkerParts
from watcher.worker.worker_status import Standing, pulse

if TYPE_CHECKING:
    from watcher.settings.worker import WatcherConfig

#: The keys of our own folders among the watched ones; the others are workers' names, which are neither.
_INBOX = ""
#: No worker's name has a slash.
_HOLDS = f"/{HOLDS}"
_CONTROL = "/control"
#: A scan may take this share of the time at most; a folder with a million files is scanned less often.
_SCAN_SHARE = 0.05
#: A scan or beat that is due this soon is made now: one wake-up instead of two.
_TOGETHER_SECONDS = 0.3
#: A scan has so long in one turn.
_SLICE_SECONDS = 0.03
#: While it drains, a worker looks this often for commands and signals.
_OBEY_SECONDS = 0.5


class Worker:
    """The loop of one worker process."""

    def __init__(
        self,
        config: WatcherConfig,
        parts: WorkerParts,
        executor: Executor,
        control: ControlDesk,
        clock: Clock,
        emit: Emit,
        about: str = "",
    ) -> None:
        """`about` is told when it starts."""
        self._config = config
        self._parts = parts
        self._executor = executor
        self._control = control
        self._about = about
        self._inbox = config.task_dir / parts.incarnation.worker
        self._holds = config.control_dir / HOLDS
        self._clock = clock
        self._emit = emit
        self._waker: Waker | None = None
        self._stops = 0
        self._is_patient = False
        self._is_ending = False
        self._stop_reason = ""
        self._released = 0
        self._beat_due = 0.0
        self._filled_at = 0.0
        self._scan_due = 0.0
        self._wakes_at = float("-inf")
        self._last_scan = float("-inf")
        self._scanning: Iterator[None] | None = None
        self._scan_spent = 0.0
        self._scan_pause = 0.0
        self._turned_at = float("-inf")
        self._began = clock.monotonic()
        self._oldest: float | None = None
        self._scan_trouble: str | None = None
        self._beat_trouble: str | None = None
        self._wake_problem: str | None = None

    async def run(self) -> None:
        """Serve until `stop` was called and everything is settled or given back."""
        loop = asyncio.get_running_loop()
        self._waker = Waker(loop)
        parts = self._parts
        self._executor.start(loop, self._rearm)
        self._control.on_drain(self.drain)
        try:
            self._emit(WorkerStarted(parts.incarnation.id, os.getpid(), self._about))
            for provider, words in parts.unbound.items():
                self._emit(BudgetUnbound(provider, words))
            if fence.state() != IN_FORCE:
                self._emit(FenceMissing(fence.state()))
            self._try_to_look_around()
            self._watch_inbox()
            self._begin_scan()
            self._obey()
            while not self._stops:
                self._step()
                await self._wait(self._pause())
                self._look()
            await self._drain()
        except LockLost:
            # Others may own our claims by now: end what runs, store nothing more, give nothing back.
            self._executor.drain()
            self._stop_running()
            await self._settle_down(self._config.shutdown_grace)
            raise
        except Exception:
            # A defect of ours: end what runs, so that a fresh process can take over, and let people see it.
            self._executor.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.shutdown_grace):
                    await self._end_running()
            raise
        finally:
            self._finish()

    def drain(self, reason: str) -> None:
        """Claim nothing more and end when what runs has ended, however long that takes. Loop thread."""
        if not self._stops:
            self._stops, self._is_patient, self._stop_reason = 1, True, reason
            if self._waker is not None:
                self._waker.flag.set()

    def stop(self, reason: str) -> None:
        """First call: drain, for SHUTDOWN_GRACE at most. Second call: stop what runs now. Loop thread."""
        if self._is_patient:
            self._is_patient, self._stop_reason = False, reason
        else:
            self._stops += 1
        self._stop_reason = self._stop_reason or reason
        if self._stops >= 2:
            self._stop_running()
        if self._waker is not None:
            self._waker.flag.set()

    def stop_now(self, reason: str) -> None:
        """Stop what runs now, whatever was asked before. Loop thread."""
        while self._stops < 2:
            self.stop(reason)

    def is_ready(self) -> tuple[bool, str]:
        """For a probe: watching, and the last scan is not long ago."""
        if self._stops:
            return False, "draining"  # it scans no more, and may drain for hours
        if self._last_scan == float("-inf"):
            return False, "first scan under way"
        late = self.last_scan_age()
        if not scanning.is_ready(late, max(self._interval(), self._scan_pause)):
            return False, f"last scan {late:.0f} s ago"
        return True, "ready"

    def is_alive(self) -> tuple[bool, str]:
        """For a probe: the loop still turns."""
        late = self._clock.monotonic() - max(self._turned_at, self._began)
        return scanning.is_alive(late), f"last turn {late:.0f} s ago"

    def last_scan_age(self) -> float:
        """Seconds since the last finished scan (since the start, before the first one). Any thread."""
        return self._clock.monotonic() - max(self._last_scan, self._began)

    def oldest_pending_age(self) -> float | None:
        """Seconds that the oldest waiting task has waited, or None. As of the last beat or scan; any thread."""
        arrived = self._oldest
        return None if arrived is None else max(0.0, round(self._clock.wall() - arrived, 3))

    # --- one turn of the loop

    def _step(self) -> None:
        """Time alone may have made something due; then start what can be started."""
        self._filled_at = self._turned_at = self._clock.monotonic()
        self._parts.spool.tick()
        self._go_on_scanning()
        if self._last_scan != float("-inf"):  # else what is first in line is not known yet
            self._executor.fill()
        now = self._clock.monotonic()
        if now >= self._beat_due:
            self._beat()
            self._beat_due = now + self._config.heartbeat_interval

    async def _wait(self, seconds: float) -> None:
        assert self._waker is not None  # set before the first turn
        flag = self._waker.flag
        if flag.is_set() or seconds <= 0:
            await asyncio.sleep(0)  # signals and finished attempts have their turn
            return
        self._wakes_at = self._clock.monotonic() + seconds
        timer = asyncio.get_running_loop().call_later(seconds, flag.set)
        await flag.wait()
        timer.cancel()
        self._wakes_at = float("-inf")

    def _rearm(self) -> None:
        """An attempt has ended: its retry may be due long before the timer that `_wait` has set."""
        if self._waker is not None and self._clock.monotonic() + self._pause() < self._wakes_at:
            self._waker.flag.set()

    def _look(self) -> None:
        """What events named, and the scan when it is due."""
        assert self._waker is not None
        names, lost = self._waker.take()
        inbox: list[str] = []
        told = False
        for key, name in names:
            if key == _INBOX:
                inbox.append(name)
            elif key == _CONTROL:
                told = True
            elif key != _HOLDS:  # that it woke us is all: the gates look at their folder before each claim
                self._parts.spool.notice_result(key, name)
        if inbox:
            self._parts.spool.notice(inbox)
            self._watch_results()
        if lost:
            self._emit(WakeDegraded("events were lost; scanning"))
        if self._scanning is None and (lost or self._clock.monotonic() >= self._scan_due - _TOGETHER_SECONDS):
            self._begin_scan()
            told = True
        elif lost:
            self._scan_due = 0.0  # the one that is under way may have passed it
        if told or self._control.next_due_in() == 0.0:
            self._obey()

    def _obey(self) -> None:
        """What the control folder says; a change of state is shown at once."""
        control = self._control
        control.look()
        if control.wants_beat:
            control.wants_beat = False
            self._beat_due = 0.0

    def _begin_scan(self) -> None:
        """Compare folders and index, a slice a turn; check that we are still who we think we are."""
        self._scan_spent = 0.0
        try:
            self._parts.incarnation.check()
        except OSError as error:  # not to be seen now, which is no reason to give up tasks that run
            self._tell_scan_trouble(_words_of(error))
            self._scan_due = self._clock.monotonic() + self._interval()
            return
        self._scan_due = float("inf")  # until it has ended, unless something is lost meanwhile
        self._scanning = iter(self._parts.spool.scan())

    def _go_on_scanning(self) -> None:
        if self._scanning is None:
            return
        began = time.monotonic()
        try:
            for _ in self._scanning:
                if time.monotonic() - began >= _SLICE_SECONDS:
                    self._scan_spent += time.monotonic() - began
                    return
            self._tell_scan_trouble(None)
        except (WorkerTrouble, OSError) as trouble:
            self._tell_scan_trouble(_words_of(trouble))
        self._scan_spent += time.monotonic() - began
        self._end_scan()

    def _end_scan(self) -> None:
        self._scanning = None
        now = self._last_scan = self._clock.monotonic()
        self._oldest = self._parts.spool.oldest_arrival()
        self._scan_pause = max(self._interval(), self._scan_spent / _SCAN_SHARE)
        self._scan_due = min(self._scan_due, now + self._scan_pause)
        self._keep_watching()

    def _tell_scan_trouble(self, detail: str | None) -> None:
        if detail is not None and self._scan_trouble is None:
            self._emit(TroubleBegan(detail))
        elif detail is None and self._scan_trouble is not None:
            self._emit(TroubleEnded(0.0))
        self._scan_trouble = detail

    def _interval(self) -> float:
        has_events = self._waker is not None and self._waker.mode == "events"
        return scanning.interval(has_events, self._config.scan_interval, self._config.poll_interval)

    def _pause(self) -> float:
        """Seconds until something is due without an event."""
        now = self._clock.monotonic()
        waits = [self._scan_due - now, self._beat_due - now]
        parts = self._parts
        dues = (parts.spool.next_due_in(), self._executor.retry_in(), self._control.next_due_in(), self._gate_due_in())
        for wait in dues:
            if wait is not None:
                waits.append(wait)
        if self._scanning is not None:
            return 0.0
        return max(0.0, min(*waits, scanning.TURN_SECONDS))

    def _gate_due_in(self) -> float | None:
        """A gate matters only while tasks wait behind it; an idle worker sleeps on."""
        return self._parts.gates.due_in(self._filled_at) if self._parts.spool.waiting() else None

    def _watch_inbox(self) -> None:
        assert self._waker is not None
        self._waker.watch(_INBOX, self._inbox)
        if not self._waker.is_watching(_CONTROL):
            self._waker.watch(_CONTROL, self._control.path, removals=True)
        if not self._waker.is_watching(_HOLDS):
            self._waker.watch(_HOLDS, self._holds, removals=True)

    def _keep_watching(self) -> None:
        """Watch again what was lost, and the results that blocked tasks wait for."""
        assert self._waker is not None
        is_deaf = not self._waker.is_watching(_HOLDS)
        if is_deaf or not self._waker.is_watching(_INBOX) or not self._waker.is_watching(_CONTROL):
            self._watch_inbox()
        self._watch_results()
        if self._waker.problem != self._wake_problem:
            self._wake_problem = self._waker.problem
            if self._wake_problem is not None:
                self._emit(WakeDegraded(self._wake_problem))

    def _watch_results(self) -> None:
        """Watch where the dependencies of blocked tasks will appear, and miss none that came just before."""
        assert self._waker is not None
        new = False
        for worker in self._parts.spool.watched_results():
            path = self._config.result_dir / worker
            with contextlib.suppress(OSError):  # no descriptors: the next scan comes by again
                if not self._waker.is_watching(worker) and no_links.is_folder(path):
                    new = self._waker.watch(worker, path) or new
        if new:
            self._scan_due = 0.0

    # --- how it is

    def _check_provider(self) -> None:
        """A command that is missing is said at once; tasks wait instead of burning."""
        provider = self._config.provider
        ending = self._parts.runner.problem(provider)
        gates = self._parts.gates
        hold = gates.holds().get(provider)
        if ending is not None:
            gates.hold(provider, ending.reason or "unusable", ending.detail, None, None)
        elif hold is not None and hold.is_own and hold.until_monotonic is None:  # this check has made it
            gates.lift(provider)

    def _beat(self, status: HeartbeatStatus | None = None) -> None:
        parts = self._parts
        self._turned_at = self._clock.monotonic()  # a worker that drains for an hour scans no more and is well
        self._try_to_look_around(is_serving=status is None)
        try:
            parts.beats.beat(self._pulse(status))
            self._beat_trouble = None
        except OSError as error:
            detail = f"heartbeat: {error.strerror or error}"
            if self._beat_trouble != detail:
                self._emit(HintFailed("", detail))
            self._beat_trouble = detail

    def _try_to_look_around(self, is_serving: bool = True) -> None:
        try:
            self._look_around(is_serving)
        except (WorkerTrouble, OSError) as trouble:  # no descriptors: what is left undone is done at a later beat
            self._tell_scan_trouble(_words_of(trouble))

    def _look_around(self, is_serving: bool) -> None:
        """What needs no event and no hurry: leftovers, holds that others wrote, the provider, dead processes."""
        parts = self._parts
        killed = parts.runner.sweep()
        if killed:
            self._emit(LeftoversKilled("", killed))
        parts.gates.renew_permits()
        if parts.spending is not None:
            parts.spending.refresh()
        if is_serving:
            for provider, detail in parts.runner.unwatched():
                self._emit(StallNotWatched(provider, detail))
            parts.gates.refresh()
            self._check_provider()
            parts.spool.rescue()

    def _pulse(self, status: HeartbeatStatus | None) -> Pulse:
        self._oldest = self._parts.spool.oldest_arrival()
        standing = Standing(
            default_provider=self._config.provider,
            paused=self._control.paused,
            scan_trouble=self._scan_trouble,
            stop_reason=self._stop_reason if self._stops else None,
            wake="polling" if self._waker is None else self._waker.mode,
            wake_problem=None if self._waker is None else self._waker.problem,
            oldest_pending_age_seconds=self.oldest_pending_age(),
        )
        return pulse(self._parts, self._executor, standing, status)

    # --- the end

    async def _drain(self) -> None:
        executor = self._executor
        executor.drain()
        self._beat_due = 0.0
        self._emit(WorkerDraining(self._stop_reason, executor.active()))
        while self._is_patient and not executor.is_idle():
            await self._settle_down(None)
        if self._stops < 2:
            await self._settle_down(self._config.shutdown_grace)
        self._stop_running()
        # What was told to stop ends within the kill grace of the runner; a disk that is still full may cost outcomes.
        is_troubled = executor.trouble is not None or executor.stuck()
        await self._settle_down(self._config.shutdown_grace if is_troubled else None)

    def _stop_running(self) -> None:
        """From now on `_settle_down` says it again and again: an attempt that is just being started hears only that."""
        self._is_ending = True
        self._released = max(self._released, self._executor.stop_running())

    async def _end_running(self) -> None:
        """End what runs, without anything else that might fail."""
        executor = self._executor
        while not executor.is_idle():
            self._stop_running()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_OBEY_SECONDS):
                    await executor.idle()

    async def _settle_down(self, seconds: float | None) -> None:
        """Wait until nothing runs and everything is stored, at most so long; beat meanwhile."""
        executor = self._executor
        end = None if seconds is None else self._clock.monotonic() + seconds
        stops, is_patient = self._stops, self._is_patient
        while not executor.is_idle() and (stops, is_patient) == (self._stops, self._is_patient):
            self._turned_at = self._clock.monotonic()
            executor.fill()
            self._control.look()
            if self._is_ending:
                self._stop_running()
            if self._clock.monotonic() >= self._beat_due:
                self._beat_due = self._clock.monotonic() + self._config.heartbeat_interval
                self._beat("draining")
            waits = [self._config.heartbeat_interval, executor.retry_in(), _OBEY_SECONDS]
            waits.append(None if end is None else end - self._clock.monotonic())
            wait = min(w for w in waits if w is not None)
            if end is not None and self._clock.monotonic() >= end:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(wait, 0.001)):
                    await executor.idle()

    def _finish(self) -> None:
        parts = self._parts
        self._executor.close()
        if self._waker is not None:
            self._waker.close()
        killed = parts.runner.sweep()
        parts.runner.close()
        # The last look is by the mark: it finds also what no sweep of children can see.
        killed += processes.kill_marked(parts.incarnation.id)
        if killed:
            self._emit(LeftoversKilled("", killed))
        self._emit(WorkerStopped(self._stop_reason or "error", self._released))
        self._stops = max(self._stops, 1)
        self._beat("stopped")


def _words_of(trouble: WorkerTrouble | OSError) -> str:
    return str(WorkerTrouble("look at the folders", trouble) if isinstance(trouble, OSError) else trouble)
