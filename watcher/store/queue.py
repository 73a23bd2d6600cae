"""Claim, retry and release the tasks of one worker: state is a place, a rename is the transition.

`tasks/<worker>/x.json` waits; `.retry/x~1-0-DUE.json` waits with a history; `.held/x.json` is held;
`.claims/<incarnation>/x~1-0.json` runs; then there is a result or a dead letter and the claim is gone. Memory holds one
index entry per waiting task, never its text: the folder is the truth, events are hints, a scan compares the two.

Everything here belongs to the loop thread, except `taken`, `prompt` and `settle`, which run on other threads and touch
folders only. Raises WorkerTrouble when the machine, not a file, is at fault.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import replace as replaced
from typing import TYPE_CHECKING, Any

from watcher.clock import Clock, NeverAhead
from watcher.errors import InvalidTask, WorkerTrouble
from watcher.formats.receipt_and_notice import Receipt
from watcher.formats.task import Task, parse_task
from watcher.policy.claim_order import Waiting
from watcher.store import in_hand
from watcher.store.changes import TaskStanding, standing_of, take_to_cancel
from watcher.store.dependencies import fill, sources, unfilled
from watcher.store.folders import History, WorkerFolders, why_stuck
from watcher.store.inbox_index import SLICE_SECONDS, Index
from watcher.store.queue_interface import Claim, Claimed, Settlement
from watcher.store.refused_files import NOT_UNDERSTOOD, Endings, RefusedFile
from watcher.store.rescue import rescue
from watcher.store.result_writer import Settler
from watcher.store.task_places import has_task
from watcher.store.task_reader import FileState, TaskBytes, file_state, read_task_file
from watcher.system.files import Folder, move, move_new, replace
from watcher.telemetry.events import Emit, Event, TaskFieldsUnknown, TaskReferencesUnknown, TaskReleased

if TYPE_CHECKING:
    from watcher.settings.worker_groups import QueueSettings

#: Many file systems stamp in steps of some milliseconds: of two changes in one step the second shows in no stamp.
_TICK_NS = 50_000_000
#: Below this many free inodes nothing is claimed: a result needs a few of its own.
_MIN_FREE_INODES = 64
#: Seconds between two looks for hidden files that killed tools left.
_ABANDONED_EVERY_SECONDS = 600.0


class DirectorySpool:
    """One worker's tasks in plain folders."""

    def __init__(self, places: WorkerFolders, config: QueueSettings, clock: Clock, emit: Emit) -> None:
        self._places = places
        self._config = config
        self._clock = clock
        self._emit = emit
        self._lookout = Index(places, config, clock, emit)
        self._lineup = self._lookout.lineup
        self._endings = Endings(places, config, clock)
        self._settler = Settler(places)
        self._active: dict[str, str] = {}
        self._turns = 0
        self._claims_seen: tuple[int, list[str]] = (-1, [])
        self._never_ahead = NeverAhead(clock)
        self._abandoned_due = 0.0
        self._held_seen: tuple[int, list[str]] = (-1, [])

    # --- what waits

    def notice(self, names: Collection[str]) -> None:
        """Look at files of the inbox that an event named."""
        self._lookout.notice(names)

    def notice_result(self, worker: str, name: str) -> None:
        """A result of some worker has appeared; tasks that wait for it may be ready."""
        self._lookout.notice_result(worker, name)

    def scan(self) -> Iterator[None]:
        """Compare the folders with the index; yields now and then. Raises WorkerTrouble."""
        return self._lookout.scan()

    def tick(self) -> None:
        """Do what is due by time alone."""
        self._lookout.tick()

    def waiting(self) -> int:
        return self._lookout.waiting()

    def blocked(self) -> int:
        """How many tasks wait for dependencies."""
        return self._lookout.blocked()

    def watched_results(self) -> list[str]:
        """Workers whose results some task here waits for."""
        return self._lookout.watched_results()

    def waits_for(self) -> str | None:
        """What cannot be claimed, or what all that waits here waits for, in words; None when neither is so."""
        return self._lookout.waits_for()

    def oldest_arrival(self) -> float | None:
        """Wall seconds at which the oldest waiting task came, or None."""
        return self._lookout.oldest_arrival()

    def providers_wanted(self) -> set[str]:
        """The providers for which a task is ready."""
        return self._lookout.providers_wanted()

    def has_ready(self, excluded: Collection[str]) -> bool:
        return self._lookout.has_ready(excluded)

    def has_undoubted(self, provider: str) -> bool:
        return self._lookout.has_undoubted(provider)

    def next_due_in(self) -> float | None:
        return self._lookout.next_due_in()

    # --- the path of a task

    def claim(self, limit: int, excluded: Collection[str]) -> Claimed:
        out = Claimed()
        end = time.monotonic() + SLICE_SECONDS
        try:
            while self._lookout.endings and not self._is_cut(out, end):
                self._end_next(out)
            while len(out.claims) < limit and not self._is_cut(out, end):
                waiting = self._lineup.take(self._clock.monotonic(), excluded)
                if waiting is None:
                    break
                self._claim_one(waiting, out)
        except WorkerTrouble:
            if not out.claims and not out.endings:
                raise
        return out

    def _is_cut(self, out: Claimed, end: float) -> bool:
        out.is_cut = time.monotonic() >= end
        return out.is_cut

    def release(self, claim: Claim, reason: str) -> None:
        """Back to the inbox under its own name, or to `.retry` when it has a history or the name is taken."""
        history = History(claim.task.task_id, claim.attempt - 1, claim.deaths, given=claim.given)
        try:
            name = self._put_back(claim.handle, history)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not self._places.mine.has(claim.handle):
                self._forget(claim.task.task_id, claim.lane)  # somebody took the claim away; it is his to give back
                return
            raise WorkerTrouble(f"release {claim.task.task_id}", error) from error
        self._back_in_line(claim, name, 0.0)
        self._emit(TaskReleased(claim.task.task_id, reason))

    def retry_in(self, claim: Claim, delay_seconds: float) -> None:
        due = self._clock.wall() + delay_seconds
        history = History(claim.task.task_id, claim.attempt, claim.deaths, due, given=claim.given)
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

    def prompt(self, claim: Claim) -> str:
        """The description with the texts of its dependencies. Raises InvalidTask, WorkerTrouble."""
        return fill(claim.task.description, claim.sources, self._config.max_prompt_bytes)

    def settle(self, batch: list[Settlement]) -> tuple[list[Event | None], OSError | None]:
        return self._settler.settle(batch)

    def settled(self, settlement: Settlement) -> None:
        self._forget(settlement.task_id, settlement.lane)
        if settlement.result is not None:
            self.notice_result(self._places.worker, f"{settlement.task_id}.json")

    def set_aside(self, claim: Claim, why: str) -> Settlement:
        """The claimed file as it is, with a dead letter beside it."""
        ending = self._endings.unread(claim.handle, InvalidTask(NOT_UNDERSTOOD, f"the worker failed over it: {why}"))
        return replaced(ending, lane=claim.lane)

    def rescue(self) -> int:
        self._remove_abandoned()
        rescued = rescue(self._places, self._emit)
        self._lookout.look_at(rescued)
        return len(rescued)

    def _remove_abandoned(self) -> None:
        now = self._clock.monotonic()
        if now >= self._abandoned_due:
            self._abandoned_due = now + _ABANDONED_EVERY_SECONDS
            self._places.remove_abandoned(self._never_ahead.now())

    def check_space(self, minimum_bytes: int) -> None:
        """Raises WorkerTrouble when results could not be stored: too few free bytes or inodes."""
        for folder in (self._places.results, self._places.inbox):
            try:
                space = os.statvfs(folder.fd)
            except OSError as lost:
                raise WorkerTrouble(f"look for room in {folder.path}", lost) from lost
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

    # --- by command

    def cancel(self, task_id: str, detail: str) -> Settlement | TaskStanding:
        """End a waiting or held task without running it: the outcome to store. Else how the task stands.

        Raises InvalidTask, Busy, OSError.
        """
        if task_id in self._active:
            return "ended" if self._places.results.has(f"{task_id}.json") else "runs"
        taken = take_to_cancel(self._places, task_id, self._config.max_task_bytes)
        if not isinstance(taken, in_hand.InHand):
            return taken
        self._lookout.gone(taken.came_from.name, task_id)
        self._active[task_id] = taken.handle
        return self._endings.cancelled(taken.task, taken.came_from.history, detail).with_handle(taken.handle, None)

    def hold(self, task_id: str) -> TaskStanding:
        """Keep a waiting task from starting until it is released."""
        there = in_hand.hold(self._places, task_id)
        if there is None:
            return standing_of(self._places, task_id)
        self._lookout.gone(there.name, task_id)
        return "held"

    def release_held(self, task_id: str) -> TaskStanding:
        """Let a held task start."""
        name = in_hand.release(self._places, task_id)
        if name is None:
            return standing_of(self._places, task_id)
        self._lookout.index(name)
        return "waits"

    def edit(self, task_id: str, changes: dict[str, Any]) -> TaskStanding:
        """Give fields of a waiting or held task other values."""
        name = in_hand.edit(self._places, task_id, changes, self._config.max_task_bytes, self._lookout.circle_with)
        if name is None:
            return standing_of(self._places, task_id)
        if self._places.held.has(name):
            return "held"
        self._lookout.index(name)
        return "waits"

    def held(self) -> int:
        """How many tasks are held."""
        return len(self._held_names())

    def _held_names(self) -> list[str]:
        """What `.held` has, listed again only when something came or went."""
        changed = os.fstat(self._places.held.fd).st_mtime_ns
        if changed != self._held_seen[0]:
            self._held_seen = (self._lasting(changed), self._places.held.names())
        return self._held_seen[1]

    # --- claiming

    def _claim_one(self, waiting: Waiting, out: Claimed) -> None:
        name, lane = waiting.name, waiting.lane
        history = History.of(name)
        assert history is not None  # only such names are lined up
        folder = self._lookout.folder_of(name)
        done = False
        try:
            found = read_task_file(folder, name, self._config.max_task_bytes)
            if found is None:
                return
            if not isinstance(found, TaskBytes):
                self._lookout.not_yet(name, found.state, found.error, found.settling)
                return
            if self._is_elsewhere(history.stem, name):
                self._lookout.look_again_later(name)
                return
            understood = self._understood(waiting, history, found)
            if understood is None:
                return
            task, ending = understood
            if found.being_written and not self._lookout.writer_had_its_time(name, found.state):
                return
            handle = self._take(name, history, found.state)
            if handle is None:
                return
            done = True
            self._lookout.taken(name, history.stem)
            self._active[history.stem] = handle
            if ending is not None:
                out.endings.append(ending.with_handle(handle, lane))
            else:
                out.claims.append(self._claim(task, history, handle, waiting, found))
                self._lookout.understood(name)
        except WorkerTrouble:
            self._lineup.add(waiting, self._clock.monotonic())
            raise
        except OSError as error:
            if self._is_stuck(folder, name, error):
                return
            self._lineup.add(waiting, self._clock.monotonic())
            raise WorkerTrouble(f"claim {self._places.worker}/{name}", error) from error
        except Exception as error:  # noqa: BLE001 - this task's trouble, never the loop's end
            if done:
                self._active.pop(history.stem, None)
                name = self._put_back(
                    History(history.stem, history.attempts + 1, history.deaths, given=history.given).claimed(), history
                )
                done = False
            self._lookout.not_understood(name, error)
        finally:
            if not done:
                self._lineup.free(lane, self._clock.monotonic())

    def _understood(
        self, waiting: Waiting, history: History, found: TaskBytes
    ) -> tuple[Task, RefusedFile | None] | None:
        """The task, and its end if it is not to run; None when it goes back in line, or is no task yet."""
        try:
            task = parse_task(found.raw, history.stem, self._places.worker)
            ending = self._endings.without_running(task, history)
            if ending is None and self._lookout.changed_its_mind(waiting, history, task, found):
                return None
            return task, ending
        except InvalidTask as error:
            self._lookout.not_yet(waiting.name, found.state, error, settling=True, being_written=found.being_written)
            return None

    def _claim(self, task: Task, history: History, handle: str, waiting: Waiting, found: TaskBytes) -> Claim:
        unknown = task.unknown_fields()
        if unknown:
            self._emit(TaskFieldsUnknown(task.task_id, ", ".join(unknown)[:500]))
        left = [] if history.attempts else unfilled(task.description, task.dependencies)
        if left:
            self._emit(TaskReferencesUnknown(task.task_id, ", ".join(left)[:500]))
        wall = self._clock.wall()
        due = wall - (self._clock.monotonic() - waiting.due) if waiting.due else 0.0
        since = max(found.changed_at, due)
        return Claim(
            task,
            history.attempts + 1,
            history.deaths,
            waiting.provider,
            handle,
            waiting.arrived_at,
            waiting.lane,
            max(0.0, wall - since),
            history.given,
            sources(task.description, task.dependencies, self._lookout.results),
        )

    def _take(self, name: str, history: History, state: FileState) -> str | None:
        """The claim itself: one rename. None when somebody else was faster or the file is not what was read."""
        handle = History(history.stem, history.attempts + 1, history.deaths, given=history.given).claimed()
        if not move(self._lookout.folder_of(name), name, self._places.mine, handle):
            return None
        try:
            is_same = file_state(self._places.mine, handle) == state
        except OSError:
            self._put_back(handle, history)
            raise
        if not is_same:
            # Written to or replaced between the look and the rename: give it back and judge what it is now.
            self._put_back(handle, history)
            self._lookout.look_again_later(name)
            return None
        return handle

    def _is_elsewhere(self, stem: str, name: str) -> bool:
        """Whether a task of this id is running or waits with a history: the new file must wait for its outcome."""
        if stem in self._active:
            return True
        if has_task(self._held_names(), stem):
            return True
        returned = self._lookout.returned(stem)
        if returned is not None and returned != name and self._places.retry.has(returned):
            return True
        others = self._other_incarnations()
        if not others:
            return False
        return (
            any(has_task(self._places.claims_of(other), stem) for other in others)
            or has_task((other for other in self._places.retry.names() if other != name), stem)
            # Once more: it may have gone from `.retry` into a claim between the two looks.
            or any(has_task(self._places.claims_of(other), stem) for other in others)
        )

    def _other_incarnations(self) -> list[str]:
        """Claim folders of other processes of this worker, listed again only when one came or went."""
        changed = self._places.claims_changed()
        if changed != self._claims_seen[0]:
            self._claims_seen = (self._lasting(changed), self._places.other_incarnations())
        return self._claims_seen[1]

    def _lasting(self, stamp_ns: int) -> int:
        """The stamp of a folder, or -1 for one that is so young that it may stay the same through the next change."""
        return stamp_ns if abs(self._clock.wall() * 1e9 - stamp_ns) > _TICK_NS else -1

    def _end_next(self, out: Claimed) -> None:
        name, (folder, why) = next(iter(self._lookout.endings.items()))
        del self._lookout.endings[name]
        try:
            ending = self._end_without_running(folder, name, why)
        except WorkerTrouble:
            self._lookout.endings[name] = (folder, why)
            raise
        if ending is not None:
            out.endings.append(ending)

    def _end_without_running(self, folder: Folder, name: str, why: InvalidTask) -> Settlement | None:
        """Claim a file that will not run and say how it ends. None when it is gone or has changed."""
        try:
            handle = self._endings.take(folder, name)
            # After an error here the claim stays, and `take` finds it again.
            ending = None if handle is None else self._refused(handle, name, why)
        except OSError as error:
            if self._is_stuck(folder, name, error):
                return None
            raise WorkerTrouble(f"refuse {self._places.worker}/{name!a}", error) from error
        self._lookout.refused(name)
        if handle is None:
            return None
        history = History.of(name)
        if ending is None and history is not None:
            self._lookout.index(self._put_back(handle, history))
        return ending

    def _refused(self, handle: str, name: str, why: InvalidTask) -> Settlement | None:
        try:
            return self._endings.refused(handle, name, why)
        except (OSError, WorkerTrouble):
            raise
        except Exception as error:  # noqa: BLE001 - it cannot be looked at: it ends with its bytes beside its letter
            return self._endings.unread(handle, InvalidTask(why.reason, f"{why.detail} ({type(error).__name__})"))

    def _is_stuck(self, folder: Folder, name: str, error: OSError) -> bool:
        """One file that may not be moved (immutable, sticky folder) is left alone for a while; said once."""
        if error.errno not in (errno.EPERM, errno.EACCES) or not os.access(folder.path, os.W_OK | os.X_OK):
            return False
        why = None
        with contextlib.suppress(OSError):
            file = os.stat(name, dir_fd=folder.fd, follow_symlinks=False)
            why = why_stuck(folder.path, os.fstat(folder.fd), file, os.geteuid())
        self._lookout.stuck(name, why or f"{error.strerror}: {folder.path / name}; mend its rights or attributes")
        return True

    # --- giving back

    def _put_back(self, handle: str, history: History) -> str:
        """Rename a claim back to where it can be claimed again; returns its new name."""
        if replaced(history, due=0.0).is_new():
            plain = f"{history.stem}.json"
            if move_new(self._places.mine, handle, self._places.inbox, plain):
                return plain
        move(self._places.mine, handle, self._places.retry, history.waiting())
        return history.waiting()

    def _back_in_line(self, claim: Claim, name: str, due: float) -> None:
        stem = claim.task.task_id
        self._active.pop(stem, None)
        self._turns += 1
        waiting = Waiting(
            name, claim.task.priority, claim.order_at, claim.provider, claim.lane, due,
            is_doubted=claim.given is not None, keeps_place=bool(due) or claim.attempt > 1, turn=self._turns,
        )  # fmt: skip
        self._lookout.came_back(stem, name, waiting)
        self._lineup.free(claim.lane, self._clock.monotonic())

    def _forget(self, stem: str, lane: str | None) -> None:
        self._active.pop(stem, None)
        self._lookout.over(stem)
        self._lineup.free(lane, self._clock.monotonic())
