"""Refuse a missing WATCHER_ROOT, so that an empty answer never hides a wrong folder.

Owns the question and its words; everything that lists or waits asks here first. What makes its own folders (a submit, a
worker, the supervisor) does not ask. Reads only, and a look is a moment: folders may come and go.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from watcher.errors import SettingError

if TYPE_CHECKING:
    from watcher.settings.folders import Folders

_SETUP = "python demo_watcher.py --setup"


class UnusableRoot(SettingError):
    """Nothing can be read where the folders should be. Reaction: set WATCHER_ROOT to where the workers have theirs."""


def check(folders: Folders) -> None:
    """Raise UnusableRoot when none of the folders is there and why, or when a file lies in the place of one."""
    paths = (folders.tasks, folders.results, folders.dlq, folders.heartbeats, folders.triggers, folders.control)
    for path in paths:
        if os.path.lexists(path) and not path.is_dir() and _error_of(path) is None:
            raise UnusableRoot(f"{path} is no folder; move it away, or set WATCHER_ROOT to where the workers are")
    if any(path.is_dir() for path in paths):
        return
    error = _error_of(folders.root)
    if error is not None:
        raise UnusableRoot(f"WATCHER_ROOT={folders.root}: {refusal_words(error)}")
    if not folders.root.is_dir():
        raise UnusableRoot(f"WATCHER_ROOT={folders.root}: it is no folder; set it to where the workers are")
    if not os.access(folders.root, os.R_OK | os.X_OK):
        denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folders.root))
        raise UnusableRoot(f"WATCHER_ROOT={folders.root}: {refusal_words(denied)}")


def remarks(folders: Folders) -> list[str]:
    """What a person should know before an answer from these folders is believed; nothing where all is well."""
    paths = (folders.tasks, folders.results, folders.dlq, folders.heartbeats, folders.triggers, folders.control)
    there = [path for path in paths if path.is_dir()]
    if not there:
        text = f"{folders.root} has none of the folders of a watcher: is WATCHER_ROOT right? Make them with: {_SETUP}"
        return [text]
    return [
        f"{path} may not be read by {_me()}, so what lies there is not shown; it belongs to {_owner(path)}"
        for path in there
        if not os.access(path, os.R_OK | os.X_OK)
    ]


def refusal_words(error: OSError) -> str:
    """What the system refused, on what, why and what to do, for a person. Begins with the path, if there is one."""
    why = error.strerror or str(error)
    path = None if error.filename is None else Path(os.fsdecode(error.filename))
    if error.errno in _RIGHTS and path is not None:
        there = _without_right(path)
        cure = f"and you are {_me()}; run this as that user, or ask for the right"
        if there.lstat().st_uid == os.geteuid():
            cure = f"as you are; give yourself the right: chmod u+rwX {there}"
        return f"{there}: {why}: it belongs to {_owner(there)}, {cure}"
    head = why if path is None else f"{path}: {why}"
    cure = _CURES.get(error.errno or 0, "look at this path and at its file system, then try again")
    return f"{head}; {cure}"


_RIGHTS = frozenset({errno.EACCES, errno.EPERM})
_CURES = {
    errno.EACCES: "run this as the user of the workers, or ask for the right",
    errno.EPERM: "run this as the user of the workers, or ask for the right",
    errno.ENOENT: f"set WATCHER_ROOT to where the workers have their folders, or make new ones with: {_SETUP}",
    errno.ENOTDIR: "a file lies where a folder must be; move it away, or set WATCHER_ROOT to another place",
    errno.EEXIST: "a file lies where a folder must be; move it away, or set WATCHER_ROOT to another place",
    errno.EISDIR: "a folder lies where a file must be; move it away",
    errno.ELOOP: "a link lies where none may be; replace it by a real file or folder",
    errno.ENOSPC: "the disk is full; make room (watcher purge), then try again",
    errno.EDQUOT: "your quota is used up; make room (watcher purge), then try again",
    errno.EROFS: "it is mounted read-only; do this where it may be written",
    errno.EMFILE: "this process has too many files open; raise its limit (ulimit -n)",
    errno.ENFILE: "the machine has too many files open; end some programs, then try again",
    errno.ENOMEM: "the machine is out of memory; end some programs, then try again",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EIO: "the disk or its network fails; look at the kernel's log",
    errno.ESTALE: "the network file system lost it; mount it again",
}


def _error_of(path: Path) -> OSError | None:
    try:
        path.stat()
    except OSError as error:
        return error
    return None


def _without_right(path: Path) -> Path:
    """Where the right is missing: the folder, for a file that cannot be made, replaced or removed in it."""
    path = Path(os.path.abspath(path))
    there = next(one for one in (path, *path.parents) if os.path.lexists(one))
    return there if there.is_dir() or os.access(there.parent, os.W_OK | os.X_OK) else there.parent


def _owner(path: Path) -> str:
    """`root (mode 755)`."""
    try:
        info = path.lstat()
    except OSError:
        return "somebody else"
    return f"{_name(info.st_uid)} (mode {stat.S_IMODE(info.st_mode):o})"


def _me() -> str:
    return _name(os.geteuid())


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a container's user may have no name
        return f"user {uid}"
