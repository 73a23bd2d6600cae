"""Own the right to be the listener: one lock for the folder of the notices, one for the database.

Both locks end with the process. The notes beside them say who holds them, for people.
Raises NameTaken when somebody else listens, LockLost when a lock file was deleted or replaced under us.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watcher.errors import LockLost, NameTaken, SettingError, tells_nothing
from watcher.store.layout import LISTENER_LOCK
from watcher.store.worker_locks import Lock, take_lock
from watcher.system import no_links
from watcher.system.files import Folder, read_regular, write_all

if TYPE_CHECKING:
    from watcher.store.state_locks import StateLock

_MAX_NOTES_BYTES = 1 << 16
#: A reader that asks whether the lock is held has it for a moment.
_ASKING_SECONDS = 0.3


class ListenerLock:
    """Held from the start until `close`. `state` is STATE_DIR; `folders` may be written to by others."""

    def __init__(self, *folders: Path, state: Path | None = None) -> None:
        self._held: list[tuple[Path, Lock | StateLock]] = []
        try:
            for folder in folders:
                self._take(folder, _take_beside_others)
            if state is not None:
                self._take(state, _take_in_state)
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Raises LockLost when a lock file is no longer the one that is held, OSError when that cannot be seen now."""
        for path, lock in self._held:
            try:
                is_it = os.path.samestat(no_links.look_at(path), os.fstat(lock.fd))
            except OSError as error:
                if tells_nothing(error):
                    raise
                is_it = False
            if not is_it:
                raise LockLost(
                    f"the lock file {path} was deleted or replaced; stopping before two listeners tell twice"
                )

    def close(self) -> None:
        while self._held:
            self._held.pop()[1].release()

    def _take(self, folder: Path, take: Callable[[Path], Lock | StateLock | None]) -> None:
        path = folder / LISTENER_LOCK
        try:
            lock = take(folder)
        except OSError as error:
            raise SettingError(f"cannot lock {path}: {error.strerror or error}; the folder must be writable") from error
        if lock is None:
            raise NameTaken(f"{folder} has a listener already: {_describe(notes(folder))}; stop it first")
        self._held.append((path, lock))
        about = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        # The lock file itself holds the notes: whoever may ask for the lock may read who has it.
        os.ftruncate(lock.fd, 0)
        write_all(lock.fd, json.dumps(about).encode() + b"\n")


def _take_beside_others(folder: Path) -> Lock | None:
    there = Folder(folder)
    try:
        return take_lock(there, LISTENER_LOCK, _ASKING_SECONDS)
    finally:
        there.close()


def _take_in_state(folder: Path) -> StateLock | None:
    from watcher.store.state_locks import take_state_lock  # filelock is for the listener, not for who reads its notes

    return take_state_lock(folder / LISTENER_LOCK, _ASKING_SECONDS)


def notes(folder: Path) -> dict[str, Any]:
    """Who holds, or held, the lock of this folder; nothing when that cannot be told."""
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(read_regular(folder / LISTENER_LOCK, _MAX_NOTES_BYTES))
        if isinstance(value, dict):
            return value
    return {}


def _describe(about: dict[str, Any]) -> str:
    return (
        f"pid {about.get('pid')} on {about.get('host')} since {about.get('started_at')}" if about else "another process"
    )
