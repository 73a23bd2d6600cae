"""Let held tasks start: the opposite of `watcher hold ID`. Exit code 1: one of them is not held."""

from __future__ import annotations

import argparse

from watcher.cli import command_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tasks", metavar="ID", nargs="+", type=command_output.utf8, help="the task's id, or worker/id")
    command_output.add_json(parser, "one JSON object for each")


def run(options: argparse.Namespace) -> int:
    from watcher.cli.each_task import each_task
    from watcher.store.changes import release

    places = command_output.places()
    return each_task(options, "released", lambda worker, task_id: release(places, worker, task_id))
