"""Make posted tasks durable in the inboxes, many at a time, on a thread of its own.

Promise: a verdict `accepted` or `copy` is given only after the task is durable under its final name, or was before. The
order, and no other: put in durably (`store.submitting`); remembered; answered. A crash in between leaves tasks that
nobody was told of, which a sender that repeats its delivery meets as its own.

What waits while one group is written makes the next one: posts that come together share their flushes.
A verdict of trouble is WorkerTrouble: the disk is full or the folder cannot be used, and nothing was acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from watcher.clock import Clock
from watcher.errors import WorkerTrouble
from watcher.intake.webhook import lookup as lookup
from watcher.intake.webhook.deliveries import Delivery, Memory
from watcher.store.abandoned_files import remove_abandoned
from watcher.store.submitting import Put, put_all
from watcher.store.task_places import count_in_inbox, workers_in
from watcher.system import no_links
from watcher.system.files import Folder

if TYPE_CHECKING:
    from watcher.settings.folders import Folders

MAX_GROUP = 256
#: A count of an inbox is good for so long: others put tasks in as well.
_COUNT_SECONDS = 5.0
#: Counting takes at most this share of the time.
_COUNT_SHARE = 0.1
_PRUNE_SECONDS = 3600.0
_MOVED_TRIES = 4

_log = logging.getLogger(__name__)

Outcome = Literal["accepted", "copy", "conflict", "full"]


@dataclass(frozen=True, slots=True)
class Submission:
    """One post. `identity` is what it calls itself, None when it does not; `content` tells a copy from another post."""

    worker: str
    task_id: str
    data: bytes
    identity: str | None
    content: bytes


@dataclass(frozen=True, slots=True)
class Submitted:
    """`conflict`: the identity is taken by something else. `full`: the inbox is over its bound."""

    outcome: Outcome
    worker: str
    task_id: str


@dataclass(slots=True)
class _AcceptWork:
    submission: Submission
    answer: asyncio.Future[Submitted]
    verdict: Submitted | None = None
    trouble: Exception | None = None
    twin: _AcceptWork | None = None
    put: Put | None = None

    def judge(self, outcome: Outcome) -> None:
        self.verdict = Submitted(outcome, self.submission.worker, self.submission.task_id)

    @property
    def is_open(self) -> bool:
        return self.verdict is None and self.trouble is None and self.twin is None


class Accepter:
    """Starts its thread at once; `close` finishes what is in it. `observe` gets the size and seconds of each group."""

    def __init__(
        self, folders: Folders, memory: Memory, max_pending: int, clock: Clock, observe: Callable[[int, float], None]
    ) -> None:
        self._folders = folders
        self._memory = memory
        self._clock = clock
        self._observe = observe
        self._pending = _Pending(folders.tasks, max_pending)
        self._inboxes: dict[str, Folder] = {}
        self._prune_due = 0.0
        self._queue: queue.SimpleQueue[_AcceptWork | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        no_links.make_folder(folders.tasks)
        _sweep(folders.tasks, clock.wall())
        self._thread = threading.Thread(target=self._run, name="webhook-accept")
        self._thread.start()

    async def accept(self, submission: Submission) -> Submitted:
        """Put it in, or say why not. Raises WorkerTrouble when the machine is at fault."""
        work = _AcceptWork(submission, self._loop.create_future())
        self._queue.put(work)
        return await work.answer

    async def close(self) -> None:
        """Finish, then end the thread."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    # --- the thread

    def _run(self) -> None:
        is_last = False
        while not is_last:
            group = [self._queue.get()]
            while len(group) < MAX_GROUP:
                try:
                    group.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            is_last = None in group
            works = [work for work in group if work is not None]
            if works:
                self._take(works)
        for folder in self._inboxes.values():
            folder.close()

    def _take(self, works: list[_AcceptWork]) -> None:
        began = time.monotonic()
        try:
            self._decide(works)
            self._put_in([work for work in works if work.is_open])
            self._remember(works)
        except Exception as error:  # noqa: BLE001 - the thread must outlive it, and every caller gets an answer
            _log.exception("posts could not be taken")
            for work in works:
                work.trouble = work.trouble or error
        self._observe(len(works), time.monotonic() - began)
        # The loop is closed when a stop ran out of patience; there is nobody left to answer then.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(_answer, works)

    def _decide(self, works: list[_AcceptWork]) -> None:
        """Find copies, conflicts and full inboxes; what stays open is to be put in."""
        firsts: dict[str, _AcceptWork] = {}
        self._pending.begin()
        for work in works:
            given = work.submission
            try:
                if given.identity is not None:
                    first = firsts.setdefault(given.identity, work)
                    if first is not work:
                        _follow(work, first)
                        continue
                    self._find_copy(work)
                if work.is_open and not self._pending.take(given.worker):
                    work.judge("full")
            except OSError as error:
                work.trouble = WorkerTrouble(f"look for {given.worker}/{given.task_id}", error)
            except Exception as error:  # noqa: BLE001 - one post's trouble, not its group's
                _log.exception("a post could not be taken")
                work.trouble = error

    def _find_copy(self, work: _AcceptWork) -> None:
        given = work.submission
        known = None if given.identity is None else self._recall(given.identity)
        if known is not None:
            work.verdict = Submitted(
                "copy" if known.content == given.content else "conflict", known.worker, known.task_id
            )
            return
        for _ in range(_MOVED_TRIES):
            found = lookup.find(self._folders, given.worker, given.task_id)
            if found is None:
                return
            stored = lookup.stored_sha256(found)
            if stored is not None:
                work.judge("copy" if stored == hashlib.sha256(given.data).hexdigest() else "conflict")
                return
        work.judge("conflict")  # it is there, and nothing tells any more what it was

    def _recall(self, identity: str) -> Delivery | None:
        try:
            return self._memory.find(identity)
        except sqlite3.Error as error:
            _log.warning("the memory of deliveries cannot be asked: %s; looking in the folders only", error)
            return None

    def _put_in(self, works: list[_AcceptWork]) -> None:
        try:
            self._write(works)
        except Exception as error:  # noqa: BLE001 - found out and told below
            if len(works) == 1:
                given = works[0].submission
                what = f"put {given.task_id} into {self._folders.tasks / given.worker}"
                if not isinstance(error, OSError):
                    _log.exception("a post could not be taken")
                works[0].trouble = WorkerTrouble(what, error) if isinstance(error, OSError) else error
                return
            for work in works:  # one folder or one post may be at fault, and the others shall not pay for it
                if work.verdict is None:
                    self._put_in([work])

    def _write(self, works: list[_AcceptWork]) -> None:
        """Put these in, durably; a work that is in already, from a try that failed later, only gets its flush."""
        for work in works:
            given, folder = work.submission, self._inbox(work.submission.worker)
            work.put = work.put or Put(folder, f"{given.task_id}.json", given.data)
        put_all([work.put for work in works if work.put is not None])
        for work in works:
            if work.put is not None and not work.put.is_in:  # somebody took the name meanwhile
                self._find_copy(work)
            if work.verdict is None:  # a name that was taken and is gone again: somebody else uses these ids
                work.judge("accepted" if work.put is not None and work.put.is_in else "conflict")

    def _inbox(self, worker: str) -> Folder:
        """The inbox, held open; made, durably, when it is not there (any more)."""
        folder = self._inboxes.get(worker)
        if folder is not None and not folder.mend():
            return folder
        if folder is None:
            folder = self._inboxes[worker] = Folder(self._folders.tasks / worker)
        parent = Folder(self._folders.tasks)
        try:
            os.fsync(parent.fd)
        finally:
            parent.close()
        return folder

    def _remember(self, works: list[_AcceptWork]) -> None:
        now = self._clock.wall()
        taken = [
            Delivery(work.submission.identity, work.verdict.worker, work.verdict.task_id, work.submission.content)
            for work in works
            if work.verdict is not None
            and work.verdict.outcome in ("accepted", "copy")
            and work.submission.identity is not None
        ]
        try:
            if taken:
                self._memory.remember(taken, now)
            if time.monotonic() >= self._prune_due:
                self._prune_due = time.monotonic() + _PRUNE_SECONDS
                self._memory.forget_old(now)
        except Exception as error:  # noqa: BLE001 - whatever it is
            # The tasks are in, durably, and the folders know them: no reason to refuse them.
            _log.warning("deliveries could not be remembered: %s; they are known as long as their results", error)


class _Pending:
    """How many tasks wait in each inbox: counted now and then, and what is put in here is added in between."""

    def __init__(self, tasks: Path, maximum: int) -> None:
        self._tasks = tasks
        self._maximum = maximum
        self._counts: dict[str, tuple[int, float, float]] = {}
        self._taken: set[str] = set()

    def begin(self) -> None:
        """A new group: what was taken before is in its inbox by now, or was not put in."""
        self._taken.clear()

    def take(self, worker: str) -> bool:
        """Whether one more may go in; it is counted then."""
        now = time.monotonic()
        count, counted_at, cost = self._counts.get(worker, (0, float("-inf"), 0.0))
        age = now - counted_at
        is_due = age > _COUNT_SECONDS or (count >= self._maximum and age > cost / _COUNT_SHARE)
        if is_due and worker not in self._taken:  # what this group has taken cannot be counted yet
            count, counted_at = count_in_inbox(self._tasks / worker), now
            cost = time.monotonic() - now
        has_room = count < self._maximum
        self._counts[worker] = (count + has_room, counted_at, cost)
        if has_room:
            self._taken.add(worker)
        return has_room


def _follow(work: _AcceptWork, first: _AcceptWork) -> None:
    """The same identity twice in one group: the second shares the fate of the first, or is something else."""
    if work.submission.content == first.submission.content:
        work.twin = first
    else:
        work.judge("conflict")


def _answer(works: list[_AcceptWork]) -> None:
    for work in works:
        if work.twin is not None:
            work.verdict, work.trouble = work.twin.verdict, work.twin.trouble
            if work.verdict is not None and work.verdict.outcome == "accepted":
                work.verdict = Submitted("copy", work.verdict.worker, work.verdict.task_id)
        if work.answer.done():
            continue  # a stop ran out of patience and cancelled the request
        if work.trouble is not None:
            work.answer.set_exception(work.trouble)
        elif work.verdict is not None:
            work.answer.set_result(work.verdict)


def _sweep(tasks: Path, now: float) -> None:
    """Remove hidden files that killed endpoints left. One that cannot be removed harms nobody."""
    for worker in workers_in(tasks):
        with contextlib.suppress(OSError):
            inbox = Folder(tasks / worker, create=False)
            try:
                remove_abandoned(inbox, now)
            finally:
                inbox.close()
