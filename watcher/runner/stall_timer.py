"""Tell whether a command has stopped printing. Output resets this timer and no other: the task's deadline stays.

It compares what was printed at one look with the look before, on the monotonic clock, so that a wall clock that is set
ends nobody. Looks are a quarter of the limit apart: a command is ended after one to one and a quarter of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class StallWatch:
    """One attempt's. `limit_seconds` without output is a stall."""

    limit_seconds: float
    _printed: object = None
    _since: float = field(default=float("-inf"))

    @property
    def pause_seconds(self) -> float:
        """How long to wait until the next look."""
        return max(self.limit_seconds / 4, 0.01)

    def is_stalled(self, printed: object, now: float) -> bool:
        """Whether the output has looked like `printed` for too long at `now` (monotonic seconds)."""
        if self._since == float("-inf") or printed != self._printed:
            self._printed, self._since = printed, now
        return now - self._since >= self.limit_seconds
