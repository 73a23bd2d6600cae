"""Keep one process of `runner.orphan_guard` while a pool runs: the worker's side of it.

The guard's stdin is a pipe of which only this process has the writing end, so its end is our death, whatever the cause.
"""

from __future__ import annotations

import contextlib
import os
import sys

from watcher.runner import orphan_guard
from watcher.system import processes


class Guarding:
    """One guard at a time, started when it is asked for and missing."""

    def __init__(self, mark_prefix: str, busy_lock: str) -> None:
        self._arguments = (mark_prefix, busy_lock)
        self._child: processes.Child | None = None
        self._pipe = -1

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    def ensure(self) -> None:
        """Start a guard unless one is alive. Raises OSError."""
        if self._child is not None and self._child.wait(0) is None:
            return
        self._forget()
        reading, self._pipe = os.pipe()
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            argv = [sys.executable, "-I", "-S", orphan_guard.__file__, *self._arguments]
            self._child = processes.spawn(
                argv, {}, "/", reading, nothing, nothing, executable=sys.executable, is_agent=False
            )
        finally:
            os.close(reading)
            os.close(nothing)

    def dismiss(self) -> None:
        """Send it home; nothing is left to guard. Blocks until it is gone."""
        if self._child is not None:
            with contextlib.suppress(OSError):
                os.write(self._pipe, orphan_guard.BYE)
        child = self._child
        self._forget()
        if child is not None and child.wait(5.0) is None:
            child.end(0)
            child.wait()

    def _forget(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        self._child = None
