"""Celery with its filesystem broker and file backend doing the same work; runs under the peers' interpreter.

`peer_celery.py FOLDER fill COUNT` reads the description on stdin and enqueues; `peer_celery.py FOLDER work
PROCESSES` consumes. Two settings are kinder than Celery's defaults, so that it is not measured asleep: it
polls every 10 ms instead of every second, and it starts without gossip, mingle and heartbeat. The broker
moves messages through the temporary folder: the caller sets TMPDIR to the same filesystem.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from celery import Celery

folder = Path(sys.argv[1]) / "celery"
for name in ("broker", "control", "results"):
    (folder / name).mkdir(parents=True, exist_ok=True)

app = Celery("bench", broker="filesystem://", backend=f"file://{folder}/results")
app.conf.update(
    broker_transport_options={
        "data_folder_in": str(folder / "broker"),
        "data_folder_out": str(folder / "broker"),
        "control_folder": str(folder / "control"),
        "polling_interval": 0.01,
    },
    worker_hijack_root_logger=True,
)


@app.task(name="agent")
def agent(description: str) -> str:
    done = subprocess.run(["cat"], input=description.encode(), capture_output=True, check=True)  # noqa: S607
    return done.stdout.decode()


def main() -> None:
    if sys.argv[2] == "fill":
        description = sys.stdin.read()
        for _ in range(int(sys.argv[3])):
            agent.delay(description)
    else:
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]
        app.worker_main(["worker", "--pool=prefork", f"--concurrency={sys.argv[3]}", *quiet])


if __name__ == "__main__":
    main()
