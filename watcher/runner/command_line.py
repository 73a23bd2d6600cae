"""Plan what an attempt is started as: command line, environment, folder, and where its prompt goes.

A provider is prepared once; where its program is, and whether it can run at all, is looked at again now and then.
Nothing is started or written here. What stands in the way of an attempt is an Ending, and nothing raises.

Used by many threads at once: two that prepare the same provider at the same moment come to the same.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from watcher.clock import Clock
from watcher.policy.after_attempt import Ending, Failure
from watcher.runner.cwd import checked_cwd
from watcher.runner.prestarted_process import Key, files_read
from watcher.runner.providers.provider import (
    PROMPT_FILE,
    OutputFormat,
    Provider,
    environment_for,
    find_program,
    missing_problem,
    root_problem,
)
from watcher.runner.runner_interface import Attempt, Workplace
from watcher.runner.start_failures import Launch, start_failure
from watcher.system import processes

if TYPE_CHECKING:
    from watcher.settings.worker_groups import RunnerSettings

#: The longest single argument that Linux passes to a program: MAX_ARG_STRLEN without the NUL (execve(2)).
MAX_ARGUMENT_BYTES = 131_071
#: `problem` looks for the command at most this often.
_LOOK_EVERY_SECONDS = 5.0


@dataclass(slots=True)
class Prepared:
    """A provider as it is started here; made once. `program` and `problem` are what the last look found."""

    provider: Provider
    argv: tuple[str, ...]
    output: OutputFormat
    environment: dict[bytes, bytes]
    path: str
    program: str | None = None
    looked_at: float = 0.0
    problem: Ending | None = None

    @property
    def is_silent(self) -> bool:
        """Whether it prints nothing until it ends, however much it does."""
        return self.output in self.provider.silent


@dataclass(slots=True)
class Plan:
    """One attempt, ready to be spawned. `prompt` goes into `prompt_file` or, without one, to stdin."""

    prepared: Prepared
    argv: list[bytes | str]
    environment: dict[bytes, bytes]
    cwd: str | None
    prompt: bytes | None = None
    prompt_file: str | None = None


class Planner:
    """Makes plans for the providers that a runner knows, by their names."""

    def __init__(
        self, providers: Mapping[str, Provider], config: RunnerSettings, place: Workplace, clock: Clock
    ) -> None:
        self._providers = dict(providers)
        self._config = config
        self._place = place
        self._clock = clock
        self._prepared: dict[str, Prepared] = {}
        self._numbers = itertools.count(1)

    def problem(self, provider: str) -> Ending | None:
        """Why attempts of this provider cannot run at all now, or None. Cheap: it looks again every few seconds."""
        prepared = self._prepare(provider)
        if isinstance(prepared, Ending):
            return prepared
        if self._clock.monotonic() - prepared.looked_at >= _LOOK_EVERY_SECONDS:
            self._look(prepared)
        return prepared.problem

    def plan(self, attempt: Attempt) -> Plan | Ending:
        """How this attempt is to be started, or why it cannot be."""
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
        plan = Plan(prepared, list(prepared.argv), _environment(prepared, attempt), cwd)
        _add_flags(plan, attempt)
        problem = self._place_prompt(plan, attempt.prompt.encode("utf-8", "replace"))
        return plan if problem is None else problem

    def has_moved(self, prepared: Prepared, program: str | None) -> bool:
        """Whether the program is somewhere else now: an update may put it into another folder of PATH."""
        self._look(prepared)
        return prepared.program not in (None, program)

    def start_failed(self, plan: Plan, attempt: Attempt, error: OSError) -> Ending:
        """Why the plan could not be carried out; `problem` looks at once when it is asked next."""
        prepared = plan.prepared
        prepared.looked_at = float("-inf")
        place = Launch(prepared.provider, prepared.program or "", prepared.path, plan.cwd, plan.prompt_file)
        return start_failure(place, attempt, error, self._clock.wall())

    def silent(self) -> list[tuple[str, OutputFormat]]:
        """The providers prepared so far whose output comes when they end, and its format."""
        return [(name, one.output) for name, one in list(self._prepared.items()) if one.is_silent]

    def _prepare(self, name: str) -> Prepared | Ending:
        prepared = self._prepared.get(name)
        if prepared is not None:
            return prepared
        provider = self._providers.get(name)
        if provider is None:
            known = ", ".join(sorted(self._providers))
            cure = f"name one of {known}, or describe it in PROVIDERS_FILE"
            return Ending(Failure.PERMANENT, "unknown_provider", f"provider {name!r} is not known here; {cure}")
        argv, output = provider.argv()
        visible = environment_for(provider, self._place.environ, self._config.agent_env)
        environment = {os.fsencode(name): os.fsencode(value) for name, value in visible.items()}
        prepared = Prepared(provider, argv, output, environment, visible["PATH"])
        self._look(prepared)
        self._prepared[name] = prepared
        return prepared

    def _look(self, prepared: Prepared) -> None:
        provider = prepared.provider
        prepared.looked_at = self._clock.monotonic()
        prepared.program = find_program(provider, prepared.path)
        if prepared.program is None:
            prepared.problem = missing_problem(provider, prepared.path, self._clock.wall())
        else:
            visible = {os.fsdecode(n): os.fsdecode(v) for n, v in prepared.environment.items()}
            prepared.problem = root_problem(provider, prepared.program, prepared.argv, visible)

    def _cwd(self, wanted: str | None) -> str | Ending | None:
        if wanted is None:
            return None if self._place.default_cwd is None else str(self._place.default_cwd)
        return checked_cwd(wanted, self._config.allowed_cwd)

    def _place_prompt(self, plan: Plan, raw: bytes) -> Ending | None:
        """Into the plan: on stdin, as the last argument, or in a file that is named in the command."""
        wanted = plan.prepared.provider.prompt
        if wanted == "argument":
            return _add_argument(plan, raw)
        plan.prompt = raw
        if wanted == "file":
            plan.prompt_file = path = str(self._place.folder / f"prompt-{next(self._numbers)}.txt")
            named = [word.replace(PROMPT_FILE, path) if isinstance(word, str) else word for word in plan.argv]
            plan.argv = named if named != plan.argv else [*named, path]
        return None


def waiting_key(plan: Plan, attempt: Attempt) -> Key | None:
    """What a process that was started before this task must have been started for; None: it needs its own."""
    prepared, environment = plan.prepared, plan.environment
    provider = prepared.provider
    if prepared.program is None or not (plan.prompt or b"").strip():
        return None
    words = provider.words_to_wait(prepared.output)
    if not words or plan.prompt_file is not None or attempt.max_cost_usd is not None:
        return None
    own = (b"WATCHER_TASK_ID", b"WATCHER_ATTEMPT", processes.MARK.encode())
    usual = tuple(sorted((name, value) for name, value in environment.items() if name not in own))
    reads = files_read(provider.reads_at_start, plan.cwd, os.fsdecode(environment.get(b"HOME", b"")) or None)
    return Key(provider.name, prepared.program, (*plan.argv, *words), usual, plan.cwd, reads)


def _environment(prepared: Prepared, attempt: Attempt) -> dict[bytes, bytes]:
    out = dict(prepared.environment)
    out[b"WATCHER_TASK_ID"] = attempt.task_id.encode()
    out[b"WATCHER_WORKER"] = attempt.worker.encode()
    out[b"WATCHER_ATTEMPT"] = b"%d" % attempt.number
    out[processes.MARK.encode()] = attempt.mark.encode()
    if attempt.model is not None:
        out[b"WATCHER_MODEL"] = attempt.model.encode()
    return out


def _add_flags(plan: Plan, attempt: Attempt) -> None:
    provider = plan.prepared.provider
    if attempt.model is not None and provider.model_flag is not None:
        plan.argv += (provider.model_flag, attempt.model)
    if attempt.max_cost_usd is not None and provider.takes_budget():
        plan.argv += (str(provider.budget_flag), f"{max(attempt.max_cost_usd, 1e-6):.6f}")


def _add_argument(plan: Plan, raw: bytes) -> Ending | None:
    provider = plan.prepared.provider
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
