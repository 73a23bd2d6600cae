"""Show how old waiting tasks are: one row for each worker and priority, one column for each age.

A column counts tasks that are at most so old and older than the column before; the last one counts the rest. Tasks
that are held, scheduled or blocked are left out unless --all is given: they do not wait for a worker.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

from watcher.cli import command_output

#: Minutes, each twice the one before.
_MINUTES = (5, 10, 20, 40, 80, 160, 320, 640, 1280)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    command_output.add_worker_first(parser)
    parser.add_argument("--all", action="store_true", help="also what is held, scheduled or blocked")
    command_output.add_json(parser)


def run(options: argparse.Namespace) -> int:
    from watcher.store.tasks import on_their_way, workers

    places, only = command_output.places(), command_output.worker_of(options)
    wanted = {"waiting", "retrying", "unreadable"} | ({"held", "scheduled", "blocked"} if options.all else set())
    counts: dict[tuple[str, int], Counter[int]] = {}
    now = time.time()
    for worker in [only] if only else workers(places):
        for sighting in on_their_way(places, worker):
            if sighting.state in wanted:
                key = (worker, sighting.task.priority if sighting.task is not None else 0)
                counts.setdefault(key, Counter())[bucket(now - (sighting.arrived_at or now))] += 1
    rows = sorted(counts.items(), key=lambda item: (item[0][0], -item[0][1]))
    names = [f"{minutes}m" for minutes in _MINUTES] + [f"{_MINUTES[-1]}m+"]
    if options.json:
        command_output.say_json([
            {"worker": worker, "priority": priority, "total": row.total(),
             "ages": {name: row[number] for number, name in enumerate(names)}}
            for (worker, priority), row in rows
        ])  # fmt: skip
        return 0
    total = sum((row for _, row in rows), Counter[int]())
    lines = [[worker, command_output.priority_word(priority), *_cells(row, names)] for (worker, priority), row in rows]
    command_output.say_table(["WORKER", "PRIORITY", "TOTAL", *names], [["all", "", *_cells(total, names)], *lines])
    return 0


def bucket(seconds: float) -> int:
    """Which column an age belongs to."""
    return next((number for number, minutes in enumerate(_MINUTES) if seconds <= minutes * 60), len(_MINUTES))


def _cells(row: Counter[int], names: list[str]) -> list[str]:
    return [str(row.total()), *(str(row[number]) for number in range(len(names)))]
