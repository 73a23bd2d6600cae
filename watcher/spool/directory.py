"""The directory engine: state is a place, a rename is the transition.

`tasks/<worker>/x.json` waits; `.retry/x~1-0-DUE.json` waits with a history; `.claims/<incarnation>/x~1-0.json` runs;
then there is a result or a dead letter and the claim is gone. Memory holds one index entry per waiting task, never its
text: the folder is the truth, events are hints, and a scan compares the two.

Everything here belongs to the loop thread, except `settle`, which runs on the committing thread and touches folders
only. Raises WorkerTrouble when the machine, not a file, is at fault.
"""

from __future__ import annotations

import errno
import os
import sys
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from watcher.atomicfile import Folder, move, move_new, replace
from watcher.clock import Clock
from watcher.errors import InvalidTask, WorkerTrouble
from watcher.events import Emit, Event, FileIgnored, TaskFieldsUnknown, TaskReleased
from watcher.formats.notice import Receipt
from watcher.formats.task import TASK_FILE_NAME, Task, parse_task
from watcher.policy.order import FifoMode, Lineup, Waiting
from watcher.spool.blocked import Blocked
from watcher.spool.dependencies import Results, fill
from watcher.spool.endings import Endings
from watcher.spool.interface import Claim, Claimed, Settlement
from watcher.spool.places import CLAIMS, RETRY, History, Places
from watcher.spool.reading import FileState, Reading, file_state, read_task_file
from watcher.spool.rescue import rescue
from watcher.spool.settling import Settler

#: How long a complete file whose writer keeps it open, unchanged, is left alone.
WRITER_PATIENCE_SECONDS = 30.0
#: A file that was not ready is looked at again after this long, doubling up to the second figure.
_LOOK_AGAIN_SECONDS = (0.1, 2.0)
#: Below this many free inodes nothing is claimed: a result needs a few of its own.
_MIN_FREE_INODES = 64
_CLOCK_JUMP_SECONDS = 1.0
#: Names that editors and network file systems leave for a moment; not worth a word.
_FLEETING = (".", "#")
_FLEETING_ENDS = ("~", ".swp", ".swx", ".tmp", ".part", ".crdownload", "4913")


@dataclass(frozen=True, slots=True)
class SpoolOptions:
    """What the engine needs to know of the settings. Seconds and bytes."""

    default_provider: str
    fifo_mode: FifoMode = "per_agent"
    max_task_bytes: int = 1 << 20
    settle_seconds: float = 2.0
    dependency_timeout_seconds: float = 3600.0
    max_worker_deaths: int = 3
    longest_delay_seconds: float = 330.0


@dataclass(slots=True)
class _Unsettled:
    """A file that is not ready to be judged: being written, or not a task yet. Times are monotonic."""

    state: FileState | None
    since: float
    again_at: float
    pause: float


class DirectorySpool:
    """One worker's tasks in plain folders."""

    def __init__(self, places: Places, options: SpoolOptions, clock: Clock, emit: Emit) -> None:
        self._places = places
        self._options = options
        self._clock = clock
        self._emit = emit
        self._lineup = Lineup(options.fifo_mode)
        self._results = Results(places.results_root, places.worker)
        self._blocked = Blocked(places, self._results, options, clock)
        self._endings = Endings(places, options, clock)
        self._settler = Settler(places)
        self._unsettled: dict[str, _Unsettled] = {}
        self._ready_endings: deque[tuple[Folder, str, InvalidTask]] = deque()
        self._active: dict[str, str] = {}
        self._returned: dict[str, str] = {}
        self._ignored: set[str] = set()
        self._drift = clock.wall() - clock.monotonic()
        self._claims_seen: tuple[int, list[str]] = (-1, [])

    # --- finding what is there

    def notice(self, names: Collection[str]) -> None:
        """Look at files of the inbox that an event named."""
        for name in names:
            if _is_task_name(name):
                self._index(name)

    def notice_result(self, worker: str, name: str) -> None:
        """A result of some worker has appeared; tasks that wait for it may be ready."""
        self._results.note(worker, name)
        for waiting in self._blocked.answered(worker, name.removesuffix(".json")):
            self._index(waiting)

    def scan(self) -> Iterator[None]:
        """Compare the folders with the index; yields now and then so that the loop stays awake.

        Raises WorkerTrouble when the folders cannot be listed.
        """
        try:
            inbox, retry = self._places.inbox.names(), self._places.retry.names()
        except OSError as error:
            raise WorkerTrouble(f"list {self._places.inbox.path}", error) from error
        yield
        self._results.refresh()
        yield from self._look_at_the_clock()
        known = self._lineup
        step = 0
        for names, is_known_name in ((retry, _has_history), (inbox, _is_task_name)):
            for name in names:
                if name in known or name in self._blocked or name in self._unsettled:
                    continue
                if is_known_name(name):
                    self._index(name)
                elif name not in self._ignored:
                    self._judge_name(name)
                step += 1
                if step % 100 == 0:
                    yield
        there = set(inbox)
        there.update(retry)
        for number, name in enumerate([n for n in known.names() if n not in there]):
            # Entries may have come while the listing was walked; only a file that is really gone is forgotten.
            if not self._folder_of(name).has(name):
                known.discard(name, self._clock.monotonic())
            if number % 200 == 199:
                yield
        for waiting in self._blocked.look_again():
            self._index(waiting)
            yield
        self._look_at_unsettled(everything=True)

    def _look_at_the_clock(self) -> Iterator[None]:
        """A wall clock that was set moves the tasks that wait for a wall time."""
        drift = self._clock.wall() - self._clock.monotonic()
        if abs(drift - self._drift) > _CLOCK_JUMP_SECONDS:
            self._drift = drift
            for name in self._lineup.deferred():
                self._index(name)
                yield

    def tick(self) -> None:
        """Do what is due by time alone."""
        self._look_at_unsettled(everything=False)

    def watched_results(self) -> list[str]:
        """Workers whose results somebody here waits for."""
        return self._results.workers() if self._blocked else []

    # --- the interface

    def claim(self, limit: int, excluded: Collection[str]) -> Claimed:
        out = Claimed()
        try:
            while self._ready_endings:
                folder, name, why = self._ready_endings[0]
                ending = self._end_without_running(folder, name, why)
                self._ready_endings.popleft()
                if ending is not None:
                    out.endings.append(ending)
            while len(out.claims) < limit:
                waiting = self._lineup.take(self._clock.monotonic(), excluded)
                if waiting is None:
                    break
                self._claim_one(waiting, out)
        except WorkerTrouble:
            if not out.claims and not out.endings:
                raise
        return out

    def release(self, claim: Claim, reason: str) -> None:
        """Back to the inbox under its own name, or to `.retry` when it has a history or the name is taken."""
        history = History(claim.task.task_id, claim.attempt - 1, claim.deaths)
        try:
            name = self._put_back(claim.handle, history)
        except OSError as error:
            raise WorkerTrouble(f"release {claim.task.task_id}", error) from error
        self._back_in_line(claim, name, 0.0)
        self._emit(TaskReleased(claim.task.task_id, reason))

    def retry_in(self, claim: Claim, delay_seconds: float) -> None:
        due = self._clock.wall() + delay_seconds
        history = History(claim.task.task_id, claim.attempt, claim.deaths, due)
        try:
            there = move(self._places.mine, claim.handle, self._places.retry, history.waiting())
        except OSError as error:
            raise WorkerTrouble(f"retry {claim.task.task_id}", error) from error
        if there:
            self._back_in_line(claim, history.waiting(), self._clock.monotonic() + delay_seconds)
        else:
            self._forget(claim.task.task_id, claim.lane)

    def taken(self, claim: Claim) -> None:
        """Tell the submitter: a receipt, which is a hint and not durable. Raises OSError."""
        receipt = Receipt(
            claim.task.task_id, self._places.worker, self._clock.wall(), claim.attempt, self._places.incarnation
        )
        replace(self._places.triggers, f"{claim.task.task_id}.json", receipt.dump(), self._places.incarnation)

    def settle(self, batch: list[Settlement]) -> tuple[list[Event | None], OSError | None]:
        return self._settler.settle(batch)

    def settled(self, settlement: Settlement) -> None:
        self._forget(settlement.task_id, settlement.lane)
        if settlement.result is not None:
            self.notice_result(self._places.worker, f"{settlement.task_id}.json")

    def rescue(self) -> int:
        rescued = rescue(self._places, self._emit)
        for name in rescued:
            self._index(name)
        return len(rescued)

    def check_space(self, minimum_bytes: int) -> None:
        """Raises WorkerTrouble when results could not be stored: too few free bytes or inodes."""
        for folder in (self._places.results, self._places.inbox):
            space = os.statvfs(folder.fd)
            short = space.f_bavail * space.f_frsize < minimum_bytes
            if short or (space.f_files and space.f_favail < _MIN_FREE_INODES):
                what = "MIN_FREE_BYTES" if short else f"{_MIN_FREE_INODES} inodes"
                error = OSError(errno.ENOSPC, f"less than {what} free; make room")
                raise WorkerTrouble(f"store results in {folder.path}", error)

    def discard_output(self, name: str) -> None:
        """Drop an output file of an attempt whose outcome is not stored."""
        self._places.mine.remove(name)

    def output_path(self, task_id: str, stream: str) -> str:
        """Where a kept output of this task will be."""
        return str(self._places.output.path / f"{task_id}.{stream}")

    def waiting(self) -> int:
        return len(self._lineup) + len(self._blocked) + len(self._unsettled) + len(self._ready_endings)

    def blocked(self) -> int:
        """How many tasks wait for dependencies."""
        return len(self._blocked)

    def oldest_arrival(self) -> float | None:
        """Wall seconds at which the oldest waiting task came, or None."""
        return self._lineup.oldest_arrival()

    def has_ready(self, excluded: Collection[str]) -> bool:
        if self._ready_endings:
            return True
        due = self._lineup.next_due()
        return (due is not None and due <= self._clock.monotonic()) or self._lineup.has_ready(excluded)

    def next_due_in(self) -> float | None:
        waits = []
        now = self._clock.monotonic()
        due = self._lineup.next_due()
        if due is not None:
            waits.append(max(0.0, due - now))
        if self._unsettled:
            waits.append(max(0.0, min(u.again_at for u in self._unsettled.values()) - now))
        return min(waits) if waits else None

    # --- index

    def _index(self, name: str) -> None:
        """Read a waiting file and put it where it belongs. Trouble leaves it to the next scan."""
        history = History.of(name) if "~" in name or _is_task_name(name) else None
        if history is None:
            self._unsettled.pop(name, None)
            return
        folder = self._folder_of(name)
        try:
            found = read_task_file(folder, name, self._options.max_task_bytes)
        except WorkerTrouble:
            return
        if found is None:
            self._forget_waiting(name)
            return
        if not isinstance(found, Reading):
            self._not_yet(name, found.state, found.error, found.settling)
            return
        try:
            task = parse_task(found.raw, history.stem, self._places.worker)
        except InvalidTask as error:
            self._not_yet(name, found.state, error, settling=True, being_written=found.being_written)
            return
        if found.being_written and not self._writer_had_its_time(name, found.state):
            return
        self._unsettled.pop(name, None)
        self._line_up(name, history, task, found)

    def _line_up(self, name: str, history: History, task: Task, found: Reading) -> None:
        now = self._clock.monotonic()
        self._lineup.discard(name, now)
        if "~" in name:
            self._returned[history.stem] = name
        waiting = Waiting(
            name,
            task.priority,
            max(found.arrived_at, task.not_before or 0.0),
            sys.intern(task.provider or self._options.default_provider),
            self._lineup.lane_of(task.agent_id),
            self._due(history, task),
        )
        if task.dependencies and not history.attempts:
            broken = self._blocked.add(name, task)
            if broken is not None:
                self._ready_endings.append((self._folder_of(name), name, broken))
                return
            if name in self._blocked:
                return
        self._lineup.add(waiting, now)

    def _due(self, history: History, task: Task) -> float:
        """When it may start, as monotonic seconds; 0 for now.

        A stored retry time beyond the longest delay is a clock that jumped: it is cut.
        """
        wall = self._clock.wall()
        retry = min(history.due - wall, self._options.longest_delay_seconds)
        wait = max(retry, (task.not_before or 0.0) - wall)
        return self._clock.monotonic() + wait if wait > 0 else 0.0

    def _not_yet(
        self, name: str, state: FileState, error: InvalidTask, settling: bool, being_written: bool = False
    ) -> None:
        """A file that is no task: perhaps not yet. Unchanged for SETTLE_SECONDS and closed, it is refused."""
        now = self._clock.monotonic()
        entry = self._unsettled.get(name)
        if entry is None or entry.state != state:
            entry = self._unsettled[name] = _Unsettled(state, now, now, _LOOK_AGAIN_SECONDS[0])
        if not settling or (now - entry.since >= self._options.settle_seconds and not being_written):
            del self._unsettled[name]
            self._lineup.discard(name, self._clock.monotonic())
            self._ready_endings.append((self._folder_of(name), name, error))
            return
        self._lineup.discard(name, self._clock.monotonic())
        self._pause(entry, now)

    def _writer_had_its_time(self, name: str, state: FileState) -> bool:
        """A complete task whose writer still has it open is left alone for a while."""
        now = self._clock.monotonic()
        entry = self._unsettled.get(name)
        if entry is None or entry.state != state:
            entry = self._unsettled[name] = _Unsettled(state, now, now, _LOOK_AGAIN_SECONDS[0])
        if now - entry.since >= WRITER_PATIENCE_SECONDS:
            return True
        self._lineup.discard(name, self._clock.monotonic())
        self._pause(entry, now)
        return False

    def _pause(self, entry: _Unsettled, now: float) -> None:
        # With a short SETTLE_SECONDS the next look must not come much later than the verdict is due.
        entry.again_at = now + min(entry.pause, max(self._options.settle_seconds, 0.02))
        entry.pause = min(entry.pause * 2, _LOOK_AGAIN_SECONDS[1])

    def _look_again_later(self, name: str) -> None:
        now = self._clock.monotonic()
        entry = self._unsettled.get(name) or _Unsettled(None, now, now, _LOOK_AGAIN_SECONDS[0])
        entry.again_at = now + entry.pause
        entry.pause = min(entry.pause * 2, _LOOK_AGAIN_SECONDS[1])
        self._unsettled[name] = entry

    def _look_at_unsettled(self, everything: bool) -> None:
        now = self._clock.monotonic()
        for name in [n for n, u in self._unsettled.items() if everything or u.again_at <= now]:
            self._index(name)

    def _forget_waiting(self, name: str) -> None:
        self._unsettled.pop(name, None)
        self._blocked.discard(name)
        self._lineup.discard(name, self._clock.monotonic())

    def _judge_name(self, name: str) -> None:
        """A file that no rule knows: a broken name is refused like a broken task, the rest is only mentioned."""
        if name.startswith(_FLEETING) or name.endswith(_FLEETING_ENDS):
            return
        if name.endswith(".json"):
            text = "a task file is named like its id: letters, digits, dot, dash, underscore, at most 128, then .json"
            self._ready_endings.append((self._places.inbox, name, InvalidTask("bad_name", text)))
        else:
            self._emit(FileIgnored(ascii(name), "not a task: its name does not end in .json"))
        self._ignored.add(name)

    def _folder_of(self, name: str) -> Folder:
        """Where a lined-up file lies: a name with a history is in `.retry`."""
        return self._places.retry if "~" in name else self._places.inbox

    # --- claiming

    def _claim_one(self, waiting: Waiting, out: Claimed) -> None:
        name, lane = waiting.name, waiting.lane
        history = History.of(name)
        assert history is not None  # only such names are lined up
        folder = self._folder_of(name)
        done = False
        try:
            found = read_task_file(folder, name, self._options.max_task_bytes)
            if found is None:
                return
            if not isinstance(found, Reading):
                self._not_yet(name, found.state, found.error, found.settling)
                return
            if self._is_elsewhere(history.stem, name):
                self._look_again_later(name)
                return
            try:
                task = parse_task(found.raw, history.stem, self._places.worker)
                ending = self._endings.without_running(task, history)
                if ending is None and self._changed_its_mind(waiting, history, task, found):
                    return
                prompt = fill(task.description, task.dependencies, self._results)
            except InvalidTask as error:
                self._not_yet(name, found.state, error, settling=True, being_written=found.being_written)
                return
            if found.being_written and not self._writer_had_its_time(name, found.state):
                return
            handle = self._take(name, history, found.state)
            if handle is None:
                return
            done = True
            self._unsettled.pop(name, None)
            self._active[history.stem] = handle
            if "~" in name:
                self._returned.pop(history.stem, None)
            if ending is not None:
                out.endings.append(ending.with_handle(handle, lane))
            else:
                out.claims.append(self._claim(task, history, handle, waiting, found, prompt))
        except WorkerTrouble:
            self._lineup.add(waiting, self._clock.monotonic())
            raise
        except OSError as error:
            if self._is_stuck(folder, name, error):
                return
            self._lineup.add(waiting, self._clock.monotonic())
            raise WorkerTrouble(f"claim {self._places.worker}/{name}", error) from error
        finally:
            if not done:
                self._lineup.free(lane, self._clock.monotonic())

    def _claim(
        self, task: Task, history: History, handle: str, waiting: Waiting, found: Reading, prompt: str
    ) -> Claim:
        unknown = task.unknown_fields()
        if unknown:
            self._emit(TaskFieldsUnknown(task.task_id, ", ".join(unknown)[:500]))
        wall = self._clock.wall()
        due = wall - (self._clock.monotonic() - waiting.due) if waiting.due else 0.0
        since = max(found.changed_at, due)
        return Claim(
            task,
            history.attempts + 1,
            history.deaths,
            prompt,
            waiting.provider,
            handle,
            waiting.arrived_at,
            waiting.lane,
            max(0.0, wall - since),
        )

    def _take(self, name: str, history: History, state: FileState) -> str | None:
        """The claim itself: one rename. None when somebody else was faster or the file is not what was read."""
        taken = History(history.stem, history.attempts + 1, history.deaths)
        handle = taken.claimed()
        if not move(self._folder_of(name), name, self._places.mine, handle):
            return None
        if file_state(self._places.mine, handle) != state:
            # Written to or replaced between the look and the rename: give it back and judge what it is now.
            self._put_back(handle, history)
            self._look_again_later(name)
            return None
        return handle

    def _changed_its_mind(self, waiting: Waiting, history: History, task: Task, found: Reading) -> bool:
        """The file was edited since it was lined up: its place, its time or its needs may be others now."""
        lane = self._lineup.lane_of(task.agent_id)
        provider = task.provider or self._options.default_provider
        is_due = (task.not_before or 0.0) <= self._clock.wall()
        same = (task.priority, lane, provider) == (waiting.priority, waiting.lane, waiting.provider)
        if same and is_due and (history.attempts or not task.dependencies or self._blocked.is_met(task)):
            return False
        self._lineup.free(waiting.lane, self._clock.monotonic())
        self._line_up(waiting.name, history, task, found)
        return True

    def _is_elsewhere(self, stem: str, name: str) -> bool:
        """Whether a task of this id is running or waits with a history: the new file must wait for its outcome."""
        if stem in self._active:
            return True
        returned = self._returned.get(stem)
        if returned is not None and returned != name:
            if self._places.retry.has(returned):
                return True
            del self._returned[stem]
        others = self._other_incarnations()
        if not others:
            return False
        prefix = f"{stem}~"
        return any(self._is_claimed_by(other, stem) for other in others) or any(
            n.startswith(prefix) and n != name for n in self._places.retry.names()
        )

    def _other_incarnations(self) -> list[str]:
        """Claim folders of other processes of this worker, listed again only when one came or went."""
        changed = self._places.claims_changed()
        if changed != self._claims_seen[0]:
            self._claims_seen = (changed, self._places.other_incarnations())
        return self._claims_seen[1]

    def _is_claimed_by(self, incarnation: str, stem: str) -> bool:
        for name in self._places.claims_of(incarnation):
            history = History.of(name) if "~" in name else None
            if history is not None and history.stem == stem:
                return True
        return False

    def _end_without_running(self, folder: Folder, name: str, why: InvalidTask) -> Settlement | None:
        """Claim a file that will not run and say how it ends. None when it is gone or has changed."""
        try:
            handle = self._endings.take(folder, name)
        except OSError as error:
            if self._is_stuck(folder, name, error):
                return None
            raise WorkerTrouble(f"refuse {self._places.worker}/{ascii(name)}", error) from error
        self._ignored.discard(name)
        if handle is None:
            return None
        ending = self._endings.refused(handle, name, why)
        history = History.of(name)
        if ending is None and history is not None:
            self._index(self._put_back(handle, history))
        return ending

    def _is_stuck(self, folder: Folder, name: str, error: OSError) -> bool:
        """One file that may not be moved (immutable, sticky folder) is left alone for a while; said once."""
        if error.errno not in (errno.EPERM, errno.EACCES) or not os.access(folder.path, os.W_OK | os.X_OK):
            return False
        if name not in self._ignored:
            self._ignored.add(name)
            text = f"cannot be claimed: {error.strerror}; it is tried again later"
            self._emit(FileIgnored(ascii(name), text))
        self._look_again_later(name)
        return True

    # --- giving back

    def _put_back(self, handle: str, history: History) -> str:
        """Rename a claim back to where it can be claimed again; returns its new name."""
        if not history.attempts and not history.deaths:
            plain = f"{history.stem}.json"
            if move_new(self._places.mine, handle, self._places.inbox, plain):
                return plain
        move(self._places.mine, handle, self._places.retry, history.waiting())
        return history.waiting()

    def _back_in_line(self, claim: Claim, name: str, due: float) -> None:
        now = self._clock.monotonic()
        self._active.pop(claim.task.task_id, None)
        if "~" in name:
            self._returned[claim.task.task_id] = name
        waiting = Waiting(name, claim.task.priority, claim.order_at, claim.provider, claim.lane, due)
        self._lineup.add(waiting, now)
        self._lineup.free(claim.lane, now)

    def _forget(self, stem: str, lane: str | None) -> None:
        self._active.pop(stem, None)
        twin = self._unsettled.get(f"{stem}.json")
        if twin is not None:
            twin.again_at = self._clock.monotonic()
        self._lineup.free(lane, self._clock.monotonic())


def _has_history(name: str) -> bool:
    return "~" in name and History.of(name) is not None


def _is_task_name(name: str) -> bool:
    return TASK_FILE_NAME.fullmatch(name) is not None


__all__ = ["CLAIMS", "RETRY", "DirectorySpool", "SpoolOptions"]
