"""The public folders as the bench uses them: put tasks in, look at results, check that nothing was lost.

Only the wire format is used, no code of the worker: a fault there cannot hide in here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from bench.errors import BenchError

WORKER = "marie"
#: Makes a task file of about 300 bytes, as in the peers' runs.
DESCRIPTION = "Say what the weather is like and give one reason. " * 4


def inbox(root: Path) -> Path:
    return root / "tasks" / WORKER


def results(root: Path) -> Path:
    return root / "results" / WORKER


def task_bytes(task_id: str) -> bytes:
    return json.dumps({"task_id": task_id, "description": DESCRIPTION}).encode()


def fill(root: Path, number: int) -> None:
    """Write that many tasks before the worker starts: plain create and write, no rename, no fsync."""
    folder = inbox(root)
    folder.mkdir(parents=True, exist_ok=True)
    for at in range(number):
        task_id = f"task-{at:07d}"
        _write(f"{folder}/{task_id}.json", task_id)


def stage(folder: Path, task_id: str) -> tuple[str, str]:
    """Write a task under a hidden name; returns (hidden, final): the rename is the caller's moment."""
    hidden, final = f"{folder}/.{task_id}.tmp", f"{folder}/{task_id}.json"
    _write(hidden, task_id)
    return hidden, final


def _write(path: str, task_id: str) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        os.write(fd, task_bytes(task_id))
    finally:
        os.close(fd)


def outcomes(folder: Path) -> Iterator[Path]:
    """Visible result files, in any order."""
    for name in _visible(folder):
        yield folder / name


def count(folder: Path) -> int:
    """How many tasks or results are visible; half a microsecond each, so it may be asked often."""
    return sum(1 for _ in _visible(folder))


def _visible(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".json") and not entry.name.startswith("."):
                    yield entry.name


def check_drained(root: Path, expected: int) -> None:
    """Every task has its completed result and nothing is left. Raises BenchError with what is not so."""
    check_results(root, expected)
    waiting = list(outcomes(inbox(root)))
    claims = list((inbox(root) / ".claims").rglob("task-*"))
    dead = list(root.glob("dlq/*/*.json"))
    for what, files in (("tasks", waiting), ("claims", claims), ("dead letters", dead)):
        if files:
            raise BenchError(f"{len(files)} {what} left after the drain, e.g. {files[0]}")


def check_results(root: Path, expected: int) -> int:
    """At least that many results, all completed, each with its description as stdout; returns how many."""
    seen = 0
    for path in outcomes(results(root)):
        found = json.loads(path.read_bytes())
        good = (found.get("task_id"), found.get("status"), found.get("stdout"))
        if good != (path.stem, "completed", DESCRIPTION):
            raise BenchError(f"wrong result {path.name}: {json.dumps(found)[:600]}")
        seen += 1
    if seen < expected:
        raise BenchError(f"{seen} results for {expected} tasks in {results(root)}")
    return seen
