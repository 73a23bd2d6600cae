"""Outlive a worker that is killed, and kill the warm handlers that it leaves.

Run as a program, one for each pool: `python -I -S guard.py MARK_PREFIX BUSY_LOCK`. Its stdin is a pipe whose other end
only the worker has. The end of that pipe means that the worker is dead, however it died; then every process whose mark
starts with the prefix, and everyone who inherited the worker's busy lock, is killed. After a line `bye` it ends and
kills nothing. Another process of the worker may be opening that lock just then, to rescue the tasks: it is spared.

A handler cannot do this for itself: it may be any program, may ignore the end of its stdin, and the kernel's
parent-death signal follows the thread that started it, not the process. What a SIGKILL to this process leaves undone,
the next process of the worker does (`store.rescue`), as for every other command.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # -I and -S keep a user's environment and site-packages out, and the start short
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from watcher.system import processes

BYE = b"bye\n"
#: A handler that was just being started when the worker died shows its mark only after a moment.
_LOOK_AGAIN_SECONDS = (0.0, 0.1, 0.4, 1.0)


def main(prefix: str, busy_lock: str) -> None:
    """Wait for the end of stdin, then act."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # a service manager may send these to all of us
        signal.signal(number, signal.SIG_IGN)
    said = b""
    while chunk := os.read(0, 64):
        said += chunk
    if said.endswith(BYE):
        return
    for pause in _LOOK_AGAIN_SECONDS:
        time.sleep(pause)
        with contextlib.suppress(OSError):  # no descriptor, no memory: the next look may have them
            processes.kill_marked(prefix)
            if busy_lock:
                processes.kill_holders(busy_lock, inherited_only=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")
