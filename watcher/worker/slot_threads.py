"""Own the threads of a worker: slots run attempts, one thread makes outcomes durable, and both report to the loop.

A slot thread runs one attempt at a time. The committing thread stores all outcomes that are finished at that moment in
one go, so that the cost of durability is shared. Hand-overs are queues and one wake-up of the loop; nothing else is
shared. Callbacks run on the loop thread. No thread is made before it is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from watcher.clock import Clock
from watcher.errors import InvalidTask, WorkerTrouble
from watcher.policy.after_attempt import Ending, Failure
from watcher.runner.runner_interface import Attempt, Outcome, Runner, without_output
from watcher.store.queue_interface import Claim, Settlement, Spool
from watcher.telemetry.events import Event, TaskNotUnderstood

#: Why an attempt is given back that was not begun, for its provider has been held meanwhile.
NOT_BEGUN = "provider_held"
#: Outcomes that are stored in one go, at most.
LARGEST_BATCH = 256
#: How often storing one outcome may fail by a defect.
_TRIES = 3


@dataclass(slots=True)
class Running:
    """A task that is being run now. `has_the_days_money`: it may cost what is left of the day, not what it may cost
    in all. `is_alone`: nothing else has run at any time since it began."""

    claim: Claim
    attempt: Attempt
    started_at: float
    has_the_days_money: bool = False
    is_alone: bool = False


@dataclass(slots=True)
class Callbacks:
    """Whom to tell, on the loop thread: `turn` follows after one or more of the others.

    `unannounced`: the submitter could not be told that the task starts; it runs all the same. `may_start` is asked on
    the slot's thread just before: who may not ends as STOPPED, `provider_held`.
    """

    unannounced: Callable[[Running, OSError], None]
    ended: Callable[[Running, Outcome], None]
    stored: Callable[[list[Settlement], list[Event | None], OSError | None], None]
    turn: Callable[[], None]
    may_start: Callable[[Running], bool] = lambda running: True


class SlotThreads:
    """Runs attempts on at most `slots` threads and stores outcomes on one more."""

    def __init__(self, spool: Spool, runner: Runner, slots: int, clock: Clock) -> None:
        self._spool = spool
        self._runner = runner
        self._limit = slots
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._callbacks: Callbacks | None = None
        self._starts: queue.SimpleQueue[Running | None] = queue.SimpleQueue()
        self._endings: queue.SimpleQueue[Settlement | None] = queue.SimpleQueue()
        self._slots: list[threading.Thread] = []
        self._committer: threading.Thread | None = None
        self._arrived: deque[tuple[Callable[..., None], tuple[object, ...]]] = deque()
        self._is_waking = False
        self._refused: set[str] = set()
        self._defects: dict[str, int] = {}
        #: Moves whenever a slot begins something; only its change means anything.
        self.begun = 0

    def start(self, loop: asyncio.AbstractEventLoop, callbacks: Callbacks) -> None:
        """Loop thread: from now on things may be handed over."""
        self._loop = loop
        self._callbacks = callbacks
        self._committer = threading.Thread(target=self._commit, name="committer", daemon=True)
        self._committer.start()

    def run(self, running: Running, under_way: int) -> None:
        """Have it run by the next free slot; `under_way` is how many are handed over now, this one included.

        Where no thread can be made, and there is none yet, it ends as TROUBLE.
        """
        if len(self._slots) < min(under_way, self._limit):
            self._add_slot()
        if self._slots:
            self._starts.put(running)
            return
        assert self._callbacks is not None  # nothing runs before `start`
        ending = Ending(Failure.TROUBLE, "worker_trouble", "start a thread: EAGAIN; too many threads or processes")
        outcome = without_output(ending, self._clock.wall())
        self._hand_over(self._callbacks.ended, running, outcome)

    def _add_slot(self) -> None:
        thread = threading.Thread(target=self._slot, name=f"slot-{len(self._slots) + 1}", daemon=True)
        with contextlib.suppress(RuntimeError):  # pthread_create(3): EAGAIN. Those that are there do the work.
            thread.start()
            self._slots.append(thread)

    def has_waiting(self) -> bool:
        """Whether something handed over is not begun yet."""
        return not self._starts.empty()

    def refuse(self, mark: str) -> None:
        """If this attempt is not begun yet, it ends as CANCELLED and never runs."""
        self._refused.add(mark)

    def take_back(self) -> list[Running]:
        """Those that no slot has begun."""
        waiting: list[Running] = []
        while not self._starts.empty():
            with contextlib.suppress(queue.Empty):
                running = self._starts.get_nowait()
                if running is not None:
                    self._refused.discard(running.attempt.mark)
                    waiting.append(running)
        return waiting

    def store(self, settlement: Settlement) -> None:
        """Have it stored with whatever else is finished then."""
        self._endings.put(settlement)

    def close(self) -> None:
        """End the threads; nothing runs any more. Blocks."""
        for _ in self._slots:
            self._starts.put(None)
        self._endings.put(None)
        for thread in (*self._slots, *([self._committer] if self._committer else [])):
            thread.join()
        self._slots.clear()

    # --- the threads

    def _slot(self) -> None:
        assert self._callbacks is not None  # slots begin after `start`
        while (running := self._starts.get()) is not None:
            self.begun += 1
            if not self._callbacks.may_start(running):
                ending = Ending(Failure.STOPPED, NOT_BEGUN, "held since it was claimed")
                outcome = without_output(ending, self._clock.wall())
                self._hand_over(self._callbacks.ended, running, outcome)
                continue
            try:
                self._spool.taken(running.claim)
            except OSError as error:
                self._hand_over(self._callbacks.unannounced, running, error)
            self._hand_over(self._callbacks.ended, running, self._outcome(running))
            self._refused.discard(running.attempt.mark)

    def _outcome(self, running: Running) -> Outcome:
        attempt, started_at, began = running.attempt, self._clock.wall(), time.monotonic()
        if attempt.mark in self._refused:
            return without_output(Ending(Failure.CANCELLED), started_at)
        try:
            attempt.prompt = self._spool.prompt(running.claim)
            return self._runner.run(attempt)
        except InvalidTask as error:
            return without_output(Ending(Failure.PERMANENT, error.reason, error.detail), started_at)
        except WorkerTrouble as trouble:
            return without_output(Ending(Failure.TROUBLE, "worker_trouble", str(trouble)), started_at)
        except Exception as error:  # noqa: BLE001 - a defect in a runner must cost one attempt, not the worker
            ending = Ending(Failure.TRANSIENT, "runner_defect", f"{type(error).__name__}: {error}")
            return without_output(ending, started_at, time.monotonic() - began)

    def _commit(self) -> None:
        assert self._callbacks is not None  # set before the thread starts
        is_over = False
        while not is_over and (first := self._endings.get()) is not None:
            batch = [first]
            while len(batch) < LARGEST_BATCH and not self._endings.empty():
                more = self._endings.get()
                if more is None:
                    is_over = True
                    break
                batch.append(more)
            events, error = self._settle(batch)
            self._hand_over(self._callbacks.stored, batch, events, error)

    def _settle(self, batch: list[Settlement]) -> tuple[list[Event | None], OSError | None]:
        try:
            return self._spool.settle(batch)
        except Exception as error:  # noqa: BLE001 - a silent end of this thread would keep every outcome for ever
            if len(batch) == 1:
                return self._unstorable(batch[0], f"{type(error).__name__}: {error}")
        each = [self._settle([settlement]) for settlement in batch]
        return [events[0] for events, _ in each], next((error for _, error in each if error is not None), None)

    def _unstorable(self, settlement: Settlement, why: str) -> tuple[list[Event | None], OSError | None]:
        """One outcome over which storing fails: after three times its claim is left to the next process, so that the
        others can be stored."""
        times = self._defects[settlement.task_id] = self._defects.get(settlement.task_id, 0) + 1
        if times < _TRIES:
            return [None], OSError(errno.EIO, f"defect while storing {settlement.task_id}: {why}")
        del self._defects[settlement.task_id]
        text = f"its outcome cannot be stored: {why}; it is run again by the next process"
        return [TaskNotUnderstood(settlement.task_id, text)], None

    def _hand_over(self, callback: Callable[..., None], *args: object) -> None:
        """From a thread to the loop. Many that come together cost one wake-up: the second finds the flag set."""
        self._arrived.append((callback, args))
        if not self._is_waking:
            self._is_waking = True
            assert self._loop is not None  # threads start after the loop is known
            self._loop.call_soon_threadsafe(self._receive)

    def _receive(self) -> None:
        # First the flag: what is appended after the queue was found empty makes a wake-up of its own.
        self._is_waking = False
        while self._arrived:
            callback, args = self._arrived.popleft()
            callback(*args)
        assert self._callbacks is not None  # nothing arrives before `start`
        self._callbacks.turn()
