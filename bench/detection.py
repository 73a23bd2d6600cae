"""How long a visible task waits: until it is claimed, until its command runs, until its result is visible.

`claimed` is the moved-from event of the inbox as this process reads it from raw inotify: it includes one
wake-up of this process. `started` is what the command itself prints: `date +%s%N`, a program that is there
everywhere and starts in about a millisecond; both sides read the same host's wall clock. The raw watcher
(`bench/rawwatch.py`) is measured the same way and tells how much of it is the machine.

Idle: one task every 0.2-0.4 s and nothing else. Busy: the same while a stream of 50 other tasks a second
starts and finishes, which is where watchers that hold events back show it.

    python -m bench.detection --samples 60
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import inbox
from bench.errors import BenchError
from bench.figures import latencies, steady_clock
from bench.notify import CREATE, DELETE, MOVED_FROM, MOVED_TO, Inotify
from bench.ours import ours
from bench.place import Place, place
from bench.processes import Started, started
from bench.report import Report, arguments, bench_environment, run, table

_WAIT_SECONDS = 30.0
_WARM_UP = 5


@dataclass(frozen=True)
class Sample:
    """Milliseconds since the task became visible."""

    claimed: float
    started: float
    settled: float


class Observer:
    """Submits single tasks and watches what becomes of them, in one thread."""

    def __init__(self, root: Path, watcher: Started) -> None:
        self._watcher = watcher
        self._inbox, self._results = inbox.inbox(root), inbox.results(root)
        self._notify = Inotify()
        self._inbox_watch = self._notify.add(self._inbox, MOVED_FROM | DELETE)
        self._notify.add(self._results, MOVED_TO | CREATE)

    def sample(self, task_id: str) -> Sample:
        """Submit one task and wait for its result. Raises BenchError without a good one."""
        hidden, final = inbox.stage(self._inbox, task_id)
        while self._notify.read(0):
            pass
        visible = time.time_ns()
        os.rename(hidden, final)
        claimed = settled = 0
        until = time.monotonic() + _WAIT_SECONDS
        while not settled:
            events = self._notify.read(1.0)
            now = time.time_ns()
            if time.monotonic() > until or self._watcher.poll() is not None:
                raise BenchError(f"{self._watcher.name}: no result of {task_id}:\n{self._watcher.tail()}")
            for watch, _, name in events:
                if name == f"{task_id}.json":
                    claimed, settled = (now, 0) if watch == self._inbox_watch else (claimed, now)
        if not claimed:
            raise BenchError(f"task {task_id} has a result but never left the inbox by a rename or unlink")
        result = json.loads((self._results / f"{task_id}.json").read_bytes())
        if result["status"] != "completed":
            raise BenchError(f"task {task_id} did not complete: {json.dumps(result)[:600]}")
        begun = int(result["stdout"])
        return Sample(*((at - visible) / 1e6 for at in (claimed, begun, settled)))

    def close(self) -> None:
        self._notify.close()


def measure(start: Callable[[Path], Started], at: Place, name: str, number: int, per_second: float) -> list[Sample]:
    """Samples of one contender; `per_second` other tasks run beside them (0: idle)."""
    root = at.path / f"{name}-{per_second:.0f}"
    inbox.inbox(root).mkdir(parents=True)
    inbox.results(root).mkdir(parents=True)
    watcher = start(root)
    try:
        observer = Observer(root, watcher)
        try:
            with _stream(root, per_second), steady_clock():
                samples = _samples(observer, number)
        finally:
            observer.close()
        _check_stream(root, watcher)
    finally:
        watcher.stop()
    shutil.rmtree(root)
    return samples


def _samples(observer: Observer, number: int) -> list[Sample]:
    draw = random.Random(2)
    taken = []
    for at in range(_WARM_UP + number):
        taken.append(observer.sample(f"sample-{at:04d}"))
        time.sleep(draw.uniform(0.2, 0.4))
    return taken[_WARM_UP:]


@contextlib.contextmanager
def _stream(root: Path, per_second: float) -> Iterator[None]:
    if per_second <= 0:
        yield
        return
    command = [sys.executable, "-m", "bench.feed", str(inbox.inbox(root)), str(per_second)]
    with started(command, bench_environment(), root, root / "feed.log"):
        time.sleep(1.0)  # let the stream reach its pace
        yield


def _check_stream(root: Path, watcher: Started) -> None:
    """The stream's tasks must be settled soon after it ended: else the worker was behind, not watching."""
    folder = inbox.inbox(root)
    watcher.wait_until(lambda: inbox.count(folder) == 0, "empty inbox after the stream", 10.0)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--stream", type=float, default=50.0, help="other tasks per second in the busy situation")
    options = parser.parse_args()
    date = shutil.which("date")
    if date is None:
        raise BenchError("no `date` in PATH; it is the command that tells when it started")
    command = f"{date} +%s%N"
    worker = ours(options.tree, options.python, options.set).with_settings(AGENT_COMMAND=command)

    def raw(root: Path) -> Started:
        line = [options.python, "-m", "bench.rawwatch", str(root), inbox.WORKER, f"--command={command}"]
        return Started(line, bench_environment(), root, root / "raw.log")

    rows = []
    with place(options.place, options.size, options.base) as at:
        report = Report("detection", options, at)
        for situation, per_second in (("idle", 0.0), ("busy", options.stream)):
            for name, start in (("raw-watch", raw), ("ours", worker.start)):
                samples = measure(start, at, name, options.samples, per_second)
                found = {
                    "claimed_ms": latencies([one.claimed for one in samples]),
                    "started_ms": latencies([one.started for one in samples]),
                    "settled_ms": latencies([one.settled for one in samples]),
                }
                report.figures[f"{situation}/{name}"] = found
                cells = [f"{each['p50']:.2f} / {each['p99']:.2f} / {each['max']:.2f}" for each in found.values()]
                rows.append([f"{situation} {name}", *cells])
        head = ["ms since visible, p50 / p99 / max", "claimed", "command started", "result visible"]
        table(head, rows)
        report.end()


if __name__ == "__main__":
    run(main)
