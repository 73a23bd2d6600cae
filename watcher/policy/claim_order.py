"""Decide which waiting task is claimed next.

Order: higher priority first, then by arrival (or `not_before`, when later), then by name. How much of it binds is the
FIFO mode: `relaxed` orders starts only; `per_agent` lets tasks with one `agent_id` run one at a time in that order;
`strict` does so for all tasks. A task that is retried keeps its place in its lane: those behind it wait too. Any other
that waits stands in nobody's way: with a `not_before` or dependencies it is not in line yet and joins at its place when
it is ready, and where its provider may not start those of others pass.

A task that was given back before (its account or the machine was blamed) is doubted. Who wants to learn whether that
was right asks another one first: `excluded` may name `doubted(provider)`, which stands for only those, or
`undoubted(provider)`: then the doubted take turns, whatever their place in line. The order within a lane stays.

Pure bookkeeping: no file and no clock. `now` and due times are monotonic seconds, so that a clock that is set moves
nobody; arrival is wall seconds and only orders.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

FifoMode = Literal["relaxed", "per_agent", "strict"]
FIFO_MODES: tuple[FifoMode, ...] = ("relaxed", "per_agent", "strict")


def doubted(provider: str = "") -> str:
    """What excludes only those tasks of a provider, or of all, that were given back before. No provider has such a
    name."""
    return f"{provider}?"


def undoubted(provider: str = "") -> str:
    """What excludes all but those."""
    return f"{provider}!"


@dataclass(slots=True, eq=False)
class Waiting:
    """One waiting task: a key that orders it and what decides whether it may start.

    `name` identifies it (the file's name); `arrived_at` is wall seconds, `due` monotonic seconds, 0 for now.
    `keeps_place`: it is retried, so that those behind it in its lane wait for it. `turn` is when it was given back
    last, in no unit; only which is lower matters. `is_deferred` is the Lineup's.
    """

    name: str
    priority: int
    arrived_at: float
    provider: str
    lane: str | None = None
    due: float = 0.0
    is_doubted: bool = False
    keeps_place: bool = False
    turn: int = 0
    is_deferred: bool = False

    def kind(self) -> _Kind:
        """What is excluded together: its provider, and whether it is doubted."""
        return (self.provider, self.is_doubted)

    def entry(self) -> _Entry:
        """What a heap holds: one flat tuple, compared in C; a million of them must fit in memory."""
        return (-self.priority, self.arrived_at, self.name, self)

    def __lt__(self, other: object) -> bool:
        # Reached only by two records of one file; which of them comes first does not matter.
        return False


_Kind = tuple[str, bool]
_Entry = tuple[int, float, str, Waiting]


class _Lane:
    """Tasks that must run one at a time: those in line, by provider, and of these the ones that keep their place.

    `offered` are the heads that stand in a front now; the first that is taken makes the others wait.
    """

    __slots__ = ("heaps", "kept", "offered", "running")

    def __init__(self) -> None:
        self.heaps: dict[str, list[_Entry]] = {}
        self.kept: list[_Entry] = []
        self.offered: dict[str, Waiting] = {}
        self.running: str | None = None

    def push(self, task: Waiting) -> None:
        entry = task.entry()
        heapq.heappush(self.heaps.setdefault(task.provider, []), entry)
        if task.keeps_place:
            heapq.heappush(self.kept, entry)


class Lineup:
    """All waiting tasks of a worker, ready to hand out the next one.

    Every operation costs O(log n); memory is one record per task.
    """

    def __init__(self, mode: FifoMode) -> None:
        self._mode = mode
        self._all: dict[str, Waiting] = {}
        self._fronts: dict[_Kind, list[_Entry]] = {}
        self._lanes: dict[str, _Lane] = {}
        self._later: list[tuple[float, int, Waiting]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def get(self, name: str) -> Waiting | None:
        return self._all.get(name)

    def names(self) -> Collection[str]:
        return self._all.keys()

    def lane_of(self, agent_id: str | None) -> str | None:
        """The lane in which a task of this agent must run; None when it may run beside any other."""
        if self._mode == "strict":
            return "*"
        return f"agent:{agent_id}" if self._mode == "per_agent" and agent_id is not None else None

    def add(self, task: Waiting, now: float) -> None:
        """Put a task in line (replacing one of the same name)."""
        self.discard(task.name, now)
        self._all[task.name] = task
        if task.due > now and not (task.keeps_place and task.lane is not None):
            self._defer(task)
        else:
            self._join(task, now)

    def discard(self, name: str, now: float) -> None:
        """The task is gone (taken by somebody else, deleted); the next of its lane may come."""
        task = self._all.pop(name, None)
        if task is not None and task.lane is not None:
            lane = self._lanes.get(task.lane)
            if lane is not None:
                self._promote(lane, now)

    def take(self, now: float, excluded: Collection[str]) -> Waiting | None:
        """Remove and return the next task that is not excluded; its lane is busy until `free`."""
        self.wake_due(now)
        best: list[_Entry] | None = None
        for kind, front in self._fronts.items():
            self._trim(front)
            if front and not _is_excluded(kind, excluded) and (best is None or front[0] < best[0]):
                best = front
        if best is None:
            return None
        # One that is taken out of turn is dropped from its heap when it comes to the head.
        task = self._whose_turn(best) if _is_by_turn(best[0][3], excluded) else heapq.heappop(best)[3]
        del self._all[task.name]
        if task.lane is not None:
            lane = self._lanes[task.lane]
            lane.offered.clear()
            lane.running = task.name
        return task

    def free(self, lane_name: str | None, now: float) -> None:
        """The running task of this lane is over: the next one may start."""
        lane = self._lanes.get(lane_name) if lane_name is not None else None
        if lane is not None:
            lane.running = None
            self._promote(lane, now)

    def next_due(self) -> float | None:
        """Monotonic seconds at which a task becomes due by itself, or None."""
        while self._later and not self._is_current(self._later[0][2]):
            heapq.heappop(self._later)[2].is_deferred = False
        return self._later[0][0] if self._later else None

    def deferred(self) -> list[str]:
        """The names of all tasks that wait for a time."""
        return [task.name for _, _, task in self._later if self._is_current(task)]

    def has_ready(self, excluded: Collection[str]) -> bool:
        """Whether `take` may find something now."""
        for kind, front in self._fronts.items():
            self._trim(front)
            if front and not _is_excluded(kind, excluded):
                return True
        return False

    def has_undoubted(self, provider: str) -> bool:
        """Whether a task of this provider is ready that was never given back."""
        front = self._fronts.get((provider, False), [])
        self._trim(front)
        return bool(front)

    def providers(self) -> set[str]:
        """The providers for which a task is ready."""
        for front in self._fronts.values():
            self._trim(front)
        return {provider for (provider, _), front in self._fronts.items() if front}

    def oldest_arrival(self) -> float | None:
        """Wall seconds of the oldest waiting task. Costs O(n); asked once a beat, bounded for huge queues."""
        oldest: float | None = None
        for number, task in enumerate(self._all.values()):
            if oldest is None or task.arrived_at < oldest:
                oldest = task.arrived_at
            if number >= 10_000:
                break
        return oldest

    def _is_current(self, task: Waiting) -> bool:
        return self._all.get(task.name) is task

    def _join(self, task: Waiting, now: float) -> None:
        if task.lane is None:
            self._offer(task)
            return
        lane = self._lanes.setdefault(task.lane, _Lane())
        lane.push(task)
        self._promote(lane, now)

    def _whose_turn(self, front: list[_Entry]) -> Waiting:
        ready = [entry for entry in front if self._is_offered(entry[3])]
        return min(ready, key=lambda entry: (entry[3].turn, *entry[:3]))[3]

    def _is_offered(self, task: Waiting) -> bool:
        """Whether it is still there, and is the one of its lane that may start."""
        return self._is_current(task) and (
            task.lane is None or self._lanes[task.lane].offered.get(task.provider) is task
        )

    def _offer(self, task: Waiting) -> None:
        heapq.heappush(self._fronts.setdefault(task.kind(), []), task.entry())

    def _defer(self, task: Waiting) -> None:
        if task.is_deferred:  # the head of a lane: each one that comes behind it asks again
            return
        task.is_deferred = True
        self._count += 1
        heapq.heappush(self._later, (task.due, self._count, task))

    def _trim(self, front: list[_Entry]) -> None:
        """Drop heads that are gone, or that a better one of their lane has displaced."""
        while front:
            if self._is_offered(front[0][3]):
                return
            heapq.heappop(front)

    def _promote(self, lane: _Lane, now: float) -> None:
        """Offer what may come next of a lane that runs nothing: of each provider its first task, as the one that is
        best of all may be excluded; but nobody who stands behind a task that keeps its place."""
        self._drop_gone(lane.kept)
        for provider in list(lane.heaps):
            self._drop_gone(lane.heaps[provider])
            if not lane.heaps[provider]:
                del lane.heaps[provider]
                lane.offered.pop(provider, None)
        if lane.running is not None:
            return
        kept = lane.kept[0] if lane.kept else None
        for provider, heap in lane.heaps.items():
            head = heap[0][3]
            if kept is not None and kept < heap[0]:
                lane.offered.pop(provider, None)
            elif head.due > now:  # it keeps its place: nobody passes it, and it is waited for
                lane.offered.pop(provider, None)
                self._defer(head)
            elif lane.offered.get(provider) is not head:
                lane.offered[provider] = head
                self._offer(head)

    def _drop_gone(self, heap: list[_Entry]) -> None:
        while heap and not self._is_current(heap[0][3]):
            heapq.heappop(heap)

    def wake_due(self, now: float) -> None:
        """Tasks whose time has come get in line. `take` does it too; who has no room yet does it to sleep on."""
        while self._later and self._later[0][0] <= now:
            task = heapq.heappop(self._later)[2]
            task.is_deferred = False
            if not self._is_current(task):
                continue
            if task.lane is not None and task.keeps_place:
                self._promote(self._lanes[task.lane], now)
            else:
                self._join(task, now)


def _is_excluded(kind: _Kind, excluded: Collection[str]) -> bool:
    provider, is_doubted = kind
    kinds = doubted if is_doubted else undoubted
    return provider in excluded or kinds(provider) in excluded or kinds() in excluded


def _is_by_turn(task: Waiting, excluded: Collection[str]) -> bool:
    return task.is_doubted and (undoubted(task.provider) in excluded or undoubted() in excluded)
