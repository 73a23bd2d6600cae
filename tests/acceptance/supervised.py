"""`python -m watcher up` as a user starts it, and what it started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.acceptance.conftest import REPOSITORY, Json, Process, Site, read
from tests.waiting import wait_for

#: A machine with two cores may start five Python processes while others run their tests.
PATIENCE = 180.0


class Up(Process):
    """One supervisor; its log is that of everything that it started."""

    def __init__(self, site: Site, *arguments: str, **settings: Any) -> None:
        self.site = site
        self._log = site.home / f"log-{len(site.processes)}"
        environment = site.environment({"PYTHONPATH": str(REPOSITORY), **settings})
        with self._log.open("w") as stderr:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "watcher", "up", *arguments],
                cwd=site.home, env=environment, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
            )  # fmt: skip
        self.pid = self.popen.pid
        site.processes.append(self)

    def beating(self, *names: str) -> dict[str, int]:
        """Wait until these processes beat as children of this supervisor; their pids."""
        return {name: self.beats(name) for name in names}

    def beats(self, name: str, other_than: int | None = None) -> int:
        """Wait until it beats, as a process other than that one; its pid."""

        def look() -> int | None:
            assert self.popen.poll() is None, self.text()
            pid = self.told_pid(name)
            return pid if pid is not None and pid != other_than and parent_of(pid) == self.pid else None

        found = wait_for(f"a beat of {name} below {self.pid}", look, PATIENCE)
        assert found is not None
        return found

    def told_pid(self, name: str) -> int | None:
        root = self.site.root
        path = root / "state" / "listener.json" if name == "orchestrator" else root / "heartbeats" / f"{name}.json"
        beat = read(path)
        return int(beat["pid"]) if beat and beat.get("status") != "stopped" else None

    def says(self, event: str, seconds: float = PATIENCE, **fields: Any) -> Json:
        """Wait for a line of the log with these fields."""

        def look() -> Json | None:
            return next((li for li in self.lines(event) if all(li.get(n) == v for n, v in fields.items())), None)

        found = wait_for(f"{event} {fields} in the log", look, seconds)
        assert found is not None
        return found

    def lines(self, event: str | None = None) -> list[Json]:
        whole = self.text().rpartition("\n")[0]
        found = [json.loads(line) for line in whole.splitlines()]
        return [line for line in found if event is None or line.get("event") == event]

    def stop(self) -> int:
        if self.popen.poll() is None:
            self.popen.terminate()
        return self.ended(PATIENCE)


def parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def assert_nothing_is_left(site: Site) -> None:
    """No process that has this site's environment, no temporary file, no claim."""
    assert [process.pid for process in site.processes if process.popen.poll() is None] == []
    assert site.command_pids() == []
    assert site.leftovers() == []


def crashing(site: Site, worker: str) -> str:
    """A PYTHONPATH that kills every process of one worker as soon as its Python starts."""
    place = site.home / "poison"
    place.mkdir()
    code = f"import os, sys\nif sys.orig_argv[1:2] and {worker!r} in sys.orig_argv and 'up' not in sys.orig_argv:\n"
    (place / "sitecustomize.py").write_text(code + "    os.kill(os.getpid(), 9)\n")
    return os.pathsep.join([str(place), str(REPOSITORY)])
