"""What warm handlers cost: the whole path from a visible task file to a durable, visible result.

Latency is taken as in `bench.detection` (the handler answers with the moment at which it began). Throughput is that of
a pre-filled inbox with 3 warm Python handlers, as a ratio to the raw loop without a process and without fsync, which
does the same file protocol in one thread and nothing else, and to the same with group commit; rounds are interleaved.
Whether processes are started for tasks is read from the kernel: the pids below the worker, and the page faults of
children that it has reaped. Memory is read while many requests go through a worker that replaces its handlers.

    python -m bench.handlers --rounds 3 --requests 100000
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from bench import inbox
from bench.anchors import drain, raw_loops, show
from bench.detection import measure
from bench.errors import BenchError
from bench.figures import Drain, latencies
from bench.ours import Ours, ours
from bench.place import Place, place
from bench.processes import Started, descendants, memory_kb
from bench.report import REPO, Report, arguments, run, table

_HANDLER = Path(__file__).resolve().parent / "clockhandler.py"
_WORKER_WARM_SECONDS = 30.0
_CHUNK = 5000


def warm(options: argparse.Namespace, how: str, **settings: str) -> Ours:
    """The worker with 3 warm handlers."""
    return ours(options.tree, options.python, options.set).with_settings(
        PROVIDER="handler",
        HANDLER_COMMAND=f"{options.python} {_HANDLER} {how}",
        PYTHONPATH=str(REPO),
        AGENT_ENV="PYTHONPATH",
        **settings,
    )


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--samples", type=int, default=60, help="single tasks timed, idle and busy")
    parser.add_argument("--stream", type=float, default=50.0, help="other tasks per second in the busy situation")
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=20_000, help="how many tasks memory is watched for")
    options = parser.parse_args()
    with place(options.place, options.size, options.base) as at:
        report = Report("handlers", options, at)
        report.figures["latency"] = _latency(options, at)
        report.figures["throughput"] = _throughput(options, at)
        report.figures["memory"] = _memory(options, at)
        report.end()


def _latency(options: argparse.Namespace, at: Place) -> dict[str, Any]:
    worker = warm(options, "clock")

    def start(root: Path) -> Started:
        process = worker.start(root)
        _wait_warm(process)
        return process

    rows, figures = [], {}
    for situation, per_second in (("idle", 0.0), ("busy", options.stream)):
        samples = measure(start, at, "warm", options.samples, per_second)
        found = {
            "claimed_ms": latencies([one.claimed for one in samples]),
            "started_ms": latencies([one.started for one in samples]),
            "settled_ms": latencies([one.settled for one in samples]),
        }
        figures[situation] = found
        rows.append([situation, *(f"{one['p50']:.2f} / {one['p99']:.2f} / {one['max']:.2f}" for one in found.values())])
    table(["ms since visible, p50 / p99 / max", "claimed", "handler began", "result visible"], rows)
    return figures


def _throughput(options: argparse.Namespace, at: Place) -> dict[str, object]:
    worker = warm(options, "echo")
    raw = [one for one in raw_loops(options.python) if one.name in ("raw-noop", "raw-noop-group")]
    done: list[dict[str, Drain]] = []
    for turn in range(options.rounds):
        order = [worker, *raw] if turn % 2 == 0 else [*raw, worker]
        done.append({one.name: drain(one, at, options.tasks) for one in order})
    names = ["ours", *(one.name for one in raw)]
    figures = show(done, names, "raw-noop")
    per_group = [turn["ours"].drain_per_second / turn["raw-noop-group"].drain_per_second for turn in done]
    print("ours x raw-noop-group:", ", ".join(f"{ratio:.2f}" for ratio in per_group))
    figures["ratios_to_raw-noop-group"] = per_group
    return figures


def _memory(options: argparse.Namespace, at: Place) -> list[dict[str, int]]:
    """Memory and processes while tasks go through in chunks; `reaped_faults` moves when any child has ended."""
    root = at.path / "memory"
    folder, results = inbox.inbox(root), inbox.results(root)
    folder.mkdir(parents=True)
    results.mkdir(parents=True)
    rows: list[dict[str, int]] = []
    process = warm(options, "echo").start(root)
    try:
        _wait_warm(process)
        rows.append(_look(process, 0))
        for start in range(0, options.requests, _CHUNK):
            _chunk(process, folder, results, start, min(_CHUNK, options.requests - start))
            rows.append(_look(process, start + _CHUNK))
    finally:
        process.stop()
    shutil.rmtree(root)
    shown = rows if len(rows) < 9 else rows[:: len(rows) // 8]
    table(list(rows[0]), [[str(value) for value in row.values()] for row in shown])
    return rows


def _chunk(process: Started, folder: Path, results: Path, first: int, count: int) -> None:
    for number in range(first, first + count):
        hidden, final = inbox.stage(folder, f"task-{number:07d}")
        Path(hidden).rename(final)
    process.wait_until(lambda: inbox.count(results) >= count, f"{count} results", 300.0, 0.05)
    inbox.check_results(folder.parents[1], count)
    for path in list(inbox.outcomes(results)):
        path.unlink()
    for receipt in (folder.parents[1] / "triggers" / inbox.WORKER).glob("*.json"):
        receipt.unlink()


def _look(process: Started, tasks: int) -> dict[str, int]:
    family = descendants(process.pid)
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return {
        "tasks": tasks,
        "worker_kb": memory_kb(process.pid, "VmRSS"),
        "children_kb": sum(memory_kb(pid, "VmRSS") for pid in family[1:]),
        "children": len(family) - 1,
        "newest_pid": max(family),
        "reaped_faults": int(fields[8]),
    }


def _wait_warm(process: Started) -> None:
    """Until 3 handlers and their guard are there, and have had a moment to answer their pings."""
    until = time.monotonic() + _WORKER_WARM_SECONDS
    while len(descendants(process.pid)) < 5:
        if time.monotonic() > until or process.poll() is not None:
            raise BenchError(f"no 3 warm handlers within {_WORKER_WARM_SECONDS:.0f} s:\n{process.tail()}")
        time.sleep(0.05)
    time.sleep(1.0)


if __name__ == "__main__":
    run(main)
