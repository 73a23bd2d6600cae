"""Serve drop zones: any dropped file becomes one task, once, when its writer has finished it.

One loop with one flag, as the worker's: events, timers and results set it; the loop then looks at what was named,
settles files, finishes those whose task has ended, and fills the free places. At most `max_workers` files have a task
at once, `queue_size` more are in line, all others wait where they lie; nothing is dropped because something is full.

`file_to_task` holds the steps of a claim in order, and what a crash leaves; `finishing` says what becomes of files
afterwards; `zone_locks` knows which zones this process serves, and each scan asks it. Raises nothing for a single file:
a file that cannot become a task is put aside and counted as an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import heapq
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from watcher.clock import Clock
from watcher.errors import WatcherError, WorkerTrouble
from watcher.intake.drop_zones.arrivals import Arrival, Arrivals, FileSignature
from watcher.intake.drop_zones.file_memory import Handled, Record, ZoneMemory
from watcher.intake.drop_zones.file_to_task import Claimer, DropBlocked, DropRefused, Not
from watcher.intake.drop_zones.finishing import finish, refuse
from watcher.intake.drop_zones.outcomes import TaskEnding, TaskEndings
from watcher.intake.drop_zones.recovery import adopt, slugs_with_records
from watcher.intake.drop_zones.zone_file import Zone, ZoneFile
from watcher.intake.drop_zones.zone_locks import ZoneLocks
from watcher.system import no_links
from watcher.system.inotify import Waker

if TYPE_CHECKING:
    from watcher.settings.worker import WatcherConfig

#: Tasks submitted in one turn; then events get theirs, so that many free places delay no detection.
_BATCH = 8
#: After trouble with the machine nothing is claimed for so long.
_TROUBLE_SECONDS = 2.0
#: A file at which the machine was in trouble is offered again after so long.
_POSTPONED_SECONDS = 5.0
#: How often the zones may fail over one file until it is refused.
_TRIES = 3
#: A scan may take this share of the time at most.
_SCAN_SHARE = 0.1
_PRUNE_SECONDS = 60.0
#: Begins the keys of watched result folders; no path begins so.
_RESULTS = "results of "

log = logging.getLogger("watcher.zones")


@dataclass(slots=True)
class _UnderWay:
    """A file whose task is under way, and the memory of its zone."""

    record: Record
    memory: ZoneMemory


@dataclass(frozen=True, slots=True)
class Counts:
    """Where the files are that this process has seen: `seen` is always the sum of the four others."""

    seen: int
    pending: int
    processing: int
    completed: int
    errors: int
    max_workers: int

    def block(self) -> str:
        """The four lines that people read."""
        return (
            f"Queue: {self.pending} pending | {self.processing} processing\n"
            f"Workers: {self.processing}/{self.max_workers} active\n"
            f"Completed: {self.completed}\n"
            f"Errors: {self.errors}"
        )


def state_folder(config: WatcherConfig) -> Path:
    """Where the zones remember their files: a folder that no zone may be."""
    return config.state_dir / "zones"


class DropZones:
    """Serves the zones of one file. All methods belong to the loop's thread."""

    def __init__(
        self, zone_file: ZoneFile, config: WatcherConfig, clock: Clock, each: Callable[[Counts], None] | None = None
    ) -> None:
        """`each` gets the counts after every turn."""
        self._config = config
        self._state = state_folder(config)
        self._clock = clock
        self._each = each
        self._file = zone_file
        self._endings = TaskEndings(config.folders)
        self._claimer = Claimer(config.task_dir, config.max_task_bytes, zone_file.processing.timeout, clock)
        self._locks = ZoneLocks(self._state)
        self._queue: dict[str, Arrival] = {}
        self._open: dict[str, _UnderWay] = {}
        self._busy: dict[str, str] = {}
        self._defects: dict[str, int] = {}
        self._seen = self._completed = self._errors = 0
        self._is_stopping = self._is_draining = self._has_more = self._is_full = False
        self._scan_due = self._prune_due = self._no_claims_before = 0.0
        self._trouble = ""

    async def run(self, *, until_idle: bool = False) -> None:
        """Serve until `stop`; with `until_idle`, until no file waits and no task is under way."""
        self._waker = Waker(asyncio.get_running_loop())
        self._arrivals = Arrivals(self._waker, self._clock, self._config.settle_seconds, self._is_known, self._gone)
        self._scan_due = self._clock.monotonic()
        self._prune_due = self._scan_due
        try:
            while not self._is_stopping:
                await self._turn()
                if until_idle and self._is_idle():
                    break
                await self._rest()
            self._collect_quietly()
        finally:
            self._waker.close()
            self._tell()
            self._locks.leave_all_but(())

    def stop(self) -> None:
        """End the loop; files whose task is under way are finished by the next process."""
        self._is_stopping = True
        self._waker.poke()

    def drain(self) -> None:
        """Take no more files; those whose task is under way are still finished."""
        self._is_draining = True

    def look(self) -> None:
        """Look at everything now."""
        self._scan_due = self._clock.monotonic()
        self._waker.poke()

    def reload(self, zone_file: ZoneFile) -> None:
        """Go on with another configuration. What is under way ends as it began."""
        self._file = zone_file
        self._claimer.timeout = zone_file.processing.timeout
        for path in [path for path, arrival in self._queue.items() if arrival.zone not in zone_file.zones]:
            self._leave_queue(path)
        log.info("drop zones: %d, reloaded", len(zone_file.zones), extra={"event": "zones.reloaded"})
        self.look()

    def counts(self) -> Counts:
        limit = self._file.processing.max_workers
        return Counts(self._seen, len(self._queue), len(self._open), self._completed, self._errors, limit)

    # --- one turn

    async def _turn(self) -> None:
        began = self._clock.monotonic()
        if began >= self._scan_due:
            self._scan_due = float("inf")
            self._serve()
            for _ in self._arrivals.scan():
                self._work()
                await asyncio.sleep(0)
            self._after_scan(began)
        self._work()

    def _work(self) -> None:
        named, lost = self._waker.take()
        if lost:
            self._scan_due = min(self._scan_due, self._clock.monotonic())
        for folder, name in named:
            if folder.startswith(_RESULTS):
                self._result(folder.removeprefix(_RESULTS), name)
            else:
                self._arrivals.notice(folder, name)
        self._arrivals.tick()
        self._line_up()
        self._fill()
        self._line_up()
        self._tell()

    async def _rest(self) -> None:
        if self._has_more:
            await asyncio.sleep(0)
            return
        now = self._clock.monotonic()
        waits = [self._scan_due - now]
        due = self._arrivals.next_due_in()
        if due is not None:
            waits.append(due)
        if self._no_claims_before > now:
            waits.append(self._no_claims_before - now)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(waits))):
                await self._waker.flag.wait()

    def _after_scan(self, began: float) -> None:
        for path in [path for path in self._queue if no_links.is_gone(path)]:
            self._leave_queue(path)
        self._collect_quietly()
        now = self._clock.monotonic()
        if now >= self._prune_due:
            self._prune_due = now + _PRUNE_SECONDS
            self._locks.prune()
        is_polling = self._arrivals.is_blind or self._waker.mode == "polling"
        interval = self._config.poll_interval if is_polling else self._config.scan_interval
        earliest = now + (now - began) / _SCAN_SHARE
        self._scan_due = max(min(self._scan_due, now + interval), earliest)

    def _is_idle(self) -> bool:
        arrivals = self._arrivals
        return not (self._queue or self._open or arrivals.settled or arrivals.unsettled() or arrivals.left_some)

    def _tell(self) -> None:
        if self._each is not None:
            self._each(self.counts())

    # --- zones

    def _serve(self) -> None:
        """Take the zones that are free, look after what earlier processes left, watch the results."""
        wanted = {zone.slug: zone for zone in self._file.zones}
        slugs = dict.fromkeys((*wanted, *slugs_with_records(self._state)))
        for memory in self._locks.take(slugs, self._in_trouble):
            try:
                records = adopt(memory, wanted.get(memory.slug), self._endings)
            except OSError as error:
                self._in_trouble(f"take over zone {memory.slug}: {error}")
                self._locks.leave(memory.slug)  # a later scan takes it again
                continue
            for record in records:
                self._begin(record, memory)
                self._seen += 1
        in_use = {under_way.memory.slug for under_way in self._open.values()}
        self._locks.leave_all_but(wanted.keys() | in_use)
        served = frozenset(zone.name for slug, zone in wanted.items() if slug in self._locks)
        self._arrivals.serve(self._file.zones, served)
        workers = {zone.worker for zone in self._file.zones}
        for worker in workers | {under_way.record.worker for under_way in self._open.values()}:
            self._watch_results(worker)

    def _watch_results(self, worker: str) -> None:
        key = _RESULTS + worker
        folder = self._config.result_dir / worker
        if not self._waker.is_watching(key):
            with contextlib.suppress(OSError):  # the scan finds results without events
                no_links.make_folder(folder)
                self._waker.watch(key, folder)

    # --- files

    def _is_known(self, path: str, zone: Zone, signature: FileSignature) -> bool:
        """Whether a file that lies in a zone needs no look: it is in line, under way, or had its task."""
        queued = self._queue.get(path)
        if queued is not None:
            if queued.signature == signature:
                return True
            self._leave_queue(path)
        memory = self._locks[zone.slug]
        past = self._past(path, memory)
        if past is None:
            if zone.events & {"created", "moved"}:
                return False
        elif (past.inode, past.size, past.mtime_ns) == (signature.inode, signature.size, signature.mtime_ns):
            return True
        elif past.inode != signature.inode or "modified" in zone.events:
            return False
        if path not in self._busy:
            # Nothing that this zone wants to hear of: from here on it is known as it is.
            known = Handled(signature.inode, signature.size, signature.mtime_ns)
            with contextlib.suppress(OSError):  # then the next scan notes it
                memory.remember(path, known)
        return True

    def _gone(self, path: str) -> None:
        """A name went: it is in line no longer, and what comes under it is new."""
        if path in self._queue:
            self._leave_queue(path)
        self._locks.forget_file(path)

    def _past(self, path: str, memory: ZoneMemory) -> Handled | None:
        """The identity that has or had its task under this path."""
        under_way = self._open.get(self._busy.get(path, ""))
        if under_way is not None and under_way.record.place == path:
            record = under_way.record
            return Handled(record.inode, record.size, record.mtime_ns)
        return memory.handled.get(path)

    def _line_up(self) -> None:
        """Let settled files into the queue while it has room; the others wait where they lie."""
        settled = self._arrivals.settled
        room = self._file.processing.queue_size - len(self._queue)
        if settled and room > 0:
            for arrival in heapq.nsmallest(room, settled.values(), key=lambda one: one.rank):
                del settled[arrival.path]
                self._queue[arrival.path] = arrival
                self._seen += 1
        if settled and not self._is_full:
            log.warning("the queue is full; more files wait where they are", extra={"event": "zones.queue_full"})
        self._is_full = bool(settled)
        if self._arrivals.left_some and not settled and not self._arrivals.unsettled():
            self._scan_due = min(self._scan_due, self._clock.monotonic())

    def _leave_queue(self, path: str) -> None:
        """It is no longer seen: gone, changed, or of no zone."""
        del self._queue[path]
        self._seen -= 1

    def _fill(self) -> None:
        self._has_more = False
        if self._clock.monotonic() < self._no_claims_before:
            return
        try:
            for under_way in [one for one in self._open.values() if not one.record.is_submitted]:
                self._try_to_submit(under_way)
            if not self._is_draining:
                self._fill_places()
            self._trouble = ""
        except (WorkerTrouble, OSError) as trouble:
            self._in_trouble(str(trouble))

    def _fill_places(self) -> None:
        free = self._file.processing.max_workers - len(self._open)
        if free <= 0 or not self._queue:
            return
        first = heapq.nsmallest(free + len(self._busy), self._queue.values(), key=lambda one: one.rank)
        ready = [arrival for arrival in first if arrival.path not in self._busy][:free]
        for arrival in ready[:_BATCH]:
            self._try_to_take(arrival)
        self._has_more = len(ready) > _BATCH

    def _try_to_take(self, arrival: Arrival) -> None:
        """Whatever goes wrong over one file is that file's trouble: it is tried again later, and refused in the end."""
        try:
            self._take(arrival)
            self._defects.pop(arrival.path, None)
        except (OSError, WatcherError):
            raise
        except Exception as error:
            log.exception("%s: the zones failed over it", arrival.path, extra={"event": "zones.trouble"})
            times = self._defects[arrival.path] = self._defects.get(arrival.path, 0) + 1
            if arrival.path not in self._queue:
                return  # its record is there by now
            if times < _TRIES:
                self._leave_queue(arrival.path)
                self._arrivals.postpone(arrival, _POSTPONED_SECONDS)
                return
            del self._defects[arrival.path]
            why = DropRefused("not_understood", f"the zones failed over it: {type(error).__name__}: {error}")
            self._refuse(arrival, why, self._locks[arrival.zone.slug])

    def _try_to_submit(self, under_way: _UnderWay) -> None:
        """The same for a file that has its record: it ends as refused."""
        try:
            self._submit(under_way)
        except (OSError, WatcherError):
            raise
        except Exception as error:
            log.exception("%s: the zones failed over it", under_way.record.path, extra={"event": "zones.trouble"})
            self._finish(under_way, TaskEnding("refused", "not_understood", f"{type(error).__name__}: {error}"))

    def _take(self, arrival: Arrival) -> None:
        memory = self._locks[arrival.zone.slug]
        try:
            found = self._claimer.take(arrival, memory)
        except WorkerTrouble:
            # It may be this file alone that cannot be read (a bad block): let the others go first next time.
            self._leave_queue(arrival.path)
            self._arrivals.postpone(arrival, _POSTPONED_SECONDS)
            raise
        if isinstance(found, Record):
            del self._queue[arrival.path]
            self._try_to_submit(self._begin(found, memory))
        elif isinstance(found, DropRefused):
            self._refuse(arrival, found, memory)
        elif isinstance(found, DropBlocked):
            self._leave_queue(arrival.path)
            self._arrivals.postpone(arrival, _POSTPONED_SECONDS)
            self._arrivals.tell(str(found.folder), found.detail)
        elif found is Not.SETTLED:
            self._leave_queue(arrival.path)
            self._arrivals.unsettle(arrival)
        else:
            self._leave_queue(arrival.path)
            self._know_again(arrival, memory)

    def _know_again(self, arrival: Arrival, memory: ZoneMemory) -> None:
        """The same bytes with another time: no new drop, now known as it is."""
        old, state = memory.handled[arrival.path], arrival.signature
        known = dataclasses.replace(old, inode=state.inode, size=state.size, mtime_ns=state.mtime_ns)
        with contextlib.suppress(OSError):  # then the next scan compares the bytes again
            memory.remember(arrival.path, known)

    def _begin(self, record: Record, memory: ZoneMemory) -> _UnderWay:
        under_way = self._open[record.task_id] = _UnderWay(record, memory)
        self._busy[record.path] = record.task_id
        return under_way

    def _submit(self, under_way: _UnderWay) -> None:
        """Raises WorkerTrouble: then the record is there and the file held, and the next turn submits it."""
        record = under_way.record
        if self._endings.named(record.worker, record.task_id) is not None:
            # The memory was lost, the result was not: it had its task, and the next look finishes it.
            record.is_submitted = True
            self._scan_due = min(self._scan_due, self._clock.monotonic())
            return
        refusal = self._claimer.submit(record, under_way.memory)
        if refusal is not None:
            self._finish(under_way, TaskEnding("refused", refusal.reason, refusal.detail))
            return
        told = {"event": "zones.file_submitted", "task_id": record.task_id, "zone": record.zone, "file": record.path}
        log.info("%s is task %s/%s", record.path, record.worker, record.task_id, extra=told)

    def _refuse(self, arrival: Arrival, why: DropRefused, memory: ZoneMemory) -> None:
        where = refuse(arrival.path, arrival.base, arrival.zone.name, arrival.signature, why, memory)
        if where is None:
            self._leave_queue(arrival.path)
            self._arrivals.unsettle(arrival)
            return
        del self._queue[arrival.path]
        self._errors += 1
        told = {"event": "zones.file_refused", "zone": arrival.zone.name, "reason": why.reason}
        told |= {"file": arrival.path, "where": where}
        log.error("%s is no task: %s", arrival.path, why.detail, extra=told)

    # --- outcomes

    def _result(self, worker: str, name: str) -> None:
        under_way = self._open.get(name.removesuffix(".json"))
        if under_way is not None and (ending := self._endings.named(worker, name)) is not None:
            self._finish(under_way, ending)

    def _collect_quietly(self) -> None:
        try:
            self._collect()
        except OSError as error:
            self._in_trouble(f"look for results: {error}")

    def _collect(self) -> None:
        """Ask the folders for every task that is under way; events may have missed some."""
        for task_id, ending in self._endings.look(self._awaited()).items():
            self._finish(self._open[task_id], ending)
        gone, moved = self._endings.lost(self._awaited())
        for task_id, ending in gone.items():
            self._finish(self._open[task_id], ending)
        for task_id, worker in moved.items():
            under_way = self._open[task_id]
            under_way.record.worker = worker
            under_way.memory.write(under_way.record, durable=False)

    def _awaited(self) -> dict[str, str]:
        return {task_id: one.record.worker for task_id, one in self._open.items() if one.record.is_submitted}

    def _finish(self, under_way: _UnderWay, ending: TaskEnding) -> None:
        record = under_way.record
        try:
            where = finish(record, ending, under_way.memory)
        except no_links.Refused as refused:
            # Its place is free for others; the record stays, and the next process of this zone finishes it.
            where = f"{record.place}, until the zone is served anew"
            log.error(  # noqa: TRY400
                "%s: %s; %s stays where it is until the zone is served anew",
                refused.filename,
                refused.strerror,
                record.place,
                extra={"event": "zones.trouble"},
            )
        except OSError as error:
            # The record stays, and the next scan tries again.
            self._in_trouble(f"finish {record.path}: {error}")
            return
        del self._open[record.task_id]
        self._busy.pop(record.path, None)
        self._completed += ending.is_completed
        self._errors += not ending.is_completed
        level = logging.INFO if ending.is_completed else logging.ERROR
        told = {"event": "zones.file_done", "task_id": record.task_id, "zone": record.zone, "status": ending.status}
        told |= {"file": record.path, "where": where}
        why = "" if ending.reason is None else f": {ending.reason}"
        log.log(level, "%s %s%s", record.path, ending.status, why, extra=told)
        with contextlib.suppress(OSError):  # it is gone, or the scan finds it
            self._arrivals.consider(record.path, no_links.look_at(record.path))

    def _in_trouble(self, what: str) -> None:
        self._no_claims_before = self._clock.monotonic() + _TROUBLE_SECONDS
        if what != self._trouble:
            self._trouble = what
            log.error("%s; trying again", what, extra={"event": "zones.trouble"})
