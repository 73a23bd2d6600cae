"""Keep waiting tasks from starting until `watcher release`, or with --provider all tasks of a provider.

A held task lies in tasks/NAME/.held/, survives restarts, is counted among the waiting, and keeps its place. Exit code
1: one of them does not wait (it runs, or has ended).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from watcher.cli import command_output
from watcher.clock import parse_rfc3339
from watcher.errors import SettingError
from watcher.settings.layers import read_layers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tasks", metavar="ID", nargs="*", type=command_output.utf8, help="the task's id, or worker/id")
    parser.add_argument(
        "--provider", metavar="NAME", type=command_output.utf8, help="hold this provider for all workers"
    )
    parser.add_argument("--reason", metavar="TEXT", type=command_output.utf8, help="with --provider: why, for people")
    parser.add_argument(
        "--until", metavar="TIME", type=command_output.utf8, help="with --provider: RFC 3339, like 2026-11-21T23:33:00Z"
    )
    parser.add_argument(
        "--account", metavar="A", type=command_output.utf8, default="", help="one account (PROVIDER_ACCOUNT)"
    )
    command_output.add_json(parser, "one JSON object for each")


def run(options: argparse.Namespace) -> int:
    from watcher.store.changes import hold
    from watcher.store.holds import hold_provider

    command_output.only_one([options.tasks, options.provider], "give tasks, or --provider NAME")
    places = command_output.places(makes_them=options.provider is not None)
    if options.provider is None:
        from watcher.cli.each_task import each_task

        if options.until is not None or options.reason is not None or options.account:
            raise SettingError(
                "--until, --reason and --account are for --provider; a task is held until it is released"
            )
        return each_task(options, "is held", lambda worker, task_id: hold(places, worker, task_id))
    until = None if options.until is None else _moment(options.until)
    path = hold_provider(
        places.control, options.provider, account=options.account, detail=options.reason, until=until, now=time.time()
    )
    if not _is_known(options.provider):
        command_output.tell(
            f"note: no provider is called {options.provider} here; the hold applies to workers that have one"
        )
    if options.json:
        command_output.say_json({"provider": options.provider, "path": str(path)})
    else:
        command_output.say(f"{options.provider} is held; end the hold: watcher resume --provider {options.provider}")
    return 0


def _is_known(name: str) -> bool:
    """False when nobody with these settings can have a provider of this name: it may be misspelt."""
    from watcher.runner.providers.built_in import BUILT_IN
    from watcher.runner.providers.user_providers import read_file

    given = read_layers().given.get("PROVIDERS_FILE")
    if given is None or name in BUILT_IN:
        return name in {*BUILT_IN, "command", "handler", "acp"}
    try:
        return name in {"command", "handler", "acp", *read_file(Path(given.value).expanduser())}
    except SettingError:
        return True  # whose names cannot be read; what is wrong with the file is no matter of a hold


def _moment(text: str) -> float:
    try:
        moment = parse_rfc3339(text)
    except ValueError as error:
        raise SettingError(f"--until {text!r}: {error}; write it like 2026-11-21T23:33:00Z") from None
    if moment <= time.time():
        raise SettingError(f"--until {text!r}: has passed; give a time that is to come, or none to hold until `resume`")
    return moment
