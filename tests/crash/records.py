"""What was dropped and must become of it, and what was run, from the log that the agent keeps (agent.c)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(slots=True)
class Submitted:
    """One file that was dropped, and what must become of it."""

    worker: str
    name: str
    raw: bytes
    expect: Literal["completed", "failed", "refused", "ended"]
    failures: int = 0
    dead_letter: bool = False
    drops: int = 1

    @property
    def task_id(self) -> str:
        return self.name.removesuffix(".json")


@dataclass(slots=True)
class Run:
    """One run of the agent, from its log. Times are CLOCK_MONOTONIC nanoseconds; an `end` of None: it was killed."""

    task_id: str
    attempt: int
    pid: int
    mark: str
    start: int
    visible: bool
    overlap: bool
    end: int | None = None
    code: int | None = None

    @property
    def incarnation(self) -> str:
        return self.mark[:32]


def read_runs(path: Path) -> list[Run]:
    """All runs in the order of their start."""
    runs: dict[tuple[str, int, str], Run] = {}
    text = path.read_text() if path.exists() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():  # the last one may be half written yet
        kind, task_id, attempt, pid, moment, mark, *rest = line.split()
        if kind == "S":
            run = Run(task_id, int(attempt), int(pid), mark, int(moment), rest[0] == "1", rest[1] == "1")
            runs[(task_id, run.pid, mark)] = run
        else:
            run = runs[(task_id, int(pid), mark)]
            run.end, run.code = int(moment), int(rest[0])
    return sorted(runs.values(), key=lambda run: run.start)
