"""How long a dropped file waits: from its close until it is found, and until its task can be claimed.

`watcher zones` and a worker are started as a user starts them; this process writes files and notes when each is
closed. When a file was found, and when its task was in the inbox durably, is what the zones' log says (same host,
same clock): a claimable task is told a little late rather than early.

Three situations: `free` has a place for every file; in `sustained` one file comes a second while two of three places
are taken (each task sleeps 2 s); in `full` all places are taken and the queue is at its limit while files still come:
then only `found` says something about detection, since a task is claimable when a place is free. Each file must end
as exactly one run and one result, else there are no figures. Every file rests `settle` seconds (0.1) by default
first.

    python -m bench.zones --seconds 300
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bench import inbox
from bench.errors import BenchError
from bench.figures import latencies, steady_clock
from bench.ours import ours
from bench.place import Place, place
from bench.processes import Started
from bench.report import Report, arguments, run, table

_DROPS = """
processing: {{max_workers: {workers}, queue_size: {queue}}}
zones:
  - {{name: z, dirs: {folder}, worker: marie, on_done: move, prompt: "{{name}}\\n"}}
"""


@dataclass(frozen=True)
class Situation:
    """`pause` seconds between two files, `nap` seconds that a task takes."""

    name: str
    workers: int
    queue: int
    files: int
    pause: float
    nap: float


def measure(at: Place, start: Callable[[Path, str], list[Started]], what: Situation) -> dict[str, list[float]]:
    """Milliseconds from close to `found` and to `claimable`, a figure for each file."""
    root = at.path / what.name
    folder = root / "drops"
    folder.mkdir(parents=True)
    drops = _DROPS.format(workers=what.workers, queue=what.queue, folder=folder)
    (root / "drops.yaml").write_text(drops)
    started = start(root, f"sh -c 'cat >> {root}/runs; sleep {what.nap}'")
    zones = started[0]
    try:
        zones.wait_until(lambda: b"Completed" in zones.log.read_bytes(), "the zones' start", 30.0, 0.02)
        time.sleep(1.0)  # the first scan is over
        with steady_clock():
            closed = _feed(folder, what)
        _wait_for_all(zones, folder, what)
    finally:
        for process in started:
            process.stop()
    _check(root, what)
    return _figures(zones.log, closed)


def _feed(folder: Path, what: Situation) -> dict[str, int]:
    closed: dict[str, int] = {}
    begin = time.monotonic()
    for number in range(what.files):
        time.sleep(max(0.0, begin + number * what.pause - time.monotonic()))
        name = f"f{number:05d}.txt"
        with (folder / name).open("w") as file:
            file.write("x" * 300)
        closed[str(folder / name)] = time.time_ns()
    return closed


def _wait_for_all(zones: Started, folder: Path, what: Situation) -> None:
    done = folder / ".done"
    patience = 60.0 + what.files * what.nap / min(what.workers, 50)
    zones.wait_until(lambda: done.is_dir() and len(os.listdir(done)) >= what.files, "every file done", patience)


def _check(root: Path, what: Situation) -> None:
    runs = Counter((root / "runs").read_text().split())
    results = list(inbox.outcomes(inbox.results(root)))
    if set(runs.values()) != {1} or len(runs) != what.files or len(results) != what.files:
        raise BenchError(f"{what.name}: {what.files} files, {sum(runs.values())} runs, {len(results)} results")


def _figures(log: Path, closed: dict[str, int]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"zones.file_found": [], "zones.file_submitted": []}
    for line in log.read_text().splitlines():
        if line.startswith("{"):
            value = json.loads(line)
            if value.get("event") in found:
                at = datetime.fromisoformat(value["timestamp"]).timestamp() * 1e9
                found[value["event"]].append((at - closed[value["file"]]) / 1e6)
    if any(len(one) != len(closed) for one in found.values()):
        raise BenchError(f"{[len(one) for one in found.values()]} lines in the log for {len(closed)} files")
    return {"found": found["zones.file_found"], "claimable": found["zones.file_submitted"]}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--samples", type=int, default=100, help="files in `free` and `full`")
    parser.add_argument("--seconds", type=int, default=60, help="files in `sustained`, one a second")
    options = parser.parse_args()

    def start(root: Path, agent: str) -> list[Started]:
        worker = ours(options.tree, options.python, options.set).with_settings(
            AGENT_COMMAND=agent, MAX_CONCURRENT_TASKS="50"
        )
        environment = {**worker.environment(root), "PYTHONPATH": str(options.tree), "LOG_LEVEL": "DEBUG"}
        line = [options.python, "-m", "watcher", "zones", str(root / "drops.yaml"), "--status-interval", "0.5"]
        return [Started(line, environment, root, root / "zones.log"), worker.start(root)]

    situations = [
        Situation("free", 1000, 100, options.samples, 0.2, 0.0),
        Situation("sustained", 3, 100, options.seconds, 1.0, 2.0),
        Situation("full", 3, 10, options.samples, 0.05, 0.5),
    ]
    rows = []
    with place(options.place, options.size, options.base) as at:
        report = Report("zones", options, at)
        for what in situations:
            found = measure(at, start, what)
            report.figures[what.name] = found
            for which, values in found.items():
                told = latencies(values)
                rows.append(
                    [
                        f"{what.name}: closed -> {which}",
                        str(len(values)),
                        *(f"{told[name]:.1f}" for name in ("p50", "p99", "max")),
                    ]
                )
        table(["ms", "files", "p50", "p99", "max"], rows)
        report.end()


if __name__ == "__main__":
    run(main)
