"""Own the trouble of the machine (a full disk, no descriptors): since when, and when to try again.

Between two tries lies a pause that doubles up to fifteen seconds. A try is one task that is started, or whatever is
kept here and goes out. It decides nothing about tasks: who meets trouble says so here, and who sees it gone too.
"""

from __future__ import annotations

from dataclasses import dataclass

from watcher.clock import Clock
from watcher.telemetry.events import Emit, TroubleBegan, TroubleEnded

_SHORTEST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 15.0


@dataclass(slots=True)
class _Spell:
    """`is_tried`: a task was started since it was last met, to see whether it is over."""

    detail: str
    since: float
    retry_at: float
    pause: float = _SHORTEST_PAUSE_SECONDS
    is_tried: bool = False


class Trouble:
    """The trouble that one worker's machine is in now, or none."""

    def __init__(self, clock: Clock, emit: Emit) -> None:
        self._clock = clock
        self._emit = emit
        self._now: _Spell | None = None

    @property
    def is_on(self) -> bool:
        """Whether there is any."""
        return self._now is not None

    @property
    def detail(self) -> str | None:
        """What the machine is short of, or None."""
        return None if self._now is None else self._now.detail

    @property
    def retry_at(self) -> float | None:
        """When (monotonic) it is to be tried again; None without trouble."""
        return None if self._now is None else self._now.retry_at

    @property
    def is_tried(self) -> bool:
        """Whether a task that was started since it was last met will tell; one is enough."""
        return self._now is not None and self._now.is_tried

    def begin(self, detail: str) -> None:
        """It was met; when it was met before, the pause until the next try is twice as long."""
        if self._now is None:
            now = self._clock.monotonic()
            self._now = _Spell(detail, now, now + _SHORTEST_PAUSE_SECONDS)
            self._emit(TroubleBegan(detail))
            return
        self._now.detail = detail
        self._now.is_tried = False
        self.lengthen()

    def end(self) -> None:
        """Something went as it should."""
        if self._now is not None:
            self._emit(TroubleEnded(self._clock.monotonic() - self._now.since))
            self._now = None

    def task_started(self) -> None:
        """How the task ends will tell whether the trouble is over."""
        if self._now is not None:
            self._now.is_tried = True

    def repeat(self) -> None:
        """What is tried now is tried again after the same pause; else the loop would turn until somebody knows."""
        if self._now is not None:
            self._now.retry_at = self._clock.monotonic() + self._now.pause

    def lengthen(self) -> None:
        """The next try comes after a pause that is twice as long."""
        if self._now is not None:
            self._now.pause = min(self._now.pause * 2, _LONGEST_PAUSE_SECONDS)
            self.repeat()
