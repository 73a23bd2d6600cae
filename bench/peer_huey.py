"""huey's FileHuey doing the same work; runs under the peers' interpreter, which needs nothing of ours.

`peer_huey.py FOLDER fill COUNT` reads the description on stdin and enqueues; `peer_huey.py FOLDER work
THREADS` consumes. Settings are huey's defaults, 3 threads asked for.
"""

from __future__ import annotations

import logging
import subprocess
import sys

from huey import FileHuey

huey = FileHuey("bench", path=f"{sys.argv[1]}/huey")


@huey.task()
def agent(description: str) -> str:
    done = subprocess.run(["cat"], input=description.encode(), capture_output=True, check=True)  # noqa: S607
    return done.stdout.decode()


def main() -> None:
    if sys.argv[2] == "fill":
        description = sys.stdin.read()
        for _ in range(int(sys.argv[3])):
            agent(description)
    else:
        logging.basicConfig(level=logging.WARNING)
        huey.create_consumer(workers=int(sys.argv[3]), worker_type="thread").run()


if __name__ == "__main__":
    main()
