"""How a new file is put in: the one durable put of the suite, for tasks and for commands.

Promise: when `put_all` returns, each file is durable under its final name; a reader sees it whole or not at all. The
order, and no other: hidden files; contents durable; renamed into view; names durable. A crash leaves at most hidden
files that no worker takes (`abandoned_files`). A name that is taken is never replaced.
`submit` checks tasks before it puts them in. It raises InvalidTask for a task that its worker would refuse,
AlreadySubmitted for a name that is taken, OSError as the system gives it. It runs no agent and waits for none.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watcher.errors import InvalidTask, WatcherError
from watcher.formats import strict_json
from watcher.formats.task import ID_PATTERN, WORKER_PATTERN, task_from_fields
from watcher.store.layout import hidden_put
from watcher.system.files import FEW, Folder, Sync, fsync_file, move_new


class AlreadySubmitted(WatcherError):
    """A task of this id waits in that inbox already. Reaction: choose another id, or do nothing.

    `accepted` are the ids of the same call that came before it: they are in, durably.
    """

    def __init__(self, message: str, accepted: list[str]) -> None:
        super().__init__(message)
        self.accepted = accepted


@dataclass(slots=True)
class Put:
    """One file to put in. `is_in` says whether it is there under `name`; `changed_ns` is its time, by default now."""

    folder: Folder
    name: str
    data: bytes
    changed_ns: int | None = None
    is_in: bool = False
    hidden: str | None = None

    def write(self) -> None:
        self.hidden = hidden_put()
        self.folder.write_new(self.hidden, self.data)
        # The kernel stamps files in steps of some milliseconds; the order of submits must survive finer than that.
        moment = time.time_ns() if self.changed_ns is None else self.changed_ns
        os.utime(self.hidden, ns=(moment, moment), dir_fd=self.folder.fd)

    def flush(self) -> None:
        fsync_file(self.folder, self.hidden or "")

    def show(self) -> bool:
        self.is_in = move_new(self.folder, self.hidden or "", self.folder, self.name)
        if self.is_in:
            self.hidden = None
        return self.is_in

    def clean(self) -> None:
        if self.hidden is not None:
            with contextlib.suppress(OSError):  # what stays is hidden, and removed as abandoned later
                self.folder.remove(self.hidden)
            self.hidden = None


def put(folder: Folder, name: str, data: bytes, changed_ns: int | None = None) -> bool:
    """Put one file in, durably. Returns False when that name is taken."""
    one = Put(folder, name, data, changed_ns)
    put_all([one])
    return one.is_in


def put_all(puts: Sequence[Put], *, stop_at_taken: bool = False) -> None:
    """Put files in, in this order, durable together; those whose name is taken stay out (`is_in` is False).

    With `stop_at_taken` nothing that comes after such a one goes in either. After OSError some may be in and not yet
    durable; the same call again makes them so, and puts the rest in.
    """
    fresh = [one for one in puts if not one.is_in]
    folders = [one.folder for one in puts]
    try:
        for one in fresh:
            one.write()
        sync = Sync(folders)
        if len(fresh) <= FEW:
            for one in fresh:
                one.flush()
        else:
            sync.flush_files(folders)
        for one in fresh:
            if not one.show() and stop_at_taken:
                break
        sync.flush_folders(folders)
    finally:
        for one in fresh:
            one.clean()


def new_task_id() -> str:
    """A fresh id whose order by name is the order of creation: `20261121-233300-123456-9f3a2b`."""
    now = time.time_ns()
    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now // 1_000_000_000))
    return f"{moment}-{now // 1000 % 1_000_000:06d}-{secrets.token_hex(3)}"


def submit(tasks: Path, worker: str, fields: dict[str, Any]) -> str:
    """Put one task into `tasks/<worker>/` and return its id, durably.

    `fields` are those of a task file; `task_id` may be missing. The inbox folder is made when it is not there.
    """
    return submit_many(tasks, worker, [fields])[0]


def submit_many(tasks: Path, worker: str, many: list[dict[str, Any]]) -> list[str]:
    """Put several tasks in, in this order; returns their ids when all are durable.

    All are checked before the first is put in: each by itself, and that no id stands twice or waits there already.
    AlreadySubmitted stops at the task it names; some of the others are in only if that one came just now.
    """
    if re.fullmatch(WORKER_PATTERN, worker) is None:
        raise InvalidTask("bad_worker", f"{worker!r} is no worker name: use at most 64 letters, digits, . - _")
    ready = [_prepare(worker, fields) for fields in many]
    twice = next((task_id for task_id, count in Counter(task_id for task_id, _ in ready).items() if count > 1), None)
    if twice is not None:
        raise InvalidTask("invalid_field", f"task_id {twice!r} is given to two of these tasks; choose another for one")
    folder = Folder(tasks / worker)
    try:
        for fields in many:
            if fields.get("task_id") is not None and folder.has(f"{fields['task_id']}.json"):
                raise _taken(folder, fields["task_id"], [])
        puts = [Put(folder, f"{task_id}.json", data) for task_id, data in ready]
        put_all(puts, stop_at_taken=True)
    finally:
        folder.close()
    accepted = [task_id for (task_id, _), one in zip(ready, puts, strict=True) if one.is_in]
    if len(accepted) < len(ready):
        raise _taken(folder, ready[len(accepted)][0], accepted)
    return accepted


def _taken(folder: Folder, task_id: str, accepted: list[str]) -> AlreadySubmitted:
    return AlreadySubmitted(f"task {task_id!r} waits in {folder.path} already; choose another id", accepted)


def _prepare(worker: str, fields: dict[str, Any]) -> tuple[str, bytes]:
    task_id = fields.get("task_id")
    if task_id is None:
        task_id = new_task_id()
    if not isinstance(task_id, str) or re.fullmatch(ID_PATTERN, task_id) is None:
        raise InvalidTask(
            "invalid_field", f"task_id {task_id!r}: use letters, digits, dot, dash, underscore, at most 128"
        )
    whole = {"task_id": task_id, "worker": worker, **fields}
    try:
        data = strict_json.dumps(whole, errors="strict")
        task_from_fields(strict_json.loads(data), task_id, worker)
    except (TypeError, ValueError) as error:
        raise InvalidTask("invalid_json", str(error)) from None
    return task_id, data
