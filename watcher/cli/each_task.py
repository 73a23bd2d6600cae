"""The same change to one task after another: what hold, release, prio and edit share."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from watcher.cli import command_output
from watcher.errors import WatcherError
from watcher.store.tasks import find, resolve


def each_task(options: argparse.Namespace, done: str, change: Callable[[str, str], bool]) -> int:
    """Change all of `options.tasks`; `change` says whether it could. Returns the exit code."""
    code, places = 0, command_output.places()
    for name in options.tasks:
        worker, task_id, problem = "", name, None
        try:
            worker, task_id = resolve(places, name)
            if not change(worker, task_id):
                problem = _why_not(worker, task_id)
        except WatcherError as error:
            problem = str(error)
        except OSError as error:  # the next one may lie elsewhere
            problem = f"{name} was not changed: {command_output.words_of(error)}"
        code = code if problem is None else 1
        if options.json:
            command_output.say_json(
                {"worker": worker, "task_id": task_id, "is_done": problem is None, "detail": problem}
            )
        elif problem is None:
            command_output.say(f"{worker}/{task_id} {done}")
        else:
            command_output.tell(problem)
    return code


def _why_not(worker: str, task_id: str) -> str:
    states = [sighting.state for sighting in find(command_output.places(), f"{worker}/{task_id}")]
    if not states:
        return f"{worker}/{task_id} is gone"
    cures = {
        "running": "it runs already; cancel it instead",
        "ended": "it has ended; rerun it instead",
        "dead_letter": "it is a dead letter; redrive it instead",
        "held": "it is held",
        "changing": "another command is changing it; try again",
        "orphaned": "its worker died; try again when one has taken it back",
    }
    return f"{worker}/{task_id}: {cures.get(states[0], f'it is {states[0]} and not held')}"
