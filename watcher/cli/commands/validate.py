"""Check task files before they are dropped: `watcher validate task.json`, or `-` for standard input.

Says of each file whether a worker would take it, and if not, the reason that its dead letter would carry and what to
do; and what is odd in it, though no reason to refuse it. Nothing is changed or submitted. Exit code 1 when one of them
would be refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from watcher.cli import command_output
from watcher.errors import InvalidTask
from watcher.formats.task import TASK_FILE_NAME, Task, parse_task, unknown_field, why_no_task_name
from watcher.store.dependencies import unfilled

_MAX_BYTES = 1 << 26


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="a task file; - is standard input")
    parser.add_argument("--worker", metavar="NAME", help="the worker it is for (default: the file's folder)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(options: argparse.Namespace) -> int:
    verdicts = [_verdict(file, options.worker) for file in options.files]
    for verdict in verdicts:
        command_output.say(json.dumps(verdict) if options.json else _line(verdict))
    return 0 if all(verdict["is_valid"] for verdict in verdicts) else 1


def _verdict(file: str, worker: str | None) -> dict[str, Any]:
    out: dict[str, Any] = {
        "file": file,
        "is_valid": False,
        "reason": None,
        "detail": None,
        "unknown_fields": [],
        "unknown_references": [],
    }
    try:
        task = _read(file, worker)
    except InvalidTask as error:
        return out | {"reason": error.reason, "detail": error.detail}
    except OSError as error:
        return out | {"reason": "unreadable", "detail": error.strerror or str(error)}
    left = unfilled(task.description, task.dependencies)
    return out | {
        "is_valid": True, "task_id": task.task_id, "unknown_fields": task.unknown_fields(), "unknown_references": left,
    }  # fmt: skip


def _read(file: str, worker: str | None) -> Task:
    if file == "-":
        return _parse(sys.stdin.buffer.read(_MAX_BYTES), None, worker)
    path = Path(file)
    if TASK_FILE_NAME.fullmatch(path.name) is None:
        why = why_no_task_name(path.name) or "letters, digits, dot, dash, underscore, at most 128, then .json"
        raise InvalidTask("bad_name", f"the name {path.name!r} is no task's: {why}")
    with path.open("rb") as stream:
        return _parse(stream.read(_MAX_BYTES), path.stem, worker)


def _parse(raw: bytes, stem: str | None, worker: str | None) -> Task:
    """What the file does not say of itself is taken from it: only a worker's inbox fixes the id and the name."""
    fields: dict[str, Any] = {}
    if stem is None or worker is None:
        try:
            found = json.loads(raw)
            fields = found if isinstance(found, dict) else {}
        except (ValueError, RecursionError):
            fields = {}  # parse_task says what is wrong with it
    return parse_task(raw, stem or str(fields.get("task_id") or "task"), worker or str(fields.get("worker") or "any"))


def _line(verdict: dict[str, Any]) -> str:
    if not verdict["is_valid"]:
        return f"{verdict['file']}: refused as {verdict['reason']}: {verdict['detail']}"
    more = "".join(f"; {unknown_field(name)}" for name in verdict["unknown_fields"])
    left = ", ".join(f"{{{{{name}.stdout}}}}" for name in verdict["unknown_references"])
    more += f"; left as written, because it is no declared dependency: {left}" if left else ""
    return f"{verdict['file']}: valid, task {verdict['task_id']}{more}"
