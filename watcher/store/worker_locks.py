"""Own a process's right to serve a worker: its identity, its two locks, and the lock of the worker's name.

`.lock` says that the process lives; nothing inherits it. `.busy` says that something it started lives; every command
inherits its descriptor. Both are needed: the kernel frees the first while a killed worker's command still works.
Locks are made first and removed last, so that a claim folder without locks never belongs to a living process.
Everything is done in the folder of the claims as it was opened: who may write to the inbox can exchange that folder
at any moment, and a lock made behind a link would be a file made somewhere else.
Raises NameTaken when somebody else serves the name, LockLost when a lock file was deleted or replaced under us.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from watcher.errors import LockLost, NameTaken, SettingError
from watcher.store.layout import BUSY, CLAIMS, LOCK, NAME_LOCK, NOTES, instance_lock
from watcher.system.files import Folder, replace

_MAX_NOTES_BYTES = 1 << 16
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
#: A reader that asks whether a lock is held has it for a moment.
_ASKING_SECONDS = 5.0
_ASK_AGAIN_SECONDS = 0.01


class Lock:
    """A lock on one file, until `release` or the end of this process; threads share it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def release(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Incarnation:
    """This process's identity in a worker's inbox. `id` is 128 random bits; everything else is notes for people.

    `visit` is what a tool is doing here: it serves no name and needs none.
    """

    def __init__(self, inbox: Path, worker: str, instance: str | None, visit: str | None = None) -> None:
        self.id = secrets.token_hex(16)
        self.worker = worker
        self.instance = instance
        self._visit = visit
        self._locks: dict[str, Lock] = {}
        self._name_locks: list[Lock] = []
        try:
            # A tool may come as another user than the worker, whose folder it is; the worker keeps tasks in its own.
            self._claims = Folder(inbox / CLAIMS, private=visit is None)
        except OSError as error:
            raise SettingError(f"TASK_DIR: cannot use {inbox / CLAIMS}: {error.strerror or error}") from error
        try:
            if visit is None:
                self._take_name()
            for kind in (LOCK, BUSY):
                self._locks[kind] = self._take_lock(kind)
            self._write_notes()
        except BaseException:
            self.close()
            raise

    @property
    def busy_fd(self) -> int:
        """The descriptor that every command must inherit."""
        return self._locks[BUSY].fd

    def began_ns(self) -> int:
        """When it began, as the file system of the tasks stamps it (nanoseconds)."""
        return self._began_ns(self.id)

    def others(self, began_before_ns: int | None = None) -> list[dict[str, Any]]:
        """The notes of the other living processes that serve this worker, if asked only those older than this."""
        out = []
        for notes in living_notes(self._claims):
            if notes.get("incarnation") == self.id:
                continue
            with contextlib.suppress(OSError):
                began = self._began_ns(str(notes.get("incarnation")))
                if began_before_ns is None or began < began_before_ns:
                    out.append(notes)
        return out

    def _began_ns(self, incarnation: str) -> int:
        return os.stat(incarnation + LOCK, dir_fd=self._claims.fd, follow_symlinks=False).st_mtime_ns

    @property
    def busy_path(self) -> Path:
        return self._claims.path / (self.id + BUSY)

    def check(self) -> None:
        """Raises LockLost when a lock file is no longer the one that is held, OSError when that cannot be seen now."""
        if not self._claims.is_current():
            text = f"the folder {self._claims.path} was deleted or replaced; stopping before somebody takes the tasks"
            raise LockLost(text)
        for kind, lock in self._locks.items():
            path = self._claims.path / (self.id + kind)
            try:
                there = os.stat(path.name, dir_fd=self._claims.fd, follow_symlinks=False)
            except FileNotFoundError:
                raise LockLost(f"the lock file {path} was deleted; stopping before somebody takes the tasks") from None
            here = os.fstat(lock.fd)
            if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
                raise LockLost(f"the lock file {path} was replaced; stopping before somebody takes the tasks")

    def close(self) -> None:
        """Give up the locks and remove their files; the claim folder must be gone or left to rescuers by now."""
        with contextlib.suppress(OSError):
            if self._claims.fd >= 0 and not self._claims.has(self.id):
                for kind in (NOTES, BUSY, LOCK):
                    self._claims.remove(self.id + kind)
        for lock in (*self._locks.values(), *self._name_locks):
            lock.release()
        self._locks.clear()
        self._name_locks.clear()
        self._claims.close()

    def _take_lock(self, kind: str) -> Lock:
        self._claims.write_new(self.id + kind, b"")
        lock = take_lock(self._claims, self.id + kind, _ASKING_SECONDS)
        if lock is None:
            raise LockLost(f"somebody holds the new lock file {self._claims.path / self.id}{kind}; starting anew")
        return lock

    def _take_name(self) -> None:
        """One process per name, or several that all gave an instance: the first locks alone, the others together."""
        wanted = [(NAME_LOCK, fcntl.LOCK_SH if self.instance else fcntl.LOCK_EX, "give each its own --instance")]
        if self.instance:
            wanted.append((instance_lock(self.instance), fcntl.LOCK_EX, "give this one another --instance"))
        for name, kind, cure in wanted:
            lock = Lock(os.open(name, _LOCK_FLAGS, 0o644, dir_fd=self._claims.fd))
            self._name_locks.append(lock)
            try:
                fcntl.flock(lock.fd, kind | fcntl.LOCK_NB)
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    text = f"cannot lock {self._claims.path / name}: {error.strerror or error}"
                    raise SettingError(f"TASK_DIR: {text}; the file system must support flock") from error
                holders = "; ".join(_describe(n) for n in living_notes(self._claims)) or "another process"
                raise NameTaken(f"worker {self.worker!r} is already served by {holders}: stop it, or {cure}") from None

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
        replace(self._claims, self.id + NOTES, json.dumps(notes).encode() + b"\n", self.id)


def take_lock(folder: Folder, name: str, patience_seconds: float = 0.0) -> Lock | None:
    """Take a lock, or None when its owner lives. Makes the file when it is not there. Raises OSError."""
    lock = Lock(os.open(name, _LOCK_FLAGS, 0o644, dir_fd=folder.fd))
    until = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except OSError as error:
            is_held = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
            if not is_held or time.monotonic() >= until:
                lock.release()
                if is_held:
                    return None
                raise
        time.sleep(_ASK_AGAIN_SECONDS)


def living_notes(claims: Folder) -> list[dict[str, Any]]:
    """The notes of all incarnations whose process lives, for messages to people."""
    out = []
    names = set(claims.names())
    for name in sorted(name for name in names if name.endswith(NOTES)):
        lock_name = name.removesuffix(NOTES) + LOCK
        if lock_name not in names:
            continue
        with contextlib.suppress(OSError):
            lock = take_lock(claims, lock_name)
            if lock is not None:
                lock.release()
                continue
        with contextlib.suppress(OSError, ValueError):
            notes = json.loads(claims.read(name, _MAX_NOTES_BYTES))
            if isinstance(notes, dict) and not notes.get("visit"):
                out.append(notes)
    return out


def _describe(notes: dict[str, Any]) -> str:
    instance = f" as instance {notes['instance']}" if notes.get("instance") else ""
    return f"pid {notes.get('pid')} on {notes.get('host')}{instance} since {notes.get('started_at')}"
