"""Read a file that a stranger dropped, without trusting its name, its kind, its size or its writer.

Nothing here follows a link, blocks on a FIFO, reads more than the limit, or takes a file that is still being written
for a broken one. What could not be read stays where it is; the caller decides.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import threading
from dataclasses import dataclass

from watcher.errors import InvalidTask, WorkerTrouble, is_trouble
from watcher.system.files import Folder, read_up_to

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_LEASE_HERE = frozenset({errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})


@dataclass(slots=True)
class FileState:
    """What identifies a file's content without reading it."""

    inode: int
    size: int
    mtime_ns: int


@dataclass(slots=True)
class TaskBytes:
    """The bytes of a task file. `being_written` means that some process has it open for writing now."""

    raw: bytes
    state: FileState
    arrived_at: float
    changed_at: float
    being_written: bool


@dataclass(slots=True)
class Unreadable:
    """The file is there and is no task file; `error` says why. `settling` means that this may still change."""

    error: InvalidTask
    state: FileState
    settling: bool


def ignore_lease_breaks() -> None:
    """Call once in the main thread: a writer that opens a file while we look would otherwise end us by SIGIO."""
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGIO"):
        signal.signal(signal.SIGIO, _nothing)


def _nothing(_number: int, _frame: object) -> None:
    """A handler and not SIG_IGN, because an ignored signal would be inherited by every command."""


def read_task_file(
    folder: Folder, name: str, max_bytes: int, *, ask_for_writers: bool = True
) -> TaskBytes | Unreadable | None:
    """Read `name`; None when it is gone. Raises WorkerTrouble when the machine cannot open files now.

    Without `ask_for_writers`, `being_written` is always False: enough to put a file in line.
    """
    try:
        fd = os.open(name, _FLAGS, dir_fd=folder.fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        return _not_openable(folder, name, error)
    try:
        info = os.fstat(fd)
        state = FileState(info.st_ino, info.st_size, info.st_mtime_ns)
        if not stat.S_ISREG(info.st_mode):
            return Unreadable(InvalidTask("not_regular", "a task must be a regular file"), state, settling=False)
        if info.st_nlink > 1:
            text = f"the file has {info.st_nlink} names (hard links); give it one, by rename"
            return Unreadable(InvalidTask("hard_link", text), state, settling=True)
        if info.st_size > max_bytes:
            text = f"the file has {info.st_size} bytes; MAX_TASK_BYTES allows {max_bytes}"
            return Unreadable(InvalidTask("too_large", text), state, settling=True)
        writing = ask_for_writers and _has_writer(fd)
        raw = read_up_to(fd, max_bytes + 1)
        return TaskBytes(raw, state, info.st_mtime, info.st_ctime, writing)
    except OSError as error:
        if is_trouble(error):
            raise WorkerTrouble(f"read {folder.path / name}", error) from error
        return Unreadable(InvalidTask("unreadable", f"{error.strerror or error}"), FileState(0, 0, 0), settling=True)
    finally:
        os.close(fd)


def file_state(folder: Folder, name: str) -> FileState | None:
    """The state of a file without opening it; None when it is gone."""
    try:
        info = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return FileState(info.st_ino, info.st_size, info.st_mtime_ns)


def _not_openable(folder: Folder, name: str, error: OSError) -> Unreadable | None:
    if is_trouble(error):
        raise WorkerTrouble(f"open {folder.path / name}", error) from error
    state = file_state(folder, name)
    if state is None:
        return None
    if error.errno in (errno.ELOOP, errno.EMLINK):
        return Unreadable(InvalidTask("not_regular", "a task must not be a symbolic link"), state, settling=False)
    if error.errno in (errno.ENXIO, errno.ENODEV):
        return Unreadable(InvalidTask("not_regular", "a task must be a regular file"), state, settling=False)
    text = f"cannot be opened ({error.strerror or error}); make it readable for the worker"
    return Unreadable(InvalidTask("unreadable", text), state, settling=True)


def _has_writer(fd: int) -> bool:
    """Whether a process is known to have this file open for writing; where nobody knows, the settle rule decides."""
    return bool(has_writer(fd))


def has_writer(fd: int) -> bool | None:
    """Whether a process has this file open for writing: the kernel refuses a read lease then (fcntl(2), F_SETLEASE).

    Local file systems of Linux only, and only for the owner; elsewhere the answer is None: it cannot be told.
    """
    setlease = getattr(fcntl, "F_SETLEASE", None)
    if setlease is None:
        return None
    try:
        fcntl.fcntl(fd, setlease, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
            return True
        if error.errno in _NO_LEASE_HERE:
            return None
        raise
    # Closing would do it too; giving it back at once keeps a writer that comes now from waiting for our read.
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, setlease, fcntl.F_UNLCK)
    return False
