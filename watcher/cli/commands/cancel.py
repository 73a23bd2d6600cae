"""End tasks: one that waits gets the result `cancelled` without running, one that runs is ended with all its processes.

A waiting task is ended here and now, with or without a worker. A running one is ended by its worker: this command
tells it, and waits up to --wait seconds for the result (10). One that completes meanwhile stays completed.

Exit code 0: all are cancelled; 1: one had ended before, is nowhere, or was not ended in time.
"""

from __future__ import annotations

import argparse
import getpass
from typing import TYPE_CHECKING, Any

from watcher.cli import command_output
from watcher.errors import WatcherError

if TYPE_CHECKING:
    from watcher.settings.folders import Folders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tasks", metavar="ID", nargs="+", type=command_output.utf8, help="the task's id, or worker/id")
    parser.add_argument("--reason", metavar="TEXT", type=command_output.utf8, help="goes into the result")
    parser.add_argument(
        "--wait", metavar="S", type=command_output.seconds, default=10.0, help="seconds to wait for it (10)"
    )
    command_output.add_json(parser, "one JSON object for each task")


def run(options: argparse.Namespace) -> int:
    places = command_output.places()
    codes = [_cancel_one(places, name, options) for name in options.tasks]
    return max(codes)


def _cancel_one(places: Folders, name: str, options: argparse.Namespace) -> int:
    from watcher.store.tasks import resolve

    try:
        worker, task_id = resolve(places, name)
        status, detail = _cancel(places, worker, task_id, options.reason, options.wait)
    except (WatcherError, OSError) as error:
        status, detail, worker, task_id = "error", command_output.words_of(error), "", name
        detail = f"{name} was not cancelled: {detail}" if isinstance(error, OSError) else detail
    told: dict[str, Any] = {"worker": worker, "task_id": task_id, "status": status, "detail": detail}
    if options.json:
        command_output.say_json(told | {"is_cancelled": status == "cancelled"})
    elif status == "error":
        command_output.tell(f"cancel: {detail}")
    else:
        command_output.say(f"{worker}/{task_id} {detail}")
    return 0 if status == "cancelled" else 1


def _cancel(places: Folders, worker: str, task_id: str, reason: str | None, wait: float) -> tuple[str, str]:
    """The status that the task has now and what to say."""
    from watcher.client import Client
    from watcher.store.changes import cancel
    from watcher.store.operator_commands import tell

    client = Client(folders=places)
    ended = client.result((worker, task_id))
    if ended is None:
        standing = cancel(places, worker, task_id, _why(reason))
        if standing == "cancelled":
            return "cancelled", "cancelled before it ran"
        ended = client.result((worker, task_id)) if standing == "ended" else None
    if ended is not None:
        return "ended", f"has ended already: {ended.status}"
    tell(places.control, worker, "cancel", task_id=task_id, reason=reason)
    try:
        result = client.wait((worker, task_id), wait)
    except TimeoutError:
        from watcher.store.overview import OverviewReader

        served = any(process.is_alive for process in OverviewReader(places).processes(worker))
        who = "its worker has the command" if served else f"nobody serves {worker}; its next process ends the task"
        return "asked", f"has not ended within {wait:g} s; {who}"
    return result.status, result.status if result.status == "cancelled" else f"ended as {result.status} meanwhile"


def _why(reason: str | None) -> str:
    try:
        who = f"by {getpass.getuser()}"
    except (KeyError, OSError):  # a container's user may have no name
        who = "by command"
    return f"cancelled {who}: {reason}" if reason else f"cancelled {who}"
