"""Own what a worker's attempts have cost and may still cost: per task over all attempts, and per day (UTC).

Money and tokens: many providers tell no cost, but tokens. Both stand in the same books.

`control/<worker>/spend-YYYYMMDD.jsonl` has a line for each amount that a provider told, appended in one write before
the attempt is settled or given back; so a killed worker forgets nothing that it knew. All processes of a worker name
append to the same file and read each other's lines. `control/<worker>/budget-YYYYMMDD.json` raises the budget of one
day. A file that cannot be written is tried again; until then memory counts.

What a provider does not tell is not counted, and what an attempt costs is known when it says so: tasks that run at
once can pass the budget of a day together.

Loop thread only. Raises OSError from the constructor and from the functions for commands, nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from watcher.clock import Clock, rfc3339
from watcher.errors import is_trouble
from watcher.policy.budget_limits import NO_LIMITS, BudgetLimits
from watcher.store.layout import SPENDING, budget, spending
from watcher.system import no_links
from watcher.system.files import Folder, replace, write_all
from watcher.telemetry.events import BudgetLifted, BudgetReached, Emit, HintFailed, SpendingRecorded

#: What the result, the dead letter and the heartbeat say.
BUDGET_EXCEEDED = "budget_exceeded"
DAILY_BUDGET = "daily_budget"
#: A task whose attempts lie further apart than this starts counting anew.
_DAYS_OF_A_TASK = 31
_DAY_SECONDS = 86_400
_MAX_BYTES = 1 << 26
#: Below this an amount is the rounding of sums.
_NOTHING_USD = 1e-9
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Allowance:
    """What an attempt may still cost. `is_the_days` says whose money it is: the day's, or that of the task."""

    usd: float
    is_the_days: bool


@dataclass(slots=True)
class _Ledger:
    """One day's file, as far as it was read."""

    read_bytes: int = 0
    total_usd: float = 0.0


class Spending:
    """The books of one worker name. A limit of 0 is none."""

    def __init__(
        self,
        control: Path,
        worker: str,
        owner: str,
        clock: Clock,
        emit: Emit,
        limits: BudgetLimits = NO_LIMITS,
    ) -> None:
        self._folder = Folder(control / worker)
        self._owner = owner
        self._clock = clock
        self._emit = emit
        self._max_per_task = limits.max_cost_per_task
        self._daily = limits.daily_budget
        self._max_tokens = limits.max_tokens_per_task
        self._days: dict[str, _Ledger] = {}
        self._tasks: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._task_tokens: dict[str, int] = {}
        self._told_tokens: dict[str, int] = {}
        self._unwritten: list[tuple[str, dict[str, Any]]] = []
        self._extra: tuple[str, float] = ("", 0.0)
        self._was_reached = False
        for name in sorted(self._folder.names()):  # the end of a task comes after its attempts
            found = SPENDING.fullmatch(name)
            if found is not None and found[1] > _day(clock.wall() - _DAYS_OF_A_TASK * _DAY_SECONDS):
                self._read(found[1])
        self.refresh()

    def close(self) -> None:
        self._folder.close()

    # --- what was spent

    def record(self, task_id: str, provider: str, mark: str, cost_usd: float | None, tokens: int | None = None) -> None:
        """The attempt `mark` has cost and used so much by now, in all. Only what is new is written."""
        new = (cost_usd or 0.0) - self._told.get(mark, 0.0)
        new = new if math.isfinite(new) and new > _NOTHING_USD else 0.0
        new_tokens = max(0, (tokens or 0) - self._told_tokens.get(mark, 0))
        if not new and not new_tokens:
            return
        line: dict[str, Any] = {"at": rfc3339(self._clock.wall()), "task_id": task_id, "provider": provider}
        line["attempt"] = mark
        if new:
            self._told[mark] = cost_usd or 0.0
            line["cost_usd"] = round(new, 9)
        if new_tokens:
            self._told_tokens[mark] = tokens or 0
            line["tokens"] = new_tokens
        self._append(line)
        if new:
            self._emit(SpendingRecorded(task_id, provider, new))
        self.refresh()

    def attempt_over(self, mark: str) -> None:
        self._told.pop(mark, None)
        self._told_tokens.pop(mark, None)

    def settled(self, task_id: str) -> None:
        """The task is over; should it be run again on purpose, it may cost as much again."""
        if self.spent_on(task_id) > 0 or self.tokens_of(task_id):
            self._append({"at": rfc3339(self._clock.wall()), "task_id": task_id, "settled": True})
            self.refresh()

    @property
    def has_limits(self) -> bool:
        return bool(self._max_per_task or self._daily or self._max_tokens)

    def spent_on(self, task_id: str) -> float:
        """USD that the attempts of a task have cost which is not over yet."""
        return self._tasks.get(task_id, 0.0) + self._in_memory(task_id=task_id)

    def tokens_of(self, task_id: str) -> int:
        """Tokens that the attempts of a task have used which is not over yet."""
        unwritten = (int(line.get("tokens", 0)) for _, line in self._unwritten if line["task_id"] == task_id)
        return self._task_tokens.get(task_id, 0) + sum(unwritten)

    def spent_today(self) -> float:
        """USD of all processes of this worker name since midnight UTC. Any thread, for a look."""
        today = _day(self._clock.wall())
        ledger = self._days.get(today)
        return (0.0 if ledger is None else ledger.total_usd) + self._in_memory(day=today)

    # --- what may be spent

    def budget_today(self) -> float:
        """USD that this day may cost, with what it was raised by; 0 for no limit."""
        day, extra = self._extra
        return self._daily + (extra if day == _day(self._clock.wall()) else 0.0) if self._daily else 0.0

    def is_day_over_budget(self) -> bool:
        """Whether nothing may start any more today. Says so once, and once when it is over."""
        budget = self.budget_today()
        spent = self.spent_today() if budget else 0.0
        is_reached = bool(budget) and spent >= budget - _NOTHING_USD
        if is_reached != self._was_reached:
            self._was_reached = is_reached
            event = BudgetReached(spent, budget, rfc3339(self.day_ends_at())) if is_reached else None
            self._emit(event or BudgetLifted(spent, budget))
        return is_reached

    def day_ends_at(self) -> float:
        """Wall seconds of the next midnight UTC."""
        return (self._clock.wall() // _DAY_SECONDS + 1) * _DAY_SECONDS

    def allowance(self, task_id: str) -> Allowance | None:
        """What the next attempt of this task may cost; None for any amount."""
        limits = []
        if (most := self.most_per_task()) is not None:
            limits.append(Allowance(max(0.0, most - self.spent_on(task_id)), is_the_days=False))
        if budget := self.budget_today():
            limits.append(Allowance(max(0.0, budget - self.spent_today()), is_the_days=True))
        return min(limits, key=lambda limit: limit.usd, default=None)

    def most_per_task(self) -> float | None:
        """What all attempts of one task may cost. Who needs more than the budget of a whole day would burn each."""
        limits = [limit for limit in (self._max_per_task, self._daily and self.budget_today()) if limit]
        return min(limits, default=None)

    def is_task_over_budget(self, task_id: str) -> bool:
        if self._has_used_its_tokens(task_id):
            return True
        most = self.most_per_task()
        return most is not None and self.spent_on(task_id) >= most - _NOTHING_USD

    def _has_used_its_tokens(self, task_id: str) -> bool:
        return bool(self._max_tokens) and self.tokens_of(task_id) >= self._max_tokens

    def words_about(self, task_id: str) -> str:
        """Why the task may not run again, for its dead letter."""
        cure = "raise that, or make the task smaller, and submit it again"
        if self._has_used_its_tokens(task_id):
            used, most_tokens = self.tokens_of(task_id), self._max_tokens
            return (
                f"its attempts have used {used} tokens, and MAX_TOKENS_PER_TASK allows one task {most_tokens}; {cure}"
            )
        name = (
            "MAX_COST_PER_TASK" if self._max_per_task and self.most_per_task() == self._max_per_task else DAILY_BUDGET
        )
        spent, most = _usd(self.spent_on(task_id)), _usd(self.most_per_task() or 0.0)
        return f"its attempts have cost {spent} USD, and {name.upper()} allows one task {most}; {cure}"

    def words_about_today(self) -> str:
        """Why nothing starts, for the heartbeat."""
        cure = "raise DAILY_BUDGET, or `watcher budget` for today"
        return (
            f"{DAILY_BUDGET}: {_usd(self.spent_today())} of {_usd(self.budget_today())} USD spent today (UTC); {cure}"
        )

    def refresh(self) -> None:
        """Take over what other processes of this name have written, and write what could not be written before."""
        with contextlib.suppress(OSError):  # the next refresh looks again; what is known counts meanwhile
            self._folder.mend()
            self._write_again()
            today = _day(self._clock.wall())
            self._read(today)
            self._read_raise(today)

    # --- files

    def _append(self, line: dict[str, Any]) -> None:
        day = _day(self._clock.wall())
        try:
            self._write(day, line)
        except OSError as error:
            self._unwritten.append((day, line))
            task_id = str(line["task_id"])
            self._emit(HintFailed(task_id, f"what {task_id} cost: {error.strerror or error}"))

    def _write(self, day: str, line: dict[str, Any]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(spending(day), flags, 0o666, dir_fd=self._folder.fd)
        try:
            found = os.fstat(fd)
            if found.st_nlink > 1:
                raise OSError(errno.EMLINK, "it has a second name (a hard link) and is not written to; remove it")
            # The first newline ends a line that somebody could not finish; empty lines say nothing.
            write_all(fd, b"\n" + json.dumps(line).encode() + b"\n")
            if self.has_limits:
                os.fdatasync(fd)
                if found.st_size == 0:  # the day's first line: its file must not be lost either
                    os.fsync(self._folder.fd)
        finally:
            os.close(fd)

    def _write_again(self) -> None:
        while self._unwritten:
            self._write(*self._unwritten[0])
            del self._unwritten[0]

    def _in_memory(self, task_id: str | None = None, day: str | None = None) -> float:
        lines = (line for at, line in self._unwritten if day in (None, at))
        return sum((float(line.get("cost_usd", 0.0)) for line in lines if task_id in (None, line["task_id"])), 0.0)

    def _read(self, day: str) -> None:
        ledger = self._days.setdefault(day, _Ledger())
        try:
            fd = os.open(spending(day), _READ, dir_fd=self._folder.fd)
        except OSError as error:
            if is_trouble(error):
                raise
            return  # not there, or a link or something else that is none of ours
        try:
            for line in _new_lines(fd, ledger):
                self._count(line, ledger)
        finally:
            os.close(fd)

    def _count(self, line: dict[str, Any], ledger: _Ledger) -> None:
        task_id, cost = line.get("task_id"), line.get("cost_usd")
        if not isinstance(task_id, str):
            return
        if line.get("settled") is True:
            self._tasks.pop(task_id, None)
            self._task_tokens.pop(task_id, None)
            return
        tokens = line.get("tokens")
        if isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens < 10**15:
            self._task_tokens[task_id] = self._task_tokens.get(task_id, 0) + tokens
        if isinstance(cost, int | float) and not isinstance(cost, bool) and 0 <= cost < 1e12:
            ledger.total_usd += cost
            self._tasks[task_id] = self._tasks.get(task_id, 0.0) + cost

    def _read_raise(self, today: str) -> None:
        if self._daily:
            self._extra = (today, _extra_usd(self._folder, today))


def raise_daily_budget(control: Path, worker: str, usd: float, now: float) -> float:
    """Let a worker spend so much more until midnight UTC; returns by how much today's budget is raised now in all."""
    folder = Folder(control / worker)
    day = _day(now)
    try:
        total = _extra_usd(folder, day) + usd
        raw = json.dumps({"extra_usd": total, "timestamp": rfc3339(now)}).encode() + b"\n"
        replace(folder, budget(day), raw, f"cli-{secrets.token_hex(6)}", durable=True)
    finally:
        folder.close()
    return float(total)


def spent_on_day(control: Path, worker: str, now: float) -> float:
    """USD that a worker has spent on the UTC day of `now`; 0 when nothing says so."""
    ledger = _Ledger()
    try:
        fd = no_links.open_file(control / worker / spending(_day(now)), _READ)
    except FileNotFoundError:
        return 0.0
    try:
        costs: list[Any] = [line.get("cost_usd") for line in _new_lines(fd, ledger)]
    finally:
        os.close(fd)
    return sum((float(cost) for cost in costs if isinstance(cost, int | float) and 0 <= cost < 1e12), 0.0)


def raised_on_day(control: Path, worker: str, now: float) -> float:
    """USD by which the budget of that day was raised."""
    try:
        folder = Folder(control / worker, create=False)
    except FileNotFoundError:
        return 0.0
    try:
        return _extra_usd(folder, _day(now))
    finally:
        folder.close()


def _extra_usd(folder: Folder, day: str) -> float:
    try:
        extra = json.loads(folder.read(budget(day), _MAX_BYTES))["extra_usd"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0.0
    is_number = isinstance(extra, int | float) and not isinstance(extra, bool) and abs(extra) < 1e12
    return float(extra) if is_number else 0.0


def _new_lines(fd: int, ledger: _Ledger) -> Iterator[dict[str, Any]]:
    """The whole lines that were added since the last look; one that is being written waits for its end."""
    found = os.fstat(fd)
    size = found.st_size if stat.S_ISREG(found.st_mode) else 0
    raw = b""
    while ledger.read_bytes + len(raw) < size and (part := os.pread(fd, 1 << 20, ledger.read_bytes + len(raw))):
        raw += part
    whole = raw[: raw.rfind(b"\n") + 1]
    ledger.read_bytes += len(whole)
    for text in whole.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):  # a torn line is lost, with the amount it told
            line = json.loads(text) if text.strip() else None
            if isinstance(line, dict):
                yield line


def _day(wall_seconds: float) -> str:
    return time.strftime("%Y%m%d", time.gmtime(wall_seconds))


def _usd(amount: float) -> str:
    return f"{amount:.6f}".rstrip("0").rstrip(".")
