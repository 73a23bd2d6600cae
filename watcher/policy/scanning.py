"""How often folders are scanned, and how late a scan may be before a probe says so. Seconds everywhere.

A machine that is busy scans late, so both probes are generous: one that is not ready gets no new work, one that is not
alive is restarted.
"""

from __future__ import annotations


def interval(has_events: bool, scan_interval: float, poll_interval: float) -> float:
    """The time between two scans: without events of the file system, scans are all there is."""
    return scan_interval if has_events else min(poll_interval, scan_interval)


def is_ready(age: float, every: float) -> bool:
    """Whether the last scan, so long ago, is recent enough for one that scans `every` so often."""
    return age <= every * 3 + 5.0


def is_alive(age: float, every: float) -> bool:
    """The same for what must be restarted otherwise; a scan of a huge folder may take long."""
    return age < every * 10 + 120.0
