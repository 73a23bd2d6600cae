"""Show where a task is and what is known of it: `watcher show ID` or `watcher show WORKER/ID`.

Shows every place where it is: its file while it waits, its claim while it runs, its result, its dead letters, and
results of earlier runs; of one that is only in an archive, that. A file among the results that is none is `foreign`.
Of a task that could start now it also says what keeps it: its worker is away or paused, its provider is held, or a
circuit breaker is open. Exit code 1 when it is nowhere.
"""

from __future__ import annotations

import argparse
import json
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watcher.cli import command_output
from watcher.cli.tables import letter_line, result_line
from watcher.cli.terminal import clean, duration
from watcher.cli.why_waiting import holdup
from watcher.store.folders import why_stuck
from watcher.store.layout import ARCHIVE, CLAIMS
from watcher.store.tasks import Sighting, archived, find, on_their_way
from watcher.system import no_links
from watcher.system.files import read_regular

if TYPE_CHECKING:
    from watcher.settings.folders import Folders

_MAX_STORED_BYTES = 1 << 28


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="ID", type=command_output.utf8, help="the task's id, or worker/id")
    command_output.add_json(parser, "one JSON object for each place")


def run(options: argparse.Namespace) -> int:
    places = command_output.places()
    found = find(places, options.task) or archived(places, options.task)
    if not found:
        command_output.tell(f"no task {options.task!r} in {places.root}")
        return 1
    for sighting in found:
        stored = _stored(sighting)
        if options.json:
            earlier = [str(path) for path in _archived(places, sighting)] if sighting.state == "ended" else []
            more = {"stored": stored, "archived": earlier, "holdup": _holdup(places, sighting)}
            command_output.say_json(sighting.as_json() | more)
        else:
            command_output.say("\n".join(_lines(places, sighting, stored)))
    return 0


def _stored(sighting: Sighting) -> dict[str, Any] | None:
    """What a result or a dead letter holds."""
    if sighting.state not in ("ended", "dead_letter", "archived"):
        return None
    try:
        value = json.loads(read_regular(sighting.path, _MAX_STORED_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _lines(places: Folders, sighting: Sighting, stored: dict[str, Any] | None) -> list[str]:
    head = f"{sighting.name} {sighting.state.replace('_', ' ')}"
    if sighting.state == "ended":
        lines = [result_line(stored) if stored is not None else f"{head}: its result cannot be read"]
        if stored is not None and stored.get("detail"):
            lines.append(f"  why       {clean(str(stored['detail']))}")
        lines += [f"  earlier   {path}" for path in _archived(places, sighting)]
    elif sighting.state == "dead_letter":
        lines = [f"dead letter {sighting.path.stem}: {letter_line(stored)}" if stored is not None else head]
    elif sighting.state == "archived":
        line = "" if stored is None else letter_line(stored) if "dlq_reason" in stored else result_line(stored)
        lines = [f"{head}: {line}"]
    elif sighting.state == "foreign":
        lines = [f"{head}: {sighting.detail}"]
    else:
        why = _holdup(places, sighting)
        lines = [head + _since(sighting), *([f"  held up   {clean(why)}"] if why else []), *_task_lines(sighting)]
    return [*lines, f"  file      {clean(str(sighting.path))}"]


def _holdup(places: Folders, sighting: Sighting) -> str | None:
    """Why it does not start, if it could by itself."""
    is_due = sighting.due is None or sighting.due <= time.time()
    if sighting.state not in ("waiting", "retrying") or not is_due or sighting.task is None:
        return None
    return (
        holdup(places, sighting.worker, sighting.task.provider) or _stuck(places, sighting) or _behind(places, sighting)
    )


def _stuck(places: Folders, sighting: Sighting) -> str | None:
    """Why its worker, whose the folder of its claims is, may not take the file."""
    try:
        inbox = places.tasks / sighting.worker
        owner = no_links.look_at(inbox / CLAIMS).st_uid
        return why_stuck(inbox, no_links.look_at(inbox), no_links.look_at(sighting.path), owner) if owner else None
    except OSError:
        return None


def _behind(places: Folders, sighting: Sighting) -> str | None:
    """Which task of the same agent goes before this one: one that runs, or is retried and keeps its place."""
    agent = None if sighting.task is None else sighting.task.agent_id
    if agent is None:
        return None
    rule = "with FIFO_MODE=per_agent its tasks run one at a time"
    for other in on_their_way(places, sighting.worker):
        if other.task is None or other.task.agent_id != agent or other.task_id == sighting.task_id:
            continue
        if other.state == "running":
            return f"{other.task_id} of the same agent runs; {rule}"
        if other.state == "retrying":
            return f"{other.task_id} of the same agent is retried and keeps its place; {rule}"
    return None


def _since(sighting: Sighting) -> str:
    if sighting.due is not None:
        return f", due in {duration(max(0.0, sighting.due - time.time()))}"
    if sighting.arrived_at is not None:
        return f", {duration(max(0.0, time.time() - sighting.arrived_at))} old"
    return ""


def _task_lines(sighting: Sighting) -> list[str]:
    lines = []
    if sighting.attempts or sighting.deaths:
        lines.append(f"  attempt   {sighting.attempts}, after {sighting.deaths} worker deaths")
    if sighting.incarnation is not None:
        lines.append(f"  claim of  {sighting.incarnation}")
    if sighting.missing:
        lines.append(f"  waits for {', '.join(sighting.missing)}")
    if sighting.detail is not None:
        lines.append(f"  why       {clean(sighting.detail)}")
    task = sighting.task
    if task is not None:
        told = {n: v for n, v in task.submitted.items() if n not in ("task_id", "worker", "description", "x_history")}
        plain = {n: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for n, v in told.items()}
        lines += [f"  {clean(name):<9} {clean(text)}" for name, text in plain.items()]
        lines.append(f"  task      {clean(task.description.strip())}".replace("\n", "\n            "))
    return lines


def _archived(places: Folders, sighting: Sighting) -> list[Path]:
    folder = places.results / sighting.worker / ARCHIVE
    return sorted(
        folder / name for name in no_links.names_in(folder) if fnmatchcase(name, f"{sighting.task_id}~*.json")
    )
