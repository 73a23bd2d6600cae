"""What a task costs while many others wait: 1,000, 10,000 and 100,000 of them, with --million a million.

For each size a fresh filesystem is filled, then the raw loop does the first K tasks, then our worker the next
K of what is left: microseconds from result to result once the first one is there, seconds from the start of
the process to its first result (that is where reading the folder shows), and the peak of its memory. After
SIGTERM every task must be either finished or still waiting.

    python -m bench.backlog --sizes 1000,10000,100000
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import inbox
from bench.anchors import raw_popen
from bench.errors import BenchError
from bench.figures import change_times, rate, steady_clock
from bench.ours import Ours, ours
from bench.place import Place, place
from bench.processes import memory_kb
from bench.report import Report, arguments, run, table

MILLION = 1_000_000
_DEADLINE_SECONDS = 900.0


@dataclass(frozen=True)
class Cost:
    """Figures of one backlog size."""

    backlog: int
    measured_tasks: int
    raw_us_per_task: float
    us_per_task: float
    ratio_to_raw: float
    first_seconds: float
    peak_rss_mb: float


def cost(worker: Ours, at: Place, backlog: int, wanted: int, python: str) -> Cost:
    """Measure one size in `at`, which must be empty."""
    wanted = min(wanted, backlog)
    root = at.path / "backlog"
    inbox.fill(root, backlog + wanted)
    at.settle()
    raw_us = _raw_us(root, python, wanted)
    at.settle()
    results = inbox.results(root)
    with steady_clock():
        process = worker.start(root)
        try:
            process.wait_until(lambda: inbox.count(results) >= wanted, f"{wanted} results", _DEADLINE_SECONDS)
            peak_kb = memory_kb(process.pid, "VmHWM")
        finally:
            code = process.stop()
    if code != 0:
        raise BenchError(f"the worker ended with {code} after SIGTERM:\n{process.tail()}")
    _check_conserved(root, backlog, wanted)
    times = change_times(inbox.outcomes(results))
    us = 1e6 / rate(times[:wanted])
    first = (times[0] - process.started_ns) / 1e9
    return Cost(backlog, wanted, raw_us, us, us / raw_us, first, peak_kb / 1024)


def _raw_us(root: Path, python: str, wanted: int) -> float:
    """The raw loop over the first tasks; what it made is removed again."""
    process = raw_popen(python).start(root, limit=wanted)
    try:
        process.wait_until(lambda: process.poll() is not None, "end", _DEADLINE_SECONDS, 0.02)
    finally:
        code = process.stop()
    results = inbox.results(root)
    times = change_times(inbox.outcomes(results))
    if code != 0 or len(times) != wanted:
        raise BenchError(f"the raw loop ended with {code} after {len(times)} tasks:\n{process.tail()}")
    shutil.rmtree(results)
    shutil.rmtree(inbox.inbox(root) / ".claims")
    return 1e6 / rate(times)


def _check_conserved(root: Path, backlog: int, wanted: int) -> None:
    finished = inbox.check_results(root, wanted)
    waiting = inbox.count(inbox.inbox(root))
    if finished + waiting != backlog:
        raise BenchError(f"{backlog} tasks became {finished} results and {waiting} waiting in {root}")


def size_for(backlog: int) -> str:
    """Room for each task's block, inode and name, its result and receipt for some, and a journal."""
    return f"{max(2048, 512 + (backlog * 6) // 1024)}M"


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--sizes", default="1000,10000,100000", help="backlogs, comma-separated")
    parser.add_argument("--million", action="store_true", help="also a million: 6 GB of disk, some minutes")
    parser.add_argument("--measure", type=int, default=2000, metavar="K", help="tasks measured at each size")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")] + ([MILLION] if options.million else [])
    worker = ours(options.tree, options.python, options.set)
    report: Report | None = None
    costs: list[Cost] = []
    for size in sizes:
        with place(options.place, size_for(size), options.base) as at:
            report = report or Report("backlog", options, at)
            costs.append(cost(worker, at, size, options.measure, options.python))
    if report is not None:
        _show(costs)
        report.figures["sizes"] = [asdict(one) for one in costs]
        report.end()


def _show(costs: list[Cost]) -> None:
    base = costs[0]
    head = [
        "backlog",
        "measured",
        "raw us/task",
        "ours us/task",
        "x raw",
        f"x {base.backlog:,}",
        "first s",
        "peak MB",
    ]
    rows = [
        [
            f"{one.backlog:,}",
            f"{one.measured_tasks:,}",
            f"{one.raw_us_per_task:,.0f}",
            f"{one.us_per_task:,.0f}",
            f"{one.ratio_to_raw:.2f}",
            f"{one.us_per_task / base.us_per_task:.2f}",
            f"{one.first_seconds:.2f}",
            f"{one.peak_rss_mb:.1f}",
        ]
        for one in costs
    ]
    table(head, rows)


if __name__ == "__main__":
    run(main)
