"""Real commands, started as an attempt starts them, and looked for when they hide."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from watcher.system import processes, procfs

SOON = 60.0
_marks = iter(range(10**6))


def new_mark() -> str:
    return f"{os.getpid():016x}{'c' * 16}.{next(_marks)}"


class Started:
    """A command, with the text that it prints on a pipe."""

    def __init__(self, script: str | list[str], mark: str | None = None, **more: Any) -> None:
        self.mark = mark or new_mark()
        self._read, write = os.pipe()
        environment = {b"PATH": os.environb[b"PATH"], b"WATCHER_MARK": self.mark.encode()}
        argv = script if isinstance(script, list) else ["/bin/sh", "-c", script]
        processes.attempt_began(self.mark)
        try:
            self.child = processes.spawn(argv, environment, None, None, write, 2, **more)
        except OSError:
            processes.attempt_over(None, self.mark)
            os.close(self._read)
            raise
        finally:
            os.close(write)
        self._lines = os.fdopen(self._read, "r")

    def line(self) -> str:
        """The next line that it prints; waits for it."""
        return self._lines.readline().strip()

    def pid(self) -> int:
        return int(self.line())

    def over(self) -> int:
        count = processes.attempt_over(self.child, self.mark)
        self._lines.close()
        return count

    def finish(self) -> tuple[int | None, int]:
        return self.child.wait(SOON), self.over()


def in_thread(work: Callable[[], Any]) -> Any:
    """Run it as a slot does, in a thread of its own, and give back what it returns."""
    box: list[Any] = []
    thread = threading.Thread(target=lambda: box.append(work()))
    thread.start()
    thread.join(60)
    assert box, "it did not end, or it raised"
    return box[0]


def is_alive(pid: int) -> bool:
    facts = procfs.facts_of(pid)
    return facts is not None and not facts.is_dead


def adopted() -> list[int]:
    return [int(word) for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@contextlib.contextmanager
def ended_after(pid: int) -> Iterator[None]:
    """Nothing of a failed test must stay."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
