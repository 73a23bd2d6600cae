"""Remember, through restarts, the files whose task is under way and the kept files whose task has ended.

One folder for each zone below `state/zones/`: `open/<task id>.json` is written, durably, before a file is claimed or
its task submitted, and removed when everything about it is finished; `handled.jsonl` has one line for each kept file
and is written anew when most lines are outdated. A half-written last line is what a crash leaves; it is dropped. The
zone's lock is held while it is served, so that two processes never serve one zone. Raises OSError as the system gives
it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from watcher.store.layout import LOCK
from watcher.store.state_locks import StateLock, take_state_lock
from watcher.system.files import Folder, replace, write_all

_HANDLED = "handled.jsonl"
#: Marks half-written files; the zone's lock sees to it that there is one writer.
_OWNER = "new"
OPEN = "open"
#: Outdated lines that are worth writing the journal anew.
_SPARE_LINES = 1000
_MAX_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Handled:
    """A file that stays where it is and needs no (other) task as long as it is this one.

    `chain` counts the tasks in a row during which the file changed; `task_id` is empty when there was none; `at` is
    the wall time at which it was taken, in seconds.
    """

    inode: int
    size: int
    mtime_ns: int
    sha256: str | None = None
    task_id: str = ""
    chain: int = 0
    at: float = 0.0


@dataclass(slots=True)
class Record:
    """A file whose task is under way. `path` is where it was dropped, `place` where the agent finds it (the same unless
    the zone takes hold of its files), `base` the zone's folder, `done` the folder for completed ones."""

    task_id: str
    zone: str
    worker: str
    base: str
    path: str
    place: str
    on_done: str
    done: str
    inode: int
    size: int
    mtime_ns: int
    sha256: str | None = None
    chain: int = 0
    at: float = 0.0
    is_submitted: bool = False
    fields: dict[str, Any] = field(default_factory=dict)


class ZoneMemory:
    """The memory of one zone, locked. Make it with `take`."""

    def __init__(self, root: Path, slug: str, lock: StateLock) -> None:
        self._lock = lock
        self.slug = slug
        self._folder = Folder(root / slug)
        self._open = Folder(root / slug / OPEN)
        self.handled: dict[str, Handled] = {}
        self._lines = 0
        self._real_folders: dict[str, str] = {}
        self._load()

    @classmethod
    def take(cls, root: Path, slug: str) -> ZoneMemory | None:
        """The memory, or None while another process serves this zone."""
        lock = take_state_lock(root / (slug + LOCK))
        if lock is None:
            return None
        try:
            return cls(root, slug, lock)
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        self._folder.close()
        self._open.close()
        self._lock.release()

    def write(self, record: Record, *, durable: bool = True) -> None:
        """Note a file whose task is under way; `durable` before anything else happens to the file."""
        raw = json.dumps(asdict(record)).encode()
        replace(self._open, f"{record.task_id}.json", raw, _OWNER, durable=durable)

    def forget(self, task_id: str) -> None:
        """Everything about this file is finished. Not flushed: to finish it again does nothing."""
        self._open.remove(f"{task_id}.json")

    def records(self) -> list[Record]:
        """What was under way when the last process of this zone ended; also removes what it left half written."""
        found = []
        for name in sorted(self._open.names()):
            if name.startswith("."):
                self._open.remove(name)
                continue
            with contextlib.suppress(ValueError, TypeError):  # not one of ours: leave it to whoever put it there
                found.append(self._real_record(Record(**json.loads(self._open.read(name, _MAX_BYTES)))))
        return found

    def _real_record(self, record: Record) -> Record:
        record.base = os.path.realpath(record.base)
        record.path, record.place = self._real_path(record.path), self._real_path(record.place)
        return record

    def _real_path(self, path: str) -> str:
        """As zones name it: an earlier version kept the links of a zone's own path."""
        folder, name = os.path.split(path)
        real = self._real_folders.get(folder)
        if real is None:
            real = self._real_folders[folder] = os.path.realpath(folder)
        return os.path.join(real, name)

    def remember(self, path: str, handled: Handled) -> None:
        """Note that this file has had its task, durably."""
        self.handled[path] = handled
        if self._lines > 2 * len(self.handled) + _SPARE_LINES:
            self._rewrite()
        else:
            self._append([_line(path, handled)])

    def prune(self, is_gone: Callable[[str], bool]) -> None:
        """Forget kept files that are no more, so that the journal does not grow for ever."""
        gone = [path for path in self.handled if is_gone(path)]
        for path in gone:
            del self.handled[path]
        # A line more says that it is gone: without it a restart would know the file again.
        self._append([json.dumps({"path": path, "gone": True}) for path in gone])

    def forget_file(self, path: str) -> None:
        """This kept file is no more: another one of its name is another drop, whatever it holds."""
        if path in self.handled:
            self.prune(lambda one: one == path)

    def _append(self, lines: list[str]) -> None:
        if not lines:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(_HANDLED, flags, 0o666, dir_fd=self._folder.fd)
        try:
            write_all(fd, ("\n".join(lines) + "\n").encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        if self._lines == 0:
            os.fsync(self._folder.fd)
        self._lines += len(lines)

    def _load(self) -> None:
        try:
            raw = self._folder.read(_HANDLED, _MAX_BYTES)
        except FileNotFoundError:
            return
        for line in raw.splitlines():
            self._lines += 1
            with contextlib.suppress(ValueError, TypeError, KeyError):  # torn by a crash: that file is looked at again
                value = json.loads(line)
                path = self._real_path(value.pop("path"))
                if value.pop("gone", False):
                    self.handled.pop(path, None)
                else:
                    self.handled[path] = Handled(**value)
        if raw and not raw.endswith(b"\n"):
            self._rewrite()

    def _rewrite(self) -> None:
        raw = "".join(_line(path, handled) + "\n" for path, handled in self.handled.items()).encode()
        replace(self._folder, _HANDLED, raw, _OWNER, durable=True)
        self._lines = len(self.handled)


def _line(path: str, handled: Handled) -> str:
    return json.dumps({"path": path, **asdict(handled)})
