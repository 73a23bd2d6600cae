"""Change the priority of a waiting task: `watcher prio ID high`, or a number from -1000 to 1000.

Exit code 1: it does not wait.
"""

from __future__ import annotations

import argparse

from watcher.cli import command_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tasks", metavar="ID", nargs=1, type=command_output.utf8, help="the task's id, or worker/id")
    parser.add_argument(
        "priority", metavar="N", type=command_output.utf8, help="critical, high, normal, low or a number"
    )
    command_output.add_json(parser)


def run(options: argparse.Namespace) -> int:
    from watcher.cli.each_task import each_task
    from watcher.cli.task_flags import number_or_word
    from watcher.store.changes import edit

    places, changes = command_output.places(), {"priority": number_or_word(options.priority)}
    done = f"has priority {options.priority} now"
    return each_task(options, done, lambda worker, task_id: edit(places, worker, task_id, changes))
