"""Give wall time and monotonic time through one small interface, so that tests can set both by hand.

Wall time is UTC seconds since the epoch (float) and is written as RFC 3339 with `Z`. Durations and deadlines use
`monotonic`, so that a clock that jumps changes no decision.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What a service needs to know about time."""

    def wall(self) -> float:
        """Seconds since the epoch, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...


class SystemClock:
    """The real clocks of this machine."""

    def wall(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def rfc3339(wall_seconds: float) -> str:
    """Write wall time as `2026-11-21T23:33:00.123456Z` (RFC 3339, UTC), to the nearest microsecond.

    What `parse_rfc3339` has read is written as it was: cutting off instead of rounding made every other one earlier.
    """
    whole, micros = divmod(round(wall_seconds * 1_000_000), 1_000_000)
    t = time.gmtime(whole)
    return f"{t[0]:04d}-{t[1]:02d}-{t[2]:02d}T{t[3]:02d}:{t[4]:02d}:{t[5]:02d}.{micros:06d}Z"


def parse_rfc3339(text: str) -> float:
    """Read an RFC 3339 time with a zone into seconds since the epoch.

    Raises ValueError when the text is no such time or has no zone.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time needs its zone: write a trailing Z for UTC")
    return moment.astimezone(UTC).timestamp()


class NeverAhead:
    """Wall time for judging the age of files: never ahead of what has really passed since it was made.

    A clock that jumps a day forward makes nothing old.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = clock.wall() - clock.monotonic()

    def now(self) -> float:
        """Wall seconds."""
        return min(self._clock.wall(), self._offset + self._clock.monotonic())
