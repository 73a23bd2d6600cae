"""Explain why a waiting task is not started, as far as the folders tell, for a person who looks at one task.

Reads heartbeats and locks, the pause, the holds of the root and the worker's open breakers; changes nothing. That a
worker is busy, or that others go first, is no answer here. Which provider a worker takes by default is not written
down: for a task that names none, what is told of one is told with an if. Raises WorkerTrouble as `workers` does.
"""

from __future__ import annotations

import contextlib
import re
import time
from typing import TYPE_CHECKING

from watcher.clock import rfc3339
from watcher.formats.breakers import parse_breakers
from watcher.store import workers
from watcher.store.holds import StoredHold, list_holds
from watcher.store.layout import BREAKERS, PAUSED
from watcher.store.spending import DAILY_BUDGET
from watcher.system import no_links

if TYPE_CHECKING:
    from watcher.settings.folders import Folders
    from watcher.store.workers import Process

#: How a heartbeat names the provider that is held; a budget, and what does not begin so, holds up every task.
_OF_PROVIDER = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63}): ")


def holdup(folders: Folders, worker: str, provider: str | None) -> str | None:
    """What keeps this worker from starting a task of this provider (None: its default), or None."""
    found = workers.processes_of(folders.heartbeats, folders.tasks, worker, time.time())
    living = [one for one in found if one.is_alive]
    if not living:
        return f"no process of {worker} runs"
    if no_links.is_there(folders.control / worker / PAUSED):
        return f"{worker} is paused; end the pause: watcher resume {worker}"
    if all(one.state == "draining" for one in living):
        return f"{worker} drains and takes nothing more"
    holdups = [_of_a_hold(folders, worker, living, provider), _of_a_breaker(folders, worker, living, provider)]
    return "; ".join(filter(None, holdups)) or None


def _if_default(worker: str, asked: str | None, told: str) -> str:
    return f", if {told} is the PROVIDER of {worker}" if asked is None else ""


def _of_a_hold(folders: Folders, worker: str, living: list[Process], provider: str | None) -> str | None:
    held = next((one for one in living if one.state == "held" and one.reason), None)
    if held is not None:
        whose = _OF_PROVIDER.match(held.reason or "")
        text = f"held: {held.reason}" + ("" if held.held_until is None else f", until {held.held_until}")
        if whose is None or whose[1] == DAILY_BUDGET:
            return text
        if provider in (None, whose[1]):
            return text + _if_default(worker, provider, whose[1])
    found = next((hold for hold in list_holds(folders.control) if hold.provider == provider), None)
    return None if found is None else _words(found)


def _words(hold: StoredHold) -> str:
    account = f" (account {hold.account})" if hold.account else ""
    until = "" if hold.until is None else f", until {rfc3339(hold.until)}"
    return f"held: {hold.provider}{account}: {hold.reason}: {hold.detail or ''}".rstrip(": ") + until


def _of_a_breaker(folders: Folders, worker: str, living: list[Process], provider: str | None) -> str | None:
    if all(one.breaker in (None, "closed") for one in living):
        return None
    with contextlib.suppress(OSError):
        found = parse_breakers(workers.read_small(folders.control / worker / BREAKERS)[0])
        for name, (failures, probe_at) in found.items():
            if provider in (None, name):
                why = f"after {failures} failures in a row; one task tries it at {rfc3339(probe_at)}"
                return f"the circuit breaker of {name} is open {why}{_if_default(worker, provider, name)}"
    return None
