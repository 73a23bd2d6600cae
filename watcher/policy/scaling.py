"""Decide how many instances of a worker should run. Pure: no process, no file, no clock.

One more while every slot is busy and more tasks wait than the present instances could take at once; one less while the
work would fit into fewer. Each only after it has been so for a while, so that a burst or a lull moves nothing. Tasks
that wait for a time, a dependency or a provider keep no slot busy, so they never make it grow.

A machine that is too busy gets fewer instances, one at a time, but never fewer than the minimum. Fewer means that one
is drained: what it runs is finished, so nothing here ever ends a task.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """Bounds and patience. `slots` is how many tasks one instance runs at once; percents are of the whole machine."""

    minimum: int
    maximum: int
    slots: int
    max_cpu_percent: float = 80.0
    max_memory_percent: float = 90.0
    grow_after_seconds: float = 5.0
    shrink_after_seconds: float = 60.0
    overload_after_seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Load:
    """One look. `instances` are wanted now, `active` tasks run in them, `waiting` lie in the shared inbox.

    `starting`: so many of the instances do not work yet, so their slots say nothing. The percents are None when they
    are not known; then they bound nothing.
    """

    instances: int
    active: int
    waiting: int
    starting: int = 0
    cpu_percent: float | None = None
    memory_percent: float | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """How many there should be, and why that is not what there is (empty: it is)."""

    instances: int
    reason: str = ""


@dataclass(slots=True)
class Scaler:
    """Remembers since when something has been so. Monotonic seconds that the caller passes in."""

    rules: ScalingRules
    _since: dict[str, float] = field(default_factory=dict)

    def step(self, load: Load, now: float) -> Target:
        """What to do after this look: at most one instance more or less than serve now."""
        rules = self.rules
        if load.instances < rules.minimum:
            return self._move(rules.minimum, f"fewer than the minimum of {rules.minimum}")
        if load.instances > rules.maximum:
            return self._move(load.instances - 1, f"more than the maximum of {rules.maximum}")
        crowded = self._too_much(load)
        if self._lasts("overload", bool(crowded), rules.overload_after_seconds, now):
            if load.instances > rules.minimum:
                return self._move(load.instances - 1, crowded)
            return Target(load.instances)
        slots = load.instances * rules.slots
        full = load.active >= slots and load.waiting > 0 and not crowded and not load.starting
        if self._lasts("full", full, rules.grow_after_seconds, now) and load.instances < rules.maximum:
            return self._move(load.instances + 1, f"all {slots} slots are busy and {load.waiting} tasks wait")
        idle = load.active <= slots - rules.slots and not load.starting
        if self._lasts("idle", idle, rules.shrink_after_seconds, now) and load.instances > rules.minimum:
            return self._move(load.instances - 1, f"{load.active} tasks run where {slots} could")
        return Target(load.instances)

    def _move(self, instances: int, reason: str) -> Target:
        self._since.clear()
        return Target(instances, reason)

    def _too_much(self, load: Load) -> str:
        if load.memory_percent is not None and load.memory_percent > self.rules.max_memory_percent:
            return f"memory {load.memory_percent:.0f} % is over MAX_MEMORY_PERCENT {self.rules.max_memory_percent:g}"
        if load.cpu_percent is not None and load.cpu_percent > self.rules.max_cpu_percent:
            return f"CPU {load.cpu_percent:.0f} % is over MAX_CPU_PERCENT {self.rules.max_cpu_percent:g}"
        return ""

    def _lasts(self, what: str, is_so: bool, seconds: float, now: float) -> bool:
        if not is_so:
            self._since.pop(what, None)
            return False
        return now - self._since.setdefault(what, now) >= seconds
