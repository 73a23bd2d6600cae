"""Start workers and the listener, and keep them running: `watcher up marie anga fabien --listener`.

A process that crashes is started again, later each time; one that crashes MAX_RESTARTS times in a row is left alone and
the others go on. All logs come out here, each line with its worker. Every minute one line says who is healthy.

SIGTERM or Ctrl-C drains the workers and then ends the listener; a second time: now. SIGHUP restarts all, one after the
other. `--count 3` runs three instances of each worker, `--min 1 --max 5` as many as the tasks need and the machine
bears. Settings come from the environment and .env, as for the workers.

Exit codes: 0 stopped, and all went well; 1 something failed for good or ended badly; 2 a setting is wrong; 5 the
machine refused something at the start.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

from watcher.cli import entry_files
from watcher.errors import SettingError
from watcher.formats.task import WORKER_PATTERN
from watcher.settings.layers import read_layers
from watcher.store.layout import NOTICES
from watcher.supervisor.loop import Wanted
from watcher.supervisor.service import SupervisorService
from watcher.system.signals import signals

_MOST_INSTANCES = 1000
_FLAGS = {
    "log_level": "LOG_LEVEL",
    "log_format": "LOG_FORMAT",
    "max_restarts": "MAX_RESTARTS",
    "restart_delay": "RESTART_DELAY",
    "healthy_after": "RESTART_RESET_AFTER",
    "max_cpu": "MAX_CPU_PERCENT",
    "max_memory": "MAX_MEMORY_PERCENT",
}
#: The flags that every process gets too.
_PASSED_ON = ("log_level", "log_format")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workers", nargs="+", metavar="NAME", help="workers to run, like marie anga")
    parser.add_argument("--listener", action="store_true", help="run orchestrator_listener.py too")
    parser.add_argument("--count", type=_number, metavar="N", help="instances of each worker, @1 to @N")
    parser.add_argument("--min", type=_number, metavar="N", help="at least so many instances of each worker")
    parser.add_argument("--max", type=_number, metavar="N", help="at most so many, by the number of tasks that wait")
    parser.add_argument("--max-cpu", metavar="P", help="percent of CPU above which instances go (MAX_CPU_PERCENT)")
    parser.add_argument("--max-memory", metavar="P", help="percent of memory, the same (MAX_MEMORY_PERCENT)")
    parser.add_argument(
        "--grow-after", type=_seconds, default=5.0, metavar="S", help="seconds all slots must be busy (5)"
    )
    parser.add_argument(
        "--shrink-after", type=_seconds, default=60.0, metavar="S", help="seconds some slots must be free (60)"
    )
    parser.add_argument("--max-restarts", metavar="N", help="restarts in a row (MAX_RESTARTS)")
    parser.add_argument("--restart-delay", metavar="S", help="seconds before the first restart (RESTART_DELAY)")
    parser.add_argument(
        "--healthy-after", metavar="S", help="seconds until crashes are forgotten (RESTART_RESET_AFTER)"
    )
    parser.add_argument(
        "--start-timeout", type=_seconds, default=60.0, metavar="S", help="seconds to the first beat (60)"
    )
    parser.add_argument("--report-every", type=_seconds, default=60.0, metavar="S", help="seconds between reports (60)")
    parser.add_argument("--log-level", metavar="L", help="DEBUG, INFO, WARNING, ERROR or CRITICAL (LOG_LEVEL)")
    parser.add_argument("--log-format", metavar="F", help="json or text (LOG_FORMAT)")


def run(options: argparse.Namespace) -> int:
    def body() -> int:
        layers = read_layers(entry_files.given(options, _FLAGS))
        return SupervisorService(_wanted(options), layers).run()

    signals.block()
    return entry_files.run("watcher up", body)


def _wanted(options: argparse.Namespace) -> Wanted:
    _check_names(options.workers)
    least, most = _bounds(options)
    passed_on = entry_files.given(options, {flag: f"--{flag.replace('_', '-')}" for flag in _PASSED_ON})
    return Wanted(
        workers=tuple(options.workers),
        with_listener=options.listener,
        least=least,
        most=most,
        grow_after=options.grow_after,
        shrink_after=options.shrink_after,
        start_timeout=options.start_timeout,
        report_every=options.report_every,
        flags=tuple(word for pair in passed_on.items() for word in pair),
    )


def _bounds(options: argparse.Namespace) -> tuple[int, int | None]:
    """How many instances at first, and at most; None where each worker is one process without an instance."""
    if options.count is not None and (options.min is not None or options.max is not None):
        raise SettingError("--count fixes the number of instances; give it, or --min and --max")
    if options.count is not None:
        return options.count, options.count
    if options.max is None and options.min is not None:
        raise SettingError("--min needs --max: how many instances at most")
    if options.max is None:
        return 1, None
    least: int = 1 if options.min is None else options.min
    if least > options.max:
        raise SettingError(f"--min {least} is more than --max {options.max}")
    return least, options.max


def _check_names(workers: list[str]) -> None:
    for worker in workers:
        if re.fullmatch(WORKER_PATTERN, worker) is None:
            raise SettingError(f"worker name {worker!r}: letters, digits, dot, dash, underscore")
        if worker == NOTICES:
            raise SettingError(f"worker name {worker!r}: its receipts would lie among the notices; take another name")
    if len(set(workers)) < len(workers):
        raise SettingError("a worker is named twice; --count 2 runs two instances of it")


def _bounded(kind: Callable[[str], float], least: float, most: float, what: str) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be {what} from {least:g} to {most:g}")
        return value

    return convert


_number = _bounded(int, 1, _MOST_INSTANCES, "a whole number")
_seconds = _bounded(float, 0.05, 86_400.0, "a number of seconds")
