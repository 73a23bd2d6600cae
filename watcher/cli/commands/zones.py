"""Serve drop zones: `watcher zones drops.yaml`. Each file that is dropped becomes one task, once, when it is complete.

The tasks go to the workers that the zones name; their processes run them. Every few seconds, and at the end, four lines
say where the files are. SIGHUP reads the file again; when that is wrong, the zones stay as they were. SIGTERM or Ctrl-C
ends it: files whose task is under way are finished by the next start. docs/zones.md describes the file.

Exit codes: 0 ended, or the file is good; 1 with --once: there were errors; 2 the file or a setting is wrong; 5 the
machine refused something at the start (a full disk, no descriptors).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from pathlib import Path

from watcher.cli import command_output, entry_files
from watcher.clock import SystemClock
from watcher.intake.drop_zones.in_worker import load, reloaded
from watcher.intake.drop_zones.loop import Counts, DropZones
from watcher.intake.drop_zones.zone_file import ZoneFile
from watcher.settings.worker import WatcherConfig, load_watcher_config
from watcher.store.task_reader import ignore_lease_breaks
from watcher.system.signals import Reactions, signals
from watcher.telemetry.events import Bus, passed_over
from watcher.telemetry.logs import LOGGER_NAME, EventLog, configure_logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="drops.yaml", help="the zones, and how much is processed at once")
    parser.add_argument("--check", action="store_true", help="say whether the file is good, and end")
    parser.add_argument("--once", action="store_true", help="end when no file waits and no task is under way")
    parser.add_argument(
        "--status-interval", metavar="S", type=_seconds, default=10.0, help="seconds between two status blocks (10)"
    )
    parser.add_argument("--log-level", metavar="L", help="DEBUG, INFO, WARNING, ERROR or CRITICAL (LOG_LEVEL)")
    parser.add_argument("--log-format", metavar="F", help="json or text (LOG_FORMAT)")


def run(options: argparse.Namespace) -> int:
    return entry_files.run("watcher zones", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    given = {"LOG_LEVEL": options.log_level, "LOG_FORMAT": options.log_format}
    config = load_watcher_config({name: value for name, value in given.items() if value is not None}).config
    path = Path(options.file)
    zone_file = load(path, config)
    if options.check:
        command_output.say(f"{path}: good, {len(zone_file.zones)} zone{'s' if len(zone_file.zones) != 1 else ''}")
        return 0
    signals.block()
    configure_logging(config.log_level, config.log_format, "zones")
    ignore_lease_breaks()
    counts = asyncio.run(_serve(path, zone_file, config, _Status(options.status_interval), options.once))
    return 1 if options.once and counts.errors else 0


class _Status:
    """Keeps the newest counts."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.counts: Counts | None = None

    def __call__(self, counts: Counts) -> None:
        self.counts = counts

    def show(self) -> None:
        if self.counts is not None:
            command_output.say(f"{self.counts.block()}\n")

    async def show_regularly(self) -> None:
        while True:
            await asyncio.sleep(self.interval)
            self.show()


async def _serve(path: Path, zone_file: ZoneFile, config: WatcherConfig, status: _Status, once: bool) -> Counts:
    zones = DropZones(zone_file, config, SystemClock(), status)

    def reload() -> None:
        found = reloaded(path, config)
        if found is not None:
            zones.reload(found)

    def stop(_name: str) -> None:
        zones.stop()

    bus = Bus()
    bus.join(EventLog(logging.getLogger(LOGGER_NAME)))
    signals.attach(asyncio.get_running_loop(), Reactions(stop, stop, reload), passed_over(bus.emit))
    regularly = asyncio.create_task(status.show_regularly())
    try:
        await zones.run(until_idle=once)
    finally:
        regularly.cancel()
        status.show()
    return zones.counts()


def _seconds(text: str) -> float:
    number = float(text)
    if not 0.05 <= number <= 86_400:
        raise argparse.ArgumentTypeError("give seconds from 0.05 to 86400")
    return number
