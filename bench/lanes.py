"""How long agents with a queue each take side by side: 10 agents x 10 tasks of 3 s, 5 at a time, each agent in order.

The time that it must take is the larger of all work over all places and the longest agent's own work: 60 s for
the defaults. What is above it is lost between tasks: choosing, claiming, starting, storing.

    python -m bench.lanes
"""

from __future__ import annotations

import itertools
import json
import time
from collections import defaultdict
from datetime import datetime
from pathlib import Path

from bench import inbox
from bench.errors import BenchError
from bench.ours import Ours, ours
from bench.place import place
from bench.report import Report, arguments, run, table


def drop(root: Path, agents: int, tasks: int) -> None:
    """Round by round, so that each agent's tasks lie among those of the others."""
    folder = inbox.inbox(root)
    folder.mkdir(parents=True)
    for turn in range(tasks):
        for agent in range(agents):
            task = {"description": "wait", "agent_id": f"agent-{agent:02d}"}
            (folder / f"t{turn:03d}-{agent:02d}.json").write_text(json.dumps(task))


def measure(worker: Ours, root: Path, agents: int, tasks: int) -> float:
    """Seconds from the first start to the last end, as the results tell it. Raises BenchError on a broken order."""
    drop(root, agents, tasks)
    process = worker.start(root)
    try:
        while inbox.count(inbox.results(root)) < agents * tasks:
            if process.poll() is not None:
                raise BenchError(f"the worker ended:\n{process.tail()}")
            time.sleep(0.2)
    finally:
        process.stop()
    spans: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    for path in inbox.outcomes(inbox.results(root)):
        result = json.loads(path.read_bytes())
        if result["status"] != "completed":
            raise BenchError(f"{path.stem}: {result['status']}")
        began, ended = (datetime.fromisoformat(result[name]).timestamp() for name in ("started_at", "timestamp"))
        spans[result["agent_id"]].append((path.stem, began, ended))
    for agent, found in spans.items():
        found.sort(key=lambda span: span[1])
        in_order = [name for name, _, _ in found] == sorted(name for name, _, _ in found)
        # A result is stamped after its command ended, so even the next start of the same agent lies behind it.
        apart = all(after[1] >= before[2] - 0.001 for before, after in itertools.pairwise(found))
        if not in_order or not apart:
            raise BenchError(f"{agent}: {found}")
    every = [span for found in spans.values() for span in found]
    return max(end for _, _, end in every) - min(begin for _, begin, _ in every)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--agents", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=10, help="of each agent")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each task")
    parser.add_argument("--at-once", type=int, default=5)
    options = parser.parse_args()
    worker = ours(options.tree, options.python, options.set).with_settings(
        AGENT_COMMAND=f"sleep {options.seconds:g}", MAX_CONCURRENT_TASKS=str(options.at_once)
    )
    with place(options.place, options.size, options.base) as at:
        report = Report("lanes", options, at)
        places = min(options.at_once, options.agents)
        least = options.tasks * options.seconds * max(1.0, options.agents / places)
        found = measure(worker, at.path / "lanes", options.agents, options.tasks)
        lost = (found - least) / (options.agents * options.tasks / places) * 1e3
        rows = [[f"{options.agents} x {options.tasks} x {options.seconds:g} s, {places} at once", f"{least:.1f}",
                 f"{found:.2f}", f"{found / least:.3f}", f"{lost:.1f}"]]  # fmt: skip
        table(["tasks", "must take s", "took s", "x", "lost ms a turn"], rows)
        report.figures["lanes"] = {"least_seconds": least, "seconds": found, "lost_ms_a_turn": lost}
        report.end()


if __name__ == "__main__":
    run(main)
