"""Decide whether a supervised process that ended is started again, and when. Pure: no process, no clock.

Exit codes are those of worker_watcher.py and orchestrator_listener.py. A crash is answered by a later start each time,
up to a number of crashes in a row; a process that was well for a while begins anew. What waiting cures (the name is
served by another process, the machine lacked something) is tried for ever and counts for nothing. A setting that is
wrong, and a process that somebody else asked to end, are left alone until a person says otherwise.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from enum import StrEnum

#: Exit codes that mean something; any other, and every signal, is a crash.
EXIT_DRAINED, EXIT_SETTING, EXIT_NAME_TAKEN, EXIT_SHORTAGE = 0, 2, 3, 5


class RestartVerdict(StrEnum):
    """`wait` is a start that is no crash's; `give_up` comes after too many crashes in a row; `leave` is no failure."""

    RESTART = "restart"
    WAIT = "wait"
    GIVE_UP = "give_up"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, why in words for people, and after how many seconds a start is due (None: never)."""

    verdict: RestartVerdict
    reason: str
    delay_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RestartRules:
    """`first * 2**(n-1)` seconds after crash n in a row, at most `longest`; `limit` restarts in a row.

    A process that was well for `reset_after_seconds` has a clean slate.
    """

    first_delay_seconds: float = 1.0
    longest_delay_seconds: float = 60.0
    limit: int = 10
    reset_after_seconds: float = 60.0

    def delay(self, failures: int) -> float:
        """Seconds before the start after failure number `failures` (from 1)."""
        return float(min(self.longest_delay_seconds, self.first_delay_seconds * 2 ** min(failures - 1, 62)))


@dataclass(slots=True)
class Restarts:
    """The record of one supervised process. Times are monotonic seconds that the caller passes in."""

    rules: RestartRules = field(default_factory=RestartRules)
    crashes: int = 0
    waits: int = 0
    well_since: float | None = None
    unasked: int = 0

    def began(self) -> None:
        """It was started: nothing is known of its health yet."""
        self.well_since = None

    def is_well(self, well: bool, now: float) -> None:
        """How it is now. Being well for long enough wipes out earlier crashes."""
        if not well:
            self.well_since = None
            return
        if self.well_since is None:
            self.well_since = now
        if now - self.well_since >= self.rules.reset_after_seconds:
            self.crashes = self.waits = 0

    def forget(self) -> None:
        """A person asked for a fresh start."""
        self.crashes = self.waits = self.unasked = 0
        self.well_since = None

    def ended(self, code: int, now: float, *, by_anybody: bool = False) -> Decision:
        """It has ended by itself with this exit code (negative: the signal that killed it).

        `by_anybody`: a signal stopped it whose sender nobody saw, where a task can send one. It is started again so
        often at most, however well it was in between: such a task may come back each time.
        """
        self.is_well(self.well_since is not None, now)
        self.well_since = None
        if code == EXIT_DRAINED and by_anybody and self.unasked < self.rules.limit:
            self.unasked += 1
            reason = "a signal stopped it whose sender could not be seen; to stop it for good: watcher drain"
            return Decision(RestartVerdict.RESTART, reason, self.rules.delay(self.unasked))
        if code == EXIT_DRAINED:
            return Decision(RestartVerdict.LEAVE, "somebody else asked it to end")
        if code == EXIT_SETTING:
            return Decision(RestartVerdict.GIVE_UP, "a setting or the command line is wrong; its log says which")
        if code in (EXIT_NAME_TAKEN, EXIT_SHORTAGE):
            self.waits += 1
            reason = "another process serves its name" if code == EXIT_NAME_TAKEN else words_of(code)
            return Decision(RestartVerdict.WAIT, reason, self.rules.delay(self.waits))
        self.crashes += 1
        self.waits = 0
        if self.crashes > self.rules.limit:
            return Decision(
                RestartVerdict.GIVE_UP, f"{words_of(code)}, and {self.rules.limit} restarts in a row did not help"
            )
        return Decision(RestartVerdict.RESTART, words_of(code), self.rules.delay(self.crashes))


@dataclass(slots=True)
class Losses:
    """How often in a row a process has lost its folders; one that got on in between begins anew."""

    limit: int = 10
    well_after_seconds: float = 60.0
    in_a_row: int = 0

    def may_go_on(self, lived_seconds: float, has_settled: bool) -> bool:
        """They were lost again, after so long or after a task that was settled: may it start once more?"""
        if has_settled or lived_seconds >= self.well_after_seconds:
            self.in_a_row = 0
        self.in_a_row += 1
        return self.in_a_row < self.limit


def words_of(code: int) -> str:
    """An exit code for people."""
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"ended, nobody knows how ({code})"
    known = {4: "its folders or its lock were removed", EXIT_SHORTAGE: "the machine refused something it needs"}
    return f"exit code {code}" + (f": {known[code]}" if code in known else "")
