"""Run tasks again that have ended: the old result moves to results/NAME/.archive/, and the task is submitted again.

It is the same task under the same id, with its past in `x_history`; flags change fields of it first. Exit code 1: one
of them has no result, or is on its way already.
"""

from __future__ import annotations

import argparse

from watcher.commands import shared
from watcher.commands.edit import add_changes, given_changes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tasks", metavar="ID", nargs="+", type=shared.utf8, help="the task's id, or worker/id")
    add_changes(parser)
    shared.add_json(parser, "one JSON object for each")


def run(options: argparse.Namespace) -> int:
    from watcher.again import rerun
    from watcher.commands.each import each_task

    places, changes = shared.places(), given_changes(options)
    return each_task(options, "runs again", lambda worker, task_id: bool(rerun(places, worker, task_id, changes)))
