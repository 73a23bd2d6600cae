"""Move or mark a file when its task has ended, or when the file cannot become a task.

Completed: kept, moved or deleted, as its zone says. Anything else: a file that its zone had taken hold of goes to
`.aside/` of the zone's folder with a `.reason.json` beside it; a kept one stays. What an agent left beside a held
file is never deleted. Every step may be done again after a crash: what is done already is not there any more. Raises
OSError as the system gives it; then the same call finishes the rest later.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import secrets
import shutil
import stat
import time
from pathlib import Path
from typing import Any

from watcher.clock import rfc3339
from watcher.intake.drop_zones.arrivals import FileSignature
from watcher.intake.drop_zones.file_memory import Handled, Record, ZoneMemory
from watcher.intake.drop_zones.file_to_task import DropRefused, leave_house
from watcher.intake.drop_zones.outcomes import TaskEnding
from watcher.intake.drop_zones.zone_file import ASIDE, DONE
from watcher.store.abandoned_files import remove_abandoned
from watcher.system import no_links
from watcher.system.files import Folder, move_new, replace

_SUFFIX_LIMIT = 100_000

log = logging.getLogger("watcher.zones")


def finish(record: Record, ending: TaskEnding, memory: ZoneMemory) -> str:
    """Do with the file what its zone says, then forget its record. Returns where the file is now; empty: nowhere."""
    where = record.path
    if record.on_done == "keep":
        memory.remember(record.path, _handled(record))
    elif ending.is_completed:
        where = _done(record)
    elif _is_there(record.place):
        where = str(_put_aside(Path(record.place), _relative(record), Path(record.base), _told(record, ending)))
    if record.on_done != "keep":
        _save_the_rest(record)
        leave_house(Path(record.place))
    memory.forget(record.task_id)
    return where


def refuse(
    path: str, base: Path, zone: str, signature: FileSignature, why: DropRefused, memory: ZoneMemory
) -> str | None:
    """Put a file aside that cannot be a task; returns where it is now. Where it cannot be moved it stays and is known
    from now on. None: another file was there by now, which was not touched."""
    source = Path(path)
    relative = Path(os.path.relpath(path, base))
    told = {"reason": why.reason, "detail": why.detail, "zone": zone, "path": _text(path)}
    try:
        if FileSignature.of(no_links.look_at(path)) != signature:
            return None
        where = _put_aside(source, relative, base, told)
        if not _is_same(no_links.look_at(where), signature):  # exchanged between the two looks: that was not refused
            _move_numbered(where, source.parent, source.name)
            no_links.remove(where.with_name(_reason_name(where.name)))
            return None
        return str(where)
    except FileNotFoundError:
        return None
    except OSError as error:
        if no_links.is_gone(path):
            return None  # a folder on the way was exchanged for a link: the file is somewhere else now
        told = {"event": "zones.trouble", "zone": zone, "file": path}
        log.warning("%s stays where it is: %s: %s", path, error.filename, error.strerror, extra=told)
        memory.remember(path, Handled(signature.inode, signature.size, signature.mtime_ns))
        return path


def _is_same(info: os.stat_result, signature: FileSignature) -> bool:
    """Whether this is still the file, whose ctime a rename has changed."""
    return (info.st_ino, info.st_size, info.st_mtime_ns) == (signature.inode, signature.size, signature.mtime_ns)


def _handled(record: Record) -> Handled:
    """The identity that had its task. A file that changed meanwhile differs from it and is a new drop."""
    chain = 0
    with contextlib.suppress(FileNotFoundError, no_links.Refused):
        info = no_links.look_at(record.path)
        if (info.st_ino, info.st_size, info.st_mtime_ns) != (record.inode, record.size, record.mtime_ns):
            chain = record.chain + 1
    return Handled(record.inode, record.size, record.mtime_ns, record.sha256, record.task_id, chain, record.at)


def _done(record: Record) -> str:
    place = Path(record.place)
    if record.on_done == "delete":
        with contextlib.suppress(FileNotFoundError):
            no_links.remove(place)
        return ""
    if not _is_there(place):
        return ""
    relative = _relative(record)
    return str(_move_numbered(place, Path(record.done) / relative.parent, relative.name))


def _save_the_rest(record: Record) -> None:
    """Files that the agent wrote beside the one it was given: to the completed ones."""
    house = Path(record.place).parent
    target = Path(record.done) if record.on_done == "move" else Path(record.base) / DONE
    with contextlib.suppress(FileNotFoundError):
        for name in _names(house):
            try:
                _move_numbered(house / name, target, name)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EISDIR):
                    raise
                _move_numbered(house / name, house.parent.parent / DONE, name)


def _put_aside(source: Path, relative: Path, base: Path, told: dict[str, Any]) -> Path:
    try:
        return _aside_in(source, base / ASIDE / relative.parent, relative.name, told)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return _aside_in(source, source.parent / ASIDE, relative.name, told)


def _aside_in(source: Path, folder: Path, name: str, told: dict[str, Any]) -> Path:
    """The reason is written before the move: a crash between leaves it to be written over, never a file without one."""
    target = _open(folder)
    try:
        for number in range(1, _SUFFIX_LIMIT):
            final = _numbered(name, number)
            if target.has(final):
                continue
            at = {"file": _text(final), "at": rfc3339(time.time())}
            cure = {
                "what_to_do": "mend it, or what the detail says, and move it back into the zone: that is a new drop"
            }
            reason = json.dumps({**at, **told, **cure}, indent=2).encode()
            replace(target, _reason_name(final), reason, secrets.token_hex(8), durable=True)
            if _move_into(source, target, final):
                return folder / final
        raise OSError(errno.EEXIST, f"{_SUFFIX_LIMIT} files of that name; clear them away", str(folder / name))
    finally:
        target.close()


def _move_numbered(source: Path, folder: Path, name: str) -> Path:
    target = _open(folder)
    try:
        try:
            return folder / _take_a_name(source, target, name)
        except OSError as error:
            if error.errno != errno.EXDEV or not stat.S_ISREG(no_links.look_at(source).st_mode):
                raise
        copy = _copy_into(source, target)
        final = folder / _take_a_name(copy, target, name)
        # A crash before this line leaves both, and the next try makes a second copy: rather two than none.
        with contextlib.suppress(FileNotFoundError):
            no_links.remove(source)
        return final
    finally:
        target.close()


def _take_a_name(source: Path, target: Folder, name: str) -> str:
    for number in range(1, _SUFFIX_LIMIT):
        final = _numbered(name, number)
        if _move_into(source, target, final):
            return final
    raise OSError(errno.EEXIST, f"{_SUFFIX_LIMIT} files of that name; clear them away", str(target.path / name))


def _copy_into(source: Path, target: Folder) -> Path:
    """A whole, durable copy under a hidden name: the other file system takes no rename."""
    remove_abandoned(target, time.time())
    name = f".{secrets.token_hex(8)}.tmp"
    target.write_new(name, b"")
    try:
        with (
            os.fdopen(no_links.open_file(source, os.O_RDONLY), "rb") as reader,
            os.fdopen(os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=target.fd), "wb") as writer,
        ):
            shutil.copyfileobj(reader, writer)
            writer.flush()
            info = os.fstat(reader.fileno())
            os.fchmod(writer.fileno(), stat.S_IMODE(info.st_mode))
            os.utime(writer.fileno(), ns=(info.st_atime_ns, info.st_mtime_ns))
            os.fsync(writer.fileno())
    except OSError:
        target.remove(name)
        raise
    return target.path / name


def _open(folder: Path) -> Folder:
    """A folder that takes files; below one of the zone's hidden folders only when that is ours."""
    for above in (folder, *folder.parents):
        if above.name in (DONE, ASIDE):
            Folder(above, private=True).close()
    return Folder(folder)


def _is_there(path: str | Path) -> bool:
    """Raises OSError when that cannot be told: a link on the way says nothing about the file."""
    try:
        no_links.look_at(path)
    except FileNotFoundError:
        return False
    return True


def _names(house: Path) -> list[str]:
    folder = Folder(house, create=False)
    try:
        return folder.names()
    finally:
        folder.close()


def _move_into(source: Path, target: Folder, name: str) -> bool:
    origin = Folder(source.parent, create=False)
    try:
        if not move_new(origin, source.name, target, name):
            return False
        os.fsync(target.fd)
        return True
    finally:
        origin.close()


def _numbered(name: str, number: int) -> str:
    if number == 1:
        return name
    stem, dot, ending = name.rpartition(".")
    return f"{stem}~{number}.{ending}" if dot and stem else f"{name}~{number}"


def _reason_name(name: str) -> str:
    """A file's name may be as long as the system allows; its reason's must be, too."""
    raw = os.fsencode(name)
    return f"{os.fsdecode(raw) if len(raw) <= 220 else os.fsdecode(raw[:220])}.reason.json"


def _relative(record: Record) -> Path:
    return Path(os.path.relpath(record.path, record.base))


def _told(record: Record, ending: TaskEnding) -> dict[str, Any]:
    return {
        "reason": ending.reason or ending.status,
        "detail": ending.detail,
        "zone": record.zone,
        "path": _text(record.path),
        "task_id": record.task_id,
        "worker": record.worker,
        "status": ending.status,
        "result": ending.path,
    }


def _text(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
