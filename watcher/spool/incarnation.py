"""One process that serves a worker: its identity, its two locks, and the right to the worker's name.

`.lock` says that the process lives; nothing inherits it. `.busy` says that something it started lives; every command
inherits its descriptor. Both are needed: the kernel frees the first while a killed worker's command still works.
Locks are made first and removed last, so that a claim folder without locks never belongs to a living process.
Raises NameTaken when somebody else serves the name, LockLost when a lock file was deleted or replaced under us.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from watcher.atomicfile import Folder, read_regular, replace
from watcher.errors import LockLost, NameTaken, SettingError
from watcher.spool.places import CLAIMS

_NAME_LOCK = "name.lock"
_MAX_NOTES_BYTES = 1 << 16


class Incarnation:
    """This process's identity in a worker's inbox. `id` is 128 random bits; everything else is notes for people.

    `visit` is what a tool is doing here: it serves no name and needs none.
    """

    def __init__(self, inbox: Path, worker: str, instance: str | None, visit: str | None = None) -> None:
        self.id = secrets.token_hex(16)
        self.worker = worker
        self.instance = instance
        self._claims = inbox / CLAIMS
        self._claims.mkdir(parents=True, exist_ok=True)
        self._visit = visit
        self._name_fds = [] if visit else self._take_name()
        self._fds: dict[str, int] = {}
        self._locks: list[FileLock] = []
        try:
            for kind in ("lock", "busy"):
                self._locks.append(self._take_lock(kind))
            self._write_notes()
        except BaseException:
            self.close()
            raise

    @property
    def busy_fd(self) -> int:
        """The descriptor that every command must inherit."""
        return self._fds["busy"]

    def began_ns(self) -> int:
        """When it began, as the file system of the tasks stamps it (nanoseconds)."""
        return (self._claims / f"{self.id}.lock").stat().st_mtime_ns

    def others(self, began_before_ns: int | None = None) -> list[dict[str, Any]]:
        """The notes of the other living processes that serve this worker, if asked only those older than this."""
        out = []
        for notes in living_notes(self._claims):
            if notes.get("incarnation") == self.id:
                continue
            with contextlib.suppress(OSError):
                began = (self._claims / f"{notes.get('incarnation')}.lock").stat().st_mtime_ns
                if began_before_ns is None or began < began_before_ns:
                    out.append(notes)
        return out

    @property
    def busy_path(self) -> Path:
        return self._claims / f"{self.id}.busy"

    def check(self) -> None:
        """Raises LockLost when a lock file is no longer the one that is held."""
        for kind, fd in self._fds.items():
            path = self._claims / f"{self.id}.{kind}"
            try:
                there = path.stat()
            except FileNotFoundError:
                raise LockLost(f"the lock file {path} was deleted; stopping before somebody takes the tasks") from None
            here = os.fstat(fd)
            if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
                raise LockLost(f"the lock file {path} was replaced; stopping before somebody takes the tasks")

    def close(self) -> None:
        """Give up the locks and remove their files; the claim folder must be gone or left to rescuers by now."""
        try:
            keep = (self._claims / self.id).exists()
        except OSError:
            keep = True
        for kind in ("json", "busy", "lock"):
            if not keep:
                with contextlib.suppress(OSError):
                    (self._claims / f"{self.id}.{kind}").unlink()
        for lock in self._locks:
            lock.release(force=True)
        self._locks.clear()
        while self._name_fds:
            os.close(self._name_fds.pop())

    def _take_lock(self, kind: str) -> FileLock:
        path = self._claims / f"{self.id}.{kind}"
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))

        def keep(fd: int) -> None:
            self._fds[kind] = fd

        lock = open_lock(path, on_acquired=keep)
        lock.acquire(timeout=5)
        return lock

    def _take_name(self) -> list[int]:
        """One process per name, or several that all gave an instance: the first locks alone, the others together."""
        wanted = [(_NAME_LOCK, fcntl.LOCK_SH if self.instance else fcntl.LOCK_EX, "give each its own --instance")]
        if self.instance:
            wanted.append((f"instance-{self.instance}.lock", fcntl.LOCK_EX, "give this one another --instance"))
        held: list[int] = []
        for name, kind, cure in wanted:
            path = self._claims / name
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            held.append(fd)
            try:
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
            except OSError as error:
                for fd in held:
                    os.close(fd)
                if not isinstance(error, BlockingIOError):
                    raise SettingError(
                        f"TASK_DIR: cannot lock {path}: {error.strerror or error}; the file system must support flock"
                    ) from error
                holders = "; ".join(_describe(n) for n in living_notes(self._claims)) or "another process"
                raise NameTaken(f"worker {self.worker!r} is already served by {holders}: stop it, or {cure}") from None
        return held

    def _write_notes(self) -> None:
        notes = {
            "incarnation": self.id,
            "worker": self.worker,
            "instance": self.instance,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "visit": self._visit,
            "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        folder = Folder(self._claims)
        try:
            replace(folder, f"{self.id}.json", json.dumps(notes).encode() + b"\n", self.id)
        finally:
            folder.close()


def open_lock(path: Path, on_acquired: Any = None) -> FileLock:
    """A lock object with the options this project needs: shared by threads, never soft, the file left in place."""
    return FileLock(
        path, timeout=0, thread_local=False, fallback_to_soft=False, preserve_lock_file=True, on_acquired=on_acquired
    )


def try_lock(path: Path) -> FileLock | None:
    """Take a lock at once, or None when its owner lives."""
    lock = open_lock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def living_notes(claims: Path) -> list[dict[str, Any]]:
    """The notes of all incarnations whose process lives, for messages to people."""
    out = []
    for path in sorted(claims.glob("*.json")):
        lock_path = path.with_suffix(".lock")
        if not lock_path.exists():
            continue
        lock = try_lock(lock_path)
        if lock is not None:
            lock.release()
            continue
        with contextlib.suppress(OSError, ValueError):
            notes = json.loads(read_regular(path, _MAX_NOTES_BYTES))
            if isinstance(notes, dict) and not notes.get("visit"):
                out.append(notes)
    return out


def _describe(notes: dict[str, Any]) -> str:
    instance = f" as instance {notes['instance']}" if notes.get("instance") else ""
    return f"pid {notes.get('pid')} on {notes.get('host')}{instance} since {notes.get('started_at')}"
