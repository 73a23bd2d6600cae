"""Check whether a provider works here: start it once, for real, as a worker does, and report what it answered.

The one-shot runner starts the command with the worker's own settings and environment, with a prompt that asks for one
word, and ends it after a time limit; nothing of it stays behind. A known CLI runs in an empty folder, any other command
where a worker would run it: here, since its words may name files from here. What it tells of itself (version, login,
permissions, MCP servers, model) comes from its events, so a provider with plain text output tells less.

A call costs what one tiny turn costs. Without a call only the program, its version and its own word about the login are
looked at, and that word does not decide: a CLI may know no login and work with a key from the environment.
"""

from __future__ import annotations

import secrets
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from watcher.clock import Clock
from watcher.policy.after_attempt import Failure
from watcher.runner.oneshot import OneShotRunner
from watcher.runner.providers.built_in import BUILT_IN
from watcher.runner.providers.judging import missing_mcp
from watcher.runner.providers.output_events import Reading
from watcher.runner.providers.provider import Provider, environment_for, find_program
from watcher.runner.runner_interface import Attempt, Outcome, Workplace

if TYPE_CHECKING:
    from watcher.settings.worker_groups import RunnerSettings

CANARY = "Answer with the single word READY. Do not use any tool and do not explain."
#: A warm handler is asked whether it lives: it takes no prompt (docs/handlers.md).
_PING = '{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n'
#: A look (`--version`) that takes longer is given up.
_LOOK_SECONDS = 30.0
_ANSWER_CHARACTERS = 60

State = Literal["well", "warning", "ill"]


@dataclass(slots=True)
class Finding:
    """What was found out about one provider. `seconds` is the time from its start to its end, None without a call."""

    provider: str
    state: State = "well"
    program: str | None = None
    version: str = ""
    login: str = ""
    permissions: str = ""
    trust: str = ""
    model: str = ""
    mcp: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None
    answer: str = ""
    usage: dict[str, Any] | None = None
    reason: str | None = None
    detail: str | None = None
    budget: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """What all examinations have in common: the settings of a runner, the environment and the limits."""

    config: RunnerSettings
    environ: Mapping[str, str]
    model: str | None = None
    timeout_seconds: float = 90.0
    calls: bool = True


class Doctor:
    """Examines one provider after the other; `stop`, from any thread, ends the one that runs now."""

    def __init__(self, settings: CheckSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._now: tuple[OneShotRunner, str] | None = None
        self._number = 0
        self.is_stopped = False

    def examine(self, provider: Provider) -> Finding:
        """All about one provider. Blocks for at most the time limit and the looks."""
        found = Finding(provider.name)
        path = environment_for(provider, self._settings.environ, self._settings.config.agent_env)["PATH"]
        found.program = find_program(provider, path)
        with tempfile.TemporaryDirectory(prefix="watcher-doctor-") as place:
            if found.program is not None:
                self._look(provider, Path(place), found)
            if provider.protocol == "acp" and found.program is not None:
                found.state, found.reason = "warning", "not_examined"
                found.detail = "the Agent Client Protocol is not spoken here; give the worker a small task to see"
            elif (self._settings.calls or found.program is None) and not self.is_stopped:
                self._call(provider, Path(place), found)
        return found

    def stop(self) -> None:
        """End what runs and start nothing more."""
        with self._lock:
            self.is_stopped = True
            now = self._now
        if now is not None:
            now[0].stop(now[1], Failure.STOPPED)

    def _look(self, provider: Provider, place: Path, found: Finding) -> None:
        for what in ("version", "login"):
            words = provider.looks.get(what)
            if not words:
                continue
            # Its own words follow the program itself, so a wrapper before it stays; what we add is left out.
            looking = replace(
                provider, command=(*provider.command, *words), arguments=(), output="text", reader=None, rules=(),
                needs_answer=False, prompt="stdin", model_flag=None, refuses_root_without=(),
            )  # fmt: skip
            outcome = self._run(looking, "", place, _LOOK_SECONDS, None)
            said = _last_line(outcome.stdout.text) or _last_line(outcome.stderr.text)
            if what == "version":
                found.version = said if outcome.ending.failure is None else ""
            else:
                is_known = outcome.ending.failure is None
                found.login = f"{'known' if is_known else 'none known'} to {provider.name} {' '.join(words)}"

    def _call(self, provider: Provider, place: Path, found: Finding) -> None:
        prompt = _PING if provider.setting == "HANDLER_COMMAND" else CANARY
        outcome = self._run(provider, prompt, place, self._settings.timeout_seconds, self._settings.model)
        ending = outcome.ending
        found.seconds = round(outcome.duration_seconds, 3) if found.program is not None else None
        found.reason, found.detail = ending.reason, ending.detail
        found.usage = None if outcome.usage is None else outcome.usage.as_json()
        found.model = (outcome.usage.model or "") if outcome.usage is not None else ""
        if outcome.reading is not None:
            _told(outcome.reading, found)
        if ending.failure is not None:
            found.state = "ill"
            found.trust = "refused an unknown folder" if ending.reason == "untrusted_folder" else ""
            return
        found.trust = "accepted an unknown folder" if _is_known_cli(provider) else ""
        if found.login.startswith("none known"):
            found.login += ", yet the call was accepted"
        found.answer = " ".join(outcome.stdout.text.split())[:_ANSWER_CHARACTERS]
        if outcome.reading is not None and missing_mcp(outcome.reading):
            found.state, found.reason = "warning", "mcp_without_tools"
        elif not found.answer:
            found.state, found.reason = "warning", "no_answer"
            found.detail = f"{provider.name}: it exited well but printed nothing to the canary prompt"

    def _run(self, provider: Provider, prompt: str, place: Path, seconds: float, model: str | None) -> Outcome:
        """One attempt; of a CLI in an empty folder of its own, outside any repository and unknown to the CLI."""
        self._number += 1
        outputs, work = place / f"out-{self._number}", place / f"work-{self._number}"
        outputs.mkdir()
        work.mkdir()
        cwd = work if _is_known_cli(provider) else None
        own = Workplace(outputs, self._settings.environ, default_cwd=cwd)
        runner = OneShotRunner({provider.name: provider}, self._settings.config, own, self._clock)
        mark = f"{secrets.token_hex(16)}.{self._number}"
        attempt = Attempt("canary", "doctor", 1, mark, prompt, provider.name, seconds, model)
        with self._lock:
            self._now = (runner, mark)
        try:
            return runner.run(attempt)
        finally:
            with self._lock:
                self._now = None
            runner.sweep()
            runner.close()


def _is_known_cli(provider: Provider) -> bool:
    """Whether this is one of the built-in CLIs or a variant of one."""
    return provider.name in BUILT_IN or bool(provider.family)


def _told(reading: Reading, found: Finding) -> None:
    found.version = reading.version or found.version
    found.login = reading.login if reading.login not in ("", "none") else found.login
    found.permissions = reading.mode
    found.mcp = dict(reading.mcp)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:100] if lines else ""
