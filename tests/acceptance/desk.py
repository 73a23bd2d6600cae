"""`demo_watcher.py` as people start it: a process, a terminal or a pipe, and folders.

Where a worker's part is small, the test plays it by writing the result; the real worker is started where it matters.
"""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import pty
import select
import shlex
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import REPOSITORY, Process, Site
from tests.waiting import PATIENCE_SECONDS
from watcher import standin

DEMO = REPOSITORY / "demo_watcher.py"
#: The longest that a demo may take that fails in every way.
SHOW_SECONDS = 280.0


class Desk:
    """A root, and the commands a person would type there."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.root = site.root
        self.away = site.home
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(site.home), "WATCHER_ROOT": str(site.root)}

    def start(
        self, *arguments: str | bytes, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        return subprocess.Popen(
            [sys.executable, str(DEMO), *arguments], stdin=stdin, stdout=stdout, stderr=stderr,
            env=self.environment, cwd=self.away, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str | bytes, stdin: bytes | None = None) -> tuple[int, str, str]:
        process = self.start(*arguments, stdin=subprocess.PIPE)
        out, complaint = process.communicate(stdin, timeout=SHOW_SECONDS)
        return process.returncode, out.decode(), complaint.decode()

    def inbox(self, worker: str = "marie") -> list[Path]:
        return sorted((self.root / "tasks" / worker).glob("*.json"))

    def only_task(self) -> dict[str, Any]:
        (path,) = self.inbox()
        value = json.loads(path.read_bytes())
        assert isinstance(value, dict)
        return value

    def answer(self, task_id: str, status: str = "completed", worker: str = "marie", **fields: Any) -> None:
        """What a worker would have written in the end."""
        known = {"task_id": task_id, "worker": worker, "status": status, "stdout": "the answer\n", "attempts": 1}
        self._show(self.root / "results" / worker / f"{task_id}.json", known | fields)

    def refuse(self, task_id: str, worker: str = "marie") -> None:
        letter = {"task_id": task_id, "worker": worker, "dlq_reason": "duplicate_id", "retry_count": 0}
        self._show(self.root / "dlq" / worker / f"{task_id}.json", letter)

    def _show(self, path: Path, fields: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_name(f".{path.name}.tmp")
        hidden.write_text(json.dumps(fields))
        hidden.rename(path)

    def serve(self, name: str, **settings: str) -> Process:
        """A real worker with the stand-in agent that has beaten once."""
        return self.site.start(name, AGENT_COMMAND=shlex.join(standin.command()), **settings)


@pytest.fixture
def desk(site: Site) -> Desk:
    return Desk(site)


def one_line(complaint: str) -> str:
    assert complaint.count("\n") == 1, complaint
    assert complaint.startswith("demo_watcher: ")
    return complaint


class Screen:
    """A terminal of 100 x 30 cells that a command runs in."""

    def __init__(self, desk: Desk, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.process = desk.start(*arguments, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.seen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()  # a character may come in two pieces

    def read_until(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            assert self._read(deadline), self.seen

    def finish(self) -> int:
        """Everything until the end; returns the exit code."""
        while self._read(time.monotonic() + SHOW_SECONDS):
            pass
        os.close(self._master)
        return self.process.wait(PATIENCE_SECONDS)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, self.seen
        try:
            chunk = os.read(self._master, 65_536)
        except OSError:  # EIO: nobody has the other end any more
            return False
        self.seen += self._decoder.decode(chunk)
        return bool(chunk)
