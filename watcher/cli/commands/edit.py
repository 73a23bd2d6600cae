"""Change fields of a waiting or held task: `watcher edit ID --description "..." --timeout 60`.

The task keeps its id, its place in line and its counters. `--unset FIELD` takes a field away. A task that runs is not
changed: cancel it and rerun it with the same flags. Exit code 1: it does not wait, or would be no task any more.
"""

from __future__ import annotations

import argparse
from typing import Any

from watcher.cli import command_output, task_flags
from watcher.errors import SettingError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tasks", metavar="ID", nargs=1, type=command_output.utf8, help="the task's id, or worker/id")
    add_changes(parser)
    command_output.add_json(parser)


def add_changes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--description", metavar="TEXT", type=command_output.utf8, help="what to do; - is standard input"
    )
    task_flags.add_fields(parser)
    parser.add_argument("--unset", metavar="FIELD", action="append", default=[], help="remove this field")


def given_changes(options: argparse.Namespace) -> dict[str, Any]:
    """The new values by field; None takes a field away."""
    changes: dict[str, Any] = dict(task_flags.given_fields(options))
    if options.description is not None:
        changes["description"] = task_flags.text_of(options.description)
    for name in options.unset:
        if name in ("task_id", "worker", "description"):
            raise SettingError(f"--unset {name}: a task needs it")
        changes[name] = None
    return changes


def run(options: argparse.Namespace) -> int:
    from watcher.cli.each_task import each_task
    from watcher.store.changes import edit

    changes = given_changes(options)
    if not changes:
        raise SettingError('say what to change: watcher edit ID --description "..."')
    places = command_output.places()
    return each_task(options, "is changed", lambda worker, task_id: edit(places, worker, task_id, changes))
