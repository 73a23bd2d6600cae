"""Define what a task queue promises to the executor, whatever stores it.

The path of a task is `submit -> claim -> (retry_in | release)* -> settle`, each a single atomic step, so that a crash
between any two of them leaves the task in exactly one place. A claim belongs to one incarnation of one worker until
it is settled or given back; `rescue` takes back the claims of owners that are proven dead.

`taken`, `prompt` and `settle` may be called from any thread; everything else belongs to the loop thread. Errors of the
machine come as WorkerTrouble, which never costs a task an attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from watcher.formats.task import Task
from watcher.policy.give_back_limit import GiveBackCounts
from watcher.telemetry.events import Event


@dataclass(slots=True)
class Claim:
    """A task that this process owns now.

    `attempt` is the number of the attempt that may start now (from 1), `deaths` how many workers died holding it.
    `sources` are the results whose texts its description may name; `prompt` of the spool fills them in. `handle` is
    the engine's. `given` is what is remembered of its give-backs; to remember more, give back or retry a copy that
    says so.
    """

    task: Task
    attempt: int
    deaths: int
    provider: str
    handle: str
    order_at: float
    lane: str | None
    latency_seconds: float
    given: GiveBackCounts | None = None
    sources: Mapping[str, Path] = field(default_factory=dict)


@dataclass(slots=True)
class Settlement:
    """How a claim ends for good: what to store, then forget the claim.

    `result` and `dead_letter` are finished files; either may be missing. `kept` maps `stdout` / `stderr` to output
    files in the claim folder that go beside the result. `keep_original` stores the claimed file itself beside the
    dead letter. `event` is emitted once everything is durable. `lighter` gives `result` and `dead_letter` anew for a
    disk that is too full for the kept files: without them, and with short texts.
    """

    task_id: str
    handle: str
    lane: str | None
    result: bytes | None
    dead_letter: bytes | None
    event: Event
    kept: dict[str, str] = field(default_factory=dict)
    keep_original: bool = False
    lighter: Callable[[], tuple[bytes, bytes | None]] | None = None


@dataclass(slots=True)
class Claimed:
    """What one call of `claim` took: tasks to run, and files that end at once (refused, dropped, doomed).

    `is_cut`: it has taken its time, and there may be more.
    """

    claims: list[Claim] = field(default_factory=list)
    endings: list[Settlement] = field(default_factory=list)
    is_cut: bool = False


class Spool(Protocol):
    """Stores tasks and their outcomes for one worker."""

    def claim(self, limit: int, excluded: Collection[str]) -> Claimed:
        """Take up to `limit` tasks, best first, none that is excluded, as in `policy.claim_order`.

        Raises WorkerTrouble.
        """
        ...

    def release(self, claim: Claim, reason: str) -> None:
        """Give it back: the attempt is not counted, `given` is kept. Raises WorkerTrouble."""
        ...

    def retry_in(self, claim: Claim, delay_seconds: float) -> None:
        """Give it back to be run again after so long; the attempt is counted. Raises WorkerTrouble."""
        ...

    def taken(self, claim: Claim) -> None:
        """Tell the submitter that the task starts: a hint. Any thread. Raises OSError."""
        ...

    def prompt(self, claim: Claim) -> str:
        """What the agent is told: the description with its references filled in. Any thread.

        Raises InvalidTask (`prompt_too_large`, `dependency_unreadable`) and WorkerTrouble.
        """
        ...

    def settle(self, batch: list[Settlement]) -> tuple[list[Event | None], OSError | None]:
        """Store outcomes and forget their claims, all of them durable when this returns. Any thread.

        Returns an event to emit for each (None where it failed for now and must be tried again) and the error that
        stopped those.
        """
        ...

    def settled(self, settlement: Settlement) -> None:
        """Loop thread: the settlement is done; what waited for it may go on."""
        ...

    def set_aside(self, claim: Claim, why: str) -> Settlement:
        """The end of a claim that this program cannot handle: its file, as it is, beside its dead letter."""
        ...

    def rescue(self) -> int:
        """Take back the claims of dead owners; returns how many."""
        ...

    def check_space(self, minimum_bytes: int) -> None:
        """Raises WorkerTrouble when outcomes could not be stored."""
        ...

    def discard_output(self, name: str) -> None:
        """Drop an output file of an attempt whose outcome is not stored. Raises OSError."""
        ...

    def output_path(self, task_id: str, stream: str) -> str:
        """Where a kept output will be found, for the result."""
        ...

    def waiting(self) -> int:
        """How many tasks wait, for whatever reason."""
        ...

    def has_ready(self, excluded: Collection[str]) -> bool:
        """Whether a claim may find something now."""
        ...

    def has_undoubted(self, provider: str) -> bool:
        """Whether a task of this provider is ready that was never given back."""
        ...

    def next_due_in(self) -> float | None:
        """Seconds until something may become ready by itself; None when only an event or a scan can tell."""
        ...
