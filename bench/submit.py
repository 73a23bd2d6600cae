"""What submitting one task costs a user: `demo_watcher.py --task marie "x"` less a bare `python -c pass`.

Both are timed in turn and the difference is taken pair by pair. Every submission must have left its task
file.

    python -m bench.submit --rounds 15
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from bench import inbox
from bench.errors import BenchError
from bench.figures import median, spread
from bench.ours import Ours, ours
from bench.place import place
from bench.report import Report, arguments, run, table

_WAIT_SECONDS = 30.0


def submit_once(worker: Ours, root: Path) -> float:
    """Seconds of one submission. Raises BenchError when it fails."""
    command = [worker.python, str(worker.tree / "demo_watcher.py"), "--task", inbox.WORKER, "x"]
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            env=worker.environment(root),
            cwd=root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_WAIT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"demo_watcher.py --task did not return within {_WAIT_SECONDS:.0f} s") from error
    elapsed = time.monotonic() - began
    if done.returncode != 0:
        raise BenchError(f"demo_watcher.py ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return elapsed


def bare_once(python: str) -> float:
    """Seconds of an interpreter that does nothing."""
    began = time.monotonic()
    subprocess.run([python, "-c", "pass"], check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return time.monotonic() - began


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    worker = ours(options.tree, options.python, options.set)
    with place(options.place, options.size, options.base) as at:
        report = Report("submit", options, at)
        root = at.path / "submit"
        root.mkdir()
        submit_once(worker, root)  # writes the byte code
        pairs = [(bare_once(options.python), submit_once(worker, root)) for _ in range(options.rounds)]
        written = inbox.count(inbox.inbox(root))
        if written != options.rounds + 1:
            raise BenchError(f"{options.rounds + 1} submissions left {written} task files in {inbox.inbox(root)}")
        found = {
            "python -c pass": [bare * 1e3 for bare, _ in pairs],
            "demo_watcher.py --task": [whole * 1e3 for _, whole in pairs],
            "difference": [(whole - bare) * 1e3 for bare, whole in pairs],
        }
        table(["ms", "median (min..max)"], [[name, spread(values, 1)] for name, values in found.items()])
        for name, values in found.items():
            report.figures[name] = {"median_ms": median(values), "all_ms": values}
        report.end()


if __name__ == "__main__":
    run(main)
