"""Start agent processes before their tasks come, so that a task does not wait for a program to start.

Each process serves exactly one task, so nothing of one task can reach another. One that was started for another
command line, model, folder or environment is never used, nor one that has ended, complained, or read files that have
changed since: then `take` gives None and the caller starts a process as usual.

How many: `count` for each key that is in use, which is the worker's usual one from the start and others from their
second use within `idle_seconds`; of `most_keys` keys, the least recently used go first. After `idle_seconds` without a
task a process ends and is not replaced. Starts that fail are repeated after a minute, then two, up to an hour.
While a provider is held nothing waits for it: a process from before a new login would use the old one.

One thread starts and ends them. When this process is killed, a guard ends them (`runner.orphan_guard`). Nothing raises.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from watcher.clock import Clock
from watcher.runner.attempt_files import Slot
from watcher.runner.prestarted_process import Key, WaitingProcess
from watcher.runner.runner_interface import Workplace
from watcher.telemetry.events import Event, ProviderHeld, ProviderResumed, WorkerDraining, WorkerPaused, WorkerResumed

if TYPE_CHECKING:
    from watcher.settings.worker_groups import RunnerSettings

#: How often the thread looks at what waits, for deaths, late starts and age.
_LOOK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class PrestartLimits:
    """How long one may take to start, and may wait for a task; for how many kinds of task some wait; and how long none
    is started after a failure, at first and at most."""

    start_seconds: float = 60.0
    idle_seconds: float = 600.0
    most_keys: int = 4
    backoff_seconds: tuple[float, float] = (60.0, 3600.0)


PRESTART_LIMITS = PrestartLimits()


@dataclass(slots=True)
class _Line:
    """What is known of one key, under the lock."""

    waiting: list[WaitingProcess] = field(default_factory=list)
    used_at: float = float("-inf")
    is_wanted: bool = False
    failures: int = 0
    start_at: float = float("-inf")
    why: str = ""


def attending(prestart: Prestarter) -> Callable[[Event], None]:
    """A listener that tells it of holds, and of times in which the worker starts nothing."""

    def hear(event: Event) -> None:
        if isinstance(event, ProviderHeld):
            prestart.hold(event.provider)
        elif isinstance(event, ProviderResumed):
            prestart.resume(event.provider)
        elif isinstance(event, WorkerPaused | WorkerDraining):
            prestart.pause(True)
        elif isinstance(event, WorkerResumed):
            prestart.pause(False)

    return hear


class Prestarter:
    """The processes that wait. Slots come from `take_slot` and go back, no longer clean, to `give_back`."""

    def __init__(
        self,
        config: RunnerSettings,
        place: Workplace,
        take_slot: Callable[[], Slot],
        give_back: Callable[[Slot, bool], None],
        clock: Clock,
        patience: PrestartLimits,
    ) -> None:
        from watcher.runner.orphan_guard_client import Guarding  # only workers that keep something ready need it

        self._config = config
        self._place = place
        self._mark_prefix = f"{place.id}.w"
        self._patience = patience
        self._take_slot = take_slot
        self._give_back = give_back
        self._clock = clock
        self._guarding = Guarding(self._mark_prefix, place.busy_lock)
        self._changed = threading.Condition()
        self._lines: OrderedDict[Key, _Line] = OrderedDict()
        self._leaving: list[WaitingProcess] = []
        self._held: set[str] = set()
        self._is_paused = False
        self._is_closing = False
        self._is_nudged = False
        self._numbers = itertools.count(1)
        self._thread: threading.Thread | None = None

    def expect(self, key: Key) -> None:
        """Have processes ready for this key, as if it had been used twice. Does not wait."""
        with self._changed:
            line = self._line(key)
            line.used_at, line.is_wanted = self._clock.monotonic(), True
            self._nudge()

    def take(self, key: Key, prompt: bytes) -> WaitingProcess | None:
        """A process that has just got this task as its only one, or None. Does not wait; another one is started."""
        with self._changed:
            line = self._line(key)
            now = self._clock.monotonic()
            line.is_wanted = line.is_wanted or now - line.used_at <= self._patience.idle_seconds
            line.used_at = now
            self._nudge()
        while (one := self._ready(line)) is not None:
            if one.is_fresh() and one.give(prompt):
                return one
            self._see_off([one])
        return None

    def failed(self, key: Key, why: str) -> None:
        """A process that was taken has ended without doing anything."""
        with self._changed:
            self._count_failure(self._line(key), why)

    def distrust(self, provider: str) -> None:
        """End what waits for this provider, and start nothing until it is used again."""
        with self._changed:
            self._forget(provider)

    def hold(self, provider: str) -> None:
        """As `distrust`, until `resume`."""
        with self._changed:
            self._held.add(provider)
            self._forget(provider)

    def resume(self, provider: str) -> None:
        with self._changed:
            self._held.discard(provider)

    def pause(self, is_paused: bool) -> None:
        """While the worker starts no tasks nothing is started here either; what waits goes on waiting."""
        with self._changed:
            self._is_paused = is_paused
            self._nudge()

    def ready(self) -> int:
        """How many could take a task now."""
        with self._changed:
            return sum(one.look() == "ready" for line in self._lines.values() for one in line.waiting)

    def remark(self) -> str | None:
        """Why processes of some provider cannot be started before their tasks, or None."""
        with self._changed:
            return next(
                (f"{key.provider}: not warm: {line.why}" for key, line in self._lines.items() if line.why), None
            )

    def close(self) -> None:
        """End all of them, and the guard. Blocks; nothing can be taken afterwards."""
        with self._changed:
            self._is_closing = True
            for line in self._lines.values():
                self._see_off_all(line)
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._end_leaving()
        self._guarding.dismiss()

    # --- under the lock

    def _line(self, key: Key) -> _Line:
        line = self._lines.setdefault(key, _Line())
        self._lines.move_to_end(key)
        while len(self._lines) > self._patience.most_keys:
            _, old = self._lines.popitem(last=False)
            self._see_off_all(old)
        return line

    def _see_off_all(self, line: _Line) -> None:
        self._leaving += line.waiting
        line.waiting = []

    def _forget(self, provider: str) -> None:
        for key, line in self._lines.items():
            if key.provider == provider:
                line.is_wanted, line.used_at = False, float("-inf")
                self._see_off_all(line)
        self._nudge()

    def _count_failure(self, line: _Line, why: str) -> None:
        first, longest = self._patience.backoff_seconds
        line.why = why
        line.start_at = self._clock.monotonic() + min(longest, first * 2.0 ** min(line.failures, 32))
        line.failures += 1

    def _nudge(self) -> None:
        """Have the thread look at once; it is started when there is something to do for the first time."""
        if self._is_closing:
            return
        self._is_nudged = True
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="prestart", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _wanted(self) -> tuple[Key, _Line] | None:
        """A key for which one more is to be started now."""
        now = self._clock.monotonic()
        if self._is_closing or self._is_paused:
            return None
        for key, line in reversed(self._lines.items()):
            is_in_use = line.is_wanted and now - line.used_at <= self._patience.idle_seconds
            is_allowed = key.provider not in self._held and now >= line.start_at
            if is_in_use and is_allowed and len(line.waiting) < self._config.warm_agents:
                return key, line
        return None

    def _dismiss(self) -> None:
        """Take away what has ended, is late or has waited too long."""
        now = self._clock.monotonic()
        for line in self._lines.values():
            for one in list(line.waiting):
                state = one.look()
                if state == "starting" and now - one.began > self._patience.start_seconds:
                    state = f"it did not answer `initialize` within {self._patience.start_seconds:g} s"
                if state not in ("starting", "ready"):
                    self._count_failure(line, state)
                elif now - one.began <= self._patience.idle_seconds:
                    continue
                line.waiting.remove(one)
                self._leaving.append(one)

    # --- any thread

    def _ready(self, line: _Line) -> WaitingProcess | None:
        """One that waits, for the caller alone. The oldest first."""
        with self._changed:
            self._dismiss()
            for one in line.waiting:
                if one.look() == "ready":
                    line.waiting.remove(one)
                    line.failures, line.why = 0, ""
                    return one
            return None

    def _see_off(self, leaving: list[WaitingProcess]) -> None:
        with self._changed:
            self._leaving += leaving
            self._nudge()

    # --- the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                has_waiting = any(line.waiting or line.is_wanted for line in self._lines.values())
                if not (self._is_nudged or self._is_closing):
                    self._changed.wait(_LOOK_SECONDS if has_waiting else None)
                self._is_nudged = False
                if self._is_closing:
                    return
                self._dismiss()
            self._end_leaving()
            self._fill_up()

    def _fill_up(self) -> None:
        while True:
            with self._changed:
                wanted = self._wanted()
            if wanted is None:
                return
            try:
                one = self._start(wanted[0])
            except OSError as error:
                with self._changed:
                    self._count_failure(wanted[1], f"it could not be started: {error.strerror or error}")
                continue
            with self._changed:
                is_late = self._is_closing or wanted[0].provider in self._held or not wanted[1].is_wanted
                if is_late or self._lines.get(wanted[0]) is not wanted[1]:
                    self._leaving.append(one)
                    self._is_nudged = True
                else:
                    wanted[1].waiting.append(one)

    def _start(self, key: Key) -> WaitingProcess:
        self._guarding.ensure()
        slot = self._take_slot()
        mark = f"{self._mark_prefix}{next(self._numbers)}"
        try:
            return WaitingProcess(key, mark, slot, self._place.pass_fds, self._clock.monotonic())
        except OSError:
            self._give_back(slot, False)
            raise

    def _end_leaving(self) -> None:
        with self._changed:
            leaving, self._leaving = self._leaving, []
        for one in leaving:
            one.ask_to_end(self._config.kill_grace)
        for one in leaving:
            one.end()
            self._give_back(one.slot, False)
