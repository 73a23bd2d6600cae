"""Remove results, dead letters, archives or receipts, by age or by id. Without --yes it only says what would go.

A result goes with its whole outputs, a dead letter with its original file. Nothing that waits or runs is touched, and
no result that a waiting task depends on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from watcher.cli import command_output
from watcher.errors import SettingError
from watcher.store.layout import ARCHIVE, ORIGINALS, OUTPUT
from watcher.system import no_links
from watcher.system.files import read_regular

if TYPE_CHECKING:
    from watcher.settings.folders import Folders

_MAX_STORED_BYTES = 1 << 28


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tasks", metavar="ID", nargs="*", type=command_output.utf8, help="only these ids (or worker/id)"
    )
    parser.add_argument("--results", action="store_true", help="results and their whole outputs")
    parser.add_argument("--dead-letters", action="store_true", help="dead letters and the files that were refused")
    parser.add_argument("--archives", action="store_true", help="results and dead letters of earlier runs")
    parser.add_argument("--receipts", action="store_true", help="receipts below triggers/")
    parser.add_argument(
        "--older-than", metavar="AGE", type=command_output.seconds, help="only older ones, like 12h or 30d"
    )
    command_output.add_worker(parser)
    parser.add_argument("--yes", action="store_true", help="do it")
    command_output.add_json(parser)


def run(options: argparse.Namespace) -> int:
    if not (options.results or options.dead_letters or options.archives or options.receipts):
        raise SettingError("say what to remove: --results, --dead-letters, --archives or --receipts")
    if options.older_than is None and not options.tasks and not options.worker:
        raise SettingError("say which: --older-than AGE, --worker NAME, or ids")
    places = command_output.places()
    found = list(dict.fromkeys(_files(places, options)))
    removed = 0
    for path in found if options.yes else ():
        with contextlib.suppress(FileNotFoundError):
            no_links.remove(path)
        removed += 1
    size = len(found)
    if options.json:
        command_output.say_json({"found": size, "removed": removed, "files": [str(path) for path in found]})
    elif options.yes:
        command_output.say(f"removed {removed} files")
    else:
        for path in found[:20]:
            command_output.say(str(path))
        command_output.say(f"{size} files would be removed; do it with --yes" if size else "nothing to remove")
    return 0


def _files(places: Folders, options: argparse.Namespace) -> Iterator[Path]:
    from watcher.store.tasks import workers

    limit = None if options.older_than is None else time.time() - options.older_than
    for worker in [options.worker] if options.worker else workers(places):
        results, letters = places.results / worker, places.dlq / worker
        needed = _needed(places) if options.results else set()
        for path in _old(results, limit, worker, options) if options.results else ():
            if path.stem not in needed:
                yield path
                outputs = (results / OUTPUT / f"{path.stem}.{stream}" for stream in ("stdout", "stderr"))
                yield from filter(no_links.is_there, outputs)
        for path in _old(letters, limit, worker, options) if options.dead_letters else ():
            yield path
            original = _original(path)
            if original is not None:
                yield original
        for place in (results / ARCHIVE, letters / ARCHIVE) if options.archives else ():
            yield from _old(place, limit, worker, options, any_ending=True)
        if options.receipts:
            yield from _old(places.triggers / worker, limit, worker, options)


def _old(
    place: Path, limit: float | None, worker: str, options: argparse.Namespace, any_ending: bool = False
) -> Iterator[Path]:
    """The files of a folder that are meant."""
    for path in sorted(place / name for name in no_links.names_in(place)):
        if path.name.startswith(".") or not (any_ending or path.suffix == ".json"):
            continue
        stem = path.stem.partition("~")[0]
        if options.tasks and not {stem, path.stem, f"{worker}/{stem}", f"{worker}/{path.stem}"} & set(options.tasks):
            continue
        if limit is None or no_links.look_at(path).st_mtime < limit:
            yield path


def _original(letter: Path) -> Path | None:
    """The refused file that belongs to a dead letter."""
    try:
        named = json.loads(read_regular(letter, _MAX_STORED_BYTES)).get("dlq_original")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    path = letter.parent / ORIGINALS / Path(str(named)).name
    return path if named is not None and no_links.is_there(path) else None


def _needed(places: Folders) -> set[str]:
    """Ids that some task on its way depends on."""
    from watcher.store.tasks import on_their_way, workers

    tasks = (s.task for worker in workers(places) for s in on_their_way(places, worker))
    return {name.rpartition("/")[2] for task in tasks if task is not None for name in task.dependencies}
