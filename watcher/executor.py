"""One claim from start to settlement: claim, run, decide, settle.

Everything here is the loop thread's; the crew runs attempts and stores outcomes on threads of its own and tells the
loop. Promise: whatever an attempt does, its claim ends in exactly one of settle, retry or release; trouble of the
machine keeps the claim and the outcome until they can be stored, and burns no attempt.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from watcher.budgets import Budgets
from watcher.clock import Clock
from watcher.crew import LARGEST_BATCH, Callbacks, Crew, Running
from watcher.errors import WorkerTrouble
from watcher.events import (
    AttemptEnded,
    AttemptStarted,
    Emit,
    Event,
    HintFailed,
    LeftoversKilled,
    TaskClaimed,
    TaskRetryScheduled,
    TaskSettled,
    TroubleBegan,
    TroubleEnded,
)
from watcher.formats.deadletter import DeadLetter
from watcher.formats.result import Result
from watcher.gates import Gates
from watcher.policy.disposition import Ending, Failure, HoldProvider, Retry, Settle, decide
from watcher.policy.retry import RetryDelays
from watcher.runner.interface import Attempt, Live, Outcome, Output, Runner
from watcher.spending import Spending
from watcher.spool.interface import Claim, Settlement, Spool

#: Finished attempts that may wait for the disk before nothing new is started.
_MAX_UNSTORED = LARGEST_BATCH
#: Attempts that usually take less than this are claimed ahead.
_SHORT_SECONDS = 0.05
#: What was claimed ahead goes back when no slot has begun anything for this long.
_AHEAD_SECONDS = 0.25
_TROUBLE_PAUSE_SECONDS = (0.25, 15.0)
#: A claim that trouble kept here and that goes back with its attempt counted.
_RETRY = "retry"
_SPACE_CHECK_SECONDS = 1.0
#: With less room than this a disk is full, whatever MIN_FREE_BYTES says.
_FULL_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class ExecutorOptions:
    """What the executor needs to know of the settings. `model` is for tasks that name neither model nor provider."""

    worker: str
    incarnation: str
    max_concurrent: int
    queue_size: int
    task_timeout_seconds: float
    max_retries: int
    delays: RetryDelays
    probe_seconds: float
    min_free_bytes: int
    model: str | None = None


@dataclass(slots=True)
class _Trouble:
    """`is_tried`: a task was started since it was last met, to see whether it is over."""

    detail: str
    since: float
    retry_at: float
    pause: float = _TROUBLE_PAUSE_SECONDS[0]
    is_tried: bool = False


@dataclass(slots=True)
class _Books:
    """What the loop thread knows."""

    running: dict[str, Running] = field(default_factory=dict)
    unstored: int = 0
    stuck: list[Settlement] = field(default_factory=list)
    given_back: list[tuple[Claim, str]] = field(default_factory=list)
    trouble: _Trouble | None = None
    space_checked: float = float("-inf")
    draining: bool = False
    paused: bool = False
    cancelling: dict[str, str] = field(default_factory=dict)


class Executor:
    """Runs what the spool hands out, within the limits, until it is drained."""

    def __init__(
        self,
        spool: Spool,
        runner: Runner,
        gates: Gates,
        options: ExecutorOptions,
        clock: Clock,
        emit: Emit,
        spending: Spending | None = None,
    ) -> None:
        self._spool = spool
        self._runner = runner
        self._gates = gates
        self._budgets = Budgets(spending)
        self._options = options
        self._clock = clock
        self._emit = emit
        self._books = _Books()
        self._idle = asyncio.Event()
        self._idle.set()
        self._crew = Crew(spool, runner, options.max_concurrent, clock)
        self._marks = itertools.count(1)
        self._usual_seconds = _SHORT_SECONDS
        self._ahead_until: float | None = None
        self._begun = 0
        self._on_change: Callable[[], None] = lambda: None

    # --- the loop thread's calls

    def start(self, loop: asyncio.AbstractEventLoop, on_change: Callable[[], None]) -> None:
        """Begin to work; `on_change` is called on the loop after attempts and outcomes: `retry_in` may be another."""
        self._on_change = on_change
        callbacks = Callbacks(self._unannounced, self._ended, self._stored, self._turn, self._may_start)
        self._crew.start(loop, callbacks)

    def fill(self) -> None:
        """Claim and start as much as the limits allow."""
        self._look_ahead()
        if not self._is_well() or self._books.draining:
            return
        if self._books.paused:
            if not self._books.unstored:
                self._end_trouble()  # nothing is started to try it with
            return
        if not self.is_over_budget():
            self._claim()
            self._gates.put_back_permits()
            self._look_ahead()

    def _claim(self) -> None:
        try:
            while (room := self._room()) > 0:
                excluded, probing = self._gates.closed_to()
                if not self._spool.has_ready(excluded):
                    break
                if probing:
                    excluded |= self._gates.refused_permits(excluded, self._spool.has_ready)
                taken = self._spool.claim(1 if probing else room, excluded)
                for ending in taken.endings:
                    self._store(ending)
                for claim in taken.claims:
                    self._begin_or_end(claim)
                if not taken.claims and not taken.endings:
                    break
            trouble = self._books.trouble
            if trouble is not None and not trouble.is_tried and not self._books.unstored and self._room() > 0:
                self._end_trouble()  # nothing is there to try it with
        except WorkerTrouble as trouble:
            self._begin_trouble(str(trouble))

    def running(self) -> list[Running]:
        return list(self._books.running.values())

    def active(self) -> int:
        return len(self._books.running)

    @property
    def trouble(self) -> str | None:
        """What the machine is short of now, or None."""
        return self._books.trouble.detail if self._books.trouble is not None else None

    def is_over_budget(self) -> bool:
        """Whether nothing starts because the day's money is spent."""
        return self._budgets.is_day_over()

    def look(self, running: Running) -> Live | None:
        """What a running task does just now. Its costs are counted, and when they are too much it is ended."""
        mark = running.attempt.mark
        live = self._runner.live(mark)
        if live is not None:
            if live.is_answered:
                self._gates.answered(running.claim.provider, mark)
            why = self._budgets.heed(running, live)
            if why is not None:
                self._runner.stop(mark, *why)
        return live

    def retry_in(self) -> float | None:
        """Seconds until `fill` should be called again although nothing happens; None when that is not needed."""
        trouble = self._books.trouble
        times = [t for t in (trouble.retry_at if trouble is not None else None, self._ahead_until) if t is not None]
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
            self._crew.refuse(mark)
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
        return len(self._books.stuck) + len(self._books.given_back)

    def close(self) -> None:
        """End the threads; nothing runs any more."""
        self._crew.close()

    def _take_back(self, reason: str) -> None:
        """What was claimed ahead and does not run yet goes back untouched."""
        for running in self._crew.take_back():
            del self._books.running[running.attempt.mark]
            self._books.cancelling.pop(running.attempt.mark, None)
            self._gates.told_nothing(running.claim.provider, running.attempt.mark)
            self._give_back(running.claim, reason)

    def _look_ahead(self) -> None:
        """Give back what was claimed ahead when no slot begins anything: it waits behind a task that takes long."""
        now = self._clock.monotonic()
        if not self._crew.has_waiting():
            self._ahead_until = None
        elif self._ahead_until is None or self._crew.begun != self._begun:
            self._begun = self._crew.begun
            self._ahead_until = now + _AHEAD_SECONDS
        elif now >= self._ahead_until:
            self._ahead_until = None
            self._usual_seconds = max(self._usual_seconds, 1.0)
            self._take_back("claimed_too_early")

    def _room(self) -> int:
        books = self._books
        if books.unstored >= _MAX_UNSTORED:
            return 0
        if books.trouble is not None:
            # One task tries whether the machine is well again, also beside one that has run for hours.
            is_full = len(books.running) >= self._options.max_concurrent
            return 0 if books.trouble.is_tried or is_full else 1
        ahead = min(self._options.queue_size, self._options.max_concurrent) if self._is_short() else 0
        return self._options.max_concurrent + ahead - len(books.running)

    def _is_short(self) -> bool:
        """Whether tasks end so fast that a slot would idle while the next one is claimed.

        Only then are some claimed ahead: a long task in a queue of ours could run at another instance. And only
        while none fails and no money is counted: what is claimed ahead would still run, and burn, when the breaker
        opens or the budget is spent.
        """
        if self._budgets.are_set():
            return False
        return self._usual_seconds < _SHORT_SECONDS and not self._gates.are_failures_pending()

    def _begin_or_end(self, claim: Claim) -> None:
        """Begin it, unless its attempts have cost what they may: then it is over."""
        what = self._budgets.instead_of_beginning(claim.task.task_id)
        if what is None:
            self._begin(claim)
            return
        outcome = Outcome(Ending(Failure.PERMANENT), None, Output(), Output(), self._clock.wall(), 0.0)
        self._store(self._settlement(replace(claim, attempt=claim.attempt - 1), outcome, what))

    def _begin(self, claim: Claim) -> None:
        task = claim.task
        attempt = Attempt(
            task_id=task.task_id,
            worker=self._options.worker,
            number=claim.attempt,
            mark=f"{self._options.incarnation}.{next(self._marks)}",
            prompt=claim.prompt,
            provider=claim.provider,
            timeout_seconds=task.timeout or self._options.task_timeout_seconds,
            model=task.model or (self._options.model if task.provider is None else None),
            cwd=task.cwd,
            agent_id=task.agent_id,
            metadata=task.metadata,
        )
        allowance = self._budgets.allowance(task.task_id)
        attempt.max_cost_usd = None if allowance is None else allowance.usd
        running = Running(claim, attempt, self._clock.wall(), allowance is not None and allowance.is_the_days)
        self._books.running[attempt.mark] = running
        if self._books.trouble is not None:
            self._books.trouble.is_tried = True
        self._idle.clear()
        self._gates.started(claim.provider, attempt.mark)
        self._crew.run(running, len(self._books.running))
        self._emit(TaskClaimed(task.task_id, claim.provider, claim.attempt, claim.latency_seconds))
        self._emit(AttemptStarted(task.task_id, claim.provider, claim.attempt))

    def _unannounced(self, running: Running, error: OSError) -> None:
        self._emit(HintFailed(running.claim.task.task_id, f"receipt: {error.strerror or error}"))

    def _ended(self, running: Running, outcome: Outcome) -> None:
        """An attempt is over: decide and act, then start the next."""
        claim = running.claim
        del self._books.running[running.attempt.mark]
        outcome.ending = self._asked_to_end(running.attempt.mark, self._blame_the_disk(outcome.ending))
        self._usual_seconds += (outcome.duration_seconds - self._usual_seconds) / 8
        self._budgets.count(running, outcome)
        self._tell(claim, outcome)
        if outcome.ending.failure is not Failure.TROUBLE:
            self._end_trouble()
        retries = claim.task.max_retries if claim.task.max_retries is not None else self._options.max_retries
        delay = self._options.delays.after(claim.attempt)
        what = self._budgets.within(claim, decide(outcome.ending, claim.attempt, retries, delay))
        mark = running.attempt.mark
        if isinstance(what, Settle):
            self._tell_gate(claim.provider, mark, outcome.ending)
            self._store(self._settlement(claim, outcome, what))
        elif isinstance(what, Retry):
            self._tell_gate(claim.provider, mark, outcome.ending)
            self._drop_outputs(outcome)
            self._retry(claim, what)
        elif isinstance(what, HoldProvider):
            self._drop_outputs(outcome)
            self._gates.hold(claim.provider, what.reason, what.detail, what.until, self._options.probe_seconds, mark)
            self._give_back(claim, what.reason)
        else:
            self._drop_outputs(outcome)
            self._gates.told_nothing(claim.provider, mark)
            if what.trouble:
                self._begin_trouble(f"{what.reason}: {outcome.ending.detail or ''}".rstrip(": "))
            self._give_back(claim, what.reason)

    def _asked_to_end(self, mark: str, ending: Ending) -> Ending:
        """Whoever was cancelled and did not complete is cancelled, whatever it died of: it must not run again."""
        detail = self._books.cancelling.pop(mark, None)
        if detail is None or ending.failure is None:
            return ending
        return Ending(Failure.CANCELLED, "cancelled", detail)

    def _blame_the_disk(self, ending: Ending) -> Ending:
        """A command that fails while the disk is full has most likely failed by that: it costs no attempt."""
        if ending.failure is not Failure.TRANSIENT or ending.timed_out:
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
            self._gates.succeeded(provider, mark)
        elif ending.failure is Failure.TRANSIENT:
            self._gates.failed(provider, mark)
        else:
            self._gates.told_nothing(provider, mark)

    def _may_start(self, running: Running) -> bool:
        """On a slot's thread: has its provider been held since it was claimed?"""
        return self._gates.may_start(running.claim.provider, running.attempt.mark)

    def _retry(self, claim: Claim, what: Retry) -> None:
        try:
            self._spool.retry_in(claim, what.delay_seconds)
        except WorkerTrouble as trouble:
            # The claim stays ours; it goes back when the machine is well again, with its attempt counted.
            self._begin_trouble(str(trouble))
            self._books.given_back.append((claim, _RETRY))
            return
        self._emit(
            TaskRetryScheduled(claim.task.task_id, claim.provider, claim.attempt, what.reason, what.delay_seconds)
        )

    def _give_back(self, claim: Claim, reason: str) -> None:
        try:
            self._spool.release(claim, reason)
        except WorkerTrouble as trouble:
            self._begin_trouble(str(trouble))
            self._books.given_back.append((claim, reason))

    def _settlement(self, claim: Claim, outcome: Outcome, what: Settle) -> Settlement:
        task = claim.task
        kept = {
            stream: output.kept
            for stream, output in (("stdout", outcome.stdout), ("stderr", outcome.stderr))
            if output.kept is not None
        }
        result = Result(
            task_id=task.task_id,
            worker=self._options.worker,
            status=what.status,
            exit_code=outcome.exit_code,
            stdout=outcome.stdout.text,
            stderr=outcome.stderr.text,
            duration_seconds=outcome.duration_seconds,
            finished_at=self._clock.wall(),
            started_at=outcome.started_at,
            retry_count=max(0, claim.attempt - 1),
            attempts=claim.attempt + claim.deaths,
            task_sha256=task.sha256,
            reason=what.reason,
            detail=what.detail,
            provider=claim.provider,
            usage=outcome.usage,
            stdout_truncated=outcome.stdout.truncated,
            stderr_truncated=outcome.stderr.truncated,
            stdout_path=self._spool.output_path(task.task_id, "stdout") if "stdout" in kept else None,
            stderr_path=self._spool.output_path(task.task_id, "stderr") if "stderr" in kept else None,
            agent_id=task.agent_id,
            batch_id=task.batch_id,
            metadata=task.metadata,
            dependencies=task.dependencies,
            incarnation=self._options.incarnation,
            submitted=task.submitted,
        )
        letter = _dead_letter(claim, result) if what.dead_letter else None
        usage = outcome.usage
        event = TaskSettled(
            task.task_id,
            what.status,
            what.reason,
            claim.provider,
            result.attempts,
            result.retry_count,
            outcome.duration_seconds,
            what.dead_letter,
            usage.input_tokens if usage else None,
            usage.output_tokens if usage else None,
            usage.cost_usd if usage else None,
            outcome.exit_code,
            task.agent_id,
            usage.model if usage else None,
        )
        return Settlement(task.task_id, claim.handle, claim.lane, result.dump(), letter, event, kept)

    def _drop_outputs(self, outcome: Outcome) -> None:
        for output in (outcome.stdout, outcome.stderr):
            if output.kept is not None:
                try:
                    self._spool.discard_output(output.kept)
                except OSError as error:
                    self._emit(HintFailed("", f"remove {output.kept}: {error.strerror or error}"))

    def _store(self, settlement: Settlement) -> None:
        self._books.unstored += 1
        self._idle.clear()
        self._crew.store(settlement)

    def _stored(self, batch: list[Settlement], events: list[Event | None], error: OSError | None) -> None:
        """The committing thread is done with a batch."""
        for settlement, event in zip(batch, events, strict=True):
            if event is None:
                self._books.stuck.append(settlement)
                continue
            self._books.unstored -= 1
            self._spool.settled(settlement)
            self._budgets.settled(settlement.task_id)
            self._emit(event)
        if error is not None:
            self._begin_trouble(f"store results: {error.strerror or error}")

    def _turn(self) -> None:
        """After attempts that ended and outcomes that were stored."""
        self.fill()
        self._check_idle()
        self._on_change()

    def _check_idle(self) -> None:
        books = self._books
        if not books.running and not books.unstored and not books.given_back:
            self._idle.set()

    # --- trouble

    def _begin_trouble(self, detail: str) -> None:
        now = self._clock.monotonic()
        trouble = self._books.trouble
        if trouble is None:
            self._books.trouble = _Trouble(detail, now, now + _TROUBLE_PAUSE_SECONDS[0])
            self._emit(TroubleBegan(detail))
            return
        trouble.detail = detail
        trouble.is_tried = False
        trouble.pause = min(trouble.pause * 2, _TROUBLE_PAUSE_SECONDS[1])
        trouble.retry_at = now + trouble.pause

    def _end_trouble(self) -> None:
        books = self._books
        if books.trouble is not None and not books.stuck and not books.given_back:
            self._emit(TroubleEnded(self._clock.monotonic() - books.trouble.since))
            books.trouble = None

    def _is_well(self) -> bool:
        """Whether claiming makes sense; tries what was stuck when its time has come."""
        books, now = self._books, self._clock.monotonic()
        if books.trouble is not None:
            if now < books.trouble.retry_at:
                return False
            books.trouble.retry_at = now + books.trouble.pause  # else the loop would turn until somebody knows
            if not self._try_again():
                return False
        elif now - books.space_checked < _SPACE_CHECK_SECONDS:
            return True
        books.space_checked = now
        try:
            self._check_space()
        except WorkerTrouble as trouble:
            self._begin_trouble(str(trouble))
            return False
        return True

    def _check_space(self) -> None:
        self._spool.check_space(max(self._options.min_free_bytes, _FULL_BYTES))

    def _try_again(self) -> bool:
        """Give back and store what trouble kept here. Returns False while it must be waited for."""
        books = self._books
        claims, books.given_back = books.given_back, []
        for claim, reason in claims:
            if reason == _RETRY:
                self._retry(claim, Retry(self._options.delays.after(claim.attempt), reason))
            else:
                self._give_back(claim, reason)
        if books.stuck:
            stuck, books.stuck = books.stuck, []
            assert books.trouble is not None  # only trouble makes a settlement stuck
            books.trouble.pause = min(books.trouble.pause * 2, _TROUBLE_PAUSE_SECONDS[1])
            books.trouble.retry_at = self._clock.monotonic() + books.trouble.pause
            self._idle.clear()
            for settlement in stuck:
                self._crew.store(settlement)
            return False
        return not books.given_back and books.unstored == 0


def _dead_letter(claim: Claim, result: Result) -> bytes:
    return DeadLetter(
        task_id=claim.task.task_id,
        worker=result.worker,
        reason=result.reason or result.status,
        at=result.finished_at,
        retry_count=result.retry_count,
        detail=result.detail,
        submitted=claim.task.submitted,
        result=result.for_letter(),
        task_sha256=claim.task.sha256,
    ).dump()
