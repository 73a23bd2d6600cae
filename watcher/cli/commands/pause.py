"""Let a worker start nothing more until `watcher resume`: what runs goes on, what comes waits.

The pause is a file, control/NAME/paused.json: it holds for all processes of the worker, also for those that start
later, and works while the worker is away.
"""

from __future__ import annotations

import argparse

from watcher.cli import command_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workers", metavar="NAME", nargs="+", type=command_output.utf8, help="the worker, like marie")
    parser.add_argument("--reason", metavar="TEXT", type=command_output.utf8, help="shown in the heartbeat")
    command_output.add_json(parser)


def run(options: argparse.Namespace) -> int:
    from watcher.store.operator_commands import checked, pause
    from watcher.store.overview import OverviewReader
    from watcher.store.tasks import workers

    places = command_output.places(makes_them=True)
    for worker in options.workers:
        checked(worker)
    known = {*workers(places), *OverviewReader(places).beating()}
    for worker in options.workers:
        path = pause(places.control, worker, options.reason)
        if options.json:
            command_output.say_json({"worker": worker, "is_paused": True, "path": str(path)})
        else:
            command_output.say(f"{worker} is paused; end the pause: watcher resume {worker}")
        if worker not in known:
            command_output.tell(f"no worker {worker} is known in {places.root} yet; it will start paused")
    return 0
