"""Read Linux's /proc about processes: their family, their age, the attempt they belong to, the files they hold.

A process may end between any two looks; then the answers are empty, never an error. Where /proc is missing, or shows
another pid namespace than ours, IS_THERE is False and nobody should ask.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from dataclasses import dataclass

#: The environment variable that says to which attempt a process belongs; its value starts with the incarnation.
MARK = "WATCHER_MARK"
#: Above the most that the kernel takes at an exec (a quarter of the stack limit, usually 2 MiB).
_READ_AT_MOST_BYTES = 4 << 20


def _proc_is_ours() -> bool:
    """Whether /proc is there and shows this process's own pid namespace (a container may mount the host's)."""
    try:
        return sys.platform == "linux" and os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


IS_THERE = _proc_is_ours()
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class ProcessFacts:
    """What /proc/PID/stat says. `started` is seconds since boot."""

    is_dead: bool
    parent: int
    group: int
    session: int
    started: float


def facts_of(pid: int) -> ProcessFacts | None:
    """See proc_pid_stat(5); the name in it may hold anything, so the fields count from its last bracket."""
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    field = text[text.rfind(b")") + 2 :].split()
    return ProcessFacts(
        is_dead=field[0] in (b"Z", b"X"),
        parent=int(field[1]),
        group=int(field[2]),
        session=int(field[3]),
        started=(int(field[19]) + 1) / _TICKS,
    )


def mark_of(pid: int, after_seconds: float = 0.0) -> bytes:
    """The mark in a process's environment as it was when its program started; b"" when there is none to be read.

    In the instant in which a process executes a program there is none: a second look, a moment later, finds it.
    """
    if after_seconds:
        time.sleep(after_seconds)
    return variable_of(pid, MARK)


def variable_of(pid: int, name: str) -> bytes:
    """A variable of a process's environment as it was when its program started; b"" when that cannot be told."""
    text = b"\0" + _read(f"/proc/{pid}/environ")
    start = text.find(b"\0" + name.encode() + b"=")
    if start < 0:
        return b""
    start += len(name) + 2
    end = text.find(b"\0", start)
    return text[start:] if end < 0 else text[start:end]


def holds(pid: int, path: str, identity: tuple[int, int] | None, inherited_only: bool = False) -> bool:
    """Whether the process has the file open, under its name or after it was deleted.

    With `inherited_only`: by a descriptor that stays open when it executes a program, as one that it was started with.
    """
    name = os.path.basename(path)
    try:
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for fd in fds:
        link = f"/proc/{pid}/fd/{fd}"
        with contextlib.suppress(OSError):
            target = os.readlink(link)  # a name that cannot fit spares a stat, which may hang on a dead NFS server
            if target != f"{path} (deleted)":
                if identity is None or os.path.basename(target) != name:
                    continue
                found = os.stat(link)
                if (found.st_dev, found.st_ino) != identity:
                    continue
            if not (inherited_only and _closes_on_exec(pid, fd)):
                return True
    return False


def _closes_on_exec(pid: int, fd: str) -> bool:
    """See proc_pid_fdinfo(5). What cannot be read is a process that has just ended."""
    flags = re.search(rb"^flags:\s*([0-7]+)", _read(f"/proc/{pid}/fdinfo/{fd}"), re.MULTILINE)
    return flags is None or bool(int(flags[1], 8) & os.O_CLOEXEC)


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _read(path: str) -> bytes:
    """A file of /proc, or b"" when the process is gone or not ours to look at."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        text = b""
        while len(text) < _READ_AT_MOST_BYTES and (chunk := os.read(fd, 65536)):
            text += chunk
        return text
    except OSError:
        return b""
    finally:
        os.close(fd)
