"""Let a worker start nothing more until `watcher resume`: what runs goes on, what comes waits.

The pause is a file, control/NAME/paused.json: it holds for all processes of the worker, also for those that start
later, and works while the worker is away.
"""

from __future__ import annotations

import argparse

from watcher.commands import shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workers", metavar="NAME", nargs="+", type=shared.utf8, help="the worker, like marie")
    parser.add_argument("--reason", metavar="TEXT", type=shared.utf8, help="shown in the heartbeat")
    shared.add_json(parser)


def run(options: argparse.Namespace) -> int:
    from watcher.overview import Lookout
    from watcher.tell import checked, pause
    from watcher.whereabouts import workers

    places = shared.places(makes_them=True)
    for worker in options.workers:
        checked(worker)
    known = {*workers(places), *Lookout(places).beating()}
    for worker in options.workers:
        path = pause(places.control, worker, options.reason)
        if options.json:
            shared.say_json({"worker": worker, "is_paused": True, "path": str(path)})
        else:
            shared.say(f"{worker} is paused; go on with: watcher resume {worker}")
        if worker not in known:
            shared.tell(f"no worker {worker} is known in {places.root} yet; it will start paused when it comes")
    return 0
