"""Run tasks again that have ended: the old result moves to results/NAME/.archive/, and the task is submitted again.

It is the same task under the same id, with its past in `x_history`; flags change fields of it first. Exit code 1: one
of them has no result, or is on its way already.
"""

from __future__ import annotations

import argparse

from watcher.cli import command_output
from watcher.cli.commands.edit import add_changes, given_changes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tasks", metavar="ID", nargs="+", type=command_output.utf8, help="the task's id, or worker/id")
    add_changes(parser)
    command_output.add_json(parser, "one JSON object for each")


def run(options: argparse.Namespace) -> int:
    from watcher.cli.each_task import each_task
    from watcher.store.run_again import rerun

    places, changes = command_output.places(), given_changes(options)
    return each_task(options, "runs again", lambda worker, task_id: bool(rerun(places, worker, task_id, changes)))
