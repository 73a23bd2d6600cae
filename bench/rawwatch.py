"""The anchor of detection: raw inotify, a rename and Popen, with nothing around them, until SIGTERM.

One thread waits for events and claims; the others run what was claimed. Below this no Python worker goes.
"""

from __future__ import annotations

import argparse
import queue
import threading
from pathlib import Path

from bench.notify import CLOSE_WRITE, MOVED_TO, Inotify
from bench.rawloop import RawLoop


def main() -> None:
    parser = argparse.ArgumentParser(description="raw watcher of one inbox")
    parser.add_argument("root")
    parser.add_argument("worker")
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--command", default="cat")
    options = parser.parse_args()
    loop = RawLoop(options.root, options.worker, options.command.split(), "none")
    claimed: queue.SimpleQueue[str] = queue.SimpleQueue()

    def work() -> None:
        while True:
            loop.finish(claimed.get())

    for _ in range(options.threads):
        threading.Thread(target=work, daemon=True).start()
    watch = Inotify()
    watch.add(Path(loop.inbox), MOVED_TO | CLOSE_WRITE)
    names = loop.pending()
    while True:
        for name in names:
            loop.claim(name)
            claimed.put(name)
        names = [name for _, _, name in watch.read(None) if name.endswith(".json") and name[0] != "."]


if __name__ == "__main__":
    main()
