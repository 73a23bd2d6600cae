"""Store outcomes so that nothing is lost at any point, many at a time.

The order, and no other: temporary files beside their targets; contents durable; dead letters and then results shown
without replacing; names durable; only then the claims are removed. A crash before the last step leaves a claim whose
result exists, which a rescuer finishes without running anything.

Runs on the committing thread and touches only folders, never the bookkeeping of the loop. Errors of the machine leave
the claim and everything in memory as they were, to be tried again with new temporary files. On a full disk an outcome
gives up its own whole outputs first: the result counts for more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from dataclasses import dataclass

from watcher.formats import strict_json
from watcher.store.folders import WorkerFolders, original_name
from watcher.store.queue_interface import Settlement
from watcher.system.files import FEW, Folder, Sync, fsync_file, move, move_new, publish_new
from watcher.telemetry.events import Event, OutcomeDiscarded

_SUFFIX_LIMIT = 10_000
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(slots=True)
class _SettlingWork:
    """One settlement on its way; `event` is set when it has arrived."""

    number: int
    settlement: Settlement
    event: Event | None = None


class Settler:
    """Settles batches for one set of places."""

    def __init__(self, places: WorkerFolders) -> None:
        self._places = places
        p = places
        self._sync = Sync((p.results, p.results_tmp, p.dlq, p.dlq_tmp, p.output, p.originals, p.mine))
        self._count = 0

    def settle(self, batch: list[Settlement]) -> tuple[list[Event | None], OSError | None]:
        """Store a batch. Returns an event for each that is done (None: try again) and the error that stopped some."""
        works = []
        error: OSError | None = None
        for settlement in batch:
            self._count += 1
            works.append(_SettlingWork(self._count, settlement))
        try:
            ours = [work for work in works if self._still_ours(work)]
            few = sum(_count(work.settlement) for work in ours) <= FEW
            written = {folder.fd: folder for work in ours for folder in self._write(work, durable=few)}
            if not few:
                self._sync.flush_files(written.values())
            changed = {folder.fd: folder for work in ours for folder in self._show(work)}
            self._sync.flush_folders(changed.values())
            for work in ours:
                # The dead letter is safe by now, so a crash before this line shows it and keeps the file.
                if work.settlement.keep_original:
                    _keep_original(self._places, work.settlement)
                else:
                    self._places.mine.remove(work.settlement.handle)
                work.event = work.event or work.settlement.event
        except OSError as caught:
            error = caught
            undone = [work for work in works if work.event is None]
            for work in undone:
                self._clean(work)
            if caught.errno in _NO_ROOM and any(self._make_lighter(work.settlement) for work in undone):
                events, error = self.settle([work.settlement for work in undone])
                for work, event in zip(undone, events, strict=True):
                    work.event = event
        return [work.event for work in works], error

    def _still_ours(self, work: _SettlingWork) -> bool:
        if self._places.mine.has(work.settlement.handle):
            return True
        name = f"{work.settlement.task_id}.{self._places.incarnation}.lost"
        if os.fstat(self._places.mine.fd).st_nlink:
            text = "the claim was taken by somebody else, who runs the task again"
        else:
            text = "the inbox was removed, and the task's file with it: nobody runs it again; submit it anew"
        if work.settlement.result is not None:
            with contextlib.suppress(FileExistsError):
                self._places.output.write_new(name, work.settlement.result)
            text += f"; this outcome is kept in {self._places.output.path / name}"
        work.event = OutcomeDiscarded(work.settlement.task_id, text)
        return False

    def _write(self, work: _SettlingWork, durable: bool) -> list[Folder]:
        """Temporary files and whole outputs; returns the folders that have something new."""
        p, settlement = self._places, work.settlement
        written: list[Folder] = []
        for stream, name in settlement.kept.items():
            if p.mine.has(name):  # else an earlier try moved it
                target = f"{settlement.task_id}.{stream}"
                _move_across(p.mine, name, p.output, target)
                if durable:
                    fsync_file(p.output, target)
                written.append(p.output)
        temporary = f"{work.number}.{p.incarnation}"
        for folder, data in ((p.dlq_tmp, settlement.dead_letter), (p.results_tmp, settlement.result)):
            if data is not None:
                folder.write_new(temporary, data, durable=durable)
                written.append(folder)
        return written

    def _show(self, work: _SettlingWork) -> list[Folder]:
        """Give the final names; returns the folders whose names changed."""
        p, settlement = self._places, work.settlement
        temporary = f"{work.number}.{p.incarnation}"
        changed: list[Folder] = []
        if settlement.kept:
            changed.append(p.output)
        if settlement.dead_letter is not None:
            _publish_numbered(p.dlq_tmp, temporary, p.dlq, settlement.task_id)
            changed.append(p.dlq)
        if settlement.result is not None:
            if not publish_new(p.results_tmp, temporary, p.results, f"{settlement.task_id}.json"):
                p.results_tmp.remove(temporary)
                text = "a result of this id was published meanwhile; the first one stands"
                if not self._is_same_result(settlement):
                    work.event = OutcomeDiscarded(settlement.task_id, text)
            changed.append(p.results)
        return changed

    def _is_same_result(self, settlement: Settlement) -> bool:
        """Whether the result that is there is this very one: an earlier try of ours got that far."""
        there = self._places.results.read(f"{settlement.task_id}.json", 1 << 28)
        return there == settlement.result

    def _make_lighter(self, settlement: Settlement) -> bool:
        """Give up the whole outputs of an outcome for which the disk has no room; returns whether it had any.

        Not once its result is there, which tells where they are.
        """
        p = self._places
        if settlement.lighter is None or not p.mine.has(settlement.handle):
            return False
        if p.results.has(f"{settlement.task_id}.json"):
            return False
        for stream, name in settlement.kept.items():
            p.mine.remove(name)
            p.output.remove(f"{settlement.task_id}.{stream}")
        settlement.result, settlement.dead_letter = settlement.lighter()
        settlement.kept, settlement.lighter = {}, None
        return True

    def _clean(self, work: _SettlingWork) -> None:
        temporary = f"{work.number}.{self._places.incarnation}"
        for folder in self._places.temporary_folders():
            with contextlib.suppress(OSError):
                folder.remove(temporary)


def _count(settlement: Settlement) -> int:
    """How many files a settlement writes."""
    return len(settlement.kept) + (settlement.result is not None) + (settlement.dead_letter is not None)


def _publish_numbered(source: Folder, name: str, target: Folder, stem: str) -> str:
    """Show under `<stem>.json`, or `<stem>~2.json`, ... when another dead letter of that id is there.

    The same dead letter again (a second try of one settlement, or of one whose process died between the dead letter
    and the result) is not stored twice.
    """
    mine = _identity(source, name)
    for number in range(1, _SUFFIX_LIMIT):
        final = f"{stem}.json" if number == 1 else f"{stem}~{number}.json"
        if publish_new(source, name, target, final):
            return final
        if mine is not None and _identity(target, final) == mine:
            source.remove(name)
            return final
    raise OSError(errno.EEXIST, f"{_SUFFIX_LIMIT} dead letters of one task; purge them", stem)


def _identity(folder: Folder, name: str) -> tuple[object, ...] | None:
    """What makes two dead letters the same one; None when that cannot be told."""
    try:
        value = strict_json.loads(folder.read(name, 1 << 28))
    except (OSError, strict_json.NotStrictJson):
        return None
    if not isinstance(value, dict) or "dlq_reason" not in value:
        return None
    if value.get("dlq_original") is not None:
        return (value["dlq_reason"], value["dlq_original"])
    return (value["dlq_reason"], value.get("dlq_task_sha256"), value.get("dlq_timestamp"))


def _keep_original(places: WorkerFolders, settlement: Settlement) -> None:
    """Put the refused file itself beside its dead letter, whatever it is, so that its claim is gone; never open it."""
    target = original_name(places.mine, settlement.handle)
    try:
        if not move_new(places.mine, settlement.handle, places.originals, target):
            places.mine.remove(settlement.handle)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_across(places.mine, settlement.handle, places.originals, target)
        os.fsync(places.originals.fd)
        places.mine.remove(settlement.handle)


def _move_across(source: Folder, name: str, target: Folder, new_name: str) -> None:
    try:
        move(source, name, target, new_name)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_across(source, name, target, new_name)
        source.remove(name)


def _copy_across(source: Folder, name: str, target: Folder, new_name: str) -> None:
    """Copy a regular file to another file system; anything else (a link, a FIFO) only lives on in its dead letter."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=source.fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            return
        raise
    with os.fdopen(fd, "rb") as reader:
        target.remove(new_name)  # half copied by a killed worker
        out = os.open(new_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target.fd)
        with os.fdopen(out, "wb") as writer:
            shutil.copyfileobj(reader, writer)
            writer.flush()
            os.fsync(writer.fileno())
