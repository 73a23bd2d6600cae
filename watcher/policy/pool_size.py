"""Decide how many warm handlers to keep: pure functions from what is seen to a number.

The pool starts with its nominal size. It grows by one when more than CROWD requests wait, and goes down to its minimum
when none wait and handlers have been idle for long. Between the minimum and the nominal size it grows at once, when a
request finds no idle handler: those were promised.
"""

from __future__ import annotations

from dataclasses import dataclass

#: More waiting requests than this make the pool grow.
CROWD = 10


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How many handlers there may be. `nominal` lies between the others."""

    minimum: int
    nominal: int
    maximum: int

    def clamp(self, wanted: int) -> int:
        return max(self.minimum, min(self.maximum, wanted))


def size_after_look(limits: PoolLimits, size: int, waiting: int, idle_for_long: int) -> int:
    """What the monitor wants after one look. `idle_for_long` counts handlers that nobody has needed for a while."""
    if waiting > CROWD:
        return limits.clamp(size + 1)
    if waiting == 0 and idle_for_long:
        return limits.clamp(min(size, max(limits.minimum, size - idle_for_long)))
    return size


def size_after_request(limits: PoolLimits, size: int) -> int:
    """What a request that found no idle handler wants: one more, up to the nominal size."""
    return max(size, min(size + 1, limits.nominal))


def restart_delay(failures_in_a_row: int, first_seconds: float, longest_seconds: float) -> float:
    """Seconds until the next handler may start: at once after one failure, then doubling."""
    if failures_in_a_row <= 1:
        return 0.0
    return min(longest_seconds, first_seconds * 2.0 ** min(failures_in_a_row - 2, 32))
