#!/usr/bin/env python3
"""Listen to all workers: `python orchestrator_listener.py`. Says once what became of each task, and who is dead.

Exit codes: 0 stopped, or with --once everything was read and told;
2 the command line or a setting is wrong; 3 another listener is there; 4 its lock was taken away.
"""

from __future__ import annotations

import argparse
import sys

from watcher import __version__
from watcher.cli import entry_files
from watcher.cli.terminal import Parser
from watcher.listener.service import ListenerService
from watcher.system.signals import signals
from watcher_config import load_orchestrator_config, render_config

_FLAGS = {
    "workers": "WORKERS",
    "log_level": "LOG_LEVEL",
    "log_format": "LOG_FORMAT",
    "metrics_port": "METRICS_PORT",
    "reassign": "REASSIGN",
}


def main(arguments: list[str] | None = None) -> int:
    """Read the command line and listen; returns the exit code."""
    options = _parser().parse_args(arguments)

    def body() -> int:
        loaded = load_orchestrator_config(entry_files.given(options, _FLAGS))
        if options.print_config:
            print(render_config(loaded, as_json=options.json))
            return 0
        signals.block()
        return ListenerService(loaded).run(options.once)

    return entry_files.run("orchestrator_listener", body)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="orchestrator_listener.py",
        description="Say once what became of each task, how every worker is, and when one is dead.",
        epilog="Every flag is also a setting in the environment and in .env; --print-config shows all of them.",
    )
    parser.add_argument("--workers", metavar="A,B", help="listen to these only; else to all, as they appear (WORKERS)")
    parser.add_argument("--log-level", metavar="L", help="DEBUG, INFO, WARNING, ERROR or CRITICAL (LOG_LEVEL)")
    parser.add_argument("--log-format", metavar="F", help="json or text (LOG_FORMAT)")
    parser.add_argument("--metrics-port", metavar="P", help="port of the metrics, 0 for a free one (METRICS_PORT)")
    parser.add_argument("--reassign", metavar="A:B", help="give the pending tasks of dead worker A to B (REASSIGN)")
    parser.add_argument("--once", action="store_true", help="read and tell what is there now, then end")
    parser.add_argument("--print-config", action="store_true", help="show every setting and where it came from")
    parser.add_argument("--json", action="store_true", help="with --print-config: as JSON")
    parser.add_argument("--version", action="version", version=f"watcher {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
