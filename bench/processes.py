"""Processes that the bench starts, and what the kernel says they used.

Each has its own session and a log file; `stop` is SIGTERM, a grace, then SIGKILL to that session's group, by
the id that was started and nothing else. Used CPU comes from wait4: it covers the process and every child it
waited for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError


class Started:
    """A running child of the bench."""

    def __init__(self, command: list[str], env: Mapping[str, str], cwd: Path, log: Path) -> None:
        self.log = log
        self.name = " ".join(command[:4])
        self.cpu_seconds: float | None = None
        with log.open("wb") as out:
            self.started_ns = time.time_ns()
            self._process = subprocess.Popen(
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit code when it has ended (negative: the signal), else None."""
        return self._reap(os.WNOHANG)

    def _reap(self, flags: int) -> int | None:
        if self._process.returncode is None:
            pid, status, used = os.wait4(self.pid, flags)
            if pid == self.pid:
                self.cpu_seconds = used.ru_utime + used.ru_stime
                self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode

    def stop(self, grace_seconds: float = 30.0) -> int:
        """End it and return its exit code (-9 when it did not go by itself)."""
        try:
            if self.poll() is None:
                os.kill(self.pid, signal.SIGTERM)
            until = time.monotonic() + grace_seconds
            while self.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
        finally:  # also when a signal cuts the waiting short
            code = self._kill()
        return code

    def _kill(self) -> int:
        """End it now, if it has not ended; its exit code."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        code = self._reap(0)
        return -signal.SIGKILL if code is None else code

    def wait_until(self, done: Callable[[], bool], what: str, seconds: float, poll_seconds: float = 0.1) -> None:
        """Wait for `done`. Raises BenchError with the log's tail when it ends early or late."""
        until = time.monotonic() + seconds
        while not done():
            code = self.poll()
            if code is not None:
                if done():
                    return
                raise BenchError(f"{self.name} ended with {code} before {what}:\n{self.tail()}")
            if time.monotonic() > until:
                raise BenchError(f"{self.name}: no {what} within {seconds:.0f} s:\n{self.tail()}")
            time.sleep(poll_seconds)

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextlib.contextmanager
def started(command: list[str], env: Mapping[str, str], cwd: Path, log: Path) -> Iterator[Started]:
    """Start a process; it is ended when the block is left, however that happens."""
    process = Started(command, env, cwd, log)
    try:
        yield process
    finally:
        process.stop()


@dataclass(frozen=True)
class Usage:
    """What a process and its living descendants have used up to now, over all their threads."""

    cpu_ns: int
    switches_voluntary: int
    switches_involuntary: int
    rss_kb: int
    threads: int
    processes: int


def usage(pid: int) -> Usage:
    """Read /proc for `pid` and its descendants."""
    family = descendants(pid)
    threads = [task for one in family for task in Path(f"/proc/{one}/task").glob("*")]
    statuses = [_status(task / "status") for task in threads]
    return Usage(
        cpu_ns=sum(_cpu_ns(task) for task in threads),
        switches_voluntary=sum(int(s.get("voluntary_ctxt_switches", "0")) for s in statuses),
        switches_involuntary=sum(int(s.get("nonvoluntary_ctxt_switches", "0")) for s in statuses),
        rss_kb=sum(memory_kb(one, "VmRSS") for one in family),
        threads=len(threads),
        processes=len(family),
    )


def descendants(pid: int) -> list[int]:
    """`pid` and every living process below it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name in parentheses may hold anything; the parent is the second field after the last one.
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    family = [pid]
    for one in family:
        family.extend(child for child, parent in parents.items() if parent == one)
    return family


def cpu_ticks_ns(pid: int) -> int:
    """CPU time by /proc/PID/stat: in ticks of 10 ms, but ended threads and children are counted too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))


def memory_kb(pid: int, field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (peak) of one process, in KiB; 0 when it is gone."""
    return int(_status(Path(f"/proc/{pid}/status")).get(field, "0 kB").split()[0])


def _cpu_ns(task: Path) -> int:
    """schedstat counts nanoseconds; /proc/PID/stat only ticks of 10 ms, so it is the fallback."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int((task / "schedstat").read_text().split()[0])
    with contextlib.suppress(OSError):
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
    return 0


def _status(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
