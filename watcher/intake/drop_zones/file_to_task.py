"""Make a task of a settled file: read it, note it, claim it, submit. Once for each file, whatever happens.

The order, and no other: read and check; the record, durable; for a zone that takes hold of its files one rename into
`.processing/<task id>/` beside them, durable; submit; mark the record. A crash before the record leaves the file
where it was; after it, the next process finds the same id and the same task in the record, so that to submit again is
harmless. The id follows from the zone, the path and the file's identity: without the record it would be the same
again.

Nothing here follows a link, in a name or in a folder on the way, waits for a FIFO or reads more than the limit. Raises
WorkerTrouble when the machine is short of something: then the file, or its record, is as it was, and the same call may
work later.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from watcher.clock import Clock
from watcher.errors import InvalidTask, WorkerTrouble, is_trouble
from watcher.formats import strict_json
from watcher.formats.task import task_from_fields
from watcher.intake.drop_zones.arrivals import Arrival, FileSignature, is_being_written
from watcher.intake.drop_zones.file_memory import Handled, Record, ZoneMemory
from watcher.intake.drop_zones.zone_file import PROCESSING, Zone, done_folder, slug
from watcher.store.submitting import AlreadySubmitted, submit
from watcher.store.task_reader import has_writer
from watcher.system import no_links
from watcher.system.files import Folder, move_new, read_up_to

#: A kept file up to this size is known by its bytes; a larger one only by its name, inode, size and time.
HASHED_BYTES = 16 << 20
#: Copying programs set times after they have closed the file. The same bytes of the same file are no new drop when
#: their time was set within so many seconds after they were taken.
LATE_SECONDS = 10.0
#: Tasks in a row during which their own file changed: after so many the agent edits it, and would be paid for ever.
MAX_CHAIN = 5
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class Not(Enum):
    """Why there is no task for this file now."""

    SETTLED = "it changed, or somebody writes to it: look again"
    NEW = "its bytes are those that had their task"


@dataclass(frozen=True, slots=True)
class DropRefused:
    """This file will never be a task as it is. `reason` is a word, `detail` says what to do."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class DropBlocked:
    """The file stays where it is until a person has looked at `folder`; `detail` says what to do."""

    folder: Path
    detail: str


@dataclass(frozen=True, slots=True)
class _Contents:
    text: str | None
    sha256: str | None


class Claimer:
    """Makes tasks of files. `timeout` is what a task may take, in seconds, when its zone says nothing else."""

    def __init__(self, tasks: Path, max_task_bytes: int, timeout: float, clock: Clock) -> None:
        self._tasks = tasks
        self._clock = clock
        self._max_task_bytes = max_task_bytes
        self.timeout = timeout

    def take(self, arrival: Arrival, memory: ZoneMemory) -> Record | DropRefused | DropBlocked | Not:
        """Note the file and take hold of it; the record that comes back is to be given to `submit`."""
        zone, path = arrival.zone, arrival.path
        with _trouble(f"read {path}"):
            found = self._read(arrival)
        if not isinstance(found, _Contents):
            return found
        handled = memory.handled.get(path)
        if handled is not None and _is_late_change(handled, arrival.signature, found):
            return Not.NEW
        chain = handled.chain if handled is not None else 0
        if chain >= MAX_CHAIN:
            text = f"it changed during each of its last {chain} tasks, as if the agent edits it; use on_done: move"
            return DropRefused("changes_itself", f"{text}, or events: [created]; its next change is a new drop")
        record = self._record(arrival, found, chain)
        refusal = self._describe(record, arrival, found)
        if refusal is not None:
            return refusal
        with _trouble(f"note {path}"):
            memory.write(record)
        return self._hold(record, memory) if zone.takes_hold else record

    def submit(self, record: Record, memory: ZoneMemory) -> DropRefused | None:
        """Put the task in, durably; once more is harmless."""
        try:
            with _trouble(f"submit {record.task_id}"), contextlib.suppress(AlreadySubmitted):
                submit(self._tasks, record.worker, {"task_id": record.task_id, **record.fields})
        except InvalidTask as error:
            return DropRefused(error.reason, error.detail)
        record.is_submitted = True
        with _trouble(f"note {record.path}"):
            memory.write(record, durable=False)
        return None

    def _read(self, arrival: Arrival) -> _Contents | DropRefused | Not:
        zone, path = arrival.zone, arrival.path
        try:
            fd = no_links.open_file(path, _FLAGS)
        except OSError as error:
            return _not_openable(path, error)
        try:
            info = os.fstat(fd)
            if FileSignature.of(info) != arrival.signature:
                return Not.SETTLED
            refusal = _unfit(info, self._limit(zone))
            if refusal is not None:
                return refusal
            if has_writer(fd):
                return Not.SETTLED
            wants_text = zone.prompt.uses("text")
            raw = read_up_to(fd, info.st_size + 1) if wants_text or _is_hashed(zone, info) else None
            if FileSignature.of(os.fstat(fd)) != arrival.signature:
                return Not.SETTLED
        except OSError as error:
            if is_trouble(error):
                raise
            return DropRefused("unreadable", f"{error.strerror or error}")
        finally:
            os.close(fd)
        return _contents(raw, wants_text)

    def _limit(self, zone: Zone) -> int | None:
        text_limit = self._max_task_bytes if zone.prompt.uses("text") else None
        limits = [limit for limit in (zone.max_bytes, text_limit) if limit is not None]
        return min(limits) if limits else None

    def _record(self, arrival: Arrival, found: _Contents, chain: int) -> Record:
        zone, path, state = arrival.zone, arrival.path, arrival.signature
        # A file that comes back to a zone that took hold of it is a new drop; its rename has changed the ctime.
        again = state.ctime_ns if zone.takes_hold else 0
        identity = [zone.name, path, state.inode, state.size, state.mtime_ns, found.sha256, again]
        mark = hashlib.sha256(repr(identity).encode("utf-8", "surrogateescape")).hexdigest()[:12]
        name = os.path.basename(path)
        task_id = f"{zone.slug}-{slug(Path(name).stem, 50)}-{mark}"
        place = str(arrival.base / PROCESSING / task_id / name) if zone.takes_hold else path
        return Record(
            task_id=task_id, zone=zone.name, worker=zone.worker, base=str(arrival.base), path=path, place=place,
            on_done=zone.on_done, done=str(done_folder(zone, arrival.base)),
            inode=state.inode, size=state.size, mtime_ns=state.mtime_ns, sha256=found.sha256, chain=chain,
            at=self._clock.wall(),
        )  # fmt: skip

    def _describe(self, record: Record, arrival: Arrival, found: _Contents) -> DropRefused | None:
        """Fill in the task's fields; refuse what its worker would refuse."""
        zone = arrival.zone
        name = os.path.basename(record.path)
        values = {
            "path": record.place, "name": name, "stem": Path(name).stem, "text": found.text or "",
            "relative": os.path.relpath(record.path, record.base), "zone": zone.name,
        }  # fmt: skip
        drop = {"zone": zone.name, "path": record.path}
        record.fields = {
            "description": zone.prompt.fill(values),
            "timeout": self.timeout,
            **zone.fields,
            "metadata": {**(zone.fields.get("metadata") or {}), "drop": drop},
        }
        whole: dict[str, Any] = {"task_id": record.task_id, "worker": record.worker, **record.fields}
        try:
            data = strict_json.dumps(whole, errors="strict")
            task_from_fields(strict_json.loads(data), record.task_id, record.worker)
        except InvalidTask as error:
            return DropRefused(error.reason, error.detail)
        except (TypeError, ValueError):
            return DropRefused("bad_name", "its name or path is not UTF-8 text; rename it")
        if len(data) > self._max_task_bytes:
            text = f"its task would have {len(data)} bytes; MAX_TASK_BYTES allows {self._max_task_bytes}"
            return DropRefused("too_large", f"{text}; let the prompt name {{path}} instead of {{text}}")
        return None

    def _hold(self, record: Record, memory: ZoneMemory) -> Record | DropRefused | DropBlocked | Not:
        """One rename into the zone's own folder; back again when what came was not what had been read."""
        try:
            if not self._rename(record, memory):
                memory.forget(record.task_id)
                return Not.SETTLED
        except OSError as error:
            with contextlib.suppress(OSError):  # what is left then, file or record, is mended at the next start
                if no_links.is_there(record.place):
                    give_back(record)
                leave_house(Path(record.place))
                memory.forget(record.task_id)
            if is_trouble(error):
                raise WorkerTrouble(f"claim {record.path}", error) from error
            if isinstance(error, no_links.Refused):
                return DropBlocked(Path(record.place).parent.parent, f"no file is taken: {error.strerror}")
            text = f"cannot be moved to {record.place}: {error.strerror or error}"
            return DropRefused("not_claimable", f"{text}; make its folder writable, or use on_done: keep")
        return record

    def _rename(self, record: Record, memory: ZoneMemory) -> bool:
        try:
            moved = _rename_durably(Path(record.path), Path(record.place))
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            leave_house(Path(record.place))
            # Another file system is mounted below the zone's folder: keep the file on it.
            record.place = str(Path(record.path).parent / PROCESSING / record.task_id / Path(record.path).name)
            record.fields["description"] = record.fields["description"].replace(
                str(Path(record.base) / PROCESSING / record.task_id), str(Path(record.place).parent)
            )
            memory.write(record)
            moved = _rename_durably(Path(record.path), Path(record.place))
        if not moved:
            leave_house(Path(record.place))
            return False
        info = no_links.look_at(record.place)
        is_it = (info.st_ino, info.st_size, info.st_mtime_ns) == (record.inode, record.size, record.mtime_ns)
        if is_it and not is_being_written(record.place):
            return True
        give_back(record)
        return False


def give_back(record: Record) -> str:
    """Put a held file where it was dropped, or beside its newer namesake; returns where it is now."""
    place, path = Path(record.place), Path(record.path)
    number = 1
    target = path
    while not _rename_durably(place, target):
        if not no_links.is_there(place):
            break
        number += 1
        target = path.with_name(f"{path.stem}~{number}{path.suffix}")
    leave_house(place)
    return str(target)


def leave_house(place: Path) -> None:
    """Remove the folder of a held file, and the one above, when nothing is in them."""
    for folder in (place.parent, place.parent.parent):
        with contextlib.suppress(OSError):
            no_links.remove_folder(folder)


def _rename_durably(source: Path, target: Path) -> bool:
    """Returns False when the source is gone or the target is taken."""
    try:
        there = Folder(source.parent, create=False)
    except no_links.Refused:
        return False  # a folder on the way was exchanged for a link: the file is somewhere else now
    try:
        if target.parent.parent.name == PROCESSING:
            Folder(target.parent.parent, private=True).close()
        here = Folder(target.parent)
        try:
            done = move_new(there, source.name, here, target.name)
            for fd in (here.fd, there.fd) if done else ():
                os.fsync(fd)
            return done
        except FileNotFoundError:
            return False
        finally:
            here.close()
    finally:
        there.close()


def _is_late_change(handled: Handled, state: FileSignature, found: _Contents) -> bool:
    """A writer leaves both times equal; different ones were set by hand."""
    is_same = handled.inode == state.inode and found.sha256 is not None and handled.sha256 == found.sha256
    return is_same and state.mtime_ns != state.ctime_ns and state.ctime_ns / 1e9 <= handled.at + LATE_SECONDS


def _contents(raw: bytes | None, wants_text: bool) -> _Contents | DropRefused:
    sha256 = None if raw is None else hashlib.sha256(raw).hexdigest()
    if raw is None or not wants_text:
        return _Contents(None, sha256)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return DropRefused("not_text", f"not UTF-8 text at byte {error.start}; let the prompt name {{path}} instead")
    if "\0" in text:
        return DropRefused("not_text", "it holds a NUL byte; let the prompt name {path} instead of {text}")
    return _Contents(text, sha256)


def _is_hashed(zone: Zone, info: os.stat_result) -> bool:
    return not zone.takes_hold and info.st_size <= HASHED_BYTES


def _unfit(info: os.stat_result, limit: int | None) -> DropRefused | None:
    if not stat.S_ISREG(info.st_mode):
        return DropRefused("not_regular", "a drop must be a regular file")
    if info.st_nlink > 1:
        return DropRefused("hard_link", f"the file has {info.st_nlink} names (hard links); copy it instead")
    if limit is not None and info.st_size > limit:
        return DropRefused(
            "too_large", f"the file has {info.st_size} bytes; {limit} are allowed (max_bytes, MAX_TASK_BYTES)"
        )
    return None


def _not_openable(path: str, error: OSError) -> DropRefused | Not:
    if is_trouble(error):
        raise error
    if error.errno == errno.ENOENT or not no_links.is_there(path):
        return Not.SETTLED  # also when a folder above it has become a link: the file is somewhere else now
    if error.errno in (errno.ELOOP, errno.EMLINK):
        return DropRefused("not_regular", "a symbolic link is not followed; copy the file instead")
    if error.errno in (errno.ENXIO, errno.ENODEV):
        return DropRefused("not_regular", "a drop must be a regular file")
    return DropRefused("unreadable", f"cannot be opened ({error.strerror or error}); make it readable")


@contextlib.contextmanager
def _trouble(action: str) -> Any:
    """What the machine is short of is nobody's fault but the machine's."""
    try:
        yield
    except OSError as error:
        raise WorkerTrouble(action, error) from error
