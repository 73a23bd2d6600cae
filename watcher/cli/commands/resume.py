"""End the pause of a worker, or with --provider the hold of a provider (which all workers then probe at once).

Exit code 1: it was not paused, or not held.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from watcher.cli import command_output

if TYPE_CHECKING:
    from watcher.settings.folders import Folders


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workers", metavar="NAME", nargs="*", type=command_output.utf8, help="the worker, like marie")
    parser.add_argument(
        "--provider", metavar="NAME", type=command_output.utf8, help="end the hold of this provider instead"
    )
    parser.add_argument(
        "--account", metavar="A", type=command_output.utf8, default="", help="one account (PROVIDER_ACCOUNT)"
    )
    command_output.add_json(parser)


def run(options: argparse.Namespace) -> int:
    from watcher.store.holds import lift_hold
    from watcher.store.operator_commands import checked, resume

    command_output.only_one([options.workers, options.provider], "give a worker, or --provider NAME")
    places = command_output.places()
    if options.provider is not None:
        done = lift_hold(places.control, options.provider, options.account)
        _say(options, "provider", options.provider, done, "hold removed", "was not held")
        if not done:
            _name_accounts(places, options)
        return 0 if done else 1
    for worker in options.workers:
        checked(worker)
    code = 0
    for worker in options.workers:
        done = resume(places.control, worker)
        _say(options, "worker", worker, done, "resumed", "was not paused")
        code = code if done else 1
    return code


def _name_accounts(places: Folders, options: argparse.Namespace) -> None:
    """Without --account only a hold without account is meant, which is seldom the one that a worker tells of."""
    from watcher.store.holds import list_holds

    if options.account:
        return
    held = sorted(hold.account for hold in list_holds(places.control) if hold.provider == options.provider)
    if held:
        command_output.tell(f"its accounts are held: {', '.join(held)}; name one with --account")


def _say(options: argparse.Namespace, kind: str, name: str, done: bool, yes: str, no: str) -> None:
    if options.json:
        command_output.say_json({kind: name, "was_stopped": done})
    else:
        command_output.say(f"{name}: {yes if done else no}")
