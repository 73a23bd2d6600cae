"""Run attempts by the Agent Client Protocol: processes are kept, each attempt has a session of its own in one of them.

A process serves one attempt at a time; when all are busy another is started, so there are at most as many as attempts
run at once. One that fails in any way is ended with all that it started; one that has served many tasks, or for long,
is replaced. That a kept process has died meanwhile costs nothing: the attempt gets a new one.

Nothing here raises for what an agent does. When this process is killed, a guard ends them (`runner.guard`).
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from watcher.clock import Clock
from watcher.formats.result import Usage
from watcher.policy.disposition import Ending, Failure
from watcher.runner.acp import AUTH_REQUIRED, AcpProcess, Turn
from watcher.runner.cwd import checked_cwd
from watcher.runner.failures import ACP
from watcher.runner.files import output_of
from watcher.runner.guarding import Guarding
from watcher.runner.interface import Attempt, Outcome, Output, Runner, Unseen, without_output
from watcher.runner.jsonrpc import RpcError
from watcher.runner.judging import judge
from watcher.runner.providers import Provider, environment_for
from watcher.runner.reading import harmless
from watcher.runner.shapes import Reading
from watcher.runner.starting import Place, start_failure
from watcher.runner.warm import Start, start_of
from watcher.runner.wire import WireBroken

#: An agent that takes longer to say its first words is broken.
_START_SECONDS = 60.0
#: How long one that was cancelled, or is worn out, may take to end by itself.
_LEAVE_SECONDS = 1.0
_STOP_REASONS = {
    "refusal": (Failure.PERMANENT, "refused", "the agent refuses to do it"),
    "max_tokens": (Failure.PERMANENT, "max_tokens", "its answer was cut off at the limit of tokens"),
    "max_turn_requests": (Failure.PERMANENT, "max_turns", "it has asked its model as often as it may"),
}
_BROKEN = {
    "handler_crashed": "agent_crashed",
    "handler_answer_too_long": "answer_too_long",
}


@dataclass(frozen=True, slots=True)
class AcpSettings:
    """What all attempts have in common. `mark_prefix` begins the mark of every process and must be nobody else's."""

    folder: Path
    worker: str
    environ: Mapping[str, str]
    mark_prefix: str
    more_environment: tuple[str, ...] = ()
    busy_lock: str = ""
    pass_fds: tuple[int, ...] = ()
    grace_seconds: float = 5.0
    max_output_bytes: int = 1 << 20
    allowed_cwd: tuple[Path, ...] = ()
    max_requests: int = 50
    max_age_seconds: float = 3600.0


@dataclass(slots=True)
class _Run:
    """An attempt under way; changed under the runner's lock."""

    agent: AcpProcess | None = None
    failure: Failure | None = None
    why: str | None = None
    leftovers: int = 0
    stderr: str = ""


class AcpRunner(Unseen):
    """A Runner (see `runner.interface`) for providers that speak the protocol; `once` knows whether they are there."""

    def __init__(self, providers: Mapping[str, Provider], once: Runner, settings: AcpSettings, clock: Clock) -> None:
        self._providers = dict(providers)
        self._once = once
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, ...], list[AcpProcess]] = {}
        self._running: dict[str, _Run] = {}
        self._numbers = itertools.count(1)
        self._guarding = Guarding(settings.mark_prefix, settings.busy_lock)

    def problem(self, provider: str) -> Ending | None:
        """Why attempts of this provider cannot run at all now, or None."""
        return self._once.problem(provider)

    def run(self, attempt: Attempt) -> Outcome:
        """Run it to its end. Blocks."""
        started_at, began = self._clock.wall(), self._clock.monotonic()
        problem = self.problem(attempt.provider)
        cwd = os.getcwd() if attempt.cwd is None else checked_cwd(attempt.cwd, self._settings.allowed_cwd)
        if problem is not None or isinstance(cwd, Ending):
            outcome = without_output(problem if problem is not None else cwd)  # type: ignore[arg-type]
        else:
            outcome = self._run(attempt, cwd)
        if outcome.ending.failure is Failure.AUTH:
            self._end_idle(attempt.provider)
        outcome.started_at = started_at
        outcome.duration_seconds = max(0.0, self._clock.monotonic() - began)
        return outcome

    def stop(self, mark: str, failure: Failure, reason: str | None = None) -> None:
        """End the attempt early: its session is cancelled and its process ended."""
        with self._lock:
            run = self._running.get(mark)
            if run is None or run.failure is not None:
                return
            run.failure, run.why = failure, reason
            if run.agent is not None:
                run.agent.process.abort()

    def sweep(self) -> int:
        """What they leave is ended with them."""
        return 0

    def remark(self) -> str | None:
        """Nothing."""
        return None

    def close(self) -> None:
        """End all that are kept; no attempt runs any more."""
        self._end_idle(None)
        self._guarding.dismiss()

    # --- one attempt

    def _run(self, attempt: Attempt, cwd: str) -> Outcome:
        run = _Run()
        with self._lock:
            self._running[attempt.mark] = run
        provider = self._providers[attempt.provider]
        start = self._start(provider, attempt.model)
        try:
            answer = self._converse(attempt, run, start, cwd)
            return self._outcome(provider, answer, run)
        except WireBroken as broken:
            return self._broken(provider, attempt, broken, run)
        except OSError as error:
            place = Place(provider, start.program or "", self._path(provider), None, None)
            return without_output(start_failure(place, attempt, error, self._clock.wall()))
        finally:
            with self._lock:
                del self._running[attempt.mark]

    def _converse(self, attempt: Attempt, run: _Run, start: Start, cwd: str) -> Turn | RpcError:
        """The attempt in a kept process, or in a new one. Afterwards the process is kept again, or dead."""
        deadline = time.monotonic() + attempt.timeout_seconds
        key = (attempt.provider, *map(str, start.argv))
        while True:
            agent = self._take(key)
            is_kept = agent is not None
            began = 0 if agent is None else agent.process.tail.position()
            has_asked = is_good = False
            try:
                if agent is None:
                    agent = self._begin(start)
                self._hand(run, agent)
                refused = None if is_kept else agent.initialize(min(deadline, time.monotonic() + _START_SECONDS))
                refused = refused or agent.open(cwd, deadline)
                if refused is not None:
                    return refused
                has_asked = True
                answer = agent.prompt(attempt.prompt, deadline)
                is_good = isinstance(answer, Turn) and _judged("", answer).failure is None
                return answer
            except WireBroken as broken:
                if is_kept and not has_asked and broken.reason == "handler_crashed":
                    continue
                raise
            finally:
                if agent is not None:
                    self._after(key, run, agent, began, is_good)

    def _hand(self, run: _Run, agent: AcpProcess) -> None:
        with self._lock:
            run.agent = agent
            if run.failure is not None:
                raise WireBroken("stopped", "ended on request")

    def _after(self, key: tuple[str, ...], run: _Run, agent: AcpProcess, began: int, is_good: bool) -> None:
        process = agent.process
        with self._lock:
            run.agent = None
            is_worn = (
                process.requests >= self._settings.max_requests
                or self._clock.monotonic() - process.began >= self._settings.max_age_seconds
            )
            is_kept = is_good and run.failure is None and not is_worn
        process.tail.drain()
        if not is_kept:
            agent.cancel()
            process.end(_LEAVE_SECONDS if is_good or run.failure is not None else 0.0, self._settings.grace_seconds)
            run.leftovers = process.leftovers if not (is_good or run.failure is not None) else 0
        run.stderr = process.tail.since(began)
        if not is_kept:
            process.close()
            return
        with self._lock:
            self._idle.setdefault(key, []).append(agent)

    def _take(self, key: tuple[str, ...]) -> AcpProcess | None:
        with self._lock:
            kept = self._idle.get(key)
            return kept.pop() if kept else None

    def _begin(self, start: Start) -> AcpProcess:
        with self._lock:
            self._guarding.ensure()
        return AcpProcess(start, f"{self._settings.mark_prefix}{next(self._numbers)}", self._clock.monotonic())

    def _start(self, provider: Provider, model: str | None) -> Start:
        settings = self._settings
        visible = environment_for(provider, settings.environ, settings.more_environment)
        start = start_of(
            provider, visible | {"WATCHER_WORKER": settings.worker}, settings.pass_fds, settings.max_output_bytes
        )
        words = () if model is None or provider.model_flag is None else (provider.model_flag, model)
        return Start(
            (*start.argv, *words), start.environment, None, start.program, start.pass_fds, start.max_line_bytes
        )

    def _path(self, provider: Provider) -> str:
        return environment_for(provider, self._settings.environ, self._settings.more_environment)["PATH"]

    def _end_idle(self, provider: str | None) -> None:
        with self._lock:
            keys = [key for key in self._idle if provider in (None, key[0])]
            leaving = [agent for key in keys for agent in self._idle.pop(key)]
        for agent in leaving:
            agent.process.wire.close_stdin()
            agent.process.ask_to_end(self._settings.grace_seconds)
        for agent in leaving:
            agent.process.end(self._settings.grace_seconds, 0)
            agent.process.close()

    # --- what it came to

    def _outcome(self, provider: Provider, answer: Turn | RpcError, run: _Run) -> Outcome:
        stderr = self._output(run.stderr, "stderr")
        if isinstance(answer, RpcError):
            return Outcome(self._refused(provider, answer), None, Output(), stderr, 0.0, 0.0, None, run.leftovers)
        usage = Usage(session_id=answer.session[:200])
        stdout = self._output(answer.answer, "stdout")
        ending = _judged(provider.name, answer)
        return Outcome(ending, None if ending.failure else 0, stdout, stderr, 0.0, 0.0, usage, run.leftovers)

    def _refused(self, provider: Provider, error: RpcError) -> Ending:
        message = harmless(error.message)
        if error.code == AUTH_REQUIRED:
            what = f"{provider.name}: {message[:600]}; log in with the agent's own program"
            return Ending(Failure.AUTH, "not_authenticated", what)
        signs = {"status": str(error.code)} if 400 <= error.code < 600 else {}
        reading = Reading(is_finished=True, is_error=True, message=message or f"error {error.code}", signs=signs)
        return judge(replace(provider, rules=(*provider.rules, *ACP)), 0, reading, lambda: message, self._clock.wall())

    def _broken(self, provider: Provider, attempt: Attempt, broken: WireBroken, run: _Run) -> Outcome:
        name = provider.name
        if broken.reason == "stopped" or run.failure is not None:
            ending = Ending(run.failure or Failure.STOPPED, run.why, f"{name}: ended on request")
        elif broken.reason == "timeout":
            detail = f"{name}: no end of the task within {attempt.timeout_seconds:g} s; set a longer timeout"
            ending = Ending(Failure.TRANSIENT, "timeout", detail, timed_out=True)
        else:
            last = harmless(run.stderr.rstrip().rpartition("\n")[2])[:300]
            detail = f"{name}: {broken.detail}" + (f"; its last words: {last}" if last else "")
            ending = Ending(Failure.TRANSIENT, _BROKEN.get(broken.reason, f"agent_{broken.reason}"), detail)
        return Outcome(ending, None, Output(), self._output(run.stderr, "stderr"), 0.0, 0.0, None, run.leftovers)

    def _output(self, text: str, stream: str) -> Output:
        return output_of(text, self._settings.max_output_bytes, self._settings.folder, stream, self._numbers)


def _judged(name: str, turn: Turn) -> Ending:
    if turn.stop_reason == "end_turn":
        if turn.answer.strip():
            return Ending(None)
        return Ending(Failure.TRANSIENT, "no_output", f"{name}: it ended well but said nothing")
    known = _STOP_REASONS.get(turn.stop_reason)
    if known is not None:
        return Ending(known[0], known[1], f"{name}: {known[2]}")
    return Ending(Failure.TRANSIENT, "agent_error", f"{name}: its turn ended with {harmless(turn.stop_reason)[:80]!r}")
