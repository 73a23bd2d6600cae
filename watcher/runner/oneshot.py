"""Run each attempt as a process of its own: prompt in, output onto files, everything ended when `run` returns.

The prompt is a file without a name on stdin, at its beginning and closed after it, so that no command can wait for
more and none can block us by not reading. stdout and stderr are files in the claim folder: no pipe can fill, the size
does not matter, and `tail -f` works. A slot keeps its two files and empties them for the next attempt, unless a
process of the last one had to be killed, which may have shared them, or the file is `kept`: then it belongs to the
caller, who moves or removes it. A crash leaves the files in the claim folder, which rescuers clear.

Nothing here raises for what a command does: each way to fail is an Ending. Two that might surprise: a command that is
missing ends as AUTH, because that holds the provider and counts no attempt; an attempt that the machine could not
start (no memory, no descriptors) ends as TROUBLE.

Used by many threads at once, none of which should be the main one (see `processes`).
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from watcher.clock import Clock
from watcher.policy.after_attempt import Ending, Failure
from watcher.policy.output_limit import FULL_BYTES, OUTPUT_TOO_LARGE, PrintWatch, has_filled_disk
from watcher.runner.attempt_files import Slot, Slots, remove, unnamed_file, write_file
from watcher.runner.command_line import Plan, Planner, waiting_key
from watcher.runner.live_view import Live, LiveView
from watcher.runner.prestart import PRESTART_LIMITS, Prestarter, PrestartLimits
from watcher.runner.providers.outcome import EndedCommand, outcome_of
from watcher.runner.providers.provider import Provider
from watcher.runner.runner_interface import Attempt, Outcome, Workplace, without_output
from watcher.runner.stall_timer import StallWatch
from watcher.runner.start_failures import trouble
from watcher.system import processes

if TYPE_CHECKING:
    from watcher.settings.worker_groups import RunnerSettings

#: One that prints too much gets no longer to end by itself: in a second it may print a gigabyte more.
_FLOOD_GRACE_SECONDS = 0.5


@dataclass(slots=True)
class _OneShotRun:
    """An attempt that is under way; changed under the runner's lock."""

    slot: Slot
    mark: str
    child: processes.Child | None = None
    is_waiting_one: bool = False
    stopped: Failure | None = None
    why: str | None = None
    stopped_late: tuple[Failure, str | None] | None = None
    timed_out: bool = False
    stalled: bool = False
    too_much: str | None = None
    look: LiveView | None = None

    @property
    def is_cut_short(self) -> bool:
        """Whether the runner itself has begun to end it."""
        return self.timed_out or self.stalled or self.too_much is not None


class OneShotRunner:
    """A Runner (see `runner.runner_interface`) that starts one process per attempt."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        config: RunnerSettings,
        place: Workplace,
        clock: Clock,
        patience: PrestartLimits = PRESTART_LIMITS,
    ) -> None:
        self._config = config
        self._place = place
        self._clock = clock
        self._planner = Planner(providers, config, place, clock)
        self._lock = threading.Lock()
        self._running: dict[str, _OneShotRun] = {}
        self._slots = Slots(place.folder)
        self._told_unwatched: set[str] = set()
        self.prestart = None
        if config.warm_agents:
            self.prestart = Prestarter(config, place, self._slots.take, self._slots.give_back, clock, patience)

    def problem(self, provider: str) -> Ending | None:
        """Why attempts of this provider cannot run at all now, or None. Cheap: it looks again every few seconds."""
        return self._planner.problem(provider)

    def run(self, attempt: Attempt) -> Outcome:
        """Run it to its end. Blocks; when it returns, no process of the attempt is alive."""
        started_at = self._clock.wall()
        began = self._clock.monotonic()
        plan = self._planner.plan(attempt)
        if isinstance(plan, Ending):
            outcome = without_output(plan)
        else:
            try:
                outcome = self._run(attempt, plan)
            except OSError as error:
                outcome = without_output(trouble(attempt, error))
        if self.prestart is not None and outcome.ending.failure in (Failure.AUTH, Failure.LIMIT):
            self.prestart.distrust(attempt.provider)
        outcome.started_at = started_at
        outcome.duration_seconds = max(0.0, self._clock.monotonic() - began)
        return outcome

    def stop(self, mark: str, failure: Failure, reason: str | None = None) -> None:
        """End the attempt early; its `run` then returns. One that has just ended by itself keeps its outcome."""
        with self._lock:
            run = self._running.get(mark)
            if run is None or run.is_cut_short:
                return
            if run.stopped is not None and run.child is not None and run.child.was_told_to_end:
                return  # a command that tidies up on the first TERM may take a second one for haste
            if run.child is None or run.child.end(self._config.kill_grace):
                run.why = run.why if run.stopped else reason
                run.stopped = run.stopped or failure
            elif run.is_waiting_one:  # it has ended; if it did nothing, the attempt is not over
                run.stopped_late = (failure, reason)

    def sweep(self) -> int:
        """End what escaped from attempts that are over; returns how many processes that were."""
        return processes.sweep()

    def live_output(self, mark: str) -> tuple[Path, float | None] | None:
        """Where a running attempt prints to, and when it last did (wall seconds; None: not yet). For people."""
        with self._lock:
            run = self._running.get(mark)
            if run is None:
                return None
            changed = [at for at in (run.slot.stdout.changed_at(), run.slot.stderr.changed_at()) if at is not None]
            return self._place.folder / run.slot.stdout.name, max(changed, default=None)

    def live(self, mark: str) -> Live | None:
        """What it does just now, read from its events; None when it prints none."""
        with self._lock:
            run = self._running.get(mark)
            if run is None or run.look is None:
                return None
            return run.look.again(run.slot.stdout.fd, self._clock.wall())

    def unwatched(self) -> list[tuple[str, str]]:
        """Providers that the stall rule has turned out not to fit, each once."""
        if not self._config.stall_timeout:
            return []
        news = [found for found in self._planner.silent() if found[0] not in self._told_unwatched]
        self._told_unwatched.update(name for name, _ in news)
        return [(name, f"its {output} output comes when it ends, so silence says nothing") for name, output in news]

    def remark(self) -> str | None:
        """Why processes cannot be started before their tasks, if they shall be."""
        return None if self.prestart is None else self.prestart.remark()

    def close(self) -> None:
        """End what waits for tasks and remove the files of idle slots; call it when nothing runs any more."""
        if self.prestart is not None:
            self.prestart.close()
        self._slots.remove()

    def expect(self, provider: str, model: str | None, worker: str) -> None:
        """Have processes ready for tasks that say nothing but what to do. Does not wait."""
        usual = Attempt("", worker, 1, "", "-", provider, 0.0, model)
        plan = self._planner.plan(usual)
        if self.prestart is None or isinstance(plan, Ending):
            return
        key = waiting_key(plan, usual)
        if key is not None:
            self.prestart.expect(key)

    def _run(self, attempt: Attempt, plan: Plan) -> Outcome:
        run = _OneShotRun(self._slots.take(), attempt.mark)
        with self._lock:
            self._running[attempt.mark] = run
        is_clean = True
        try:
            processes.attempt_began(attempt.mark)
            outcome = self._run_waiting(attempt, plan, run)
            if outcome is None:
                child = self._spawn(attempt, plan, run)
                if isinstance(child, Ending):
                    processes.attempt_over(None, attempt.mark)
                    return without_output(child)
                is_clean = False
                outcome = self._finish(attempt, plan, run, child)
            is_clean = self._is_clean(run, outcome)
            return outcome
        finally:
            with self._lock:
                del self._running[attempt.mark]
            remove(plan.prompt_file)
            self._slots.give_back(run.slot, is_clean)

    @staticmethod
    def _is_clean(run: _OneShotRun, outcome: Outcome) -> bool:
        was_told = run.child is not None and run.child.was_told_to_end
        return outcome.leftovers_killed == 0 and not was_told and processes.nobody_escaped()

    def _run_waiting(self, attempt: Attempt, plan: Plan, run: _OneShotRun) -> Outcome | None:
        """By a process that has waited for it; None when there is none, or it has done nothing: run it as usual."""
        if self.prestart is None or plan.prompt is None or run.stopped is not None:
            return None
        key = waiting_key(plan, attempt)
        one = None if key is None else self.prestart.take(key, plan.prompt)
        if key is None or one is None:
            return None
        with self._lock:
            unused, run.slot = run.slot, one.slot
            run.mark, run.is_waiting_one = one.mark, True
        self._slots.give_back(unused, True)
        self._begin(run, one.child, LiveView())
        outcome = self._finish(attempt, plan, run, one.child)
        if not _did_nothing(run, outcome):
            processes.attempt_over(None, attempt.mark)
            return outcome
        self.prestart.failed(key, f"it did nothing with its task and ended (exit code {outcome.exit_code})")
        with self._lock:
            used, run.slot = run.slot, self._slots.take()
            run.mark, run.is_waiting_one, run.child, run.look = attempt.mark, False, None, None
            run.stopped, run.why = run.stopped_late or (None, None)
        self._slots.give_back(used, False)
        return None

    def _begin(self, run: _OneShotRun, child: processes.Child, look: LiveView | None) -> None:
        with self._lock:
            run.child, run.look = child, look
            if run.stopped is not None:
                child.end(self._config.kill_grace)

    def _spawn(self, attempt: Attempt, plan: Plan, run: _OneShotRun) -> processes.Child | Ending:
        prepared = plan.prepared
        program = prepared.program
        try:
            child = self._start(plan, run, program)
        except OSError as error:
            if error.errno != errno.ENOENT or not self._planner.has_moved(prepared, program):
                return self._planner.start_failed(plan, attempt, error)
            try:
                child = self._start(plan, run, prepared.program)
            except OSError as again:
                return self._planner.start_failed(plan, attempt, again)
        if isinstance(child, processes.Child):
            self._begin(run, child, LiveView() if prepared.output == "stream-json" else None)
        return child

    def _start(self, plan: Plan, run: _OneShotRun, program: str | None) -> processes.Child | Ending:
        stdin = None
        try:
            if plan.prompt_file is not None:
                write_file(plan.prompt_file, plan.prompt or b"")
            elif plan.prompt is not None:
                stdin = unnamed_file(plan.prompt, self._place.folder)
            with self._lock:
                if run.stopped is not None:
                    return Ending(run.stopped, run.why)
            slot = run.slot
            return processes.spawn(
                plan.argv,
                plan.environment,
                plan.cwd,
                stdin,
                slot.stdout.fd,
                slot.stderr.fd,
                self._place.pass_fds,
                program,
            )
        finally:
            if stdin is not None:
                os.close(stdin)

    def _finish(self, attempt: Attempt, plan: Plan, run: _OneShotRun, child: processes.Child) -> Outcome:
        prepared, config = plan.prepared, self._config
        watch = PrintWatch(config.max_attempt_output_bytes, run.slot.free_bytes(), time.monotonic())
        try:
            code = self._wait(run, child, prepared.is_silent, attempt.timeout_seconds, watch)
        finally:
            leftovers = processes.attempt_over(child, run.mark)
        self._give_room(run, code, watch)
        cut_short = _cut_short(run, prepared.provider.name, attempt.timeout_seconds, config.stall_timeout)
        ended = EndedCommand(prepared.provider, prepared.output, code, cut_short)
        outcome = outcome_of(ended, run.slot, config.max_output_bytes, self._clock.wall())
        outcome.leftovers_killed = leftovers
        return outcome

    def _wait(
        self, run: _OneShotRun, child: processes.Child, is_silent: bool, timeout_seconds: float, prints: PrintWatch
    ) -> int:
        config = self._config
        stall = config.stall_timeout
        watch = StallWatch(stall) if stall and not is_silent else None
        ends_at = time.monotonic() + timeout_seconds
        code, too_much = _wait_watching(child, run, watch, prints, ends_at)
        if code is None:
            grace = config.kill_grace
            with self._lock:
                if run.stopped is None and child.end(min(grace, _FLOOD_GRACE_SECONDS) if too_much else grace):
                    run.too_much = too_much
                    run.stalled = too_much is None and time.monotonic() < ends_at
                    run.timed_out = too_much is None and not run.stalled
            code = child.wait()
        return processes.EXIT_UNKNOWN if code is None else code

    def _give_room(self, run: _OneShotRun, code: int, watch: PrintWatch) -> None:
        """What printed too much keeps as much as it might have printed, and what filled the disk no more than a
        result holds: so its outcome can be stored, and everybody else goes on. One that ended between two looks has
        printed too much all the same, and so has what it left behind until now."""
        config, slot = self._config, run.slot
        printed = slot.printed_bytes()
        if run.stopped is None and not run.is_cut_short:
            run.too_much = watch.over_limit(printed)
            if run.too_much is None and code and not slot.has_room(config.min_free_bytes):
                needed = max(config.min_free_bytes, FULL_BYTES)
                if has_filled_disk(printed, watch.free_before, slot.free_bytes(), needed):
                    run.too_much = f"its output, {printed} bytes, filled the disk; it ended with exit code {code}"
        if run.too_much is not None or printed > watch.limit_bytes:
            slot.cut(watch.limit_bytes if slot.has_room(config.min_free_bytes) else config.max_output_bytes)


def _wait_watching(
    child: processes.Child, run: _OneShotRun, stall: StallWatch | None, prints: PrintWatch, ends_at: float
) -> tuple[int | None, str | None]:
    """Wait for the end; no code when the time is over or the command has printed nothing for too long, or, with the
    reason, too much."""

    def is_stalled() -> bool:
        return stall is not None and stall.is_stalled(
            (run.slot.stdout.state(), run.slot.stderr.state()), time.monotonic()
        )

    is_stalled()
    while True:
        pause = prints.pause_seconds if stall is None else min(prints.pause_seconds, stall.pause_seconds)
        code = child.wait(max(0.0, min(ends_at - time.monotonic(), pause)))
        if code is not None:
            return code, None
        if run.stopped is not None:  # whoever stopped it has begun to end it: then only the end is waited for
            return child.wait(), None
        now = time.monotonic()
        too_much = prints.too_much(run.slot.printed_bytes(), run.slot.free_bytes(), now)
        if too_much is not None or now >= ends_at or is_stalled():
            return None, too_much


def _cut_short(run: _OneShotRun, provider: str, timeout_seconds: float, stall_seconds: float) -> Ending | None:
    """The ending of a command that we have ended ourselves; None when it ended by itself."""
    if run.stopped is not None:
        return Ending(run.stopped, run.why, f"{provider}: ended on request")
    if run.too_much is not None:
        return Ending(Failure.TRANSIENT, OUTPUT_TOO_LARGE, f"{provider}: {run.too_much}")
    if run.stalled:
        detail = f"{provider}: ended after no output for {stall_seconds:g} s (STALL_TIMEOUT)"
        return Ending(Failure.TRANSIENT, "stalled", detail)
    if run.timed_out:
        detail = f"{provider}: still running after its {timeout_seconds:g} s; set a longer timeout"
        return Ending(Failure.TRANSIENT, "timeout", detail, timed_out=True)
    return None


def _did_nothing(run: _OneShotRun, outcome: Outcome) -> bool:
    """Whether a process ended by itself before the first event of a task, which comes before any call of a model."""
    is_ended_by_us = run.stopped is not None or run.is_cut_short
    return not is_ended_by_us and outcome.stdout.size_bytes == 0 and outcome.stderr.kept is None
