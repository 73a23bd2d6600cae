"""How long to wait before the next attempt: exponential, bounded, with jitter that only adds."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryDelays:
    """`initial * backoff**(n-1)` seconds after attempt n, at most `maximum`, plus up to `jitter` of itself.

    With the defaults 1, 2, 4, ... seconds. Jitter only adds, so that the documented delay is a lower bound.
    """

    initial_seconds: float = 1.0
    backoff: float = 2.0
    maximum_seconds: float = 300.0
    jitter: float = 0.1

    def base(self, attempt: int) -> float:
        """Seconds to wait after attempt number `attempt` (from 1), without jitter."""
        if self.initial_seconds == 0:
            return 0.0
        exponent = min(attempt - 1, 63)
        return float(min(self.maximum_seconds, self.initial_seconds * self.backoff**exponent))

    def after(self, attempt: int, rng: random.Random | None = None) -> float:
        """The same with jitter."""
        spread = (rng or _RNG).random() * self.jitter
        return self.base(attempt) * (1.0 + spread)

    def longest(self) -> float:
        """No delay is ever longer than this; a stored due time beyond it is a clock that jumped."""
        return self.maximum_seconds * (1.0 + self.jitter)


_RNG = random.Random()  # noqa: S311 - spreads retries, guards nothing
