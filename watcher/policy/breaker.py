"""Decide when the circuit breaker opens, probes and closes: after too many failures in a row one probe decides.

CLOSED --threshold failures in a row--> OPEN --timeout--> HALF_OPEN --probe fails--> OPEN, --probe works--> CLOSED.
While it is open nothing is claimed, so tasks stay in the inbox and burn no attempt. Times are monotonic seconds that
the caller passes in.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class BreakerState(enum.Enum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"

    @property
    def number(self) -> int:
        """The value of the metric `watcher_circuit_breaker_state`: 0 closed, 1 open, 2 half open."""
        return {"closed": 0, "open": 1, "half_open": 2}[self.value]


@dataclass(slots=True)
class Breaker:
    """One breaker. `threshold` failures in a row open it for `timeout_seconds`."""

    threshold: int
    timeout_seconds: float
    failures: int = 0
    opened_at: float | None = None
    _probing: bool = field(default=False, repr=False)

    def state(self, now: float) -> BreakerState:
        if self.opened_at is None:
            return BreakerState.CLOSED
        if self._probing or now - self.opened_at >= self.timeout_seconds:
            return BreakerState.HALF_OPEN
        return BreakerState.OPEN

    def allows(self, now: float) -> int | None:
        """How many tasks may be started now: None for any number, 1 for the probe, 0 for none."""
        state = self.state(now)
        if state is BreakerState.CLOSED:
            return None
        return 1 if state is BreakerState.HALF_OPEN and not self._probing else 0

    def started(self, now: float) -> None:
        """A task was started; in HALF_OPEN it is the probe."""
        if self.state(now) is BreakerState.HALF_OPEN:
            self._probing = True

    def succeeded(self) -> None:
        self.failures = 0
        self.opened_at = None
        self._probing = False

    def failed(self, now: float) -> None:
        """One more failure in a row. A straggler that fails while the breaker is open does not prolong it."""
        self.failures += 1
        if self._probing or (self.opened_at is None and self.failures >= self.threshold):
            self.opened_at = now
            self._probing = False

    def abandoned(self) -> None:
        """The started task told nothing about the provider (it was given back): the next one may probe."""
        self._probing = False

    def due_in(self, now: float) -> float | None:
        """Seconds until the probe may start; None when nothing is waited for."""
        if self.opened_at is None or self._probing:
            return None
        return max(0.0, self.opened_at + self.timeout_seconds - now)

    def restore(self, failures: int, open_for_seconds: float, now: float) -> None:
        """Continue a breaker that was open when its process ended; a stored time never prolongs the timeout."""
        self.failures = max(failures, self.threshold)
        left = min(max(open_for_seconds, 0.0), self.timeout_seconds)
        self.opened_at = now - (self.timeout_seconds - left)
