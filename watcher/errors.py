"""Define the errors of the suite: one class for each different reaction, with its facts as fields.

Every message says what was tried, on what, why it failed and what to do. An outcome that a caller expects is a value,
never one of these.
"""

from __future__ import annotations

import errno as _errno
import os as _os

#: The system is short of something that a person or time gives back. Such an error is never the task's fault.
TROUBLE_ERRNOS = frozenset(
    {
        _errno.ENOSPC,
        _errno.EDQUOT,
        _errno.EIO,
        _errno.EROFS,
        _errno.EMFILE,
        _errno.ENFILE,
        _errno.ENOMEM,
        _errno.EAGAIN,
        _errno.ESTALE,
    }
)

#: Of these, what says nothing about the one file or folder that it was met on.
SHORTAGES = frozenset({_errno.EMFILE, _errno.ENFILE, _errno.ENOMEM})

#: What SQLite calls them (https://sqlite.org/rescode.html).
_SQLITE_SHORTAGES = {"SQLITE_FULL": _errno.ENOSPC, "SQLITE_NOMEM": _errno.ENOMEM, "SQLITE_IOERR": _errno.EIO}


class WatcherError(Exception):
    """Base of every error that this package raises on purpose."""


class SettingError(WatcherError):
    """A setting has a value that cannot be used. Reaction: say so and do not start."""


class NameTaken(WatcherError):
    """Another process already serves this worker name. Reaction: say who it is and do not start."""


class InvalidTask(WatcherError):
    """A file in the inbox is not a task. Reaction: dead letter, with the original bytes.

    `reason` is a stable word (`invalid_json`, `invalid_field`, `id_mismatch`, ...); `detail` is for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class ClaimLost(WatcherError):
    """The claim is no longer ours: somebody rescued it. Reaction: discard the outcome aside, never publish it."""


class LockLost(WatcherError):
    """A lock file of ours was deleted or replaced. Reaction: stop at once; others may take our claims."""


class WorkerTrouble(WatcherError):
    """The machine, not the task, is at fault (full disk, no descriptors). Reaction: wait, burn no attempt."""

    def __init__(self, action: str, error: OSError) -> None:
        name = _errno.errorcode.get(error.errno or 0, str(error.errno))
        super().__init__(f"{action}: {name}: {error.strerror or error}")
        self.action = action
        self.errno_name = name


def is_trouble(error: OSError) -> bool:
    """Whether this error means that the machine is short of something, not that the call was wrong."""
    return error.errno in TROUBLE_ERRNOS


def tells_nothing(error: OSError) -> bool:
    """Whether this error leaves open if the file or folder is there: it is not gone, replaced or another's by that."""
    return error.errno in SHORTAGES or error.errno == _errno.EIO


def shortage_behind(error: BaseException) -> OSError | None:
    """The error of the machine that this one rests on, or None: that a folder cannot be made on a full disk, or a file
    not be opened without a descriptor, is no wrong setting.

    A lock that somebody holds (EAGAIN) and a file system that is read-only (EROFS) are none: a person must act.
    """
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in TROUBLE_ERRNOS - {_errno.EAGAIN, _errno.EROFS}:
            return found
        name = "_".join(str(getattr(found, "sqlite_errorname", "")).split("_")[:2])
        if name in _SQLITE_SHORTAGES:
            return OSError(_SQLITE_SHORTAGES[name], str(found))
        if name == "SQLITE_CANTOPEN" and (shortage := _shortage_of_descriptors()) is not None:
            return shortage
        found = found.__cause__ or found.__context__
    return None


def _shortage_of_descriptors() -> OSError | None:
    """SQLite does not tell why it cannot open its three files."""
    held: list[int] = []
    try:
        for _ in range(4):
            held.append(_os.open(_os.devnull, _os.O_RDONLY | _os.O_CLOEXEC))
    except OSError as error:
        error.filename = None
        return error if is_trouble(error) else None
    finally:
        for fd in held:
            _os.close(fd)
    return None
