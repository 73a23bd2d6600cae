"""Run attempts by the Agent Client Protocol: processes are kept, each attempt has a session of its own.

A process serves one attempt at a time; when all are busy another is started, so there are at most as many as attempts
run at once. One that fails in any way is ended with all that it started; one that has served many tasks, or for long,
is replaced. That a kept process has died meanwhile costs nothing: the attempt gets a new one.

Nothing here raises for what an agent does. When this process is killed, a guard ends them (`runner.orphan_guard`).
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from watcher.clock import Clock
from watcher.formats.result import Usage
from watcher.policy.after_attempt import Ending, Failure
from watcher.policy.output_limit import OUTPUT_TOO_LARGE
from watcher.runner.acp.faults import fault_of
from watcher.runner.acp.process import AUTH_REQUIRED, AcpProcess
from watcher.runner.acp.turn import Turn
from watcher.runner.attempt_files import kept_text, output_of
from watcher.runner.cwd import checked_cwd
from watcher.runner.orphan_guard_client import Guarding
from watcher.runner.printed_text import harmless
from watcher.runner.providers.built_in import acp_rules
from watcher.runner.providers.failure_words import Printed
from watcher.runner.providers.judging import judge
from watcher.runner.providers.provider import Provider, environment_for
from watcher.runner.runner_interface import (
    Attempt,
    Outcome,
    Output,
    Runner,
    Unseen,
    Workplace,
    without_output,
)
from watcher.runner.start_failures import Launch, start_failure
from watcher.runner.warm.handler_process import Start, start_of
from watcher.runner.warm.jsonrpc import RpcError
from watcher.runner.warm.pipes import WireBroken

if TYPE_CHECKING:
    from watcher.settings.worker_groups import RunnerSettings

#: An agent that has served so many tasks, or so long, is replaced.
_MAX_REQUESTS, _MAX_AGE_SECONDS = 50, 3600.0
#: An agent that takes longer to say its first words is broken.
_START_SECONDS = 60.0
#: How long one that was cancelled, or is worn out, may take to end by itself.
_LEAVE_SECONDS = 1.0
#: Where people say how an agent logs in.
_AUTH_SETTING = "ACP_AUTH_METHOD (or auth_method in PROVIDERS_FILE)"
_BROKEN = {
    "handler_crashed": "agent_crashed",
    "handler_answer_too_long": "answer_too_long",
    OUTPUT_TOO_LARGE: OUTPUT_TOO_LARGE,
}


@dataclass(slots=True)
class _AcpRun:
    """An attempt under way; changed under the runner's lock."""

    agent: AcpProcess | None = None
    failure: Failure | None = None
    why: str | None = None
    leftovers: int = 0
    stderr: str = ""
    usage: Usage | None = None
    methods: tuple[str, ...] = ()


class AcpRunner(Unseen):
    """The runner of providers that speak the protocol; `once` knows whether they are there."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        once: Runner,
        config: RunnerSettings,
        place: Workplace,
        clock: Clock,
        max_requests: int = _MAX_REQUESTS,
    ) -> None:
        self._providers = dict(providers)
        self._once = once
        self._config = config
        self._place = place
        self._mark_prefix = f"{place.id}.a"
        self._max_requests = max_requests
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, ...], list[AcpProcess]] = {}
        self._running: dict[str, _AcpRun] = {}
        self._numbers = itertools.count(1)
        self._guarding = Guarding(self._mark_prefix, place.busy_lock)

    def problem(self, provider: str) -> Ending | None:
        """Why attempts of this provider cannot run at all now, or None."""
        return self._once.problem(provider)

    def run(self, attempt: Attempt) -> Outcome:
        """Run it to its end. Blocks."""
        started_at, began = self._clock.wall(), self._clock.monotonic()
        problem = self.problem(attempt.provider)
        cwd = os.getcwd() if attempt.cwd is None else checked_cwd(attempt.cwd, self._config.allowed_cwd)
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
        run = _AcpRun()
        with self._lock:
            self._running[attempt.mark] = run
        provider = self._providers[attempt.provider]
        start = self._start(provider, attempt.model)
        try:
            turn, ending = self._converse(attempt, run, start, cwd)
            return self._outcome(turn, ending, run)
        except WireBroken as broken:
            return self._broken(provider, attempt, broken, run)
        except OSError as error:
            place = Launch(provider, start.program or "", self._path(provider), None, None)
            return without_output(start_failure(place, attempt, error, self._clock.wall()))
        finally:
            with self._lock:
                del self._running[attempt.mark]

    def _converse(self, attempt: Attempt, run: _AcpRun, start: Start, cwd: str) -> tuple[Turn | None, Ending]:
        """The attempt in a kept process, or in a new one. Afterwards the process is kept again, or dead."""
        provider = self._providers[attempt.provider]
        deadline = time.monotonic() + attempt.timeout_seconds
        key = (attempt.provider, *map(str, start.argv))
        while True:
            agent = self._take(key)
            is_kept = agent is not None
            began, asked = (0, 0) if agent is None else (agent.process.tail.position(), agent.process.requests)
            is_good = False
            try:
                if agent is None:
                    agent = self._begin(start)
                self._hand(run, agent)
                refused = None if is_kept else agent.initialize(min(deadline, time.monotonic() + _START_SECONDS))
                method = provider.auth_method or self._config.acp_auth_method
                answer = refused or _asked(agent, attempt.prompt, cwd, method, deadline)
                run.usage, run.methods = agent.heard.usage(), agent.methods
                ending = self._judged(provider, answer, run)
                is_good = ending.failure is None and not agent.is_over
                return (answer if isinstance(answer, Turn) else None), ending
            except WireBroken as broken:
                has_asked = agent is not None and agent.process.requests > asked
                if is_kept and not has_asked and broken.reason == "handler_crashed":
                    continue
                run.usage = None if agent is None else agent.heard.usage()
                raise
            finally:
                if agent is not None:
                    self._after(key, run, agent, began, is_good)

    def _hand(self, run: _AcpRun, agent: AcpProcess) -> None:
        with self._lock:
            run.agent = agent
            if run.failure is not None:
                raise WireBroken("stopped", "ended on request")
        agent.process.wire.allow(self._config.max_attempt_output_bytes, agent.process.tail)

    def _after(self, key: tuple[str, ...], run: _AcpRun, agent: AcpProcess, began: int, is_good: bool) -> None:
        process = agent.process
        with self._lock:
            run.agent = None
            is_worn = (
                process.requests >= self._max_requests or self._clock.monotonic() - process.began >= _MAX_AGE_SECONDS
            )
            is_kept = is_good and run.failure is None and not is_worn
        process.tail.drain()
        if not is_kept:
            agent.cancel()
            process.end(_LEAVE_SECONDS if is_good or run.failure is not None else 0.0, self._config.kill_grace)
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
        return AcpProcess(start, f"{self._mark_prefix}{next(self._numbers)}", self._clock.monotonic())

    def _start(self, provider: Provider, model: str | None) -> Start:
        visible = environment_for(provider, self._place.environ, self._config.agent_env)
        start = start_of(
            provider,
            visible | {"WATCHER_WORKER": self._place.worker},
            self._place.pass_fds,
            self._config.max_output_bytes,
        )
        words = () if model is None or provider.model_flag is None else (provider.model_flag, model)
        return Start(
            (*start.argv, *words), start.environment, None, start.program, start.pass_fds, start.max_line_bytes
        )

    def _path(self, provider: Provider) -> str:
        return environment_for(provider, self._place.environ, self._config.agent_env)["PATH"]

    def _end_idle(self, provider: str | None) -> None:
        with self._lock:
            keys = [key for key in self._idle if provider in (None, key[0])]
            leaving = [agent for key in keys for agent in self._idle.pop(key)]
        for agent in leaving:
            agent.process.wire.close_stdin()
            agent.process.ask_to_end(self._config.kill_grace)
        for agent in leaving:
            agent.process.end(self._config.kill_grace, 0)
            agent.process.close()

    # --- what it came to

    def _outcome(self, turn: Turn | None, ending: Ending, run: _AcpRun) -> Outcome:
        stdout, said, usage = Output(), run.stderr, run.usage
        if turn is not None:
            stdout, usage = self._output(turn.reading.answer or "", "stdout"), turn.reading.usage
            if turn.whole and stdout.kept is None:
                stdout.kept = kept_text(turn.whole, self._place.folder, "stdout", self._numbers)
            said += ("\n" if said and not said.endswith("\n") else "") + turn.notices
        code = 0 if ending.failure is None else None
        return Outcome(ending, code, stdout, self._output(said, "stderr"), 0.0, 0.0, usage, run.leftovers)

    def _judged(self, provider: Provider, answer: Turn | RpcError, run: _AcpRun) -> Ending:
        if isinstance(answer, RpcError) and answer.code == AUTH_REQUIRED:
            ways = f", or name one of its ways ({', '.join(run.methods)}) in {_AUTH_SETTING}" if run.methods else ""
            what = f"{provider.name}: {harmless(answer.message)[:600]}; log in with the agent's own program{ways}"
            return Ending(
                Failure.AUTH, "not_authenticated", f"{what}, then `watcher resume --provider {provider.name}`"
            )
        reading = fault_of(answer) if isinstance(answer, RpcError) else answer.reading
        reading.message = harmless(reading.message)
        judged = replace(provider, rules=(*provider.rules, *acp_rules()), needs_answer=True)
        ending = judge(judged, 0, reading, Printed, self._clock.wall())
        if ending.failure is None and isinstance(answer, Turn) and answer.remark:
            ending.detail = f"{provider.name}: {harmless(answer.remark)[:600]}"
        return ending

    def _broken(self, provider: Provider, attempt: Attempt, broken: WireBroken, run: _AcpRun) -> Outcome:
        name = provider.name
        if broken.reason == "stopped" or run.failure is not None:
            ending = Ending(run.failure or Failure.STOPPED, run.why, f"{name}: ended on request")
        elif broken.reason == "timeout":
            detail = f"{name}: no end of the task within {attempt.timeout_seconds:g} s; set a longer timeout"
            ending = Ending(Failure.TRANSIENT, "timeout", detail, timed_out=True)
        else:
            last = harmless(run.stderr.rstrip().rpartition("\n")[2])[:300]
            detail = f"{name}: {broken.detail}" + (f"; its last output: {last}" if last else "")
            ending = Ending(Failure.TRANSIENT, _BROKEN.get(broken.reason, f"agent_{broken.reason}"), detail)
        return Outcome(ending, None, Output(), self._output(run.stderr, "stderr"), 0.0, 0.0, run.usage, run.leftovers)

    def _output(self, text: str, stream: str) -> Output:
        return output_of(text, self._config.max_output_bytes, self._place.folder, stream, self._numbers)


def _asked(agent: AcpProcess, prompt: str, cwd: str, method: str, deadline: float) -> Turn | RpcError:
    """The task in a new session. An agent that wants a login first is logged in by `method`, once, if there is one."""
    for is_last in (not method, True):
        answer = agent.open(cwd, deadline) or agent.prompt(prompt, deadline)
        is_refused = isinstance(answer, RpcError) and answer.code == AUTH_REQUIRED
        if is_last or not is_refused or not agent.heard.has_done_nothing():
            break
        refused = agent.authenticate(method, min(deadline, time.monotonic() + _START_SECONDS))
        if refused is not None:
            return refused
    return answer
