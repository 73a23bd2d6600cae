"""List the tasks that wait or run, by worker and state, the next to be claimed first.

States: running, orphaned (its process died; it is taken back soon), changing (a command has it in hand), retrying,
waiting, scheduled (not before a time), blocked (by dependencies), held, unreadable.
"""

from __future__ import annotations

import argparse
import time

from watcher.cli import command_output
from watcher.cli.terminal import duration
from watcher.store.tasks import ON_ITS_WAY, Sighting, on_their_way, workers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    command_output.add_worker_first(parser)
    parser.add_argument(
        "--state", choices=ON_ITS_WAY, metavar="STATE", help="only this state: " + ", ".join(ON_ITS_WAY)
    )
    parser.add_argument("--batch-id", metavar="B", type=command_output.utf8, help="only tasks of this batch")
    parser.add_argument(
        "--limit", metavar="N", type=command_output.positive, default=100, help="at most so many lines (100)"
    )
    command_output.add_json(parser, "one JSON object a line, all of them")


def run(options: argparse.Namespace) -> int:
    places, only = command_output.places(), command_output.worker_of(options)
    found: list[Sighting] = []
    for worker in [only] if only else workers(places):
        found += sorted(on_their_way(places, worker), key=_order)
    found = [s for s in found if options.state in (None, s.state) and _is_of(s, options.batch_id)]
    if options.json:
        for sighting in found:
            command_output.say_json(sighting.as_json())
        return 0
    if not found:
        command_output.say(f"no tasks waiting or running in {places.root}")
        return 0
    command_output.say_table(
        ["WORKER", "TASK", "STATE", "PRIORITY", "AGE", "WHAT"], [_row(s) for s in found[: options.limit]]
    )
    if len(found) > options.limit:
        command_output.say(f"... and {len(found) - options.limit} more; --limit shows them")
    return 0


def _is_of(sighting: Sighting, batch_id: str | None) -> bool:
    return batch_id is None or (sighting.task is not None and sighting.task.batch_id == batch_id)


def _order(sighting: Sighting) -> tuple[int, int, float, str]:
    priority = sighting.task.priority if sighting.task is not None else 0
    return ON_ITS_WAY.index(sighting.state), -priority, sighting.arrived_at or 0.0, sighting.task_id


def _row(sighting: Sighting) -> list[str]:
    task = sighting.task
    age = "-" if sighting.arrived_at is None else duration(max(0.0, time.time() - sighting.arrived_at))
    what = sighting.detail or (task.description.strip().partition("\n")[0] if task is not None else "")
    if sighting.missing:
        what = f"after {', '.join(sighting.missing[:3])}: {what}"
    elif sighting.due is not None:
        what = f"in {duration(max(0.0, sighting.due - time.time()))}: {what}"
    priority = "-" if task is None else command_output.priority_word(task.priority)
    return [sighting.worker, sighting.task_id, sighting.state, priority, age, what]
