"""Define what a runner promises to the executor, whatever it runs.

A runner takes one attempt and returns one outcome; it never raises for what a command does. `run` blocks its thread;
`stop` may be called from any thread. When `run` has returned, no process of the attempt is alive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from watcher.formats.result import Usage
from watcher.policy.after_attempt import Ending, Failure
from watcher.runner.live_view import Live
from watcher.runner.providers.output_events import Reading

#: What one attempt may print, both streams together, unless a setting says otherwise.
MAX_ATTEMPT_OUTPUT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where the processes of one incarnation run: what all its runners have in common beside the settings.

    `folder` is its claim folder; every command inherits `busy_fd`, the descriptor of the lock at `busy_lock`. `id`
    begins the marks of processes that are kept running and must be nobody else's. Of `environ`, the worker's own, a
    command sees what its provider and AGENT_ENV allow.
    """

    folder: Path
    environ: Mapping[str, str]
    worker: str = ""
    id: str = ""
    busy_fd: int | None = None
    busy_lock: str = ""
    default_cwd: Path | None = None

    @property
    def pass_fds(self) -> tuple[int, ...]:
        return () if self.busy_fd is None else (self.busy_fd,)


@dataclass(slots=True)
class Attempt:
    """One try of one task. `prompt` is the description, whose references the slot fills in; `mark` is unique for ever.

    `max_cost_usd` is what it may cost; only a provider that can be told so keeps to it by itself.
    """

    task_id: str
    worker: str
    number: int
    mark: str
    prompt: str
    provider: str
    timeout_seconds: float
    model: str | None = None
    cwd: str | None = None
    max_cost_usd: float | None = None
    agent_id: str | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Output:
    """What a command wrote to one stream. `text` is bounded (head and tail); `kept` names the file with all of it,
    in the claim folder, when the text is not all or not what was printed."""

    text: str = ""
    size_bytes: int = 0
    truncated: bool = False
    kept: str | None = None


@dataclass(slots=True)
class Outcome:
    """What one attempt did. `ending` decides what follows; `reading` is all that its machine-readable output told, for
    people who ask; the rest is for the result."""

    ending: Ending
    exit_code: int | None
    stdout: Output
    stderr: Output
    started_at: float
    duration_seconds: float
    usage: Usage | None = None
    leftovers_killed: int = 0
    reading: Reading | None = None


class Runner(Protocol):
    """Runs attempts."""

    def problem(self, provider: str) -> Ending | None:
        """Why attempts of this provider cannot run at all now (unknown, command missing), or None."""
        ...

    def run(self, attempt: Attempt) -> Outcome:
        """Run it to its end. Blocks."""
        ...

    def stop(self, mark: str, failure: Failure, reason: str | None = None) -> None:
        """End the attempt early (STOPPED or CANCELLED, or PERMANENT with a reason); its `run` then returns.

        Unknown marks are ignored.
        """
        ...

    def live_output(self, mark: str) -> tuple[Path, float | None] | None:
        """Where a running attempt's stdout grows and when (wall seconds) it last wrote; None when it is not known."""
        ...

    def live(self, mark: str) -> Live | None:
        """What a running attempt does just now, read from what it has printed since the last look; None when that is
        not known."""
        ...

    def unwatched(self) -> list[tuple[str, str]]:
        """Providers, with the reason, that the stall rule has turned out not to fit since the last call."""
        ...

    def sweep(self) -> int:
        """End what escaped from attempts that are over; returns how many processes that were."""
        ...

    def remark(self) -> str | None:
        """What people should know about how attempts are run now; it stands in the heartbeat of a healthy worker."""
        ...

    def close(self) -> None:
        """End and remove what is kept between attempts; no attempt runs any more."""
        ...


class Unseen:
    """What a Runner answers of whose running attempts nothing can be seen: they answer as a whole, within a timeout."""

    def live_output(self, mark: str) -> tuple[Path, float | None] | None:
        """There is no file to follow."""
        return None

    def live(self, mark: str) -> Live | None:
        """What it does just now is not known."""
        return None

    def unwatched(self) -> list[tuple[str, str]]:
        """Nobody is watched for silence, so nothing has turned out not to fit."""
        return []


def without_output(ending: Ending, started_at: float = 0.0, duration_seconds: float = 0.0) -> Outcome:
    """The outcome of an attempt that has printed nothing, mostly because nothing ran."""
    return Outcome(ending, None, Output(), Output(), started_at, duration_seconds)


__all__ = ["Attempt", "Ending", "Failure", "Live", "Outcome", "Output", "Runner", "Unseen", "Usage", "without_output"]
