"""Report task events to waiting clients: long polls and event streams share one look at the folders.

Events are hints and the scan is the truth: file events name what to look at, and every SCAN_INTERVAL all folders whose
time stamp moved are listed. So a stream tells everything, once, in the order in which it was seen; what happened while
nobody served is not told again. The last `RING` events are kept for streams that come back; one that asks for older
ones is told that it missed some.

Lives on the loop. Ids, workers and states only: no prompt and no output is ever in an event.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from watcher.clock import Clock, rfc3339
from watcher.formats.task import TASK_FILE_NAME
from watcher.intake.webhook import lookup as lookup
from watcher.store.results import stored_status
from watcher.store.task_places import workers_in
from watcher.system import no_links
from watcher.system.inotify import Waker

if TYPE_CHECKING:
    from watcher.settings.folders import Folders

RING = 10_000
_SOON_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Story:
    """One event of a stream. `number` counts from 1 in this process."""

    number: int
    kind: str
    worker: str
    data: str


class TaskNews:
    """Looks, tells, and wakes who waits. `run` until cancelled; `close` lets everybody go."""

    def __init__(
        self,
        folders: Folders,
        workers: Callable[[], Iterable[str]],
        clock: Clock,
        scan_interval: float,
        poll_interval: float,
    ) -> None:
        self._places = {"triggers": folders.triggers, "results": folders.results, "dlq": folders.dlq}
        self._workers = workers
        self._clock = clock
        self._scan_interval = scan_interval
        self._poll_interval = poll_interval
        self._waker = Waker(asyncio.get_running_loop())
        self._watched: dict[str, tuple[int, int]] = {}
        self._known: dict[tuple[str, str], dict[str, int]] = {}
        self._stamps: dict[tuple[str, str], tuple[int, int, int]] = {}
        self._ring: deque[Story] = deque(maxlen=RING)
        self._count = 0
        self._moved = asyncio.Event()
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self.run_id = secrets.token_hex(4)
        self.is_closed = False
        self._noticed: dict[str, int] = {}

    # --- for those who wait

    @property
    def last(self) -> int:
        """The number of the latest event."""
        return self._count

    def tell(self, kind: str, worker: str, task_id: str, **more: Any) -> None:
        """Say that something happened."""
        self._count += 1
        data = {"task_id": task_id, "worker": worker, "at": rfc3339(self._clock.wall()), **more}
        self._ring.append(Story(self._count, kind, worker, json.dumps(data)))
        self._moved.set()
        self._moved = asyncio.Event()

    def since(self, number: int) -> tuple[list[Story], bool]:
        """The events after this one, and whether some of them are gone."""
        missing = self._count - number
        if missing <= 0:
            return [], missing < 0
        kept = len(self._ring)
        return [self._ring[place] for place in range(max(0, kept - missing), kept)], missing > kept

    async def more_than(self, number: int, seconds: float) -> bool:
        """Wait until there is an event after this one; False when the time is over or all are let go."""
        if self._count > number or self.is_closed:
            return self._count > number
        moved = self._moved
        try:
            async with asyncio.timeout(seconds):
                await moved.wait()
        except TimeoutError:
            return False
        return self._count > number

    def expect(self, task_id: str) -> asyncio.Event:
        """An event that is set whenever a task of this id may have ended; give it back to `forget`."""
        woken = asyncio.Event()
        self._waiting.setdefault(task_id, set()).add(woken)
        if self.is_closed:
            woken.set()
        return woken

    def forget(self, task_id: str, woken: asyncio.Event) -> None:
        waiting = self._waiting[task_id]
        waiting.discard(woken)
        if not waiting:
            del self._waiting[task_id]

    def close(self) -> None:
        """Let everybody go who waits. A second call does nothing."""
        if self.is_closed:
            return
        self.is_closed = True
        self._moved.set()
        for waiting in self._waiting.values():
            for woken in waiting:
                woken.set()
        self._waker.close()

    # --- looking

    async def start(self) -> None:
        """Learn what lies there already, which is no news."""
        await self._scan(is_first=True)

    async def run(self) -> None:
        """Look until cancelled."""
        loop = asyncio.get_running_loop()
        scan_due = loop.time()
        while not self.is_closed:
            names, lost = self._waker.take()
            for key, name in names:
                place, _, worker = key.partition("/")
                self._notice(place, worker, name)
            if lost or loop.time() >= scan_due:
                await self._scan()
                scan_due = loop.time() + self._interval()
            timer = loop.call_later(max(0.0, scan_due - loop.time()), self._waker.flag.set)
            try:
                await self._waker.flag.wait()
            finally:
                timer.cancel()

    def _interval(self) -> float:
        return self._scan_interval if self._waker.mode == "events" else min(self._poll_interval, self._scan_interval)

    async def _scan(self, is_first: bool = False) -> None:
        for worker in self._workers():
            for place, parent in self._places.items():
                folder = parent / worker
                try:
                    info = no_links.look_at(folder)
                except OSError:
                    continue  # it is not there yet, or cannot be seen now; the next scan looks again
                self._watch(f"{place}/{worker}", folder, (info.st_dev, info.st_ino))
                stamp = (info.st_dev, info.st_ino, info.st_mtime_ns)
                if self._stamps.get((place, worker)) != stamp:
                    is_recent = abs(self._clock.wall() - info.st_mtime) < _SOON_SECONDS
                    if await self._list(place, worker, folder, is_first) and not is_recent:
                        self._stamps[place, worker] = stamp  # a younger stamp may cover a later change as well

    def _watch(self, key: str, folder: Path, identity: tuple[int, int]) -> None:
        """A folder that was replaced is watched anew."""
        if self._watched.get(key) != identity or not self._waker.is_watching(key):
            self._waker.watch(key, folder)
            self._watched[key] = identity

    async def _list(self, place: str, worker: str, folder: Path, is_first: bool) -> bool:
        """Compare a folder with what is known; the listing itself may be long, and is made on another thread."""
        self._noticed = {}
        try:
            found = await asyncio.to_thread(_listed, folder)
        except OSError:
            return False
        known = self._known.get((place, worker), {})
        # A name that an event told during the listing may be in it or not.
        self._known[place, worker] = {**found, **{n: i for n, i in self._noticed.items() if known.get(n) == i}}
        # What lies there when the endpoint starts is no news; a folder that appears later is.
        for name, inode in () if is_first else found.items():
            if known.get(name) != inode:
                self._say(place, worker, name)
        return True

    def _notice(self, place: str, worker: str, name: str) -> None:
        """A file event: look at this one name. The inode tells a file that was replaced."""
        if TASK_FILE_NAME.fullmatch(name) is None:
            return
        try:
            inode = no_links.look_at(self._places[place] / worker / name).st_ino
        except OSError:
            return  # it is gone already
        known = self._known.setdefault((place, worker), {})
        if known.get(name) != inode:
            known[name] = self._noticed[name] = inode
            self._say(place, worker, name)

    def _say(self, place: str, worker: str, name: str) -> None:
        task_id = name.removesuffix(".json")
        if place == "triggers":
            self.tell("task.started", worker, task_id)
            return
        if place == "results":
            self.tell("task.settled", worker, task_id, status=stored_status(self._places[place] / worker / name))
        else:
            self.tell("task.dead_lettered", worker, task_id)
        for woken in self._waiting.get(task_id, ()):
            woken.set()


def _listed(folder: Path) -> dict[str, int]:
    with no_links.entries_in(folder) as entries:
        return {e.name: e.inode() for e in entries if TASK_FILE_NAME.fullmatch(e.name)}


def workers_of(folders: Folders, allowed: tuple[str, ...]) -> list[str]:
    """The workers that may be given tasks: the allowed ones, else those that have an inbox."""
    return list(allowed) if allowed else workers_in(folders.tasks)
