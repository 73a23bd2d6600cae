"""Show what a worker has spent today (UTC), or let it spend more: `watcher budget marie --raise 5`.

DAILY_BUDGET is the worker's own setting; here it is raised for this one day, and the worker sees that at its next
heartbeat. What counts is what the providers told of their costs.
"""

from __future__ import annotations

import argparse
import re
import time

from watcher.cli import command_output
from watcher.clock import rfc3339
from watcher.errors import SettingError
from watcher.formats.task import WORKER_PATTERN
from watcher.store.spending import raise_daily_budget, raised_on_day, spent_on_day

_MOST_USD = 1e6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("worker", metavar="NAME", help="the worker's name, like marie")
    parser.add_argument("--raise", dest="usd", type=float, metavar="USD", help="raise today's budget by so much")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(options: argparse.Namespace) -> int:
    if re.fullmatch(WORKER_PATTERN, options.worker) is None:
        raise SettingError(f"worker name {options.worker!r}: letters, digits, dot, dash, underscore")
    places, now = command_output.places(), time.time()
    control = places.control
    if options.usd is not None:
        if not 0 < options.usd <= _MOST_USD:
            raise SettingError(f"--raise {options.usd:g}: must be more than 0 and at most {_MOST_USD:g} USD")
        raise_daily_budget(control, options.worker, options.usd, now)
    command_output.tell_if_new(places, options.worker)
    spent, raised = spent_on_day(control, options.worker, now), raised_on_day(control, options.worker, now)
    ends_at = rfc3339((now // 86_400 + 1) * 86_400)
    if options.json:
        facts = {"worker": options.worker, "spent_usd": spent, "raised_by_usd": raised, "day_ends_at": ends_at}
        command_output.say_json(facts)
    else:
        lifted = f"; DAILY_BUDGET is raised by {raised:g} USD until {ends_at}" if raised else ""
        command_output.say(f"{options.worker} spent {spent:.4f} USD today (UTC){lifted}")
    return 0
