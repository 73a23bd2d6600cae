"""Raw inotify by ctypes: events as the kernel has them, without a queue or a thread between.

watchdog holds an unpaired moved-from back for 0.5 s, so it cannot be the ruler here.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
from pathlib import Path

MOVED_FROM, MOVED_TO, CREATE, DELETE, CLOSE_WRITE = 0x40, 0x80, 0x100, 0x200, 0x8
_EVENT = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """Folders under watch. `read` gives (watch, mask, name) in the kernel's order."""

    def __init__(self) -> None:
        self.fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def add(self, folder: Path, mask: int) -> int:
        """Watch one folder; returns its watch number."""
        watch: int = _libc.inotify_add_watch(self.fd, os.fsencode(folder), mask)
        if watch < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch", str(folder))
        return watch

    def read(self, timeout_seconds: float | None) -> list[tuple[int, int, str]]:
        """Wait for events at most that long (None: for ever); empty when none came."""
        if not self._poll.poll(None if timeout_seconds is None else max(0.0, timeout_seconds) * 1000):
            return []
        data = os.read(self.fd, 65536)
        events, at = [], 0
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            events.append((watch, mask, data[at : at + length].rstrip(b"\0").decode("utf-8", "replace")))
            at += length
        return events

    def close(self) -> None:
        os.close(self.fd)
