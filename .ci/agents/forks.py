"""An agent that leaves two daemons behind: one sleeps for an hour in a session of its own, one ends unreaped."""

import os
import sys
import time


def leave(seconds: float) -> None:
    """Fork twice, so that the grandchild is nobody's; its parent never waits for it."""
    if os.fork():
        return
    os.setsid()
    if os.fork() == 0:
        for fd in (0, 1, 2):
            os.close(fd)
        time.sleep(seconds)
    os._exit(0)


sys.stdin.read()
leave(3600)
leave(0.2)
time.sleep(0.5)
print("left two behind")
