#!/usr/bin/env python3
"""Serve one named worker: `python worker_watcher.py marie`.

Exit codes: 0 drained and stopped; 2 the command line or a setting is
wrong; 3 the name is served by another process; 4 the worker's folders were taken away again and again; 5 the machine
refused something at the start (a full disk, no descriptors): the same command may work later.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from watcher import __version__
from watcher.cli import entry_files
from watcher.cli.terminal import Parser
from watcher.clock import Clock
from watcher.system.signals import signals
from watcher.worker.service import WorkerService, Zones, checked_name
from watcher_config import WatcherConfig, load_watcher_config, render_config

_FLAGS = {
    "max_concurrent": "MAX_CONCURRENT_TASKS",
    "task_timeout": "TASK_TIMEOUT",
    "log_level": "LOG_LEVEL",
    "log_format": "LOG_FORMAT",
    "metrics_port": "METRICS_PORT",
    "instance": "WATCHER_INSTANCE",
    "fifo_mode": "FIFO_MODE",
    "zones": "ZONES_FILE",
}


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and serve; returns the exit code."""
    options = _parser().parse_args(arguments)

    def body() -> int:
        loaded = load_watcher_config(entry_files.given(options, _FLAGS))
        if options.print_config:
            print(render_config(loaded, as_json=options.json))
            return 0
        signals.block()
        return WorkerService(checked_name(options.worker), loaded, _zones).run()

    return entry_files.run("worker_watcher", body)


def _zones(config: WatcherConfig, clock: Clock) -> Zones | None:
    """The drop zones of ZONES_FILE. Raises ZoneFileError."""
    if not config.zones_file:
        return None
    from watcher.intake.drop_zones.in_worker import ZonesThread

    return ZonesThread(Path(config.zones_file), config, clock)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="worker_watcher.py",
        description="Serve one named worker: take each task file from its inbox and run it with an agent.",
        epilog="Every flag is also a setting in the environment and in .env; --print-config shows all of them.",
    )
    parser.add_argument("worker", nargs="?", metavar="NAME", help="the worker's name, like marie")
    parser.add_argument("--max-concurrent", metavar="N", help="tasks that run at once (MAX_CONCURRENT_TASKS)")
    parser.add_argument("--task-timeout", metavar="S", help="seconds until a task is ended (TASK_TIMEOUT)")
    parser.add_argument("--log-level", metavar="L", help="DEBUG, INFO, WARNING, ERROR or CRITICAL (LOG_LEVEL)")
    parser.add_argument("--log-format", metavar="F", help="json or text (LOG_FORMAT)")
    parser.add_argument("--metrics-port", metavar="P", help="port of the metrics, 0 for a free one (METRICS_PORT)")
    parser.add_argument("--instance", metavar="I", help="one of several processes of this worker (WATCHER_INSTANCE)")
    parser.add_argument("--fifo-mode", metavar="M", help="relaxed, per_agent or strict (FIFO_MODE)")
    parser.add_argument("--zones", metavar="FILE", help="serve the drop zones of drops.yaml, too (ZONES_FILE)")
    parser.add_argument("--print-config", action="store_true", help="show every setting and where it came from")
    parser.add_argument("--json", action="store_true", help="with --print-config: as JSON")
    parser.add_argument("--version", action="version", version=f"watcher {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
