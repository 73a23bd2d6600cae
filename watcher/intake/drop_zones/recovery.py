"""Take over a zone: find the files whose task was under way when its last process ended.

A record whose task has left a trace, anywhere, goes on as it is. One that was never submitted is submitted now if its
file is as it was, else dropped: then the file lies where it was dropped, or somebody took it away. A held file
without a record (the state folder was lost) is followed by its id, which is its folder's name, or put back where it
can be found again. What cannot be mended now is told and stays as it is.
Raises OSError when it cannot be seen what is there; nothing is forgotten then.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from watcher.errors import tells_nothing
from watcher.intake.drop_zones.file_memory import OPEN, Record, ZoneMemory
from watcher.intake.drop_zones.file_to_task import give_back, leave_house
from watcher.intake.drop_zones.outcomes import TaskEndings
from watcher.intake.drop_zones.zone_file import PROCESSING, Zone, done_folder
from watcher.system import no_links

log = logging.getLogger("watcher.zones")


def slugs_with_records(state: Path) -> list[str]:
    """The zones that left files under way, also such as are no longer configured."""
    found = []
    with contextlib.suppress(OSError):
        for name in no_links.names_in(state):
            with contextlib.suppress(OSError):
                if any(not one.startswith(".") for one in no_links.names_in(state / name / OPEN)):
                    found.append(name)
    return found


def adopt(memory: ZoneMemory, zone: Zone | None, endings: TaskEndings) -> list[Record]:
    """The records that are under way, mended; `zone` is None when it is no longer configured."""
    kept = []
    for record in memory.records():
        worker = endings.whereabouts(record.worker, record.task_id)
        if worker is not None:
            record.worker, record.is_submitted = worker, True
        if record.is_submitted or _is_as_it_was(record):
            kept.append(record)
        else:
            memory.forget(record.task_id)
    if zone is not None and zone.takes_hold:
        known = {record.task_id for record in kept}
        for base in zone.dirs:
            kept += _without_record(zone, base, known, memory, endings)
    return kept


def _is_as_it_was(record: Record) -> bool:
    if record.place != record.path:
        return no_links.is_there(record.place)
    try:
        info = no_links.look_at(record.path)
    except OSError as error:
        if tells_nothing(error):
            raise
        return False
    return (info.st_ino, info.st_size, info.st_mtime_ns) == (record.inode, record.size, record.mtime_ns)


def _without_record(zone: Zone, base: Path, known: set[str], memory: ZoneMemory, endings: TaskEndings) -> list[Record]:
    found: list[Record] = []
    for task_id in _names(base / PROCESSING):
        house = base / PROCESSING / task_id
        if task_id in known:
            continue
        leave_house(house / "nothing")
        for name in _names(house):
            record = _made_up(zone, base, task_id, house / name)
            worker = endings.whereabouts(zone.worker, task_id)
            try:
                if worker is not None:
                    record.worker, record.is_submitted = worker, True
                    memory.write(record)
                    found.append(record)
                    break  # what else lies there the agent has left; it goes with the file
                where = give_back(record)
            except OSError as error:
                log.error("%s: %s; it stays there", house / name, error, extra={"event": "zones.trouble"})  # noqa: TRY400
                continue
            log.warning("%s had no record; put back to %s", house / name, where, extra={"event": "zones.file_put_back"})
    return found


def _made_up(zone: Zone, base: Path, task_id: str, place: Path) -> Record:
    """A record of a file whose own is lost."""
    info = no_links.look_at(place)
    return Record(
        task_id=task_id, zone=zone.name, worker=zone.worker, base=str(base), path=str(base / place.name),
        place=str(place), on_done=zone.on_done, done=str(done_folder(zone, base)),
        inode=info.st_ino, size=info.st_size, mtime_ns=info.st_mtime_ns,
    )  # fmt: skip


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(no_links.names_in(folder))
    return []
