"""What has ended, newest first: `watcher results`, or of one worker, status or batch."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from watcher.cli import command_output

#: Files that are no results, named one by one.
_FOREIGN_AT_MOST = 5
_STATUSES = ("completed", "failed", "timeout", "cancelled")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    command_output.add_worker_first(parser)
    parser.add_argument("--status", choices=_STATUSES, metavar="S", help="only this status: " + ", ".join(_STATUSES))
    parser.add_argument("--batch-id", metavar="B", type=command_output.utf8, help="only results of this batch")
    parser.add_argument("--limit", metavar="N", type=command_output.positive, default=20, help="at most so many (20)")
    command_output.add_json(parser, "one whole result a line")


def run(options: argparse.Namespace) -> int:
    from watcher.cli.terminal import duration
    from watcher.client import Client

    client = Client(folders=command_output.places())
    foreign: list[str] = []

    def left_out(path: Path, error: Exception) -> None:
        foreign.append(f"{path}: not a result of ours: {getattr(error, 'strerror', None) or error}")

    worker = command_output.worker_of(options)
    found = client.results(worker, status=options.status, batch_id=options.batch_id, left_out=left_out)
    rows = []
    for result in itertools.islice(found, options.limit):
        if options.json:
            command_output.say_json(dict(result.fields))
            continue
        answer = result.stdout.strip().partition("\n")[0] if result.is_completed else result.detail or ""
        moment = str(result.fields.get("timestamp"))[:19].replace("T", " ")
        why = f"{result.status} ({result.reason})" if result.reason not in (None, result.status) else result.status
        rows.append([moment, result.worker, result.task_id, why, duration(result.duration_seconds), answer])
    if rows:
        command_output.say_table(["ENDED (UTC)", "WORKER", "TASK", "STATUS", "TOOK", "ANSWER"], rows)
    elif not options.json:
        command_output.say("no result yet")
    for line in foreign[:_FOREIGN_AT_MOST]:
        command_output.tell(f"left out {line}")
    if len(foreign) > _FOREIGN_AT_MOST:
        command_output.tell(f"and {len(foreign) - _FOREIGN_AT_MOST} more that are no results")
    return 0
