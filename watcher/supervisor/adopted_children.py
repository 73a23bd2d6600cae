"""Find the processes that outlived a killed supervisor, wait for them, and end them when asked.

A worker survives its supervisor on purpose: what it runs costs money, and it can finish and store it alone. The next
supervisor finds it by its heartbeat, and knows it by SUPERVISED in its environment, which names the supervisor by pid
and start time; one whose supervisor still lives, or that a person started, is nobody's business here.

Assumes Linux's /proc; elsewhere none is found, and the name is waited for all the same. Signals go through a pidfd, so
they never hit a recycled number.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import Any

from watcher.store.workers import read_beats
from watcher.system import procfs

#: The environment variable that a supervisor gives to what it starts.
SUPERVISED = "WATCHER_SUPERVISED_BY"


def own_name() -> str:
    """What names this process for ever: its pid and when it began."""
    facts = procfs.facts_of(os.getpid()) if procfs.IS_THERE else None
    return f"{os.getpid()}-{0.0 if facts is None else facts.started:.2f}"


def find(told: dict[str, Any]) -> AdoptedChild | None:
    """The process that wrote this heartbeat, if it lives here and has lost its supervisor."""
    pid = told.get("pid")
    if not procfs.IS_THERE or type(pid) is not int or pid <= 1 or told.get("host") != socket.gethostname():
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
    supervisor = procfs.variable_of(pid, SUPERVISED).decode("ascii", "replace")
    if not supervisor or _lives(supervisor):
        os.close(pidfd)
        return None
    return AdoptedChild(pid, pidfd)


def find_all(heartbeats: Path, worker: str) -> dict[str, AdoptedChild]:
    """Those that serve this worker, by the names of their processes (`marie`, `marie@2`)."""
    out = {}
    for beat in read_beats(heartbeats, time.time(), []):
        found = find(beat.fields or {}) if beat.worker == worker else None
        if found is not None:
            out[worker if beat.instance is None else f"{worker}@{beat.instance}"] = found
    return out


class AdoptedChild:
    """One such process, held by a pidfd. Monotonic seconds of the caller."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._hurry_at: float | None = None
        self._kill_at: float | None = None
        self._is_asked = False

    def end(self, now: float, hurry_after: float, kill_after: float) -> None:
        """Ask it to end (TERM) unless it was asked before; `push` asks again and kills when it is time."""
        if not self._is_asked:
            self._is_asked = True
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)
        self._hurry_at, self._kill_at = now + hurry_after, now + kill_after

    def push(self, now: float) -> None:
        """Do what has become due since `end`."""
        if self._kill_at is not None and now >= self._kill_at:
            self.signal(signal.SIGKILL)
        elif self._hurry_at is not None and now >= self._hurry_at:
            self._hurry_at = None
            self.signal(signal.SIGTERM)

    def has_ended(self) -> bool:
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(0))

    def signal(self, number: signal.Signals) -> None:
        """Nothing happens when it has ended or is not ours to signal."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        os.close(self._pidfd)


def _lives(name: str) -> bool:
    """Whether this supervisor still runs. A name that is none is taken for a living one: hands off."""
    pid, _, started = name.partition("-")
    if not pid.isdecimal():
        return True
    facts = procfs.facts_of(int(pid))
    return facts is not None and not facts.is_dead and f"{facts.started:.2f}" == started
