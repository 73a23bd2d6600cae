"""Own the instances of one worker: which of them should run, and one more or less when the policy says so.

Instance numbers are 1, 2, 3, ...; the lowest free one is started, the one with the least to do is drained. A drained
instance finishes what it runs, however long that takes (its own grace at a stop is a day; the supervisor's own stop
keeps SHUTDOWN_GRACE), and until then it counts among the maximum. A worker without instances has one process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from watcher.policy.scaling import Load, Scaler
from watcher.supervisor.adopted_children import AdoptedChild, find_all
from watcher.supervisor.child import SupervisedChild
from watcher.system.machine_load import MachineLoad
from watcher.telemetry.events import Emit, InstancesScaled


class WorkerInstances:
    """`make` gives a child for an instance number. `scaler` is None where their number is fixed."""

    def __init__(
        self,
        worker: str,
        heartbeats: Path,
        count: int,
        make: Callable[[int], SupervisedChild],
        scaler: Scaler | None,
        emit: Emit,
    ) -> None:
        self.worker = worker
        self.scaler = scaler
        self._heartbeats = heartbeats
        self._make = make
        self._emit = emit
        self._wanted = {number: make(number) for number in range(1, count + 1)}
        self._retiring: dict[int, SupervisedChild] = {}

    def children(self) -> list[SupervisedChild]:
        """Those that should run, by number."""
        return [self._wanted[number] for number in sorted(self._wanted)]

    def everybody(self) -> list[SupervisedChild]:
        """The same, and those that are being drained."""
        return self.children() + list(self._retiring.values())

    def adopt(self) -> list[AdoptedChild]:
        """Before the first start: each child waits for the process of its name that an earlier supervisor started.

        Returns those that have none here (`marie@3` where two instances are wanted), for the caller to end.
        """
        found = find_all(self._heartbeats, self.worker)
        for child in self.children():
            if child.name in found:
                child.wait_for(found.pop(child.name))
        return list(found.values())

    def scale(self, busy: MachineLoad, now: float, grace_seconds: float) -> None:
        """One instance more or less, if the policy says so."""
        self._retiring = {number: child for number, child in self._retiring.items() if child.is_up}
        if self.scaler is None:
            return
        load = self._load(busy)
        target = self.scaler.step(load, now)
        if target.instances > load.instances:
            self._grow(target.reason)
        elif target.instances < load.instances:
            self._shrink(target.reason, grace_seconds)

    def _load(self, busy: MachineLoad) -> Load:
        children = self.children()
        return Load(
            instances=len(children),
            active=sum(child.health.count("active_tasks") for child in children if child.is_up),
            starting=sum(child.is_starting for child in children),
            waiting=max((child.health.count("queue_size") for child in children if child.is_up), default=0),
            cpu_percent=busy.cpu_percent,
            memory_percent=busy.memory_percent,
        )

    def _grow(self, reason: str) -> None:
        assert self.scaler is not None  # nobody else asks for it
        taken = {**self._wanted, **self._retiring}
        if len(taken) >= self.scaler.rules.maximum:
            return
        number = next(number for number in range(1, len(taken) + 2) if number not in taken)
        self._tell(len(self._wanted) + 1, reason)
        self._wanted[number] = child = self._make(number)
        child.start()

    def _shrink(self, reason: str, grace_seconds: float) -> None:
        def burden(number: int) -> tuple[bool, int, int]:
            child = self._wanted[number]
            return child.is_up, child.health.count("active_tasks"), -number

        free = [number for number, child in self._wanted.items() if child.adopted is None]
        if not free:
            return
        number = min(free, key=burden)
        self._tell(len(self._wanted) - 1, reason)
        child = self._wanted.pop(number)
        if child.is_up:
            self._retiring[number] = child
            child.end(grace_seconds)

    def _tell(self, instances: int, reason: str) -> None:
        self._emit(InstancesScaled(self.worker, instances, len(self._wanted), reason))
