"""Put a task in: the one way in for every tool of this suite.

Promise: when `submit` returns, the task is durable in the inbox under its final name and is seen whole or not at all.
A crash before leaves at most a hidden file that no worker takes. A name that is there is never replaced.
Raises InvalidTask for a task that its worker would refuse, AlreadySubmitted for a name that is taken, OSError as the
system gives it. It runs no agent and waits for none.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections import Counter
from pathlib import Path
from typing import Any

from watcher.errors import InvalidTask, WatcherError
from watcher.formats import strict_json
from watcher.formats.task import ID_PATTERN, WORKER_PATTERN, task_from_fields
from watcher.system.files import Folder, fsync_file, move_new


class AlreadySubmitted(WatcherError):
    """A task of this id waits in that inbox already. Reaction: choose another id, or do nothing.

    `accepted` are the ids of the same call that came before it: they are in, durably.
    """

    def __init__(self, message: str, accepted: list[str]) -> None:
        super().__init__(message)
        self.accepted = accepted


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
    accepted: list[str] = []
    try:
        for fields in many:
            if fields.get("task_id") is not None and folder.has(f"{fields['task_id']}.json"):
                raise _taken(folder, fields["task_id"], accepted)
        for task_id, data in ready:
            if not _put(folder, task_id, data):
                raise _taken(folder, task_id, accepted)
            accepted.append(task_id)
    finally:
        os.fsync(folder.fd)
        folder.close()
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


def _put(folder: Folder, task_id: str, data: bytes) -> bool:
    """Returns False when a task of that id is there."""
    hidden = f".submit-{secrets.token_hex(8)}.tmp"
    folder.write_new(hidden, data)
    is_in = False
    try:
        # The kernel stamps files in steps of some milliseconds; the order of submits must survive finer than that.
        now = time.time_ns()
        os.utime(hidden, ns=(now, now), dir_fd=folder.fd)
        fsync_file(folder, hidden)
        is_in = move_new(folder, hidden, folder, f"{task_id}.json")
    finally:
        if not is_in:
            with contextlib.suppress(OSError):
                folder.remove(hidden)
    return is_in
