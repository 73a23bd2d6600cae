"""What a worker costs that has nothing to do, and how soon a new one has its first task running.

Idle: CPU time, context switches and memory over a minute, of the process, its threads and its children.
Start: from the spawn of the process with one waiting task to that task's command (it prints the time) and to
its result, beside a bare interpreter and the raw watcher.

    python -m bench.idle --seconds 60
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import inbox
from bench.errors import BenchError
from bench.figures import median, spread
from bench.notify import CREATE, MOVED_TO, Inotify
from bench.ours import Ours, ours
from bench.place import Place, place
from bench.processes import Started, cpu_ticks_ns, memory_kb, usage
from bench.report import Report, arguments, bench_environment, run, table

_WAIT_SECONDS = 30.0


def idle(worker: Ours, at: Place, seconds: float, settle_seconds: float) -> dict[str, float]:
    """Usage of a worker with an empty inbox, after it has done one task and come to rest."""
    root = at.path / "idle"
    process = _start_with_one_task(worker.start, root)[2]
    try:
        time.sleep(settle_seconds)  # the rest of its start-up is not idling
        before, ticks_before, began = usage(process.pid), cpu_ticks_ns(process.pid), time.monotonic()
        time.sleep(seconds)
        after, ticks_after = usage(process.pid), cpu_ticks_ns(process.pid)
        elapsed = time.monotonic() - began
        peak_kb = memory_kb(process.pid, "VmHWM")
        if process.poll() is not None:
            raise BenchError(f"the worker ended while idle:\n{process.tail()}")
    finally:
        process.stop()
    shutil.rmtree(root)
    return {
        "seconds": elapsed,
        "cpu_ms_per_second": (after.cpu_ns - before.cpu_ns) / 1e6 / elapsed,
        "cpu_ticks_ms_per_second": (ticks_after - ticks_before) / 1e6 / elapsed,
        "switches_voluntary_per_second": (after.switches_voluntary - before.switches_voluntary) / elapsed,
        "switches_involuntary_per_second": (after.switches_involuntary - before.switches_involuntary) / elapsed,
        "rss_mb": after.rss_kb / 1024,
        "peak_rss_mb": peak_kb / 1024,
        "threads": after.threads,
        "processes": after.processes,
    }


def _start_with_one_task(start: Callable[[Path], Started], root: Path) -> tuple[float, float, Started]:
    """Start on one waiting task: seconds to its command and to its result, and the process, still running."""
    folder, results = inbox.inbox(root), inbox.results(root)
    folder.mkdir(parents=True)
    results.mkdir(parents=True)
    hidden, final = inbox.stage(folder, "first")
    os.rename(hidden, final)
    watch = Inotify()
    try:
        watch.add(results, MOVED_TO | CREATE)
        process = start(root)
        try:
            settled_ns = _await(watch, "first.json", process)
            result = json.loads((results / "first.json").read_bytes())
            begun_ns = int(result["stdout"])
        except BaseException:
            process.stop()
            raise
    finally:
        watch.close()
    return (begun_ns - process.started_ns) / 1e9, (settled_ns - process.started_ns) / 1e9, process


def _await(watch: Inotify, name: str, process: Started) -> int:
    until = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < until and process.poll() is None:
        seen = {found for _, _, found in watch.read(0.5)}
        if name in seen:
            return time.time_ns()
    raise BenchError(f"{process.name}: no result of its first task:\n{process.tail()}")


def starts(worker: Ours, raw: Callable[[Path], Started], at: Place, number: int) -> dict[str, list[float]]:
    """Interleaved starts, in milliseconds."""
    found: dict[str, list[float]] = {
        name: [] for name in ("python -c pass", "raw command", "raw result", "ours command", "ours result")
    }
    for turn in range(number):
        began = time.monotonic()
        subprocess.run([worker.python, "-c", "pass"], check=True)
        found["python -c pass"].append((time.monotonic() - began) * 1e3)
        for name, start in (("raw", raw), ("ours", worker.start)):
            root = at.path / f"{name}-{turn}"
            command, result, process = _start_with_one_task(start, root)
            process.stop()
            found[f"{name} command"].append(command * 1e3)
            found[f"{name} result"].append(result * 1e3)
            shutil.rmtree(root)
    return found


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to idle")
    parser.add_argument("--settle", type=float, default=3.0, help="seconds before that, to come to rest")
    parser.add_argument("--starts", type=int, default=11, help="how many starts to time")
    options = parser.parse_args()
    date = shutil.which("date")
    if date is None:
        raise BenchError("no `date` in PATH; it is the command that tells when it started")
    command = f"{date} +%s%N"
    worker = ours(options.tree, options.python, options.set).with_settings(AGENT_COMMAND=command)

    def raw(root: Path) -> Started:
        line = [options.python, "-m", "bench.rawwatch", str(root), inbox.WORKER, f"--command={command}"]
        return Started(line, bench_environment(), root, root / "raw.log")

    with place(options.place, options.size, options.base) as at:
        report = Report("idle", options, at)
        begun = starts(worker, raw, at, options.starts)
        table(["start to", "ms (min..max)"], [[name, spread(values, 1)] for name, values in begun.items()])
        resting = idle(worker, at, options.seconds, options.settle)
        table(["idle", "value"], [[name, f"{value:.3f}"] for name, value in resting.items()])
        figures: dict[str, Any] = {name: {"median_ms": median(v), "all_ms": v} for name, v in begun.items()}
        report.figures.update(starts=figures, idle=resting)
        report.end()


if __name__ == "__main__":
    run(main)
