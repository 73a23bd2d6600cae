"""Arithmetic of the bench: medians, percentiles, paired ratios, and the rate at which results appeared.

Result times are the inode change times that the filesystem keeps (the rename that made the result visible
sets them), read after the run: nothing watches while the clock runs. They are as coarse as the kernel's tick
(1-4 ms), so a drain should last a second or more.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError

#: Results within this of the first one count as the first group: group commit shows several at one moment.
_GROUP_NS = 5_000_000


@dataclass(frozen=True)
class Drain:
    """How a pre-filled queue was emptied. `cpu_ms_per_task` covers the process and every child it reaped."""

    count: int
    first_seconds: float
    drain_per_second: float
    from_start_per_second: float
    cpu_ms_per_task: float | None = None


def change_times(files: Iterable[Path]) -> list[int]:
    """When each file became what it is, ns since the epoch, in order."""
    return sorted(file.stat().st_ctime_ns for file in files)


def rate(times: Sequence[int]) -> float:
    """Results per second from the first to the last, without the first group: its work began earlier."""
    first, last = times[0], times[-1]
    later = sum(1 for at in times if at > first + _GROUP_NS)
    return later * 1e9 / (last - first) if later else float("nan")


def drain_of(times: Sequence[int], started_ns: int, cpu_seconds: float | None = None) -> Drain:
    """Figures of one run: `times` of all its results, `started_ns` when its process was started."""
    count = len(times)
    return Drain(
        count=count,
        first_seconds=(times[0] - started_ns) / 1e9,
        drain_per_second=rate(times),
        from_start_per_second=count * 1e9 / (times[-1] - started_ns),
        cpu_ms_per_task=None if cpu_seconds is None else cpu_seconds * 1e3 / count,
    )


@contextlib.contextmanager
def steady_clock() -> Iterator[None]:
    """Refuse the figures of a block in which the wall clock jumped; slewing (up to 0.1 %) is let through."""
    wall, mono = time.time_ns(), time.monotonic_ns()
    yield
    elapsed = time.monotonic_ns() - mono
    drift = abs((time.time_ns() - wall) - elapsed)
    if drift > 2_000_000 + elapsed // 1000:
        raise BenchError(f"the wall clock moved by {drift / 1e6:.1f} ms during the run: run it again")


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: the smallest value with at least that share of the values at or below it."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def median(values: Iterable[float]) -> float:
    """The median; NaN of nothing."""
    kept = list(values)
    return statistics.median(kept) if kept else float("nan")


def spread(values: Sequence[float], digits: int = 0) -> str:
    """`median (min..max)`."""
    if not values:
        return "-"
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}..{max(values):,.{digits}f})"


def latencies(values: Sequence[float]) -> dict[str, float]:
    """p50, p99 and max of the values, in their unit."""
    return {
        "p50": percentile(values, 50),
        "p99": percentile(values, 99),
        "max": max(values),
        "count": len(values),
    }
