"""Put dead letters back in line: `watcher redrive ID...`, or --all, or --reason R.

The task goes back as it was submitted, with its past in `x_history`; flags change fields of it first. Its result and
its dead letter move to `.archive` beside them, the letter only when the task is safe. A file that could not be read as
a task goes back unchanged with --force, or as a new one with --description. A letter of several for one id is named
like ID~2. Exit code 1: one of them could not be put back.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watcher.cli import command_output
from watcher.cli.commands.edit import add_changes, given_changes
from watcher.errors import SettingError, WatcherError

if TYPE_CHECKING:
    from watcher.settings.folders import Folders
    from watcher.store.run_again import Letter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tasks", metavar="ID", nargs="*", type=command_output.utf8, help="the dead letter's id, or worker/id"
    )
    parser.add_argument("--all", action="store_true", help="every dead letter")
    parser.add_argument(
        "--reason", metavar="R", type=command_output.utf8, help="every dead letter with this dlq_reason"
    )
    command_output.add_worker(parser)
    parser.add_argument("--force", action="store_true", help="send unreadable files back as they are")
    parser.add_argument("--id", metavar="ID", type=command_output.utf8, help="give it this id (one dead letter only)")
    add_changes(parser)
    command_output.add_json(parser, "one JSON object for each")


def run(options: argparse.Namespace) -> int:
    command_output.only_one([options.tasks, options.all, options.reason], "give ids, or --all, or --reason R")
    places, changes = command_output.places(), given_changes(options)
    chosen, missing = _chosen(places, options)
    if options.id is not None and len(chosen) + len(missing) != 1:
        raise SettingError("--id goes with one dead letter")
    results = [_one(places, letter, changes, options) for letter in chosen]
    for name in missing:
        _say(options, name, "", f"no dead letter {name!r}")
    if not chosen and not missing and not options.json:
        command_output.say("no dead letter to redrive")
    return 0 if all(results) and not missing else 1


def _chosen(places: Folders, options: argparse.Namespace) -> tuple[list[Letter], list[str]]:
    """The dead letters that are meant, and the names that mean none."""
    from watcher.store.run_again import letters
    from watcher.store.tasks import workers

    names = [options.worker] if options.worker else workers(places)
    foreign: dict[str, str] = {}

    def left_out(path: Path, error: Exception) -> None:
        foreign[path.stem] = f"{path}: not a dead letter of ours: {error}; move it away"

    found = [letter for worker in names for letter in letters(places, worker, left_out)]
    for name, why in foreign.items():
        if not options.tasks or name in {task.rpartition("/")[2] for task in options.tasks}:
            command_output.tell(f"left out {why}")
    if options.all or options.reason is not None:
        return [letter for letter in found if options.reason in (None, letter.reason)], []
    chosen: list[Letter] = []
    missing: list[str] = []
    for name in options.tasks:
        meant = [letter for letter in found if name in (letter.path.stem, letter.name)]
        if len(meant) > 1:
            raise SettingError(f"{name!r} may be {' or '.join(sorted(one.name for one in meant))}; say which")
        chosen += meant
        missing += [] if meant else [name]
    return chosen, missing


def _one(places: Folders, letter: Letter, changes: dict[str, Any], options: argparse.Namespace) -> bool:
    from watcher.store.run_again import redrive

    try:
        task_id = redrive(places, letter, changes, force=options.force, new_id=options.id)
    except (WatcherError, OSError) as error:
        head = f"{letter.name} was not put back: " if isinstance(error, OSError) else ""
        _say(options, letter.name, "", head + command_output.words_of(error))
        return False
    _say(options, letter.name, task_id, None)
    return True


def _say(options: argparse.Namespace, name: str, task_id: str, problem: str | None) -> None:
    if options.json:
        command_output.say_json(
            {"dead_letter": name, "task_id": task_id or None, "is_done": not problem, "detail": problem}
        )
    elif problem is None:
        command_output.say(
            f"{name} is back in its inbox" + (f" as {task_id}" if not name.endswith(f"/{task_id}") else "")
        )
    else:
        command_output.tell(problem)
