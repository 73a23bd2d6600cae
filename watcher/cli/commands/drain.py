"""Let a worker finish what runs and then end: `watcher drain marie`, or `marie@2` for one of several processes.

It takes nothing new and ends by itself with exit code 0, however long its tasks take; SIGTERM ends it sooner. Nothing
that waits is lost: the next worker takes it. With --wait this command waits until no such process lives. With --here
only the process is meant whose instance WATCHER_INSTANCE names: a container's hook means itself, not its replicas.

Exit code 1: nobody serves that worker, or with --wait not ended in time.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from watcher.cli import command_output
from watcher.settings.instance_name import own_instance
from watcher.settings.layers import read_layers

if TYPE_CHECKING:
    from watcher.settings.folders import Folders

_LOOK_EVERY_SECONDS = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("worker", metavar="NAME", type=command_output.utf8, help="the worker, like marie or marie@2")
    parser.add_argument("--reason", metavar="TEXT", type=command_output.utf8, help="shown in the heartbeat and the log")
    parser.add_argument(
        "--wait",
        metavar="S",
        nargs="?",
        type=command_output.seconds,
        const=float("inf"),
        help="wait until it has ended",
    )
    parser.add_argument("--here", action="store_true", help="only the instance that WATCHER_INSTANCE names, if it does")
    command_output.add_json(parser)


def run(options: argparse.Namespace) -> int:
    from watcher.store.operator_commands import checked, tell

    places = command_output.places()
    worker, _, instance = options.worker.partition("@")
    checked(worker)
    instance = instance or (_own() if options.here else "")
    meant = _living(places, worker, instance)
    if not meant:
        command_output.tell(f"nobody serves {options.worker}; there is nothing to drain")
        return 1
    tell(places.control, worker, "drain", reason=options.reason, instance=instance or None)
    gone = options.wait is not None and _wait(places, worker, instance, meant, options.wait)
    if options.json:
        command_output.say_json({"worker": options.worker, "processes": sorted(meant), "has_ended": gone})
    else:
        what = "has ended" if gone else "claims no more tasks and ends when its running tasks have ended"
        command_output.say(f"{options.worker} {what}")
    return 0 if gone or options.wait is None else 1


def _own() -> str:
    found = read_layers().given.get("WATCHER_INSTANCE")
    return "" if found is None else own_instance(found.value)


def _living(places: Folders, worker: str, instance: str) -> set[str]:
    from watcher.store.overview import OverviewReader

    found = OverviewReader(places).processes(worker)
    return {p.incarnation or "" for p in found if p.is_alive and instance in ("", p.instance)}


def _wait(places: Folders, worker: str, instance: str, meant: set[str], seconds: float) -> bool:
    """Until none of those that were meant lives; a process that starts meanwhile is another one."""
    end = time.monotonic() + seconds
    while meant & _living(places, worker, instance):
        if time.monotonic() >= end:
            return False
        time.sleep(_LOOK_EVERY_SECONDS)
    return True
