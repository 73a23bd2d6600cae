"""Decide how many tasks to claim beyond the slots, so that a slot need not idle while the next task is claimed.

It is worth it only while tasks end very fast: a long task in a queue of ours could run at another instance. What was
claimed ahead and stays behind a task that takes long must go back. Times are monotonic seconds that the caller passes
in.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Attempts that usually take less than this are claimed ahead.
_SHORT_SECONDS = 0.05
#: What was claimed ahead goes back when no slot has begun anything for this long.
_PATIENCE_SECONDS = 0.25
#: What an attempt is taken to last, at least, once one was too long for those behind it.
_LONG_SECONDS = 1.0


@dataclass(slots=True)
class ClaimingAhead:
    """`due_at`: when to look again though nothing happens; None when that is not needed."""

    due_at: float | None = None
    _usual_seconds: float = _SHORT_SECONDS
    _begun: int = 0

    def attempt_took(self, seconds: float) -> None:
        """The usual time follows what the last attempts took."""
        self._usual_seconds += (seconds - self._usual_seconds) / 8

    def is_worth_it(self) -> bool:
        """Whether attempts are short enough now."""
        return self._usual_seconds < _SHORT_SECONDS

    def must_go_back(self, is_waiting: bool, begun: int, now: float) -> bool:
        """Whether what was claimed ahead has waited too long. `begun` moves whenever a slot begins something."""
        if not is_waiting:
            self.due_at = None
        elif self.due_at is None or begun != self._begun:
            self._begun = begun
            self.due_at = now + _PATIENCE_SECONDS
        elif now >= self.due_at:
            self.due_at = None
            self._usual_seconds = max(self._usual_seconds, _LONG_SECONDS)
            return True
        return False
