"""Give the pending tasks of a dead worker to a named substitute. Off unless REASSIGN names one.

Only when every process of the worker has been dead for REASSIGN_AFTER, and only while we hold the lock of its name, so
that none of its processes can start meanwhile, and only when no command that it left running holds a lock: that may
work for an `agent_id` whose next task waits. Its claims are left alone: what a dead process was running is taken back
by the next process of that worker, which alone can end what still runs.

The order for each task, and no other: one rename out of the inbox into `tasks/<worker>/.reassign/<to>/`; the changed
task published in the other inbox, durable, never replacing; only then the old file removed. A kill between two steps
leaves the file in `.reassign`, from where the next listener goes on. That may publish the same bytes again, which the
other worker drops because its result, or the task itself, is there: a task is neither lost nor run twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from watcher.clock import Clock
from watcher.errors import tells_nothing
from watcher.formats import strict_json
from watcher.formats.receipt_and_notice import Notice
from watcher.formats.task import TASK_FILE_NAME
from watcher.store import workers as presence
from watcher.store.layout import BUSY, CLAIMS, NAME_LOCK, REASSIGN
from watcher.store.notice_publisher import Findings
from watcher.store.submitting import put
from watcher.store.task_places import ids_in
from watcher.system import no_links
from watcher.system.files import Folder, move
from watcher.telemetry.events import Emit, HintFailed, TasksReassigned

_MAX_BYTES = 64 << 20
#: Listed in one notice.
_MAX_LISTED = 10_000


class Reassigner:
    """`substitutes` are pairs `marie:anga`."""

    def __init__(
        self, tasks: Path, results: Path, substitutes: Sequence[str], after_seconds: float, clock: Clock, emit: Emit
    ) -> None:
        self._tasks = tasks
        self._results = results
        self._after = after_seconds
        self._clock = clock
        self._emit = emit
        self._substitutes = dict(pair.split(":") for pair in substitutes)

    def check(self, dead_for: Callable[[str], float | None], workers: set[str]) -> Findings:
        """Move what may be moved now. `dead_for`: seconds since all processes of a worker died; None: one may live."""
        news = Findings()
        for worker, substitute in self._substitutes.items():
            seconds = dead_for(worker)
            is_dead = seconds is not None and seconds >= self._after
            is_unfinished = _is_folder(self._tasks / worker / REASSIGN)
            if worker in workers and (is_unfinished or is_dead):
                self._move_all(worker, substitute, is_dead, news)
        return news

    def _move_all(self, worker: str, substitute: str, is_dead: bool, news: Findings) -> None:
        moved: list[str] = []
        try:
            if is_dead:
                self._hold_all(worker, substitute)
            self._finish(worker, moved)  # also what a killed listener left held, whoever lives by now
        except Exception as error:  # noqa: BLE001 - one worker's tasks, never the listener's loop
            self._emit(HintFailed("", f"tasks of {worker} could not be moved to {substitute}: {error}"))
        if moved:
            self._emit(TasksReassigned(worker, substitute, len(moved)))
            token = secrets.token_hex(6)
            told: dict[str, Any] = {"worker": worker, "to_worker": substitute}
            told["tasks"] = [{"worker": substitute, "task_id": task_id} for task_id in sorted(moved)[:_MAX_LISTED]]
            told["tasks_left_out"] = max(0, len(moved) - _MAX_LISTED)
            stem = f"tasks_reassigned~{worker}~{token}"
            notice_id = f"tasks_reassigned/{worker}/{token}"
            news.notices.append((Notice("tasks_reassigned", stem, notice_id, self._clock.wall(), told), None))

    def _hold_all(self, worker: str, substitute: str) -> None:
        """Take the pending tasks out of the inbox, unless anything of the worker lives: it takes care of them."""
        with _name_lock(self._tasks / worker) as is_ours:
            if not is_ours or any(claim.lives is not False for claim in presence.claims_of(self._tasks, worker)):
                return
            if _runs_something(self._tasks / worker):
                return
            inbox = Folder(self._tasks / worker, create=False)
            try:
                self._hold(inbox, worker, substitute)
            finally:
                inbox.close()

    def _hold(self, inbox: Folder, worker: str, substitute: str) -> None:
        """Take out of the inbox what the substitute has no task of the same id for."""
        names = [name for name in inbox.names() if TASK_FILE_NAME.fullmatch(name)]
        if not names:
            return
        taken = _taken_ids(self._tasks / substitute, self._results / substitute)
        held = Folder(inbox.path / REASSIGN / substitute)
        try:
            for name in names:
                if name[:-5] not in taken:
                    move(inbox, name, held, name)
            os.fsync(held.fd)
        finally:
            held.close()

    def _finish(self, worker: str, moved: list[str]) -> None:
        """Publish everything that is held, then remove it; `moved` gets what has arrived."""
        for place in _folders_in(self._tasks / worker / REASSIGN):
            held, target = Folder(place, create=False), Folder(self._tasks / place.name)
            try:
                names = [name for name in held.names() if TASK_FILE_NAME.fullmatch(name)]
                together = {name[:-5] for name in names}
                for name in names:
                    if name[:-5] not in _taken_ids(target.path, self._results / place.name):
                        self._publish(held, name, target, worker, together)
                    held.remove(name)
                    moved.append(name[:-5])
            finally:
                held.close()
                target.close()
            with contextlib.suppress(OSError):
                no_links.remove_folder(place)
        with contextlib.suppress(OSError):
            no_links.remove_folder(self._tasks / worker / REASSIGN)

    def _publish(self, held: Folder, name: str, target: Folder, worker: str, together: set[str]) -> None:
        raw = held.read(name, _MAX_BYTES)
        changed_ns = os.stat(name, dir_fd=held.fd, follow_symlinks=False).st_mtime_ns  # it keeps its place in line
        try:
            changed = _changed(raw, worker, target.path.name, together, self._results)
        except (MemoryError, RecursionError, ValueError):
            changed = raw  # one that nobody can change keeps no other behind: its new worker says what is wrong with it
        put(target, name, changed, changed_ns)


def _changed(raw: bytes, worker: str, substitute: str, together: set[str], results: Path) -> bytes:
    """The task for its new worker. What is no JSON object goes as it is: the worker will say what is wrong."""
    try:
        value = strict_json.loads(raw)
    except strict_json.NotStrictJson:
        return raw
    if not isinstance(value, dict):
        return raw
    if "worker" in value:
        value["worker"] = substitute
    metadata = value.get("metadata")
    if metadata is None or isinstance(metadata, dict):
        value["metadata"] = {"reassigned_from": worker, **(metadata or {})}
    listed = value.get("dependencies")
    if isinstance(listed, list):
        value["dependencies"] = [_dependency(name, worker, together, results) for name in listed]
    return strict_json.dumps(value)


def _dependency(name: object, worker: str, together: set[str], results: Path) -> object:
    """A plain id means the own worker's first: say which worker that was. What moves along is the new one's."""
    if not isinstance(name, str):
        return name
    owner, _, task_id = name.rpartition("/")
    if owner not in ("", worker):
        return name
    if task_id in together:
        return task_id
    has_result = f"{task_id}.json" in _names(results / worker)
    return f"{worker}/{task_id}" if owner or has_result else name


@contextlib.contextmanager
def _name_lock(inbox: Path) -> Iterator[bool]:
    """The lock of the worker's name for ourselves; False when a process of it has it."""
    try:
        fd = no_links.open_file(inbox / CLAIMS / NAME_LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
    finally:
        os.close(fd)


def _runs_something(inbox: Path) -> bool:
    """Whether a command of a killed process may still live: it holds that process's second lock."""
    claims = inbox / CLAIMS
    return any(presence.is_locked(claims / name) is not False for name in _names(claims) if name.endswith(BUSY))


def _taken_ids(inbox: Path, results: Path) -> set[str]:
    """The ids of all tasks that this worker has or had."""
    return ids_in(inbox, list_names=_names) | {n[:-5] for n in _names(results) if TASK_FILE_NAME.fullmatch(n)}


def _folders_in(place: Path) -> list[Path]:
    return [place / name for name in sorted(_names(place)) if not name.startswith(".")]


def _is_folder(place: Path) -> bool:
    """The next check asks again where this one cannot see."""
    with contextlib.suppress(OSError):
        return no_links.is_folder(place)
    return False


def _names(place: Path) -> list[str]:
    """Raises OSError when it cannot be seen what is there: then nothing may be moved or published."""
    try:
        return no_links.names_in(place)
    except OSError as error:
        if tells_nothing(error):
            raise
        return []
