"""Decide how often folders are scanned, and how late a scan may be before a probe fails. Seconds everywhere.

A machine that is busy scans late, so both probes are generous: one that is not ready gets no new work, one whose loop
does not turn is restarted.
"""

from __future__ import annotations

#: A loop turns at least so often, also when nothing happens: its work comes in slices, and no sleep is longer.
TURN_SECONDS = 10.0


def interval(has_events: bool, scan_interval: float, poll_interval: float) -> float:
    """The time between two scans: without events of the file system, scans are all there is."""
    return scan_interval if has_events else min(poll_interval, scan_interval)


def is_ready(age: float, every: float) -> bool:
    """Whether the last scan, so long ago, is recent enough for one that scans `every` so often."""
    return age <= every * 3 + 5.0


def is_alive(age: float) -> bool:
    """Whether a loop whose last turn is so long ago still turns; what does not is restarted."""
    return age < TURN_SECONDS * 3 + 10.0
