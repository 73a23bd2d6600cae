"""Real workers in a folder of their own: start them as a user does, look at real files, leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENCE_SECONDS, wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
Json = dict[str, Any]

#: Short times, so that a test waits for what happens and not for a default. A test overrides what it is about.
FAST = {
    "PROVIDER": "command", "AGENT_COMMAND": "cat", "ENABLE_METRICS": "false", "HEARTBEAT_INTERVAL": "0.1",
    "SCAN_INTERVAL": "0.5", "SETTLE_SECONDS": "0.5", "INITIAL_RETRY_DELAY": "0.05", "RETRY_JITTER": "0",
    "KILL_GRACE": "0.3", "SHUTDOWN_GRACE": "10",
}  # fmt: skip


def names(folder: Path) -> list[str]:
    """The visible names in a folder, sorted; none when it is not there."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except FileNotFoundError:
        return []


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


class Process:
    """One started worker_watcher.py, its log and how it ended."""

    def __init__(self, site: Site, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("w") as stderr:
            self.popen = subprocess.Popen(
                [sys.executable, str(REPOSITORY / "worker_watcher.py"), *arguments],
                cwd=site.home, env=environment, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
            )  # fmt: skip
        self.pid = self.popen.pid

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def freeze(self) -> None:
        """Stop all its threads where they are, and wait until they stand still: SIGCONT lets them go on."""
        self.signal(signal.SIGSTOP)

        def is_still() -> bool:
            stats = [(task / "stat").read_text() for task in Path(f"/proc/{self.pid}/task").iterdir()]
            return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)

        wait_for(f"worker {self.pid} to stand still", is_still)

    def ended(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for its end; returns the exit code."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"worker {self.pid} has not ended within {seconds:g} s:\n{self.text()[-2000:]}")

    def stop(self) -> int:
        """Ask it to end and wait for that."""
        if self.popen.poll() is None:
            self.signal(signal.SIGTERM)
        return self.ended()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def text(self) -> str:
        """All that it printed."""
        return self._log.read_text(errors="replace")  # a character may be half written yet

    def lines(self, event: str | None = None) -> list[Json]:
        """What it logged, those of one event if given; a line that is half written yet is left out.

        A worker logs what it has done after it has done it: use `logged` for what may be about to come.
        """
        whole = self.text().rpartition("\n")[0]
        found = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return [line for line in found if event is None or line.get("event") == event]

    def logged(self, event: str, count: int = 1) -> list[Json]:
        """Wait for so many lines of one event."""
        wait_for(f"{count} lines {event}", lambda: len(self.lines(event)) >= count)
        return self.lines(event)


class Site:
    """One WATCHER_ROOT with its workers. Commands see a HOME of their own, by which they are found again."""

    def __init__(self, place: Path) -> None:
        self.home = place / "home"
        self.root = place / "root"
        self.home.mkdir(parents=True)
        self.processes: list[Process] = []
        self._dropped_ns = 0

    # --- workers

    def environment(self, settings: dict[str, Any]) -> dict[str, str]:
        """Nothing of the tester's own environment but what a program needs to start. None leaves a setting out."""
        basis = {"PATH": os.environ["PATH"], "HOME": str(self.home), "WATCHER_ROOT": str(self.root), **FAST}
        return {name: str(value) for name, value in {**basis, **settings}.items() if value is not None}

    def launch(self, *arguments: str, **settings: Any) -> Process:
        """Start a worker process and do not wait for anything."""
        log = self.home / f"log-{len(self.processes)}"
        process = Process(self, list(arguments), self.environment(settings), log)
        self.processes.append(process)
        return process

    def start(self, *arguments: str, **settings: Any) -> Process:
        """Start a worker process and wait for its first heartbeat. The first argument is its name (marie)."""
        arguments = arguments or ("marie",)
        process = self.launch(*arguments, **settings)
        beats = self.root / "heartbeats"

        def has_beaten() -> bool:
            if process.popen.poll() is not None:
                pytest.fail(f"the worker ended with {process.popen.returncode}:\n{process.text()[-2000:]}")
            files = [beats / name for name in names(beats) if name.removesuffix(".json").split("@")[0] == arguments[0]]
            return any(read(file).get("pid") == process.pid for file in files)

        wait_for(f"the first heartbeat of {arguments[0]}", has_beaten)
        return process

    def run(
        self, *words: str, stdin: str = "", seconds: float = PATIENCE_SECONDS, **settings: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `watcher ...` as a person does and wait for its end."""
        environment = self.environment(settings) | {"PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(
            [sys.executable, "-m", "watcher", *words], cwd=self.home, env=environment, input=stdin, text=True,
            capture_output=True, timeout=seconds, check=False,
        )  # fmt: skip

    def command_pids(self) -> list[int]:
        """Every living process that some command of this site is or has left behind."""
        own = {process.pid for process in self.processes}
        mark = f"HOME={self.home}".encode()
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) not in own:
                with contextlib.suppress(OSError):
                    if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                        found.append(int(name))
        return found

    def close(self) -> None:
        """End what the test left running."""
        for process in self.processes:
            if process.popen.poll() is None:
                process.kill()
        for pid in self.command_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    # --- agents

    def script(self, text: str, name: str = "agent.sh") -> str:
        """An executable shell script; returns it as AGENT_COMMAND wants it. `$SITE` in it is the site's home."""
        path = self.home / name
        new = path.with_name(f".{path.name}.new")
        new.write_text(f"#!/bin/sh\nSITE={shlex.quote(str(self.home))}\n{text}\n")
        new.chmod(0o755)
        new.rename(path)  # a shell that runs the older one must not find it empty
        return shlex.quote(str(path))

    def noted(self, name: str = "notes") -> list[str]:
        """The lines that scripts wrote to `$SITE/notes`."""
        try:
            return (self.home / name).read_text().splitlines()
        except FileNotFoundError:
            return []

    # --- files

    def inbox(self, worker: str = "marie") -> Path:
        path = self.root / "tasks" / worker
        path.mkdir(parents=True, exist_ok=True)
        return path

    def drop(self, stem: str, worker: str = "marie", **fields: Any) -> bytes:
        """Put a task in the way a careful submitter does; returns its bytes.

        Each comes later than the one before, also where the clock of files ticks every few milliseconds.
        """
        raw = json.dumps({"description": f"do {stem}", **fields}).encode()
        hidden = self.inbox(worker) / f".{stem}.new"
        hidden.write_bytes(raw)
        self._dropped_ns = max(hidden.stat().st_mtime_ns, self._dropped_ns + 1000)
        os.utime(hidden, ns=(self._dropped_ns, self._dropped_ns))
        hidden.rename(self.inbox(worker) / f"{stem}.json")
        return raw

    def result(self, stem: str, worker: str = "marie", seconds: float = PATIENCE_SECONDS) -> Json:
        """Wait for a result and return it."""
        folder = self.root / "results" / worker
        wait_for(f"the result of {worker}/{stem}", lambda: f"{stem}.json" in names(folder), seconds)
        return read(folder / f"{stem}.json")

    def settled(self, stem: str, worker: str = "marie") -> Json:
        """Wait for a result and for the end of its claim, which a worker removes when the result is durable."""
        result = self.result(stem, worker)
        claims = self.root / "tasks" / worker / ".claims"
        wait_for(f"the end of the claim of {stem}", lambda: not list(claims.glob(f"*/{stem}~*")))
        return result

    def dead_letter(self, stem: str, worker: str = "marie") -> Json:
        """Wait for a dead letter and return it."""
        folder = self.root / "dlq" / worker
        wait_for(f"the dead letter of {worker}/{stem}", lambda: f"{stem}.json" in names(folder))
        return read(folder / f"{stem}.json")

    def original(self, letter: Json, worker: str = "marie") -> Path:
        """The refused file beside its dead letter; it gets there a moment after the letter is seen."""
        path = self.root / "dlq" / worker / str(letter["dlq_original"])
        wait_for(f"the original {path.name}", path.exists)
        return path

    def beat(self, name: str = "marie") -> Json:
        """The heartbeat as it is now."""
        return read(self.root / "heartbeats" / f"{name}.json")

    def beat_that(
        self, is_it: Callable[[Json], object], name: str = "marie", what: str = "", seconds: float = PATIENCE_SECONDS
    ) -> Json:
        """Wait for a heartbeat of which something is true."""

        def look() -> Json | None:
            beat = self.beat(name)
            return beat if beat and is_it(beat) else None

        found = wait_for(f"a heartbeat of {name} {what}", look, seconds)
        assert found is not None  # wait_for returns nothing that is false
        return found

    def pass_beats(self, count: int, name: str = "marie") -> None:
        """Let the worker live for a while: that many heartbeats more."""
        goal = self.beat(name)["sequence"] + count
        self.beat_that(lambda beat: beat["sequence"] >= goal, name, f"number {goal}")

    def results(self, worker: str = "marie") -> list[str]:
        return [name.removesuffix(".json") for name in names(self.root / "results" / worker)]

    def dead_letters(self, worker: str = "marie") -> list[str]:
        return [name.removesuffix(".json") for name in names(self.root / "dlq" / worker)]

    def pending(self, worker: str = "marie") -> list[str]:
        return [name.removesuffix(".json") for name in names(self.inbox(worker))]

    def waiting(self, worker: str = "marie") -> list[str]:
        """What waits, whether or not it ran before."""
        retry = [name.partition("~")[0] for name in names(self.inbox(worker) / ".retry")]
        return sorted(self.pending(worker) + retry)

    def leftovers(self) -> list[str]:
        """Claims, retries, locks and temporary files that a clean stop must not leave (a name's lock may stay)."""
        found = []
        for path in self.root.rglob("*"):
            parts = path.relative_to(self.root).parts
            inside = {".claims", ".retry", ".tmp"} & set(parts[:-1])
            is_temporary = path.is_file() and path.name.endswith((".tmp", ".new"))
            if (inside or is_temporary) and path.name != "name.lock":
                found.append("/".join(parts))
        return [name for name in found if not Path(name).name.startswith("instance-")]


def read(path: Path) -> Json:
    """A JSON file that is whole whenever it is visible; an object without fields when it is not there yet."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    assert isinstance(value, dict)
    return value


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A fresh site for one test; what is still running at its end is killed."""
    made = Site(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One site for all tests of a module, with a worker marie that runs `cat`: for tests that change no setting.

    It looks at its inbox all the time, so that it meets every file in every state.
    """
    made = Site(tmp_path_factory.mktemp("shared"))
    made.start("marie", SCAN_INTERVAL="0.1")
    yield made
    made.close()
