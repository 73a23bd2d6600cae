"""List every worker process with its state, and the workers that have tasks and no process.

Exit code 1: one of the workers that were named has no living process (without names: always 0).
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from watcher.cli import command_output

if TYPE_CHECKING:
    from watcher.store.workers import Process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workers", metavar="NAME", nargs="*", type=command_output.utf8, help="only these workers")
    command_output.add_json(parser, "one JSON object for each process")


def run(options: argparse.Namespace) -> int:
    from watcher.store.overview import OverviewReader
    from watcher.store.tasks import workers
    from watcher.store.workers import Process

    places = command_output.places()
    lookout = OverviewReader(places)
    names = options.workers or sorted({*workers(places), *lookout.beating()})
    found: list[Process] = []
    for name in names:
        found += lookout.processes(name) or (Process(name, None, "absent"),)
    if options.json:
        for process in found:
            command_output.say_json(dataclasses.asdict(process) | {"is_alive": process.is_alive})
    elif found:
        header = ["PROCESS", "STATE", "PID", "HOST", "LAST BEAT", "BREAKER", "WHY"]
        command_output.say_table(header, [_row(process) for process in found])
    else:
        command_output.say(f"no worker has ever run in {places.root}")
    alive = {process.worker for process in found if process.is_alive}
    return 1 if set(options.workers) - alive else 0


def _row(process: Process) -> list[str]:
    from watcher.cli.tables import breaker_text, silence_text, state_text
    from watcher.cli.terminal import duration

    age = process.beat_age_seconds
    reason = (process.reason or "") + (f" until {process.held_until}" if process.held_until else "")
    return [
        process.name,
        state_text(process.state, process.for_seconds),
        "-" if process.pid is None else str(process.pid),
        process.host or "-",
        "-" if age is None else f"{duration(age)} ago",
        breaker_text(process.breaker),
        "; ".join(text for text in (silence_text(process), reason) if text),
    ]
