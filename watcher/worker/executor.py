"""Carry each claim from start to settlement: claim, run, decide, settle.

Decides which task to claim next, starts its attempt, and decides what follows from its outcome. All of it runs on the
loop thread; `slot_threads` run attempts and store outcomes and tell the loop. Promise: whatever an attempt does, its
claim ends in exactly one of settle, retry or release, through `claim_completer`. A release costs no attempt. Each kind
of release is bounded: one that blames the account or the machine by `give_back_blame`, a stop by the person who stops
the worker, a budget by its money.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from watcher.clock import Clock
from watcher.errors import WorkerTrouble
from watcher.policy.after_attempt import Disposition, Ending, Failure, HoldProvider, Retry, Settle, decide
from watcher.policy.claim_ahead import ClaimingAhead
from watcher.policy.claim_order import doubted, undoubted
from watcher.policy.give_back_limit import GaveBack, weigh
from watcher.policy.output_limit import FULL_BYTES, OUTPUT_TOO_LARGE
from watcher.runner.runner_interface import Attempt, Live, Outcome, without_output
from watcher.store.queue_interface import Claim, Settlement, Spool
from watcher.telemetry.events import (
    AttemptEnded,
    AttemptStarted,
    Emit,
    HintFailed,
    LeftoversKilled,
    TaskClaimed,
    TaskNotUnderstood,
)
from watcher.worker.budgets import Budgets
from watcher.worker.claim_completer import Completer
from watcher.worker.give_back_blame import Blame
from watcher.worker.machine_trouble import Trouble
from watcher.worker.parts import WorkerParts
from watcher.worker.settlement import SettledBy, settlement
from watcher.worker.slot_threads import LARGEST_BATCH, NOT_BEGUN, Callbacks, Running, SlotThreads

if TYPE_CHECKING:
    from watcher.settings.worker import WatcherConfig

#: Finished attempts that may wait for the disk before nothing new is started.
_MAX_UNSTORED = LARGEST_BATCH
_SPACE_CHECK_SECONDS = 1.0


@dataclass(slots=True)
class _Books:
    """What the loop thread knows."""

    running: dict[str, Running] = field(default_factory=dict)
    space_checked: float = float("-inf")
    draining: bool = False
    paused: bool = False
    cancelling: dict[str, str] = field(default_factory=dict)
    stopping: set[str] = field(default_factory=set)


class Executor:
    """Runs what the spool hands out, within the limits, until it is drained."""

    def __init__(
        self,
        config: WatcherConfig,
        parts: WorkerParts,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self._config = config
        self._owner = owner = parts.incarnation
        self._spool: Spool = parts.spool
        self._runner = parts.runner
        self._gates = parts.gates
        self._budgets = Budgets(parts.spending)
        self._delays = config.retry_delays
        self._clock = clock
        self._emit = emit
        self._books = _Books()
        self._idle = asyncio.Event()
        self._idle.set()
        self._threads = SlotThreads(parts.spool, parts.runner, config.max_concurrent_tasks, clock)
        self._trouble = Trouble(clock, emit)
        self._blame = Blame(parts.gates, owner.worker, config.circuit_breaker_timeout)
        self._out = Completer(parts.spool, self._threads.store, self._budgets, self._delays, self._trouble, emit)
        self._ahead = ClaimingAhead()
        self._signature = SettledBy(owner.worker, owner.id, parts.spool.output_path)
        self._marks = itertools.count(1)
        self._is_cut = False
        self._alone_next = False
        self._alone_unstored = False
        self._on_change: Callable[[], None] = lambda: None

    # --- the loop thread's calls

    def start(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None]) -> None:
        """Begin to work; `on_change` is called on the loop after attempts and outcomes: `retry_in` may be another."""
        self._on_change = on_change
        callbacks = Callbacks(self._unannounced, self._ended_or_failed, self._out.stored, self._turn, self._may_start)
        self._threads.start(loop, callbacks)

    def fill(self) -> None:
        """Claim and start as much as the limits and a slice of time allow; `retry_in` is 0 while there is more."""
        self._is_cut = False
        self._look_ahead()
        if not self._is_well() or self._books.draining:
            return
        if self._books.paused:
            if not self._out.unstored:
                self._end_trouble()  # nothing is started to try it with
            return
        if not self.is_over_budget():
            self._claim()
            self._gates.put_back_permits()
            self._look_ahead()

    def _claim(self) -> None:
        try:
            while (room := self._room()) > 0:
                excluded, probing = self._gates.closed_to(self._spool.has_undoubted)
                if self._trouble.is_on:  # who met it before is not the one to tell whether it is over
                    others = self._spool.has_ready({*excluded, doubted()})
                    excluded.add(doubted() if others else undoubted())
                if not self._spool.has_ready(excluded):
                    break
                if probing:
                    excluded |= self._gates.refused_permits(excluded, self._spool.has_ready)
                taken = self._spool.claim(1 if probing else room, excluded)
                for ending in taken.endings:
                    self._store(ending)
                for claim in taken.claims:
                    self._try_to_begin(claim)
                self._is_cut = taken.is_cut
                if taken.is_cut or (not taken.claims and not taken.endings):
                    break
            if self._trouble.is_on and not self._trouble.is_tried and not self._out.unstored and self._room() > 0:
                self._end_trouble()  # nothing is there to try it with
        except WorkerTrouble as trouble:
            self._trouble.begin(str(trouble))

    def running(self) -> list[Running]:
        return list(self._books.running.values())

    def active(self) -> int:
        return len(self._books.running)

    @property
    def trouble(self) -> str | None:
        """What the machine is short of now, or None."""
        return self._trouble.detail

    def is_over_budget(self) -> bool:
        """Whether nothing starts because the day's money is spent."""
        return self._budgets.is_day_over()

    def look(self, running: Running) -> Live | None:
        """What a running task does just now. Its costs are counted, and when they are too much it is ended."""
        mark = running.attempt.mark
        try:
            live = self._runner.live(mark)
        except Exception:  # noqa: BLE001 - what an agent prints must not end the loop; its attempt goes on
            live = None
        if live is not None:
            if live.is_answered:
                self._gates.answered(running.claim.provider, mark)
            why = self._budgets.heed(running, live)
            if why is not None:
                self._books.stopping.add(mark)
                self._runner.stop(mark, *why)
        return live

    def retry_in(self) -> float | None:
        """Seconds until `fill` should be called again although nothing happens; None when that is not needed."""
        if self._is_cut and not self._trouble.is_on:
            return 0.0
        times = [t for t in (self._trouble.retry_at, self._ahead.due_at) if t is not None]
        return max(0.0, min(times) - self._clock.monotonic()) if times else None

    def drain(self) -> None:
        """Claim nothing more; what was claimed ahead and does not run yet goes back."""
        self._books.draining = True
        self._take_back("worker_stopping")
        self._check_idle()

    def pause(self, is_paused: bool) -> None:
        """While paused nothing new is claimed or begun; what runs goes on."""
        if is_paused and not self._books.paused:
            self._take_back("worker_paused")
        self._books.paused = is_paused

    def cancel(self, task_id: str, detail: str) -> bool:
        """End the run of this task, whose result is then `cancelled`; False when it does not run here.

        Call it again until the task has its result: an attempt that is just being started hears only the next call.
        One that completes by itself meanwhile stays completed.
        """
        marks = [mark for mark, one in self._books.running.items() if one.claim.task.task_id == task_id]
        for mark in marks:
            self._books.cancelling[mark] = detail
            self._threads.refuse(mark)
            self._runner.stop(mark, Failure.CANCELLED)
        return bool(marks)

    def end(self, ending: Settlement) -> None:
        """Store the outcome of a task that does not run and never will."""
        self._store(ending)

    def stop_running(self) -> int:
        """End what runs; it goes back untouched. Returns how many that were.

        Call it again until nothing runs: an attempt that is just being started hears only the next call.
        """
        running = self.running()
        for one in running:
            self._books.stopping.add(one.attempt.mark)
            self._runner.stop(one.attempt.mark, Failure.STOPPED)
        return len(running)

    def is_idle(self) -> bool:
        """Nothing runs and everything is stored."""
        return self._idle.is_set()

    async def idle(self) -> None:
        """Wait for that."""
        await self._idle.wait()

    def stuck(self) -> int:
        """Finished attempts whose outcome cannot be stored now, and claims that cannot be given back."""
        return self._out.blocked()

    def close(self) -> None:
        """End the threads; nothing runs any more."""
        self._threads.close()

    def _take_back(self, reason: str) -> None:
        """What was claimed ahead and does not run yet goes back untouched."""
        for running in self._threads.take_back():
            del self._books.running[running.attempt.mark]
            self._books.cancelling.pop(running.attempt.mark, None)
            self._gates.told_nothing(running.claim.provider, running.attempt.mark)
            self._out.release(running.claim, reason)

    def _look_ahead(self) -> None:
        """Give back what was claimed ahead when no slot begins anything: it waits behind a task that takes long."""
        if self._ahead.must_go_back(self._threads.has_waiting(), self._threads.begun, self._clock.monotonic()):
            self._take_back("claimed_too_early")

    def _room(self) -> int:
        books = self._books
        is_stored = self._out.is_empty()
        self._alone_unstored = self._alone_unstored and not is_stored
        self._alone_next = self._alone_next and not (is_stored and not books.running)
        if self._out.unstored >= _MAX_UNSTORED or self._alone_next or self._alone_unstored or self._runs_alone():
            return 0
        if self._trouble.is_on:
            # One task tries whether the machine is well again, also beside one that has run for hours.
            is_full = len(books.running) >= self._config.max_concurrent_tasks
            return 0 if self._trouble.is_tried or is_full else 1
        ahead = min(self._config.queue_size, self._config.max_concurrent_tasks) if self._may_claim_ahead() else 0
        return self._config.max_concurrent_tasks + ahead - len(books.running)

    def _may_claim_ahead(self) -> bool:
        """Only while none fails and no money is counted: what is claimed ahead would still run, and burn, when the
        breaker opens or the budget is spent."""
        return self._ahead.is_worth_it() and not self._budgets.are_set() and not self._gates.are_failures_pending()

    def _try_to_begin(self, claim: Claim) -> None:
        if self._must_wait_alone(claim):
            self._alone_next = True
            self._out.release(claim, "runs_alone")
            return
        try:
            self._begin_or_end(claim)
        except Exception as error:  # noqa: BLE001 - one task's trouble, never the loop's end
            self._fail_inside(claim, None, error)

    def _must_wait_alone(self, claim: Claim) -> bool:
        """A task on whose next death it would be `worker_died` runs with no other beside it, from its claim until its
        outcome is stored: the blame is its own then, and those who only ran beside another are not blamed."""
        if self._is_last_chance(claim) and not self._out.is_empty():
            return True
        return bool(self._books.running) and (self._is_last_chance(claim) or self._runs_alone())

    def _runs_alone(self) -> bool:
        return any(self._is_last_chance(running.claim) for running in self._books.running.values())

    def _is_last_chance(self, claim: Claim) -> bool:
        return 0 < self._config.max_worker_deaths - 1 <= claim.deaths

    def _begin_or_end(self, claim: Claim) -> None:
        """Begin it, unless its attempts have cost what they may: then it is over."""
        what = self._budgets.instead_of_beginning(claim.task.task_id)
        if what is None:
            self._begin(claim)
            return
        outcome = without_output(Ending(Failure.PERMANENT), self._clock.wall())
        self._settle(replace(claim, attempt=claim.attempt - 1), outcome, what)

    def _begin(self, claim: Claim) -> None:
        task = claim.task
        attempt = Attempt(
            task_id=task.task_id,
            worker=self._owner.worker,
            number=claim.attempt,
            mark=f"{self._owner.id}.{next(self._marks)}",
            prompt=task.description,
            provider=claim.provider,
            timeout_seconds=task.timeout or self._config.task_timeout,
            model=task.model or (self._config.model if task.provider is None else "") or None,
            cwd=task.cwd,
            agent_id=task.agent_id,
            metadata=task.metadata,
        )
        allowance = self._budgets.allowance(task.task_id)
        attempt.max_cost_usd = None if allowance is None else allowance.usd
        running = Running(claim, attempt, self._clock.wall(), allowance is not None and allowance.is_the_days)
        for other in self._books.running.values():
            other.is_alone = False
        running.is_alone = not self._books.running
        self._books.running[attempt.mark] = running
        self._trouble.task_started()
        self._blame.began(attempt.mark)
        self._idle.clear()
        self._gates.started(claim.provider, attempt.mark)
        self._threads.run(running, len(self._books.running))
        self._emit(TaskClaimed(task.task_id, claim.provider, claim.attempt, claim.latency_seconds))
        self._emit(AttemptStarted(task.task_id, claim.provider, claim.attempt))

    def _unannounced(self, running: Running, error: OSError) -> None:
        task_id = running.claim.task.task_id
        self._emit(HintFailed(task_id, f"receipt of {task_id}: {error.strerror or error}"))

    def _ended_or_failed(self, running: Running, outcome: Outcome) -> None:
        try:
            self._ended(running, outcome)
        except Exception as error:  # noqa: BLE001 - one task's trouble, never the loop's end
            self._fail_inside(running.claim, running.attempt.mark, error)

    def _fail_inside(self, claim: Claim, mark: str | None, error: Exception) -> None:
        """This program failed over one task: a counted failure; when even that cannot be written, its file goes to the
        dead letters as it is."""
        detail = f"{type(error).__name__}: {error}".rstrip(": ")
        self._emit(TaskNotUnderstood(claim.task.task_id, detail))
        try:
            if mark is not None:
                self._books.running.pop(mark, None)
                self._gates.told_nothing(claim.provider, mark)
            outcome = without_output(Ending(Failure.TRANSIENT, "worker_defect", detail), self._clock.wall())
            what = decide(outcome.ending, claim.attempt, self._retries(claim), self._delays.after(claim.attempt))
            if isinstance(what, Retry):
                self._out.retry(claim, what)
            elif isinstance(what, Settle):
                self._settle(claim, outcome, what)
        except Exception:  # noqa: BLE001 - see above
            self._store(self._spool.set_aside(claim, detail))

    def _retries(self, claim: Claim) -> int:
        return claim.task.max_retries if claim.task.max_retries is not None else self._config.max_retries

    def _ended(self, running: Running, outcome: Outcome) -> None:
        """An attempt is over: decide and act."""
        claim = running.claim
        del self._books.running[running.attempt.mark]
        self._alone_unstored = self._alone_unstored or self._is_last_chance(claim)
        outcome.ending = self._blame_the_disk(self._asked_to_end(running.attempt.mark, outcome.ending))
        self._ahead.attempt_took(outcome.duration_seconds)
        self._budgets.count(running, outcome)
        self._tell(claim, outcome)
        if outcome.ending.failure is not Failure.TROUBLE:
            self._end_trouble()
        retries, delay = self._retries(claim), self._delays.after(claim.attempt)
        what = self._budgets.within(claim, decide(outcome.ending, claim.attempt, retries, delay))
        self._carry_out(what, running, outcome)

    def _carry_out(self, what: Disposition, running: Running, outcome: Outcome) -> None:
        claim, mark = running.claim, running.attempt.mark
        if isinstance(what, Settle):
            self._tell_gate(claim.provider, mark, outcome.ending)
            self._settle(claim, outcome, what)
        elif isinstance(what, Retry):
            self._tell_gate(claim.provider, mark, outcome.ending)
            self._drop_outputs(outcome)
            self._out.retry(claim, what)
        elif isinstance(what, HoldProvider):
            self._give_back(claim, outcome, self._blame.account(claim, mark, what))
        else:
            self._gates.told_nothing(claim.provider, mark)
            if what.trouble:
                self._trouble.begin(f"{what.reason}: {outcome.ending.detail or ''}".rstrip(": "))
                self._give_back(claim, outcome, self._blame.machine(running, what, outcome.ending.detail))
            else:
                self._drop_outputs(outcome)
                self._out.release(claim, what.reason)

    def _give_back(self, claim: Claim, outcome: Outcome, gave: GaveBack) -> None:
        """Give it back with a note of that, unless it counts after all."""
        given, what = weigh(
            claim.given, gave, attempt=claim.attempt, max_retries=self._retries(claim),
            delay_seconds=self._delays.after(claim.attempt), at_most=self._config.max_given_back,
        )  # fmt: skip
        claim = replace(claim, given=given)
        what = None if what is None else self._budgets.within(claim, what)
        if isinstance(what, Settle):
            self._settle(claim, outcome, what)
            return
        self._drop_outputs(outcome)
        if isinstance(what, Retry):
            self._out.retry(claim, what)
        else:
            self._out.release(claim, gave.reason)

    def _asked_to_end(self, mark: str, ending: Ending) -> Ending:
        """Whoever was cancelled and did not complete is cancelled, whatever it died of: it must not run again.

        One that was stopped though nobody asked for that has failed: it would be stopped again, and never counted.
        """
        detail = self._books.cancelling.pop(mark, None)
        was_asked = mark in self._books.stopping or ending.reason == NOT_BEGUN
        self._books.stopping.discard(mark)
        if detail is not None and ending.failure is not None:
            return Ending(Failure.CANCELLED, "cancelled", detail)
        if ending.failure is Failure.STOPPED and not was_asked:
            return Ending(Failure.TRANSIENT, "ended_unasked", ending.detail)
        return ending

    def _blame_the_disk(self, ending: Ending) -> Ending:
        """A command that fails while the disk is full has most likely failed by that: it costs no attempt, unless its
        own output has filled it."""
        if ending.failure is not Failure.TRANSIENT or ending.timed_out or ending.reason == OUTPUT_TOO_LARGE:
            return ending
        try:
            self._check_space()
        except WorkerTrouble as trouble:
            detail = f"{ending.reason}: {ending.detail or ''}".rstrip(": ")
            return Ending(Failure.TROUBLE, "worker_trouble", f"{trouble} ({detail})")
        return ending

    def _tell(self, claim: Claim, outcome: Outcome) -> None:
        failure = outcome.ending.failure
        self._emit(
            AttemptEnded(
                claim.task.task_id,
                claim.provider,
                claim.attempt,
                None if failure is None else failure.value,
                outcome.ending.reason,
                outcome.exit_code,
                outcome.duration_seconds,
                outcome.stdout.size_bytes,
                outcome.stderr.size_bytes,
            )
        )
        if outcome.leftovers_killed:
            self._emit(LeftoversKilled(claim.task.task_id, outcome.leftovers_killed))

    def _tell_gate(self, provider: str, mark: str, ending: Ending) -> None:
        """Successes and failures that say something about the provider; a bad task of ours does not."""
        if ending.failure is None:
            self._blame.succeeded(provider, mark)
            self._gates.succeeded(provider, mark)
        elif ending.failure is Failure.TRANSIENT:
            self._gates.failed(provider, mark)
        else:
            self._gates.told_nothing(provider, mark)

    def _may_start(self, running: Running) -> bool:
        """On a slot's thread: has its provider been held since it was claimed?"""
        return self._gates.may_start(running.claim.provider, running.attempt.mark)

    def _drop_outputs(self, outcome: Outcome) -> None:
        for output in (outcome.stdout, outcome.stderr):
            if output.kept is not None:
                try:
                    self._spool.discard_output(output.kept)
                except OSError as error:
                    self._emit(HintFailed("", f"remove {output.kept}: {error.strerror or error}"))

    def _settle(self, claim: Claim, outcome: Outcome, what: Settle) -> None:
        self._blame.settled(claim.task.task_id)
        self._store(settlement(claim, outcome, what, self._signature, self._clock.wall()))

    def _store(self, ending: Settlement) -> None:
        self._idle.clear()
        self._out.settle(ending)

    def _turn(self) -> None:
        """After attempts that ended and outcomes that were stored."""
        self.fill()
        self._check_idle()
        self._on_change()

    def _check_idle(self) -> None:
        if not self._books.running and self._out.is_empty():
            self._idle.set()

    # --- trouble

    def _end_trouble(self) -> None:
        if not self._out.blocked():
            self._trouble.end()

    def _is_well(self) -> bool:
        """Whether claiming makes sense; tries what was stuck when its time has come."""
        now, retry_at = self._clock.monotonic(), self._trouble.retry_at
        if retry_at is not None:
            if now < retry_at:
                return False
            self._trouble.repeat()
            if not self._out.try_again():
                return False
        elif now - self._books.space_checked < _SPACE_CHECK_SECONDS:
            return True
        self._books.space_checked = now
        try:
            self._check_space()
        except WorkerTrouble as trouble:
            self._trouble.begin(str(trouble))
            return False
        return True

    def _check_space(self) -> None:
        self._spool.check_space(max(self._config.min_free_bytes, FULL_BYTES))
