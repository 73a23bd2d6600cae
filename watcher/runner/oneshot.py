"""Run each attempt as a process of its own: prompt in, output onto files, everything ended when `run` returns.

The prompt is a file without a name on stdin, at its beginning and closed after it, so that no command can wait for
more and none can block us by not reading. stdout and stderr are files in the claim folder: no pipe can fill, the size
does not matter, and `tail -f` works. A slot keeps its two files and empties them for the next attempt, unless a
process of the last one had to be killed, which may have shared them, or the file is `kept`: then it belongs to the
caller, who moves or removes it. A crash leaves the files in the claim folder, which rescuers clear.

Nothing here raises for what a command does: each way to fail is an Ending. Two that might surprise: a command that is
missing ends as AUTH, because that holds the provider and counts no attempt; an attempt that the machine could not
start (no memory, no descriptors) ends as TROUBLE.

Used by many threads at once, none of which should be the main one (see `childproc`).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from watcher import childproc
from watcher.clock import Clock
from watcher.policy.disposition import Ending, Failure
from watcher.runner.cwd import checked_cwd
from watcher.runner.files import Slot, remove, unnamed_file, write_file
from watcher.runner.interface import Attempt, Outcome, Output
from watcher.runner.judging import judge
from watcher.runner.live import Live, Look
from watcher.runner.prespawn import Prespawn, PrespawnSettings
from watcher.runner.providers import (
    PROMPT_FILE,
    OutputFormat,
    Provider,
    environment_for,
    find_program,
    missing_problem,
    root_problem,
)
from watcher.runner.reading import bounded_text, events, shortened
from watcher.runner.shapes import Reading
from watcher.runner.stall import StallWatch
from watcher.runner.starting import Place, not_started, start_failure, trouble
from watcher.runner.waiting import Key, files_read

#: The longest single argument that Linux passes to a program: MAX_ARG_STRLEN without the NUL (execve(2)).
MAX_ARGUMENT_BYTES = 131_071
#: Where words of a failure are looked for: they stand near an end of what was printed.
_PRINTED_BYTES = 64 << 10
#: `problem` looks for the command at most this often.
_LOOK_EVERY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class OneShotSettings:
    """What all attempts have in common.

    `folder` is this incarnation's claim folder; `busy_fd` the descriptor of its `.busy` lock, which every command
    inherits. Of `environ` (the worker's own) a command sees what its provider and `more_environment` (globs) allow.
    `stall_timeout_seconds`: a command that prints nothing for so long is ended; 0 lets it be.
    `prespawn`: processes of providers that can are started before their tasks.
    """

    folder: Path
    busy_fd: int | None
    environ: Mapping[str, str]
    more_environment: tuple[str, ...] = ()
    kill_grace_seconds: float = 5.0
    max_output_bytes: int = 1 << 20
    allowed_cwd: tuple[Path, ...] = ()
    default_cwd: Path | None = None
    stall_timeout_seconds: float = 0.0
    prespawn: PrespawnSettings | None = None


@dataclass(slots=True)
class _Prepared:
    """A provider as it is started here; made once."""

    provider: Provider
    argv: tuple[str, ...]
    output: OutputFormat
    environment: dict[bytes, bytes]
    path: str
    program: str | None = None
    looked_at: float = 0.0
    problem: Ending | None = None


@dataclass(slots=True)
class _Plan:
    """One attempt, ready to be spawned."""

    argv: list[bytes | str]
    environment: dict[bytes, bytes]
    cwd: str | None
    prompt: bytes | None = None
    prompt_file: str | None = None
    key: Key | None = None


@dataclass(slots=True)
class _Run:
    """An attempt that is under way; changed under the runner's lock."""

    slot: Slot
    mark: str
    child: childproc.Child | None = None
    is_waiting_one: bool = False
    stopped: Failure | None = None
    why: str | None = None
    stopped_late: tuple[Failure, str | None] | None = None
    timed_out: bool = False
    stalled: bool = False
    look: Look | None = None


class OneShotRunner:
    """A Runner (see `runner.interface`) that starts one process per attempt."""

    def __init__(self, providers: Mapping[str, Provider], settings: OneShotSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._providers = dict(providers)
        self._prepared: dict[str, _Prepared] = {}
        self._pass_fds = () if settings.busy_fd is None else (settings.busy_fd,)
        self._lock = threading.Lock()
        self._running: dict[str, _Run] = {}
        self._slots: deque[Slot] = deque()
        self._numbers = itertools.count(1)
        self._unwatched: deque[tuple[str, str]] = deque()
        wanted = settings.prespawn
        self.prespawn = None if wanted is None else Prespawn(wanted, self._take_slot, self._give_back, clock)

    def problem(self, provider: str) -> Ending | None:
        """Why attempts of this provider cannot run at all now, or None. Cheap: it looks again every few seconds."""
        prepared = self._prepare(provider)
        if isinstance(prepared, Ending):
            return prepared
        if self._clock.monotonic() - prepared.looked_at >= _LOOK_EVERY_SECONDS:
            self._look(prepared)
        return prepared.problem

    def run(self, attempt: Attempt) -> Outcome:
        """Run it to its end. Blocks; when it returns, no process of the attempt is alive."""
        started_at = self._clock.wall()
        began = self._clock.monotonic()
        plan = self._plan(attempt)
        if isinstance(plan, Ending):
            outcome = not_started(plan)
        else:
            try:
                outcome = self._run(attempt, plan)
            except OSError as error:
                outcome = not_started(trouble(attempt, error))
        if self.prespawn is not None and outcome.ending.failure in (Failure.AUTH, Failure.LIMIT):
            self.prespawn.distrust(attempt.provider)
        outcome.started_at = started_at
        outcome.duration_seconds = max(0.0, self._clock.monotonic() - began)
        return outcome

    def stop(self, mark: str, failure: Failure, reason: str | None = None) -> None:
        """End the attempt early; its `run` then returns. One that has just ended by itself keeps its outcome."""
        with self._lock:
            run = self._running.get(mark)
            if run is None or run.timed_out or run.stalled:
                return
            if run.stopped is not None and run.child is not None and run.child.was_told_to_end:
                return  # a command that tidies up on the first TERM may take a second one for haste
            if run.child is None or run.child.end(self._settings.kill_grace_seconds):
                run.why = run.why if run.stopped else reason
                run.stopped = run.stopped or failure
            elif run.is_waiting_one:  # it has ended; if it did nothing, the attempt is not over
                run.stopped_late = (failure, reason)

    def sweep(self) -> int:
        """End what escaped from attempts that are over; returns how many processes that were."""
        return childproc.sweep()

    def live_output(self, mark: str) -> tuple[Path, float | None] | None:
        """Where a running attempt prints to, and when it last did (wall seconds; None: not yet). For people."""
        with self._lock:
            run = self._running.get(mark)
            if run is None:
                return None
            changed = [at for at in (run.slot.stdout.changed_at(), run.slot.stderr.changed_at()) if at is not None]
            return self._settings.folder / run.slot.stdout.name, max(changed, default=None)

    def live(self, mark: str) -> Live | None:
        """What it does just now, read from its events; None when it prints none."""
        with self._lock:
            run = self._running.get(mark)
            if run is None or run.look is None:
                return None
            return run.look.again(run.slot.stdout.fd, self._clock.wall())

    def unwatched(self) -> list[tuple[str, str]]:
        """Providers that the stall rule has turned out not to fit, each once."""
        out = []
        while self._unwatched:
            out.append(self._unwatched.popleft())
        return out

    def remark(self) -> str | None:
        """Why processes cannot be started before their tasks, if they shall be."""
        return None if self.prespawn is None else self.prespawn.remark()

    def close(self) -> None:
        """End what waits for tasks and remove the files of idle slots; call it when nothing runs any more."""
        if self.prespawn is not None:
            self.prespawn.close()
        while self._slots:
            self._slots.pop().remove()

    def expect(self, provider: str, model: str | None, worker: str) -> None:
        """Have processes ready for tasks that say nothing but what to do. Does not wait."""
        usual = Attempt("", worker, 1, "", "-", provider, 0.0, model)
        plan = self._plan(usual)
        if self.prespawn is not None and isinstance(plan, _Plan) and plan.key is not None:
            self.prespawn.expect(plan.key)

    def _prepare(self, name: str) -> _Prepared | Ending:
        prepared = self._prepared.get(name)
        if prepared is not None:
            return prepared
        provider = self._providers.get(name)
        if provider is None:
            known = ", ".join(sorted(self._providers))
            return Ending(
                Failure.PERMANENT,
                "unknown_provider",
                f"provider {name!r} is not known here; name one of {known}, or set AGENT_COMMAND",
            )
        argv, output = provider.argv()
        visible = environment_for(provider, self._settings.environ, self._settings.more_environment)
        environment = {os.fsencode(name): os.fsencode(value) for name, value in visible.items()}
        prepared = _Prepared(provider, argv, output, environment, visible["PATH"])
        self._look(prepared)
        self._prepared[name] = prepared
        if self._settings.stall_timeout_seconds and output in provider.silent:
            self._unwatched.append((name, f"its {output} output comes when it ends, so silence says nothing"))
        return prepared

    def _look(self, prepared: _Prepared) -> None:
        provider = prepared.provider
        prepared.looked_at = self._clock.monotonic()
        prepared.program = find_program(provider, prepared.path)
        if prepared.program is None:
            prepared.problem = missing_problem(provider, prepared.path, self._clock.wall())
        else:
            visible = {os.fsdecode(n): os.fsdecode(v) for n, v in prepared.environment.items()}
            prepared.problem = root_problem(provider, prepared.program, prepared.argv, visible)

    def _plan(self, attempt: Attempt) -> _Plan | Ending:
        prepared = self._prepare(attempt.provider)
        if isinstance(prepared, Ending):
            return prepared
        if prepared.problem is not None:
            self._look(prepared)
            if prepared.problem is not None:
                return prepared.problem
        cwd = self._cwd(attempt.cwd)
        if isinstance(cwd, Ending):
            return cwd
        plan = _Plan(list(prepared.argv), _environment(prepared, attempt), cwd)
        problem = self._place_prompt(prepared.provider, attempt, plan)
        plan.key = self._key(prepared, attempt, plan)
        return plan if problem is None else problem

    def _key(self, prepared: _Prepared, attempt: Attempt, plan: _Plan) -> Key | None:
        """What a process that was started before this task must have been started for; None: it needs its own."""
        provider, environment = prepared.provider, plan.environment
        if self.prespawn is None or prepared.program is None or not (plan.prompt or b"").strip():
            return None
        words = provider.words_to_wait(prepared.output)
        if not words or plan.prompt_file is not None or attempt.max_cost_usd is not None:
            return None
        own = (b"WATCHER_TASK_ID", b"WATCHER_ATTEMPT", childproc.MARK.encode())
        usual = tuple(sorted((name, value) for name, value in environment.items() if name not in own))
        reads = files_read(provider.reads_at_start, plan.cwd, os.fsdecode(environment.get(b"HOME", b"")) or None)
        return Key(provider.name, prepared.program, (*plan.argv, *words), usual, plan.cwd, reads)

    def _cwd(self, wanted: str | None) -> str | Ending | None:
        settings = self._settings
        if wanted is None:
            return None if settings.default_cwd is None else str(settings.default_cwd)
        return checked_cwd(wanted, settings.allowed_cwd)

    def _place_prompt(self, provider: Provider, attempt: Attempt, plan: _Plan) -> Ending | None:
        """Into the plan: on stdin, as the last argument, or in a file that is named in the command."""
        raw = attempt.prompt.encode("utf-8", "replace")
        if attempt.model is not None:
            plan.environment[b"WATCHER_MODEL"] = attempt.model.encode()
            if provider.model_flag is not None:
                plan.argv += (provider.model_flag, attempt.model)
        if attempt.max_cost_usd is not None and provider.takes_budget():
            plan.argv += (str(provider.budget_flag), f"{max(attempt.max_cost_usd, 1e-6):.6f}")
        if provider.prompt == "stdin":
            plan.prompt = raw
        elif provider.prompt == "file":
            plan.prompt_file = path = str(self._settings.folder / f"prompt-{next(self._numbers)}.txt")
            named = [word.replace(PROMPT_FILE, path) if isinstance(word, str) else word for word in plan.argv]
            plan.argv = named if named != plan.argv else [*named, path]
            plan.prompt = raw
        else:
            raw = raw.replace(b"\0", b"\xef\xbf\xbd")
            raw = b" " + raw if raw.startswith(b"-") else raw  # it must not become a flag
            if len(raw) > MAX_ARGUMENT_BYTES:
                return Ending(
                    Failure.PERMANENT,
                    "prompt_too_long",
                    f"{provider.name}: a prompt of {len(raw)} bytes cannot be an argument (at most "
                    f"{MAX_ARGUMENT_BYTES}); set AGENT_PROMPT=stdin or file, or make the description shorter",
                )
            if provider.prompt_flag is not None:
                plan.argv.append(provider.prompt_flag)
            plan.argv.append(raw)
        return None

    def _run(self, attempt: Attempt, plan: _Plan) -> Outcome:
        run = _Run(self._take_slot(), attempt.mark)
        with self._lock:
            self._running[attempt.mark] = run
        is_clean = True
        try:
            childproc.attempt_began(attempt.mark)
            outcome = self._run_waiting(attempt, plan, run)
            if outcome is None:
                child = self._spawn(attempt, plan, run)
                if isinstance(child, Ending):
                    childproc.attempt_over(None, attempt.mark)
                    return not_started(child)
                is_clean = False
                outcome = self._finish(attempt, run, child)
            is_clean = self._is_clean(run, outcome)
            return outcome
        finally:
            with self._lock:
                del self._running[attempt.mark]
            remove(plan.prompt_file)
            self._give_back(run.slot, is_clean)

    @staticmethod
    def _is_clean(run: _Run, outcome: Outcome) -> bool:
        was_told = run.child is not None and run.child.was_told_to_end
        return outcome.leftovers_killed == 0 and not was_told and childproc.nobody_escaped()

    def _run_waiting(self, attempt: Attempt, plan: _Plan, run: _Run) -> Outcome | None:
        """By a process that has waited for it; None when there is none, or it has done nothing: run it as usual."""
        if self.prespawn is None or plan.key is None or plan.prompt is None or run.stopped is not None:
            return None
        one = self.prespawn.take(plan.key, plan.prompt)
        if one is None:
            return None
        with self._lock:
            unused, run.slot = run.slot, one.slot
            run.mark, run.is_waiting_one = one.mark, True
        self._give_back(unused, True)
        self._begin(run, one.child, Look())
        outcome = self._finish(attempt, run, one.child)
        if not _did_nothing(run, outcome):
            childproc.attempt_over(None, attempt.mark)
            return outcome
        self.prespawn.failed(plan.key, f"it did nothing with its task and ended (exit code {outcome.exit_code})")
        with self._lock:
            used, run.slot = run.slot, self._take_slot()
            run.mark, run.is_waiting_one, run.child, run.look = attempt.mark, False, None, None
            run.stopped, run.why = run.stopped_late or (None, None)
        self._give_back(used, False)
        return None

    def _begin(self, run: _Run, child: childproc.Child, look: Look | None) -> None:
        with self._lock:
            run.child, run.look = child, look
            if run.stopped is not None:
                child.end(self._settings.kill_grace_seconds)

    def _spawn(self, attempt: Attempt, plan: _Plan, run: _Run) -> childproc.Child | Ending:
        prepared = self._prepared[attempt.provider]
        program = prepared.program
        try:
            child = self._start(plan, run, program)
        except OSError as error:
            if error.errno != errno.ENOENT or not self._moved(prepared, program):
                return self._start_failed(prepared, plan, attempt, error)
            try:
                child = self._start(plan, run, prepared.program)
            except OSError as again:
                return self._start_failed(prepared, plan, attempt, again)
        if isinstance(child, childproc.Child):
            self._begin(run, child, Look() if prepared.output == "stream-json" else None)
        return child

    def _start(self, plan: _Plan, run: _Run, program: str | None) -> childproc.Child | Ending:
        stdin = None
        try:
            if plan.prompt_file is not None:
                write_file(plan.prompt_file, plan.prompt or b"")
            elif plan.prompt is not None:
                stdin = unnamed_file(plan.prompt, self._settings.folder)
            with self._lock:
                if run.stopped is not None:
                    return Ending(run.stopped, run.why)
            slot = run.slot
            return childproc.spawn(
                plan.argv, plan.environment, plan.cwd, stdin, slot.stdout.fd, slot.stderr.fd, self._pass_fds, program
            )
        finally:
            if stdin is not None:
                os.close(stdin)

    def _moved(self, prepared: _Prepared, program: str | None) -> bool:
        """Whether the program is somewhere else now: an update may put it into another folder of PATH."""
        self._look(prepared)
        return prepared.program not in (None, program)

    def _finish(self, attempt: Attempt, run: _Run, child: childproc.Child) -> Outcome:
        try:
            code = self._wait(attempt, run, child)
        finally:
            leftovers = childproc.attempt_over(child, run.mark)
        outcome = self._outcome(self._prepared[attempt.provider], run, code, attempt.timeout_seconds)
        outcome.leftovers_killed = leftovers
        return outcome

    def _start_failed(self, prepared: _Prepared, plan: _Plan, attempt: Attempt, error: OSError) -> Ending:
        prepared.looked_at = float("-inf")
        place = Place(prepared.provider, prepared.program or "", prepared.path, plan.cwd, plan.prompt_file)
        return start_failure(place, attempt, error, self._clock.wall())

    def _wait(self, attempt: Attempt, run: _Run, child: childproc.Child) -> int:
        stall = self._settings.stall_timeout_seconds
        prepared = self._prepared[attempt.provider]
        watch = StallWatch(stall) if stall and prepared.output not in prepared.provider.silent else None
        ends_at = time.monotonic() + attempt.timeout_seconds
        code = child.wait(attempt.timeout_seconds) if watch is None else _wait_watching(child, run, watch, ends_at)
        if code is None:
            with self._lock:
                if run.stopped is None and child.end(self._settings.kill_grace_seconds):
                    run.stalled = time.monotonic() < ends_at
                    run.timed_out = not run.stalled
            code = child.wait()
        return childproc.EXIT_UNKNOWN if code is None else code

    def _outcome(self, prepared: _Prepared, run: _Run, code: int, timeout_seconds: float) -> Outcome:
        stdout, stderr, reading = self._collect(prepared, run.slot)
        provider = prepared.provider
        if run.stopped is not None:
            ending = Ending(run.stopped, run.why, f"{provider.name}: ended on request")
        elif run.stalled:
            seconds = f"{self._settings.stall_timeout_seconds:g} s (STALL_TIMEOUT)"
            ending = Ending(Failure.TRANSIENT, "stalled", f"{provider.name}: ended after no output for {seconds}")
        elif run.timed_out:
            detail = f"{provider.name}: still running after its {timeout_seconds:g} s; set a longer timeout"
            ending = Ending(Failure.TRANSIENT, "timeout", detail, timed_out=True)
        elif code == childproc.EXIT_UNKNOWN:
            ending = Ending(Failure.TRANSIENT, "exit_unknown", f"{provider.name}: something else took its exit code")
        else:
            now = self._clock.wall()
            ending = judge(provider, code, reading, lambda: _printed(run.slot, reading), now, stdout.size_bytes)
        usage = None if reading is None else reading.usage
        exit_code = None if code == childproc.EXIT_UNKNOWN else code
        return Outcome(ending, exit_code, stdout, stderr, 0.0, 0.0, usage, reading=reading)

    def _collect(self, prepared: _Prepared, slot: Slot) -> tuple[Output, Output, Reading | None]:
        at_most = self._settings.max_output_bytes
        reader = prepared.provider.reader
        size = slot.stdout.size()
        reading = None
        if reader is not None and prepared.output != "text":
            mentions = prepared.provider.mentions
            reading = reader(events(slot.stdout.fd, size, prepared.output, mentions))
        if reading is not None and reading.answer is not None:
            text, truncated = shortened(reading.answer, at_most)
            stdout = Output(text, size, truncated, slot.stdout.keep())
        else:
            stdout = slot.stdout.output(size, at_most)
        return stdout, slot.stderr.output(slot.stderr.size(), at_most), reading

    def _take_slot(self) -> Slot:
        with contextlib.suppress(IndexError):
            return self._slots.pop()
        return Slot(self._settings.folder, self._numbers)

    def _give_back(self, slot: Slot, is_clean: bool) -> None:
        try:
            slot.refresh(is_clean)
        except OSError:  # no descriptor or no folder: the next attempt says so, if it is still true then
            slot.remove()
        else:
            self._slots.append(slot)


def _wait_watching(child: childproc.Child, run: _Run, watch: StallWatch, ends_at: float) -> int | None:
    """Wait for the end; None when the time is over or the command has printed nothing for too long."""
    while True:
        now = time.monotonic()
        printed = (run.slot.stdout.state(), run.slot.stderr.state())
        if now >= ends_at or run.stopped is not None or watch.is_stalled(printed, now):
            # Whoever stopped it has begun to end it: then only the end is waited for.
            return child.wait() if run.stopped is not None else None
        code = child.wait(min(ends_at - now, watch.pause_seconds))
        if code is not None:
            return code


def _environment(prepared: _Prepared, attempt: Attempt) -> dict[bytes, bytes]:
    out = dict(prepared.environment)
    out[b"WATCHER_TASK_ID"] = attempt.task_id.encode()
    out[b"WATCHER_WORKER"] = attempt.worker.encode()
    out[b"WATCHER_ATTEMPT"] = b"%d" % attempt.number
    out[childproc.MARK.encode()] = attempt.mark.encode()
    return out


def _printed(slot: Slot, reading: Reading | None) -> str:
    stdout, _ = bounded_text(slot.stdout.fd, slot.stdout.size(), _PRINTED_BYTES)
    stderr, _ = bounded_text(slot.stderr.fd, slot.stderr.size(), _PRINTED_BYTES)
    return printed_text(stdout, stderr, reading)


def printed_text(stdout: str, stderr: str, reading: Reading | None) -> str:
    """What the words of a failure are looked for in. Not in events: there an agent quotes whatever it has read."""
    if reading is None:
        return f"{stdout}\n{stderr}"
    lines = [line for line in stdout.split("\n") if not line.lstrip().startswith(("{", "[", '"', "}", "]"))]
    return "\n".join((reading.message, *lines, stderr))


def _did_nothing(run: _Run, outcome: Outcome) -> bool:
    """Whether a process ended by itself before the first event of a task, which comes before any call of a model."""
    is_ended_by_us = run.stopped is not None or run.timed_out or run.stalled
    return not is_ended_by_us and outcome.stdout.size_bytes == 0 and outcome.stderr.kept is None
