"""Let held tasks start: the opposite of `watcher hold ID`. Exit code 1: one of them is not held."""

from __future__ import annotations

import argparse

from watcher.commands import shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tasks", metavar="ID", nargs="+", type=shared.utf8, help="the task's id, or worker/id")
    shared.add_json(parser, "one JSON object for each")


def run(options: argparse.Namespace) -> int:
    from watcher.commands.each import each_task
    from watcher.intervene import release

    places = shared.places()
    return each_task(options, "may start", lambda worker, task_id: release(places, worker, task_id))
