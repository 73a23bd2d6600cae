"""Own the index of one worker's waiting tasks, kept true by events and scans: what waits, and what may start.

Memory holds one entry per waiting task, never its text. A file goes in line, or to the blocked, or to the unsettled
(being written, or not a task yet), or to the endings (never will be a task). Events only say where to look; the scan
compares the index with the folders and finds what events missed.

Belongs to the loop thread. Raises WorkerTrouble when the folders cannot be listed.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from watcher.clock import Clock
from watcher.errors import InvalidTask, WorkerTrouble
from watcher.formats.task import TASK_FILE_NAME, Task, parse_task, why_no_task_name
from watcher.policy.claim_order import Lineup, Waiting
from watcher.store.blocked import Blocked
from watcher.store.dependencies import Results
from watcher.store.folders import History, WorkerFolders
from watcher.store.refused_files import NOT_UNDERSTOOD
from watcher.store.task_reader import FileState, TaskBytes, read_task_file
from watcher.system.files import Folder
from watcher.telemetry.events import Emit, FileIgnored, FolderLost, TaskNotUnderstood

if TYPE_CHECKING:
    from watcher.settings.worker_groups import QueueSettings

#: How long a complete file whose writer keeps it open, unchanged, is left alone.
WRITER_PATIENCE_SECONDS = 30.0
#: A file that was not ready is looked at again after this long, doubling up to the second figure.
_LOOK_AGAIN_SECONDS = (0.1, 2.0)
_CLOCK_JUMP_SECONDS = 1.0
#: A file that this user may not move is tried again after so long, or by the next scan.
_STUCK_SECONDS = 30.0
#: How often this program may fail over one file until that is refused.
_TRIES = 3
#: Looking at files may take so long at once; what is left has its turn after whatever else the loop has to do.
SLICE_SECONDS = 0.03


@dataclass(slots=True)
class _Unsettled:
    """A file that is not ready to be judged: being written, or not a task yet. Times are monotonic."""

    state: FileState | None
    since: float
    again_at: float
    pause: float


class Index:
    """Knows every task that waits for one worker and what it waits for.

    `lineup` holds those that may be taken, `endings` the files that will never be: name -> folder and why.
    """

    def __init__(self, places: WorkerFolders, config: QueueSettings, clock: Clock, emit: Emit) -> None:
        self._places = places
        self._config = config
        self._clock = clock
        self._emit = emit
        self._longest_delay = config.retry_delays.longest()
        self.lineup = Lineup(config.fifo_mode)
        self.results = Results(places.results_root, places.worker)
        self.endings: dict[str, tuple[Folder, InvalidTask]] = {}
        self._blocked = Blocked(places, self.results, config, clock)
        self._unsettled: dict[str, _Unsettled] = {}
        # Of these the files that this user may not take, and why.
        self._stuck: dict[str, str] = {}
        # Complete files whose writer was found at work at the claim; they are in line or unsettled, in turns.
        self._open: dict[str, _Unsettled] = {}
        self._returned: dict[str, str] = {}
        self._ignored: set[str] = set()
        self._todo: dict[str, None] = {}
        self._defects: dict[str, tuple[int, int]] = {}
        self._understood = 0
        self._drift = clock.wall() - clock.monotonic()

    def notice(self, names: Collection[str]) -> None:
        """Look at files of the inbox that an event named."""
        self.look_at(name for name in names if _is_task_name(name))

    def look_at(self, names: Iterable[str]) -> None:
        """Look at these, at what there is no time for now at the next `tick`."""
        self._todo.update((name, None) for name in names)
        self._work()

    def notice_result(self, worker: str, name: str) -> None:
        """A result of some worker has appeared; tasks that wait for it may be ready."""
        self.results.note(worker, name)
        self.look_at(self._blocked.answered(worker, name.removesuffix(".json")))

    def _work(self) -> None:
        """Look at what is to be looked at, for a slice of time at most."""
        end = time.monotonic() + SLICE_SECONDS
        while self._todo:
            name = next(iter(self._todo))
            del self._todo[name]
            self.index(name)
            if time.monotonic() >= end:
                break

    def scan(self) -> Iterator[None]:
        """Compare the folders with the index; yields now and then so that the loop stays awake.

        Raises WorkerTrouble when the folders cannot be listed.
        """
        try:
            for folder in self._places.mend():
                self._emit(FolderLost(folder, "deleted or replaced under the worker; the one of that name is used now"))
            inbox, retry = self._places.inbox.names(), self._places.retry.names()
        except OSError as error:
            raise WorkerTrouble(f"list {self._places.inbox.path}", error) from error
        yield
        self._blocked.refresh()
        yield from self._look_at_the_clock()
        yield from self._index_new(inbox, retry)
        there = set(inbox)
        there.update(retry)
        yield from self._forget_gone(there)
        for name in self._blocked.names() - there:
            if not self.folder_of(name).has(name):
                self._blocked.discard(name)
            yield
        for waiting in self._blocked.look_again():
            if waiting is not None:
                self.index(waiting)
            yield
        for found in self._blocked.circles():
            if found is not None:
                self.endings[found[0]] = (self.folder_of(found[0]), found[1])
            yield
        for name in [name for name in self._stuck if name not in there]:
            del self._stuck[name]
        self._look_at_unsettled(everything=True)
        while self._todo:
            self._work()
            yield

    def _index_new(self, inbox: Collection[str], retry: Collection[str]) -> Iterator[None]:
        known = self.lineup
        step = 0
        for names, is_known_name in ((retry, _has_history), (inbox, _is_task_name)):
            for name in names:
                step += 1
                if name in known or name in self._blocked or name in self._unsettled or name in self.endings:
                    if step % 1000 == 0:
                        yield
                    continue
                if is_known_name(name):
                    self.index(name)
                elif name not in self._ignored:
                    self._judge_name(name)
                yield

    def _forget_gone(self, there: Collection[str]) -> Iterator[None]:
        for number, name in enumerate([n for n in self.lineup.names() if n not in there]):
            # Entries may have come while the listing was walked; only a file that is really gone is forgotten.
            if not self.folder_of(name).has(name):
                self.lineup.discard(name, self._clock.monotonic())
            if number % 200 == 199:
                yield

    def _look_at_the_clock(self) -> Iterator[None]:
        """A wall clock that was set moves the tasks that wait for a wall time."""
        drift = self._clock.wall() - self._clock.monotonic()
        if abs(drift - self._drift) > _CLOCK_JUMP_SECONDS:
            self._drift = drift
            for name in self.lineup.deferred():
                self.index(name)
                yield

    def tick(self) -> None:
        """Do what is due by time alone, so that what is due next lies ahead, also while nothing can be claimed."""
        self.lineup.wake_due(self._clock.monotonic())
        self._look_at_unsettled(everything=False)
        self._work()

    def circle_with(self, task: Task) -> list[str] | None:
        """The circle of waiting tasks that this one would close, or None."""
        return self._blocked.circle_with(task)

    def watched_results(self) -> list[str]:
        """Workers whose results somebody here waits for."""
        return self.results.workers() if self._blocked else []

    def waiting(self) -> int:
        return len(self.lineup) + len(self._blocked) + len(self._unsettled) + len(self.endings)

    def blocked(self) -> int:
        """How many tasks wait for dependencies."""
        return len(self._blocked)

    def waits_for(self) -> str | None:
        """What cannot be claimed, or what all that waits here waits for, in words; None when neither is so."""
        stuck = [why for name, why in self._stuck.items() if name in self._unsettled]
        if stuck:
            return f"{len(stuck)} of the tasks here cannot be claimed: {stuck[0]}"
        later = len(self.lineup.deferred())
        counts = (
            (len(self._blocked), "for dependencies"),
            (later, "for their time"),
            (len(self._unsettled), "to settle"),
        )
        told = [f"{count} {what}" for count, what in counts if count]
        if not told or self.endings or self.lineup.has_ready(()):
            return None
        return f"no task can start now; waiting {', '.join(told)}"

    def oldest_arrival(self) -> float | None:
        """Wall seconds at which the oldest waiting task came, also one that waits for others; or None."""
        arrivals = (self.lineup.oldest_arrival(), self._blocked.oldest_arrival())
        return min((at for at in arrivals if at is not None), default=None)

    def providers_wanted(self) -> set[str]:
        """The providers for which a task is ready."""
        return self.lineup.providers()

    def has_undoubted(self, provider: str) -> bool:
        """Whether a task of this provider is ready that was never given back."""
        return self.lineup.has_undoubted(provider)

    def has_ready(self, excluded: Collection[str]) -> bool:
        if self.endings:
            return True
        due = self.lineup.next_due()
        return (due is not None and due <= self._clock.monotonic()) or self.lineup.has_ready(excluded)

    def next_due_in(self) -> float | None:
        if self._todo:
            return 0.0
        waits = []
        now = self._clock.monotonic()
        due = self.lineup.next_due()
        if due is not None:
            waits.append(max(0.0, due - now))
        if self._unsettled:
            waits.append(max(0.0, min(u.again_at for u in self._unsettled.values()) - now))
        return min(waits) if waits else None

    def index(self, name: str) -> None:
        """Read a waiting file and put it where it belongs. Trouble leaves it to the next scan.

        Whatever goes wrong over this file is this file's trouble: nothing is raised.
        """
        try:
            self._index(name)
            self._understood += 1
        except Exception as error:  # noqa: BLE001 - a file that no rule foresaw must not end the loop
            self.not_understood(name, error)

    def not_understood(self, name: str, error: Exception) -> None:
        """Something went wrong over this file that no rule knows: it is tried three times, then refused.

        Short memory may be anybody's fault: such a time counts only if other files could be read since the last one.
        """
        times, others = self._defects.get(name, (0, -1))
        if isinstance(error, OSError) or (isinstance(error, MemoryError) and self._understood == others):
            self._forget_waiting(name)
            self.look_again_later(name)
            return
        self._defects[name] = (times + 1, self._understood)
        detail = f"{type(error).__name__}: {error}".rstrip(": ")
        self._emit(TaskNotUnderstood(ascii(name), detail))
        self._forget_waiting(name)
        if times + 1 < _TRIES:
            self.look_again_later(name)
            return
        del self._defects[name]
        self.endings[name] = (self.folder_of(name), InvalidTask(NOT_UNDERSTOOD, f"the worker failed over it: {detail}"))

    def understood(self, name: str) -> None:
        """It became a claim: what went wrong before did not last."""
        self._defects.pop(name, None)

    def _index(self, name: str) -> None:
        history = History.of(name) if "~" in name or _is_task_name(name) else None
        if history is None:
            self._unsettled.pop(name, None)
            return
        folder = self.folder_of(name)
        try:
            found = read_task_file(folder, name, self._config.max_task_bytes, ask_for_writers=False)
        except WorkerTrouble:
            if name in self._unsettled:
                self.look_again_later(name)
            return
        if found is None:
            self._forget_waiting(name)
            return
        if not isinstance(found, TaskBytes):
            self.not_yet(name, found.state, found.error, found.settling)
            return
        try:
            task = parse_task(found.raw, history.stem, self._places.worker)
        except InvalidTask as error:
            self._perhaps_half_written(folder, name, error)
            return
        self._unsettled.pop(name, None)
        self._line_up(name, history, task, found)

    def _line_up(self, name: str, history: History, task: Task, found: TaskBytes) -> None:
        now = self._clock.monotonic()
        self.lineup.discard(name, now)
        if "~" in name:
            self._returned[history.stem] = name
        waiting = Waiting(
            name,
            task.priority,
            max(found.arrived_at, task.not_before or 0.0),
            sys.intern(task.provider or self._config.provider),
            self.lineup.lane_of(task.agent_id),
            self._due(history, task),
            is_doubted=history.given is not None,
            keeps_place=bool(history.attempts) and (task.not_before or 0.0) <= self._clock.wall(),
        )
        if task.dependencies and not history.attempts:
            broken = self._blocked.add(name, task, waiting.arrived_at)
            if broken is not None:
                self.endings[name] = (self.folder_of(name), broken)
                return
            if name in self._blocked:
                return
        self.lineup.add(waiting, now)

    def _due(self, history: History, task: Task) -> float:
        """When it may start, as monotonic seconds; 0 for now.

        A stored retry time beyond the longest delay is a clock that jumped: it is cut.
        """
        wall = self._clock.wall()
        retry = min(history.due - wall, self._longest_delay)
        wait = max(retry, (task.not_before or 0.0) - wall)
        return self._clock.monotonic() + wait if wait > 0 else 0.0

    def _perhaps_half_written(self, folder: Folder, name: str, error: InvalidTask) -> None:
        """No task as it is now; whether somebody still writes it decides."""
        with contextlib.suppress(WorkerTrouble):
            again = read_task_file(folder, name, self._config.max_task_bytes)
            if isinstance(again, TaskBytes):
                self.not_yet(name, again.state, error, settling=True, being_written=again.being_written)
            else:
                self.look_again_later(name)

    def not_yet(
        self, name: str, state: FileState, error: InvalidTask, settling: bool, being_written: bool = False
    ) -> None:
        """A file that is no task: perhaps not yet. Unchanged for SETTLE_SECONDS and closed, it is refused."""
        now = self._clock.monotonic()
        entry = self._unsettled.get(name)
        if entry is None or entry.state != state:
            entry = self._unsettled[name] = _Unsettled(state, now, now, _LOOK_AGAIN_SECONDS[0])
        if not settling or (now - entry.since >= self._config.settle_seconds and not being_written):
            del self._unsettled[name]
            self.lineup.discard(name, self._clock.monotonic())
            self.endings[name] = (self.folder_of(name), error)
            return
        self.lineup.discard(name, self._clock.monotonic())
        self._pause(entry, now)

    def writer_had_its_time(self, name: str, state: FileState) -> bool:
        """A complete task whose writer still has it open is left alone for a while."""
        now = self._clock.monotonic()
        entry = self._open.get(name)
        if entry is None or entry.state != state:
            entry = self._open[name] = _Unsettled(state, now, now, _LOOK_AGAIN_SECONDS[0])
        if now - entry.since >= WRITER_PATIENCE_SECONDS:
            return True
        self._unsettled[name] = entry
        self.lineup.discard(name, self._clock.monotonic())
        self._pause(entry, now)
        return False

    def _pause(self, entry: _Unsettled, now: float) -> None:
        # With a short SETTLE_SECONDS the next look must not come much later than the verdict is due.
        entry.again_at = now + min(entry.pause, max(self._config.settle_seconds, 0.02))
        entry.pause = min(entry.pause * 2, _LOOK_AGAIN_SECONDS[1])

    def look_again_later(self, name: str) -> None:
        now = self._clock.monotonic()
        entry = self._unsettled.get(name) or _Unsettled(None, now, now, _LOOK_AGAIN_SECONDS[0])
        entry.again_at = now + entry.pause
        entry.pause = min(entry.pause * 2, _LOOK_AGAIN_SECONDS[1])
        self._unsettled[name] = entry

    def stuck(self, name: str, why: str) -> None:
        """A file that may not be taken is tried again with each scan, and told until it is taken or gone."""
        now = self._clock.monotonic()
        self.tell_once(name, f"cannot be claimed: {why}; it is tried again until then")
        self._stuck[name] = why
        self._unsettled[name] = _Unsettled(None, now, now + _STUCK_SECONDS, _STUCK_SECONDS)

    def _look_at_unsettled(self, everything: bool) -> None:
        now = self._clock.monotonic()
        self._todo.update((n, None) for n, u in self._unsettled.items() if everything or u.again_at <= now)

    def gone(self, name: str, stem: str) -> None:
        """The file was taken out of the line on purpose: held, changed or ended."""
        self._forget_waiting(name)
        if self._returned.get(stem) == name:
            del self._returned[stem]

    def _forget_waiting(self, name: str) -> None:
        self._unsettled.pop(name, None)
        self._open.pop(name, None)
        self._blocked.discard(name)
        self.lineup.discard(name, self._clock.monotonic())

    def _judge_name(self, name: str) -> None:
        """A file that no rule knows: a broken name is refused like a broken task, the rest is only mentioned."""
        text = None if name.startswith(".") else why_no_task_name(name)  # a hidden one may still be written
        if text is None:
            return
        if name.endswith(".json"):
            self.endings[name] = (self._places.inbox, InvalidTask("bad_name", text))
        else:
            self._emit(FileIgnored(ascii(name), text))
        self._ignored.add(name)

    def folder_of(self, name: str) -> Folder:
        """Where a lined-up file lies: a name with a history is in `.retry`."""
        return self._places.retry if "~" in name else self._places.inbox

    def changed_its_mind(self, waiting: Waiting, history: History, task: Task, found: TaskBytes) -> bool:
        """The file was edited since it was lined up: its place, its time or its needs may be others now."""
        lane = self.lineup.lane_of(task.agent_id)
        provider = task.provider or self._config.provider
        is_due = (task.not_before or 0.0) <= self._clock.wall()
        same = (task.priority, lane, provider) == (waiting.priority, waiting.lane, waiting.provider)
        if same and is_due and (history.attempts or not task.dependencies or self._blocked.is_met(task)):
            return False
        self.lineup.free(waiting.lane, self._clock.monotonic())
        self._line_up(waiting.name, history, task, found)
        return True

    def taken(self, name: str, stem: str) -> None:
        """The file was claimed."""
        self._unsettled.pop(name, None)
        self._open.pop(name, None)
        if "~" in name:
            self._returned.pop(stem, None)

    def refused(self, name: str) -> None:
        """The file was claimed to end; one of the same name is judged anew."""
        self._ignored.discard(name)
        self._open.pop(name, None)

    def returned(self, stem: str) -> str | None:
        """The name under which a task of this id waits with a history, or None."""
        return self._returned.get(stem)

    def came_back(self, stem: str, name: str, waiting: Waiting) -> None:
        """A claim was given back under this name."""
        if "~" in name:
            self._returned[stem] = name
        self.lineup.add(waiting, self._clock.monotonic())

    def over(self, stem: str) -> None:
        """A task has its outcome: a file of the same id that waited for that is looked at again."""
        twin = self._unsettled.get(f"{stem}.json")
        if twin is not None:
            twin.again_at = self._clock.monotonic()

    def tell_once(self, name: str, detail: str) -> None:
        """Mention a file that is left alone, once."""
        if name not in self._ignored:
            self._ignored.add(name)
            self._emit(FileIgnored(ascii(name), detail))


def _has_history(name: str) -> bool:
    return "~" in name and History.of(name) is not None


def _is_task_name(name: str) -> bool:
    return TASK_FILE_NAME.fullmatch(name) is not None
