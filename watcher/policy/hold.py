"""May a task of this provider start now? A breaker and a hold answer together.

A hold comes from the provider itself (usage limit until a time, not logged in) or from a missing command. When its
time is over one probe goes first; a success lifts it. Times are monotonic seconds that the caller passes in; the
stored wall time is turned into them once, so that a later clock jump changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from watcher.policy.breaker import Breaker, BreakerState


@dataclass(slots=True)
class Hold:
    """Why a provider is held. `until` is wall seconds for people, `until_monotonic` decides; None waits for a word."""

    reason: str
    detail: str | None
    until: float | None
    until_monotonic: float | None


@dataclass(slots=True)
class Gate:
    """What stands between a provider's tasks and their start."""

    breaker: Breaker
    hold: Hold | None = None
    _probing: bool = False

    def allows(self, now: float) -> int | None:
        """How many tasks may be started now: None for any number, 1 for a probe, 0 for none."""
        if self.hold is not None:
            due = self.hold.until_monotonic is not None and now >= self.hold.until_monotonic
            return 1 if due and not self._probing and self.breaker.allows(now) != 0 else 0
        return self.breaker.allows(now)

    def started(self, now: float) -> None:
        if self.hold is not None:
            self._probing = True
        self.breaker.started(now)

    def succeeded(self) -> bool:
        """Returns whether this lifted a hold."""
        lifted = self.hold is not None
        self.hold = None
        self._probing = False
        self.breaker.succeeded()
        return lifted

    def failed(self, now: float) -> bool:
        """The command itself failed, so the provider answers again. Returns whether this lifted a hold."""
        lifted = self.hold is not None and self._probing
        if lifted:
            self.hold = None
        self._probing = False
        self.breaker.failed(now)
        return lifted

    def told_nothing(self) -> None:
        """The attempt was given back before it said anything about the provider."""
        self._probing = False
        self.breaker.abandoned()

    def held(self, hold: Hold) -> None:
        self.hold = hold
        self._probing = False
        self.breaker.abandoned()

    def lift(self) -> None:
        self.hold = None
        self._probing = False

    def state(self, now: float) -> BreakerState:
        return self.breaker.state(now)

    def due_in(self, now: float) -> float | None:
        """Seconds until `allows` may change by itself; None when only an event changes it."""
        breaker = self.breaker.due_in(now)
        if self.hold is None:
            return breaker
        if self._probing or self.hold.until_monotonic is None:
            return None
        return max(0.0, self.hold.until_monotonic - now, breaker or 0.0)
