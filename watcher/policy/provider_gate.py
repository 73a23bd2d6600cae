"""Decide whether a task of a provider may start now: breaker, hold and the ramp after a hold answer together.

A hold comes from the provider itself (usage limit until a time, not logged in), from an operator, or from a missing
command. When its time is over one probe goes first. Its success ends the hold and begins the ramp: two may run at
once, then four, doubled by each success, until nothing is counted any more; so a queue that has waited for hours does
not fall upon a provider that has just come back. Who else may probe is not known here: see `probe_permits`.

A hold that rests on words alone is doubted: a task that prints such words may be its own cause. Then another task may
probe at once, and what it meets decides: success ends the hold, the same words make the hold the account's.

Only a probe tells something about the hold: what was started before it may still end well. Times are monotonic
seconds that the caller passes in; the stored wall time is turned into them once, so that a later clock jump changes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from watcher.policy.breaker import Breaker, BreakerState

#: Without a time that is told the pauses between probes double up to this, however long a limit lasts.
LONGEST_PAUSE_SECONDS = 3600.0
#: A ramp that has come so far is over. Each step costs one success, so this is five of them.
RAMP_IS_OVER_AT = 32


@dataclass(slots=True)
class Hold:
    """Why a provider is held. `until` is wall seconds for people, `until_monotonic` decides; None waits for a word.

    `is_own`: it concerns this process only (its machine, its user), so there is nothing to share and no ramp.
    `pause_seconds` is how long the last pause without a told time was, or would have been. `task`: the
    only one that has met it (empty: several, or nobody knows). `is_doubted`: that one's words alone say so.
    """

    reason: str
    detail: str | None
    until: float | None
    until_monotonic: float | None
    is_own: bool = False
    pause_seconds: float | None = None
    task: str = ""
    is_doubted: bool = False


def next_pause(known: Hold | None, shortest: float, *, was_probe: bool) -> float:
    """Seconds until the next probe of what was met just now, when no time was told; `known` is the hold until now."""
    if known is None or known.pause_seconds is None:
        return shortest
    return min(known.pause_seconds * (2 if was_probe else 1), max(shortest, LONGEST_PAUSE_SECONDS))


@dataclass(slots=True)
class Gate:
    """What stands between a provider's tasks and their start. `ramp` is how many probes may run, after a hold."""

    breaker: Breaker
    hold: Hold | None = None
    ramp: int | None = None
    probes: int = 0

    def allows(self, now: float) -> int | None:
        """How many tasks may be started now: None for any number, 1 for a probe, 0 for none."""
        breaker = self.breaker.allows(now)
        if self.hold is None and self.ramp is None:
            return breaker
        if self.hold is not None and not (self.hold.is_doubted or self.is_due(now)):
            return 0
        return 1 if breaker != 0 and self.probes < self.at_once() else 0

    def at_once(self) -> int:
        """How many probes may run at the same time, over all who share this provider's account."""
        return 1 if self.hold is not None or self.ramp is None else self.ramp

    def is_probed(self) -> bool:
        """Whether what starts now is a probe: it tells whether the provider works again."""
        return self.hold is not None or self.ramp is not None

    def started(self, now: float) -> bool:
        """Returns whether this one is a probe."""
        is_probe = self.is_probed()
        self.probes += is_probe
        self.breaker.started(now)
        return is_probe

    def succeeded(self, is_probe: bool) -> bool:
        """Returns whether this ended a hold."""
        self.breaker.succeeded()
        if not is_probe:
            return False
        self._one_less()
        lifted, self.hold = self.hold, None
        if lifted is not None and lifted.is_own:
            self.ramp = None
        elif lifted is not None or self.ramp is not None:
            wider = 2 * (self.ramp or 1) if lifted is None else 2
            self.ramp = wider if wider < RAMP_IS_OVER_AT else None
        return lifted is not None

    def failed(self, now: float, is_probe: bool) -> bool:
        """The command itself failed, so the provider answers again: the hold is over, and the next ones still go one
        at a time. Returns whether this ended a hold."""
        lifted = self.hold if is_probe else None
        if is_probe:
            self._one_less()
        if lifted is not None:
            self.hold = None
            self.ramp = None if lifted.is_own else 1
        self.breaker.failed(now)
        return lifted is not None

    def told_nothing(self, is_probe: bool) -> None:
        """The attempt was given back before it said anything about the provider."""
        if is_probe:
            self._one_less()
        self.breaker.abandoned()

    def held(self, hold: Hold) -> None:
        """From now on it is held so; what runs of it is no probe any more."""
        self.hold = hold
        self.ramp = None
        self.probes = 0
        self.breaker.abandoned()

    def lift(self, ramp: int | None = None) -> None:
        """The hold is over, by somebody's word or by another's probe."""
        self.hold = None
        self.ramp = ramp
        self.probes = 0

    def state(self, now: float) -> BreakerState:
        return self.breaker.state(now)

    def due_in(self, now: float) -> float | None:
        """Seconds until `allows` may change by itself; None when only an event changes it."""
        breaker = self.breaker.due_in(now)
        if self.hold is None:
            return breaker
        if self.probes or self.hold.until_monotonic is None:
            return None
        return max(0.0, self.hold.until_monotonic - now, breaker or 0.0)

    def is_due(self, now: float) -> bool:
        """Whether the time of its hold is over; a hold that is doubted may be probed by another task before."""
        return self.hold is not None and self.hold.until_monotonic is not None and now >= self.hold.until_monotonic

    def _one_less(self) -> None:
        self.probes = max(0, self.probes - 1)
