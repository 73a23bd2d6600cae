"""Decide how much one attempt may print, and whether its output is why a disk is full.

An attempt ends when it has printed more than `limit_bytes`, or when the disk is full by its output. What others take of
the disk is never its fault: its output must be worth mentioning, enough to end the shortage, and a fair part of what
was taken since it began. Pure: sizes and times come in, a pause or a reason comes out.
"""

from __future__ import annotations

from dataclasses import dataclass

#: The reason of an attempt that has printed more than it may, or more than the disk could hold.
OUTPUT_TOO_LARGE = "output_too_large"
#: With less room than this a disk is full, whatever MIN_FREE_BYTES says: a result may need so much.
FULL_BYTES = 64 << 10
#: Less output than this fills no disk.
_WORTH_MENTIONING_BYTES = 1 << 20
#: At least one part in so many of what was taken since it began must be the attempt's. One that just prints on is at
#: fault also when sixteen fill the disk together: if it were let be, nobody would get on until its timeout.
_FAIR_PART = 4
_FAIR_PART_OF_A_FLOOD = 16
#: Seconds between two looks: after the first, while it prints fast, and at most.
_FIRST_PAUSE, _SHORTEST_PAUSE, _LONGEST_PAUSE = 0.25, 0.05, 1.0


def has_filled_disk(
    printed_bytes: int, free_before: int, free_bytes: int, needed_bytes: int, *, prints_on: bool = False
) -> bool:
    """Whether less than `needed_bytes` are free because of what one attempt has printed; `free_before` it began."""
    if free_bytes >= needed_bytes or printed_bytes < max(_WORTH_MENTIONING_BYTES, needed_bytes - free_bytes):
        return False
    return printed_bytes * (_FAIR_PART_OF_A_FLOOD if prints_on else _FAIR_PART) >= free_before - free_bytes


@dataclass(slots=True)
class PrintWatch:
    """One attempt's. It is looked at after pauses: a quiet one once a second, one that nears its limit more often.

    `free_before` were free on the disk when it began, at `looked_at` (monotonic seconds).
    """

    limit_bytes: int
    free_before: int
    looked_at: float
    pause_seconds: float = _FIRST_PAUSE
    _printed: int = 0

    def too_much(self, printed_bytes: int, free_bytes: int, now: float) -> str | None:
        """Why it must end, in words, or None; `now` is monotonic seconds."""
        grown, self._printed = printed_bytes - self._printed, printed_bytes
        since, self.looked_at = now - self.looked_at, now
        over = self.over_limit(printed_bytes)
        if over is not None:
            return over
        if grown > 0 and has_filled_disk(printed_bytes, self.free_before, free_bytes, FULL_BYTES, prints_on=True):
            return f"its output, {printed_bytes} bytes, filled the disk"
        if grown <= 0:
            self.pause_seconds = min(self.pause_seconds * 2, _LONGEST_PAUSE)
        else:
            seconds_left = (self.limit_bytes - printed_bytes) * max(since, _SHORTEST_PAUSE) / grown
            self.pause_seconds = min(max(seconds_left / 2, _SHORTEST_PAUSE), _LONGEST_PAUSE)
        return None

    def over_limit(self, printed_bytes: int) -> str | None:
        """That it has printed more than it may, in words, or None."""
        if printed_bytes <= self.limit_bytes:
            return None
        return f"it printed {printed_bytes} bytes; MAX_ATTEMPT_OUTPUT_BYTES allows {self.limit_bytes}"
