"""What the same work costs without our worker (raw loops, huey, Celery), and how any contender is run.

A contender fills a queue, is started as a process, and leaves one file for each finished task; `drain` times
it by those files. All contenders are measured by the same code on the same filesystem.

    python -m bench.anchors --tasks 2000 --rounds 5 --peer-python /tmp/vpeer/bin/python
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from bench import inbox
from bench.errors import BenchError
from bench.figures import Drain, change_times, drain_of, median, spread, steady_clock
from bench.place import Place, place
from bench.processes import Started
from bench.report import Report, arguments, run, table

CONCURRENCY = 3
_HERE = Path(__file__).resolve().parent
_DEADLINE_SECONDS = 600.0


class Contender(Protocol):
    """Something that empties a pre-filled queue."""

    @property
    def name(self) -> str: ...

    @property
    def ends_by_itself(self) -> bool:
        """Whether the process ends when the queue is empty; the others get a SIGTERM."""
        ...

    def fill(self, folder: Path, count: int) -> None: ...

    def start(self, folder: Path) -> Started: ...

    def outcomes(self, folder: Path) -> Iterable[Path]:
        """The files of finished tasks."""
        ...

    def check(self, folder: Path, count: int, exit_code: int) -> None:
        """Raise BenchError unless every task was really done."""
        ...


def drain(contender: Contender, at: Place, count: int) -> Drain:
    """Fill, start, wait for the last result, stop, check: the figures of one round. Leaves nothing behind."""
    folder = at.path / contender.name
    folder.mkdir()
    try:
        contender.fill(folder, count)
        at.settle()
        with steady_clock():
            process = contender.start(folder)
            try:
                _wait(contender, process, folder, count)
            finally:
                code = process.stop()
        contender.check(folder, count, code)
        return drain_of(change_times(contender.outcomes(folder)), process.started_ns, process.cpu_seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(contender: Contender, process: Started, folder: Path, count: int) -> None:
    if contender.ends_by_itself:
        process.wait_until(lambda: process.poll() is not None, "end of the queue", _DEADLINE_SECONDS, 0.02)
        return
    results = f"{count} results"
    process.wait_until(lambda: sum(1 for _ in contender.outcomes(folder)) >= count, results, _DEADLINE_SECONDS, 0.2)


@dataclass(frozen=True)
class Raw:
    """`bench/rawloop.py` in one of its ways."""

    name: str
    python: str
    threads: int
    command: str
    sync: str
    ends_by_itself: bool = True

    def fill(self, folder: Path, count: int) -> None:
        inbox.fill(folder, count)

    def start(self, folder: Path, limit: int | None = None) -> Started:
        command = [self.python, str(_HERE / "rawloop.py"), str(folder), inbox.WORKER]
        command += [f"--threads={self.threads}", f"--command={self.command}", f"--sync={self.sync}"]
        command += [] if limit is None else [f"--limit={limit}"]
        return Started(command, os.environ, folder, folder / "raw.log")

    def outcomes(self, folder: Path) -> Iterable[Path]:
        return inbox.outcomes(inbox.results(folder))

    def check(self, folder: Path, count: int, exit_code: int) -> None:
        if exit_code != 0:
            raise BenchError(f"{self.name} ended with {exit_code}:\n{(folder / 'raw.log').read_text()}")
        inbox.check_drained(folder, count)


@dataclass(frozen=True)
class Peer:
    """Another task queue, by its driver in this folder and an interpreter that has it installed."""

    name: str
    python: str
    driver: str
    results: str
    ends_by_itself: bool = False

    def _command(self, folder: Path, mode: str, number: int) -> tuple[list[str], dict[str, str]]:
        # C_FORCE_ROOT only silences Celery's warning; TMPDIR keeps its messages on this filesystem.
        env = {**os.environ, "TMPDIR": str(folder), "C_FORCE_ROOT": "1", "PYTHONPATH": ""}
        return [self.python, str(_HERE / self.driver), str(folder), mode, str(number)], env

    def fill(self, folder: Path, count: int) -> None:
        command, env = self._command(folder, "fill", count)
        done = subprocess.run(command, env=env, input=inbox.DESCRIPTION, capture_output=True, text=True, cwd=folder)
        if done.returncode != 0:
            raise BenchError(f"{self.name} could not enqueue:\n{done.stderr[-2000:]}")

    def start(self, folder: Path) -> Started:
        command, env = self._command(folder, "work", CONCURRENCY)
        return Started(command, env, folder, folder / "peer.log")

    def outcomes(self, folder: Path) -> Iterable[Path]:
        for parent, _, names in os.walk(folder / self.results):
            yield from (Path(parent, name) for name in names if not name.startswith(".") and name[-4:] != ".tmp")

    def check(self, folder: Path, count: int, exit_code: int) -> None:
        good = sum(1 for path in self.outcomes(folder) if inbox.DESCRIPTION.encode() in path.read_bytes())
        if good != count:
            log = (folder / "peer.log").read_text(errors="replace")[-2000:]
            raise BenchError(f"{self.name}: {good} good results for {count} tasks, exit {exit_code}:\n{log}")


def raw_popen(python: str) -> Raw:
    """The anchor of the command queue: raw protocol, one `cat` per task in 3 threads, nothing synced."""
    return Raw("raw-popen", python, CONCURRENCY, "cat", "none")


def raw_loops(python: str) -> list[Raw]:
    """All raw ways. The ones without a process use one thread: more only fight for the interpreter lock."""
    return [
        raw_popen(python),
        Raw("raw-popen-fsync", python, CONCURRENCY, "cat", "each"),
        Raw("raw-popen-group", python, CONCURRENCY, "cat", "group"),
        Raw("raw-noop", python, 1, "", "none"),
        Raw("raw-noop-fsync", python, 1, "", "each"),
        Raw("raw-noop-group", python, 1, "", "group"),
    ]


def peers(python: str | None) -> list[Peer]:
    """huey and Celery as far as `python` has them; says which are skipped and why."""
    known = [("huey", "peer_huey.py", "huey/results"), ("celery", "peer_celery.py", "celery/results")]
    if python is None:
        print("skipped: huey, celery (no --peer-python; a venv with `pip install huey celery` is one)")
        return []
    found = []
    for name, driver, results in known:
        if _can_import(python, name):
            found.append(Peer(name, python, driver, results))
        else:
            print(f"skipped: {name} ({python} cannot import it)")
    return found


def _can_import(python: str, module: str) -> bool:
    try:
        return subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0
    except OSError:
        return False


def rounds(
    contenders: Sequence[Contender], at: Place, counts: dict[str, int], count: int, number: int
) -> list[dict[str, Drain]]:
    """Interleaved rounds, each starting with another contender. `counts` overrides `count` by name."""
    done = []
    for turn in range(number):
        shift = turn % len(contenders)
        order = [*contenders[shift:], *contenders[:shift]]
        done.append({one.name: drain(one, at, counts.get(one.name, count)) for one in order})
    return done


def show(done: Sequence[dict[str, Drain]], names: Sequence[str], base: str) -> dict[str, object]:
    """Print one line per contender, with its ratio to `base` round by round; returns the figures."""
    rows: list[list[str]] = []
    figures: dict[str, object] = {}
    for name in names:
        runs = [turn[name] for turn in done]
        ratios = [turn[name].drain_per_second / turn[base].drain_per_second for turn in done] if base in names else []
        cpu = median(run.cpu_ms_per_task for run in runs if run.cpu_ms_per_task is not None)
        rows.append(
            [
                name,
                str(runs[0].count),
                spread([run.drain_per_second for run in runs]),
                spread([run.from_start_per_second for run in runs]),
                f"{median(run.first_seconds for run in runs):.2f}",
                f"{cpu:.2f}",
                spread(ratios, 2),
            ]
        )
        figures[name] = {
            "tasks": runs[0].count,
            "drain_per_second": median(run.drain_per_second for run in runs),
            "from_start_per_second": median(run.from_start_per_second for run in runs),
            "first_seconds": median(run.first_seconds for run in runs),
            "cpu_ms_per_task": cpu,
            f"ratio_to_{base}": median(ratios),
            "rounds": [asdict(run) for run in runs],
        }
    head = ["contender", "tasks", "drain/s (min..max)", "from start/s", "first s", "CPU ms/task", f"x {base}"]
    table(head, rows)
    return figures


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--peer-tasks", type=int, default=500, help="the peers list their whole folder for each task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-python", help="interpreter with huey and celery installed")
    options = parser.parse_args()
    contenders: list[Contender] = [*raw_loops(options.python), *peers(options.peer_python)]
    counts = {one.name: options.peer_tasks for one in contenders if isinstance(one, Peer)}
    # Without a process a task takes a tenth of the time, and a short drain is a coarse figure.
    counts |= {one.name: 5 * options.tasks for one in contenders if isinstance(one, Raw) and not one.command}
    with place(options.place, options.size, options.base) as at:
        report = Report("anchors", options, at)
        done = rounds(contenders, at, counts, options.tasks, options.rounds)
        report.figures.update(show(done, [one.name for one in contenders], "raw-popen"))
        report.end()


if __name__ == "__main__":
    run(main)
