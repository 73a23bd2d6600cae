"""Give agents work from Python: `Client().submit("marie", "List the files")`, then wait, map, read results.

Promise: what `submit` has returned is durable and ends as exactly one result, also when this program, the worker or
the machine dies meanwhile; a later program can wait for it by worker and id. Needs no running worker and no server:
only the folders. Waiting asks the folders again and again, a few times a second.

`Client` blocks; `AsyncClient` is the same for asyncio. A client holds no file, thread or lock: make as
many as you like, use one from many threads. Raises InvalidTask for what the worker would refuse, AlreadyKnown or
AlreadySubmitted for an id that is taken, TimeoutError when waiting took too long, UnusableRoot (a SettingError) when
results are asked for and no folder is there, OSError as the system gives it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypedDict, TypeVar, Unpack

from watcher.clock import rfc3339
from watcher.errors import InvalidTask, WatcherError
from watcher.formats.task import TASK_FILE_NAME
from watcher.store import results as outcomes
from watcher.store import root_check
from watcher.store.submitting import new_task_id, submit_many
from watcher.system import no_links
from watcher.system.files import NO_FILE

if TYPE_CHECKING:
    from watcher.settings.folders import Folders

P = ParamSpec("P")
T = TypeVar("T")

#: Tasks that are made durable together.
_GROUP = 100


class TaskRef(NamedTuple):
    """Which task is meant: the worker and the id. Two of them are equal when they mean the same task."""

    worker: str
    task_id: str

    def __str__(self) -> str:
        return f"{self.worker}/{self.task_id}"


class TaskFields(TypedDict, total=False):
    """The optional fields of a task; docs/protocol.md says what each means. None leaves a field out.

    `dependencies` takes ids, `worker/id` and TaskRefs; `not_before` a time with its zone, RFC 3339 text or seconds.
    """

    task_id: str | None
    timeout: float | None
    priority: int | str | None
    dependencies: Sequence[str | TaskRef] | None
    metadata: Mapping[str, Any] | None
    agent_id: str | None
    provider: str | None
    model: str | None
    cwd: str | os.PathLike[str] | None
    not_before: datetime | float | str | None
    batch_id: str | None
    max_retries: int | None


class TaskFailed(WatcherError):
    """A task did not complete. Reaction: read `result`, which says why."""

    def __init__(self, result: TaskResult) -> None:
        why = f" ({result.reason})" if result.reason and result.reason != result.status else ""
        detail = f": {result.detail}" if result.detail else ""
        super().__init__(f"{result.ref} {result.status}{why}{detail}; see {result.path}")
        self.result = result


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How a task ended. `status` is `completed`, `failed`, `timeout`, `cancelled`, or `refused` for a file that never
    became a task and has only a dead letter. `fields` is the whole file; `path` where it lies."""

    ref: TaskRef
    status: str
    path: Path
    fields: Mapping[str, Any] = field(repr=False)

    @property
    def task_id(self) -> str:
        return self.ref.task_id

    @property
    def worker(self) -> str:
        return self.ref.worker

    @property
    def is_completed(self) -> bool:
        return self.status == "completed"

    @property
    def stdout(self) -> str:
        """The agent's answer; at most MAX_OUTPUT_BYTES of it (`fields["stdout_truncated"]`)."""
        return str(self.fields.get("stdout") or "")

    @property
    def stderr(self) -> str:
        return str(self.fields.get("stderr") or "")

    @property
    def exit_code(self) -> int | None:
        return self.fields.get("exit_code")

    @property
    def duration_seconds(self) -> float:
        return float(self.fields.get("duration_seconds") or 0.0)

    @property
    def reason(self) -> str | None:
        """A stable word for why it did not complete; None when it did."""
        return _text(self.fields, "reason", "dlq_reason")

    @property
    def detail(self) -> str | None:
        return _text(self.fields, "detail", "dlq_detail")

    @property
    def usage(self) -> Mapping[str, Any]:
        """`input_tokens`, `output_tokens`, `cost_usd`, as far as the provider tells them."""
        return self.fields.get("usage") or {}

    def or_raise(self) -> TaskResult:
        """This result if the task completed, else TaskFailed."""
        if not self.is_completed:
            raise TaskFailed(self)
        return self


class Client:
    """The way in and out for programs. `root` is a WATCHER_ROOT; without it the settings say where the folders are
    (environment, then `.env`), as for every command; `folders` names each folder."""

    def __init__(self, root: str | os.PathLike[str] | None = None, *, folders: Folders | None = None) -> None:
        self.folders = folders or _folders(root)

    # --- in

    def submit(self, worker: str, description: str, **fields: Unpack[TaskFields]) -> TaskRef:
        """Put one task in, durably; returns which it is. Without `task_id` it gets a fresh one."""
        return self.submit_fields(worker, task_fields(description, fields))

    def submit_fields(self, worker: str, fields: Mapping[str, Any]) -> TaskRef:
        """The same for the object that a task file holds, unknown fields included."""
        return self.submit_many(worker, [fields])[0]

    def submit_many(self, worker: str, many: Iterable[Mapping[str, Any]]) -> list[TaskRef]:
        """Several at once, which is faster: each group of 100 is made durable together. All of a group are checked
        before the first of it is put in, also that no id is taken or stands twice."""
        refs: list[TaskRef] = []
        rest = iter(many)
        while group := list(itertools.islice(rest, _GROUP)):
            for fields in group:
                if fields.get("task_id") is not None:
                    outcomes.refuse_known(self.folders, worker, str(fields["task_id"]))
            refs += [TaskRef(worker, i) for i in submit_many(self.folders.tasks, worker, [dict(f) for f in group])]
        return refs

    def map(
        self, worker: str, descriptions: Iterable[str], *, seconds: float | None = None, **fields: Unpack[TaskFields]
    ) -> Iterator[TaskResult]:
        """Submit a task for each description now, and give their results in the same order, each as soon as it and
        those before it have ended. They share a `batch_id`. Raises TimeoutError when `seconds` are over first."""
        return self._in_order(self.submit_for_each(worker, descriptions, fields), seconds)

    def submit_for_each(self, worker: str, descriptions: Iterable[str], fields: TaskFields) -> list[TaskRef]:
        """One task for each description; they share `fields` and, unless that is among them, a fresh `batch_id`."""
        if fields.get("task_id") is not None:
            raise InvalidTask("invalid_field", "task_id: many tasks cannot share one; leave it out")
        shared: TaskFields = {"batch_id": f"map-{new_task_id()}", **fields}
        return self.submit_many(worker, (task_fields(description, shared) for description in descriptions))

    def _in_order(self, refs: list[TaskRef], seconds: float | None) -> Iterator[TaskResult]:
        found: dict[TaskRef, TaskResult] = {}
        ended = self.as_completed(refs, seconds=seconds)
        for ref in refs:
            while ref not in found:
                result = next(ended)
                found[result.ref] = result
            yield found.pop(ref)

    # --- out

    def wait(self, ref: TaskRef | tuple[str, str], seconds: float | None = None) -> TaskResult:
        """Wait until this task has ended, whoever submitted it. Raises TimeoutError after `seconds`."""
        return next(self.as_completed([ref], seconds=seconds))

    def as_completed(
        self, refs: Iterable[TaskRef | tuple[str, str]], *, seconds: float | None = None
    ) -> Iterator[TaskResult]:
        """The results of these tasks, in the order in which they end. Raises TimeoutError after `seconds`."""
        awaited = awaited_of(self.folders, refs)
        for ended in outcomes.each_look(awaited, seconds):
            yield from (read_result(outcome) for outcome in ended)

    def result(self, ref: TaskRef | tuple[str, str]) -> TaskResult | None:
        """How this task ended; None while it has not."""
        (awaited,) = awaited_of(self.folders, [ref])
        ended = awaited.look()
        return read_result(ended[0]) if ended else None

    def results(
        self,
        worker: str | None = None,
        *,
        status: str | None = None,
        batch_id: str | None = None,
        left_out: Callable[[Path, Exception], None] | None = None,
    ) -> Iterator[TaskResult]:
        """What has ended, newest first, of one worker or of all. A result that is removed meanwhile is left
        out, and so is what is no result, or no file at all, of which `left_out` is told with the reason."""
        root_check.check(self.folders)
        for _, path in sorted(self._result_files(worker), reverse=True):
            try:
                found = outcomes.Ended(path.stem, path.parent.name, "", path).read()
            except ValueError as error:
                if left_out is not None:
                    left_out(path, error)
                continue
            except OSError as error:
                if error.errno not in (errno.ENOENT, *NO_FILE):
                    raise
                if left_out is not None and error.errno != errno.ENOENT:
                    left_out(path, error)
                continue
            if status in (None, found["status"]) and batch_id in (None, found.get("batch_id")):
                yield TaskResult(TaskRef(path.parent.name, path.stem), found["status"], path, found)

    def _result_files(self, worker: str | None) -> Iterator[tuple[int, Path]]:
        root = self.folders.results
        for folder in [root / worker] if worker is not None else _folders_in(root):
            with contextlib.suppress(FileNotFoundError), no_links.entries_in(folder) as entries:
                for entry in entries:
                    if TASK_FILE_NAME.fullmatch(entry.name):
                        with contextlib.suppress(FileNotFoundError):
                            yield entry.stat(follow_symlinks=False).st_mtime_ns, folder / entry.name


class AsyncClient:
    """The methods of Client, awaited. Make it anywhere; await its methods on any loop.

    File calls run on the loop's own threads, so that a slow disk never blocks the loop; pauses are asyncio's. A wait
    that is cancelled stops waiting and leaves the task alone; to end the task, cancel it by its reference.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, *, folders: Folders | None = None) -> None:
        self._client = Client(root, folders=folders)

    @property
    def folders(self) -> Folders:
        return self._client.folders

    async def submit(self, worker: str, description: str, **fields: Unpack[TaskFields]) -> TaskRef:
        """Put one task in, durably; returns which it is."""
        return await _in_thread(self._client.submit, worker, description, **fields)

    async def submit_fields(self, worker: str, fields: Mapping[str, Any]) -> TaskRef:
        """The same for the object that a task file holds."""
        return await _in_thread(self._client.submit_fields, worker, fields)

    async def submit_many(self, worker: str, many: Iterable[Mapping[str, Any]]) -> list[TaskRef]:
        """Several at once."""
        return await _in_thread(self._client.submit_many, worker, list(many))

    async def wait(self, ref: TaskRef | tuple[str, str], seconds: float | None = None) -> TaskResult:
        """Wait until this task has ended. Raises TimeoutError after `seconds`."""
        async for result in self.as_completed([ref], seconds=seconds):
            return result
        raise AssertionError("one task gives one result or a TimeoutError")

    async def as_completed(
        self, refs: Iterable[TaskRef | tuple[str, str]], *, seconds: float | None = None
    ) -> AsyncIterator[TaskResult]:
        """The results of these tasks, in the order in which they end. Raises TimeoutError after `seconds`."""
        import asyncio  # see _in_thread

        awaited = await _in_thread(awaited_of, self.folders, list(refs))
        pace = outcomes.Pace(seconds)
        while True:
            began = time.monotonic()
            for outcome in await _in_thread(_look, awaited):
                pace.something_ended()
                yield await _in_thread(read_result, outcome)
            if not any(one.open for one in awaited):
                return
            await asyncio.sleep(pace.rest(began, awaited))

    async def map(
        self, worker: str, descriptions: Iterable[str], *, seconds: float | None = None, **fields: Unpack[TaskFields]
    ) -> list[TaskResult]:
        """Submit a task for each description and wait for all; their results in the same order."""
        refs = await _in_thread(self._client.submit_for_each, worker, list(descriptions), fields)
        found = {result.ref: result async for result in self.as_completed(refs, seconds=seconds)}
        return [found[ref] for ref in refs]

    async def result(self, ref: TaskRef | tuple[str, str]) -> TaskResult | None:
        """How this task ended; None while it has not."""
        return await _in_thread(self._client.result, ref)

    async def results(
        self, worker: str | None = None, *, status: str | None = None, batch_id: str | None = None
    ) -> AsyncIterator[TaskResult]:
        """What has ended, newest first, of one worker or of all. Files are read as they are asked for."""
        found = self._client.results(worker, status=status, batch_id=batch_id)
        while (result := await _in_thread(next, found, None)) is not None:
            yield result


def task_fields(description: str, fields: TaskFields) -> dict[str, Any]:
    """The object of a task file: what was given, as JSON knows it."""
    out: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    if "dependencies" in out:
        if isinstance(out["dependencies"], str | TaskRef):  # its letters, or its two words, would be taken for ids
            raise InvalidTask("invalid_field", f"dependencies: give a list, like [{str(out['dependencies'])!r}]")
        out["dependencies"] = [str(one) for one in out["dependencies"]]
    if "cwd" in out:
        out["cwd"] = os.path.abspath(out["cwd"])
    if "metadata" in out:
        out["metadata"] = dict(out["metadata"])
    moment = out.get("not_before")
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise InvalidTask("invalid_field", "not_before: a time needs its zone, like datetime.now(UTC)")
        out["not_before"] = rfc3339(moment.timestamp())
    return {"description": description, **out}


def awaited_of(folders: Folders, refs: Iterable[TaskRef | tuple[str, str]]) -> list[outcomes.Awaited]:
    """One Awaited for each worker. What these tasks left before counts: they may have ended already. Raises TypeError
    for what is no pair."""
    root_check.check(folders)
    by_worker: dict[str, list[str]] = {}
    for ref in refs:
        if isinstance(ref, str):  # two letters would be taken for a worker and an id
            raise TypeError(f"{ref!r} is no task: give the TaskRef that submit returned, or a tuple (worker, id)")
        worker, task_id = ref
        by_worker.setdefault(worker, []).append(task_id)
    return [outcomes.Awaited(folders, worker, ids, old_letters_count=True) for worker, ids in by_worker.items()]


def read_result(outcome: outcomes.Ended) -> TaskResult:
    return TaskResult(TaskRef(outcome.worker, outcome.task_id), outcome.status, outcome.path, outcome.read())


async def _in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    import asyncio  # here, because most who import this module run no loop, and asyncio is the slowest of its imports

    return await asyncio.to_thread(call, *args, **kwargs)


def _look(awaited: list[outcomes.Awaited]) -> list[outcomes.Ended]:
    return [outcome for one in awaited for outcome in one.look()]


def _text(fields: Mapping[str, Any], *names: str) -> str | None:
    return next((str(fields[name]) for name in names if fields.get(name) is not None), None)


def _folders(root: str | os.PathLike[str] | None) -> Folders:
    from watcher.settings.folders import folders
    from watcher.settings.layers import Given, Layers, read_layers

    if root is None:
        return folders(read_layers())
    return folders(Layers({"WATCHER_ROOT": Given(os.fspath(root), "flag")}))


def _folders_in(root: Path) -> list[Path]:
    names = (name for name in no_links.names_in(root) if not name.startswith("."))
    return sorted(root / name for name in names if no_links.is_folder(root / name))
