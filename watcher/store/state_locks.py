"""A lock on a file below STATE_DIR, whose folders are this user's own: it may go by its path (the filelock package).

Promise: held until `release` or the end of this process, seen by every process and by earlier versions (flock(2)); the
file stays. Inboxes and folders of notices, where another user can exchange a folder at any moment, have the locks of
`worker_locks`, which go by a folder that is held open.
Raises OSError when the file cannot be opened or locked, or is another one by the time that it is locked.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from filelock import FileLock, Timeout

from watcher.system import no_links

_ASK_AGAIN_SECONDS = 0.01


class StateLock:
    """Held; threads share it. `fd` may be written to."""

    __slots__ = ("_lock", "fd")

    def __init__(self, lock: FileLock, fd: int) -> None:
        self._lock = lock
        self.fd = fd

    def release(self) -> None:
        self._lock.release(force=True)
        self.fd = -1


def take_state_lock(path: Path, patience_seconds: float = 0.0) -> StateLock | None:
    """Take a lock, or None when its owner lives. Makes the folder and the file when they are not there."""
    no_links.make_folder(path.parent)
    no_links.refuse_link(path)
    opened: list[int] = []
    lock = FileLock(
        path,
        timeout=0,
        thread_local=False,
        fallback_to_soft=False,
        preserve_lock_file=True,
        on_acquired=opened.append,
    )
    try:
        lock.acquire(timeout=patience_seconds, poll_interval=_ASK_AGAIN_SECONDS)
    except Timeout:
        return None
    held = StateLock(lock, opened[0])
    try:
        is_it = os.path.samestat(no_links.look_at(path), os.fstat(held.fd))
    except BaseException:
        held.release()
        raise
    if not is_it:
        held.release()
        raise OSError(errno.ESTALE, "it was replaced while it was locked; try again", str(path))
    return held
