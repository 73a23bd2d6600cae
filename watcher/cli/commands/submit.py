"""Give a worker a task: `watcher submit marie "List the files"`, or `-` for standard input, or --file.

Prints the task's id and where its result will be. When this command has ended, the task is safe in the inbox, whether
or not a worker runs. With --wait it waits for the result and prints that.

Exit code 0: submitted, and with --wait completed; 1: it did not complete, or not in time.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import TYPE_CHECKING, Any

from watcher.cli import command_output, task_flags
from watcher.errors import SettingError

if TYPE_CHECKING:
    from watcher.settings.folders import Folders
    from watcher.store.results import Ended

#: A wait of this length passes in silence; then the person hears why nothing happens.
_PATIENCE_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("worker", metavar="NAME", type=command_output.utf8, help="the worker, like marie")
    parser.add_argument(
        "text", metavar="TEXT", nargs="?", type=command_output.utf8, help="what to do; - is standard input"
    )
    parser.add_argument("--file", metavar="FILE", help="take the text from a file")
    parser.add_argument("--id", metavar="ID", type=command_output.utf8, help="the task's id (default: a fresh one)")
    task_flags.add_fields(parser)
    parser.add_argument(
        "--wait",
        metavar="S",
        nargs="?",
        type=command_output.seconds,
        const=float("inf"),
        help="wait for the result, at most S",
    )
    command_output.add_json(parser)


def run(options: argparse.Namespace) -> int:
    if (options.text is None) == (options.file is None):
        raise SettingError('give the text, or - for standard input, or --file FILE: watcher submit marie "List files"')
    text = task_flags.text_in(options.file) if options.file is not None else task_flags.text_of(options.text)
    given = task_flags.given_fields(options) | {"description": text}
    if options.id is not None:
        given["task_id"] = options.id
    return put_in(command_output.places(makes_them=True), options.worker, given, options.wait, as_json=options.json)


def put_in(places: Folders, worker: str, given: dict[str, Any], wait: float | None, *, as_json: bool) -> int:
    """Submit one task, say so, and with `wait` (seconds) wait for its end and show that; returns the exit code."""
    from watcher.store.submitting import new_task_id, submit

    task_id = given.get("task_id")
    if task_id is not None:
        from watcher.store.results import refuse_known

        refuse_known(places, worker, task_id)
    else:
        task_id = new_task_id()
    whole = {"task_id": task_id, **given}
    if wait is not None:
        return _and_wait(places, worker, whole, None if wait == float("inf") else wait, as_json)
    is_new = command_output.is_new_here(places, worker)
    submit(places.tasks, worker, whole)
    if is_new:
        command_output.tell(f"note: {worker} is a new name here; its tasks wait for: python worker_watcher.py {worker}")
    if as_json:
        command_output.say_json(about(places, worker, task_id))
    else:
        command_output.say(f"submitted {task_id} to {worker}")
        command_output.say(f"result    {places.results / worker / task_id}.json")
    return 0


def _and_wait(places: Folders, worker: str, whole: dict[str, Any], wait: float | None, as_json: bool) -> int:
    from watcher.store import results
    from watcher.store.submitting import submit

    awaited = results.Awaited(places, worker, [whole["task_id"]])
    submit(places.tasks, worker, whole)
    command_output.tell(f"waiting for {worker}/{whole['task_id']}")
    found: list[Ended] = []
    patience = Patience(places, worker)

    def each(ended: list[Ended]) -> None:
        found.extend(ended)
        patience.check()

    results.wait([awaited], wait, each)
    say_outcome(places, worker, whole["task_id"], found[0] if found else None, wait, as_json)
    return 0 if found and found[0].is_completed else 1


def say_outcome(
    places: Folders, worker: str, task_id: str, outcome: Ended | None, wait: float | None, as_json: bool
) -> None:
    """Show how a task ended, or that it has not within `wait` seconds."""
    from watcher.cli.tables import refused_text, result_text

    record = None if outcome is None else outcome.read()
    if as_json:
        refused = outcome is not None and outcome.status == "refused"
        told = {"outcome": None if outcome is None else outcome.status}
        stored = {"result": None if refused else record, "dead_letter": record if refused else None}
        command_output.say_json(about(places, worker, task_id) | told | stored)
    elif outcome is None or record is None:
        command_output.tell(f"{worker}/{task_id} has not ended within {wait:g} s; it continues")
        command_output.say(f"result    {places.results / worker / task_id}.json")
    elif outcome.status == "refused":
        command_output.say_drawn(refused_text(record, outcome.path, command_output.look()))
    else:
        command_output.say_drawn(result_text(record, outcome.path, command_output.look()))


def about(places: Folders, worker: str, task_id: str) -> dict[str, Any]:
    name = f"{task_id}.json"
    paths = {"task_path": places.tasks, "result_path": places.results, "dlq_path": places.dlq}
    return {"task_id": task_id, "worker": worker} | {key: str(path / worker / name) for key, path in paths.items()}


class Patience:
    """Says once, after a while, that nobody serves the worker that is waited for, or why it starts nothing."""

    def __init__(self, places: Folders, worker: str) -> None:
        self._places = places
        self._worker = worker
        self._due: float | None = time.monotonic() + _PATIENCE_SECONDS

    def check(self) -> None:
        if self._due is None or time.monotonic() < self._due:
            return
        from watcher.cli.tables import about_process
        from watcher.store.overview import OverviewReader

        self._due = None
        alive = [process for process in OverviewReader(self._places).processes(self._worker) if process.is_alive]
        told = [about_process(process) for process in alive]
        if all(told):  # one that has nothing to say can run the task
            for line in itertools.chain.from_iterable(told):
                command_output.tell(line)
        if not alive:
            command_output.tell(f"nobody serves {self._worker} now; start it: python worker_watcher.py {self._worker}")
