"""Measure how busy this machine is: CPU and memory in percent of the whole.

By psutil where it is installed (the extra `supervisor`), else from Linux's /proc; where neither can tell, None, and
whoever asks bounds nothing. In a container both see the host, not the container's own limits.
"""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_psutil: Any = None
with contextlib.suppress(ImportError):  # an extra: without it /proc must do
    _psutil = importlib.import_module("psutil")

_STAT = Path("/proc/stat")
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class MachineLoad:
    """Percent of all CPUs in use since the look before (None at the first), and of the memory now."""

    cpu_percent: float | None = None
    memory_percent: float | None = None


class Machine:
    """Asked now and then; the CPU's figure is the mean over the time between two looks."""

    def __init__(self, source: Any = _psutil) -> None:
        self._psutil = source
        self._cpu: tuple[float, float] | None = None

    def look(self) -> MachineLoad:
        """How busy it is now; never raises."""
        before = self._cpu
        try:
            busy, total, memory = self._by_psutil() if self._psutil is not None else self._by_proc()
        except (OSError, ValueError, KeyError, IndexError, AttributeError):
            return MachineLoad()
        self._cpu = busy, total
        if before is None or total <= before[1]:
            return MachineLoad(None, memory)
        return MachineLoad(min(100.0, max(0.0, 100.0 * (busy - before[0]) / (total - before[1]))), memory)

    def _by_psutil(self) -> tuple[float, float, float]:
        """cpu_percent() would do, but it keeps one memory for the whole process."""
        times = self._psutil.cpu_times()
        waiting = times.idle + getattr(times, "iowait", 0.0)
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return total - waiting, total, float(self._psutil.virtual_memory().percent)

    def _by_proc(self) -> tuple[float, float, float]:
        """See proc(5): guest time is contained in user time, so only the first eight columns add up."""
        ticks = [float(word) for word in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
        facts = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
        total_kib, free_kib = (float(facts[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks), 100.0 * (1.0 - free_kib / total_kib)
