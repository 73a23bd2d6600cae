"""Keep waiting tasks from starting until `watcher release`, or with --provider all tasks of a provider.

A held task lies in tasks/NAME/.held/, survives restarts, is counted among the waiting, and keeps its place. Exit code
1: one of them does not wait (it runs, or has ended).
"""

from __future__ import annotations

import argparse

from watcher.commands import shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tasks", metavar="ID", nargs="*", type=shared.utf8, help="the task's id, or worker/id")
    parser.add_argument("--provider", metavar="NAME", type=shared.utf8, help="hold this provider for all workers")
    parser.add_argument("--reason", metavar="TEXT", type=shared.utf8, help="with --provider: why, for people")
    parser.add_argument(
        "--until", metavar="TIME", type=shared.utf8, help="with --provider: RFC 3339, like 2026-11-21T23:33:00Z"
    )
    shared.add_json(parser, "one JSON object for each")


def run(options: argparse.Namespace) -> int:
    from watcher.intervene import hold
    from watcher.tell import hold_provider

    shared.only_one([options.tasks, options.provider], "give tasks, or --provider NAME")
    places = shared.places()
    if options.provider is None:
        from watcher.commands.each import each_task

        return each_task(options, "is held", lambda worker, task_id: hold(places, worker, task_id))
    path = hold_provider(places.control, options.provider, options.reason, options.until)
    if options.json:
        shared.say_json({"provider": options.provider, "path": str(path)})
    else:
        print(f"{options.provider} is held; go on with: watcher resume --provider {options.provider}")
    return 0
