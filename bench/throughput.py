"""How fast a pre-filled inbox is emptied, one `cat` a task: our worker, the raw loop, huey, Celery.

Rounds are interleaved on one filesystem, and the ratio to the raw loop is taken within each round: this
machine's speed drifts by 2x within minutes, the ratio does not. Each round is checked: as many completed
results as tasks, each with its stdout, no task, claim or dead letter left, and exit code 0 after SIGTERM.

    python -m bench.throughput --rounds 5 --peer-python /tmp/vpeer/bin/python
"""

from __future__ import annotations

from bench.anchors import Contender, Peer, peers, raw_loops, rounds, show
from bench.ours import ours
from bench.place import place
from bench.report import Report, arguments, run

_DEFAULT = "ours,raw-popen,raw-popen-fsync,huey,celery"


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--peer-tasks", type=int, default=500, help="fewer: they list their folder for each task")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-python", help="interpreter with huey and celery installed")
    parser.add_argument("--contenders", default=_DEFAULT, help=f"any of {_DEFAULT}, raw-popen-group")
    options = parser.parse_args()
    asked = options.contenders.split(",")
    known: list[Contender] = [ours(options.tree, options.python, options.set), *raw_loops(options.python)]
    if {"huey", "celery"} & set(asked):
        known += peers(options.peer_python)
    contenders = [one for one in known if one.name in asked]
    names = [one.name for one in contenders]
    counts = {one.name: options.peer_tasks for one in contenders if isinstance(one, Peer)}
    with place(options.place, options.size, options.base) as at:
        report = Report("throughput", options, at)
        done = rounds(contenders, at, counts, options.tasks, options.rounds)
        report.figures.update(show(done, names, "raw-popen"))
        report.end()


if __name__ == "__main__":
    run(main)
