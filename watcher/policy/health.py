"""Judge whether a worker's process is silent or dead; the thresholds stand here alone. Pure: no file, no clock.

Silence is measured by the reader, on its own monotonic clock, from the moment at which it saw the sequence move; wall
clocks are never compared, so a jump of either cannot kill a living worker. The process's own lock is a second witness:
the kernel holds it for exactly as long as the process lives. A free lock makes a silent worker dead sooner; a held
one makes it frozen (`stale`), however long it is silent, because nobody could rescue its tasks anyway.
Who looks once and has only the age of a heartbeat asks `is_late`; whose word counts until it dies asks `lease_seconds`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

STALE_INTERVALS = 2
DEAD_INTERVALS = 3
#: Seconds on top: a reader that polls sees a beat this late, and a busy machine beats a little late.
SLACK_SECONDS = 0.5
#: The same for an age by wall clock, which takes in the steps of time stamps and the difference of two machines.
AGE_SLACK_SECONDS = 2.0
#: No lease is shorter: a busy machine may delay short beats so long.
SHORTEST_LEASE_SECONDS = 5.0
#: The interval of a heartbeat that does not say its own.
DEFAULT_INTERVAL_SECONDS = 10.0
#: Deaths within this time make a worker one that flaps.
FLAP_WINDOW_SECONDS = 600.0
_LONGEST_WAIT_SECONDS = 300.0


class Health(StrEnum):
    """`unknown` is a process of which nothing but an old beat has been seen yet."""

    HEALTHY = "healthy"
    STALE = "stale"
    DEAD = "dead"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Signs:
    """What is known of one process.

    `silent_seconds` since its sequence was seen to move, or since its beat was first seen; `has_moved` says which.
    `is_locked` is None when the lock was not asked or cannot be.
    """

    silent_seconds: float
    interval_seconds: float
    says_stopped: bool = False
    has_moved: bool = True
    is_locked: bool | None = None


def judge(signs: Signs) -> Health:
    """How the process is."""
    if signs.says_stopped:
        return Health.STOPPED
    if not is_silent(signs):
        return Health.HEALTHY if signs.has_moved or signs.is_locked else Health.UNKNOWN
    if signs.is_locked is False:
        return Health.DEAD
    return Health.DEAD if is_overdue(signs) and not signs.is_locked else Health.STALE


def is_silent(signs: Signs) -> bool:
    """Whether it has missed a beat, so that its lock is worth a question."""
    return signs.silent_seconds >= STALE_INTERVALS * signs.interval_seconds + SLACK_SECONDS


def is_overdue(signs: Signs) -> bool:
    """Whether it has been silent for so long that it is dead, or frozen when its lock is held."""
    return signs.silent_seconds >= DEAD_INTERVALS * signs.interval_seconds + SLACK_SECONDS


def is_late(age_seconds: float, interval_seconds: float | None) -> bool:
    """Whether a heartbeat of this age, by wall clock, speaks against its process: a hint, since clocks may differ."""
    interval = DEFAULT_INTERVAL_SECONDS if interval_seconds is None else interval_seconds
    return age_seconds > DEAD_INTERVALS * interval + AGE_SLACK_SECONDS


def lease_seconds(interval_seconds: float) -> float:
    """How long the word of a process counts that has stopped to renew it at each beat."""
    return max(SHORTEST_LEASE_SECONDS, DEAD_INTERVALS * interval_seconds)


def recovery_wait(deaths_lately: int, interval_seconds: float) -> float:
    """Seconds that a worker must beat again until its recovery is told: none at first, then twice as long each time.

    A worker that dies again before that was never told to be back, so its new death needs no word either.
    """
    if deaths_lately <= 1:
        return 0.0
    return float(min(_LONGEST_WAIT_SECONDS, interval_seconds * 2 ** min(deaths_lately, 20)))
