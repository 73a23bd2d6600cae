"""Real workers, real kills: start worker processes on a folder, hurt them, and check the promises afterwards.

A Site is one WATCHER_ROOT with its workers and with an agent that keeps a run log (agent.c). The tests drop tasks
whose description tells the agent what to do, kill and stop processes, wait for outcomes by listing, and ask
`broken_promises` in the end, which believes nothing but the folders, the run log and /proc.

Needs Linux and Python's own executable (a venv's is fine). Ends only processes that it started itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from tests.crash.promises import broken_promises
from tests.crash.records import Run, Submitted, read_runs
from tests.crash.tools import agent_program
from tests.waiting import wait_for

PROJECT = Path(__file__).parents[2]
#: Longer than any step of a healthy worker on a busy machine.
PATIENCE_SECONDS = 60.0


class WorkerProcess:
    """A worker that was started; its log is in a file."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path, instance: str | None) -> None:
        self.popen = popen
        self.log = log
        self.instance = instance
        self.fate: Literal["running", "killed", "stopped"] = "running"

    @property
    def pid(self) -> int:
        return self.popen.pid

    def is_running(self) -> bool:
        return self.popen.poll() is None

    def kill(self) -> None:
        """SIGKILL, and reap."""
        self.fate = "killed"
        self.popen.kill()
        self.popen.wait(PATIENCE_SECONDS)

    def was_killed(self) -> bool:
        """Somebody else killed it (the agent, an injected fault): note that, and say so."""
        if self.popen.poll() == -signal.SIGKILL:
            self.fate = "killed"
        return self.fate == "killed"

    def stop(self, seconds: float = PATIENCE_SECONDS) -> int:
        """SIGTERM, and wait until it has drained. Returns the exit code."""
        if self.is_running():
            self.popen.terminate()
        code = self.popen.wait(seconds)
        self.fate = "killed" if code == -signal.SIGKILL else "stopped"
        return code

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged; a line that is no JSON (a traceback) is left out."""
        out = []
        for line in self.text().splitlines():
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    out.append(value)
        return out

    def said(self, event: str, **fields: object) -> bool:
        """Whether a log line has this event and these fields."""
        return any(
            line.get("event") == event and all(line.get(name) == value for name, value in fields.items())
            for line in self.lines()
        )

    def incarnations(self) -> list[str]:
        return [str(line["incarnation"]) for line in self.lines() if line.get("event") == "worker.started"]


class Site:
    """One root, the workers that serve it, and everything that was dropped. Close it: it ends what it started."""

    def __init__(self, base: Path, *, root: Path | None = None, **settings: object) -> None:
        self.base = base
        self.root = root or base / "root"
        self.run_log = base / "runs"
        self.locks = base / "locks"
        self.locks.mkdir(parents=True, exist_ok=True)
        self.submitted: dict[tuple[str, str], Submitted] = {}
        self.processes: list[WorkerProcess] = []
        self.seen: dict[Path, bytes] = {}
        self.settings: dict[str, object] = {
            "PROVIDER": "command",
            "ENABLE_METRICS": "false",
            "HEARTBEAT_INTERVAL": 0.5,
            "SCAN_INTERVAL": 0.5,
            "INITIAL_RETRY_DELAY": 0.05,
            "RETRY_JITTER": 0,
            "KILL_GRACE": 0.5,
            "SHUTDOWN_GRACE": 10,
            "CIRCUIT_BREAKER_THRESHOLD": 10_000,
            "SETTLE_SECONDS": 0.1,
            "MIN_FREE_BYTES": 0,
            **settings,
        }

    def inbox(self, worker: str = "marie") -> Path:
        path = self.root / "tasks" / worker
        path.mkdir(parents=True, exist_ok=True)
        return path

    # --- workers

    def start(
        self,
        worker: str = "marie",
        instance: str | None = None,
        environment: Mapping[str, str] | None = None,
        wait: bool = True,
        **settings: object,
    ) -> WorkerProcess:
        """Start a worker; with `wait` until it says that it serves."""
        command = [sys.executable, str(PROJECT / "worker_watcher.py"), worker]
        command += ["--instance", instance] if instance is not None else []
        wanted = {name: str(value) for name, value in {**self.settings, **settings}.items()}
        agent = f"{agent_program()} {self.run_log} {self.locks} {self.root / 'results' / worker}"
        env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "WATCHER_ROOT": str(self.root),
            "WATCHER_ENV_FILE": "/dev/null",
            "AGENT_COMMAND": agent,
            "PYTHONDONTWRITEBYTECODE": "1",
            **wanted,
            **(environment or {}),
        }
        log = self.base / f"worker-{len(self.processes) + 1}.log"
        with log.open("wb") as out:
            popen = subprocess.Popen(
                command, env=env, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        process = WorkerProcess(popen, log, instance)
        self.processes.append(process)
        if wait:
            self.wait_for(lambda: process.said("worker.started") or not process.is_running(), "the worker's start")
            assert process.is_running(), process.text()
        return process

    def close(self) -> None:
        for process in self.processes:
            if process.is_running():
                process.popen.kill()
                process.popen.wait(PATIENCE_SECONDS)
        for pid in self.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def living(self) -> list[int]:
        """Processes of this site's workers or of their commands, by the root's or the run log's path."""
        needles = [os.fsencode(self.root), os.fsencode(self.run_log)]
        needles += [b"WATCHER_MARK=" + i.encode() for process in self.processes for i in process.incarnations()]
        out = []
        for name in os.listdir("/proc"):
            if not name.isdecimal() or int(name) == os.getpid() or _state(int(name)) in "ZX":
                continue
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{name}/environ").read_bytes() + b"\0" + Path(f"/proc/{name}/cmdline").read_bytes()
                if any(needle in text for needle in needles):
                    out.append(int(name))
        return out

    # --- tasks

    def drop(self, stem: str, description: str, worker: str = "marie", **fields: Any) -> Submitted:
        """Submit a task whose description tells the agent what to do, as a careful program would."""
        raw = json.dumps({"description": description, **fields}).encode()
        words = description.split()
        failures = int(words[words.index("fail") + 1]) if "fail" in words else 0
        retries = int(fields.get("max_retries", self.settings.get("MAX_RETRIES", 3)))
        for_good = failures > retries
        task = Submitted(worker, f"{stem}.json", raw, "failed" if for_good else "completed", failures, for_good)
        if for_good:
            task.failures = retries + 1
        return self._place(task)

    def drop_raw(
        self, name: str, raw: bytes, worker: str = "marie", expect: Literal["refused", "ended"] = "refused"
    ) -> Submitted:
        """Submit a file as it is."""
        return self._place(Submitted(worker, name, raw, expect, dead_letter=expect == "refused"))

    def drop_again(self, task: Submitted) -> None:
        """The same file once more: it must change nothing."""
        task.drops += 1
        self._rename_in(task)

    def _place(self, task: Submitted) -> Submitted:
        self.submitted[(task.worker, task.task_id)] = task
        self._rename_in(task)
        return task

    def _rename_in(self, task: Submitted) -> None:
        inbox = self.inbox(task.worker)
        hidden = inbox / f".{secrets.token_hex(6)}"
        hidden.write_bytes(task.raw)
        hidden.rename(inbox / task.name)

    def open_gate(self, name: str) -> None:
        """Let agents go on that wait at this gate."""
        (self.locks / name).touch()

    # --- what became of them

    def runs(self, task_id: str | None = None) -> list[Run]:
        return [run for run in read_runs(self.run_log) if task_id in (None, run.task_id)]

    def result(self, task_id: str, worker: str = "marie") -> dict[str, Any] | None:
        path = self.root / "results" / worker / f"{task_id}.json"
        return json.loads(path.read_bytes()) if path.exists() else None

    def heartbeat(self, worker: str = "marie", instance: str | None = None) -> dict[str, Any]:
        name = f"{worker}@{instance}.json" if instance else f"{worker}.json"
        path = self.root / "heartbeats" / name
        return json.loads(path.read_bytes()) if path.exists() else {}

    def waiting(self) -> list[str]:
        """What has no outcome yet, or still lies where tasks wait (a copy, or a worker died before its last step)."""
        out = []
        for inbox in (self.root / "tasks").glob("*"):
            out += [name for name in self._listed(inbox) | self._listed(inbox / ".retry") if name.endswith(".json")]
            for claims in self._listed(inbox / ".claims"):
                held = self._listed(inbox / ".claims" / claims)
                out += [name for name in held if name.endswith(".json") and ("~" in name or "!" in name)]
        for worker in {worker for worker, _ in self.submitted}:
            results = self._listed(self.root / "results" / worker)
            letters = self._listed(self.root / "dlq" / worker)
            for (owner, task_id), task in self.submitted.items():
                ended = f"{task_id}.json" in (letters if task.expect == "refused" else results)
                if owner == worker and not ended and (task.expect != "ended" or f"{task_id}.json" not in letters):
                    out.append(task_id)
        return out

    def look(self) -> None:
        """Read whatever is visible now: every file must be whole, and a result that was seen must not change."""
        for path in (self.root / "heartbeats").glob("[!.]*.json"):
            json.loads(path.read_bytes())
        for path in (self.root / "results").glob("*/[!.]*.json"):
            if path not in self.seen:
                self.seen[path] = path.read_bytes()
                json.loads(self.seen[path])

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Ask again and again until the condition holds. Raises AssertionError with what is known after `seconds`."""
        wait_for(what, condition, seconds, self.report)

    def wait_until_all_ended(self, seconds: float = PATIENCE_SECONDS) -> None:
        self.wait_for(lambda: not self.waiting(), "an outcome of every task", seconds)

    def finish(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait for all outcomes, stop all workers and check every promise."""
        self.wait_until_all_ended(seconds)
        for process in self.processes:
            if process.fate == "running":
                assert process.is_running(), f"ended by itself\n{process.text()}"
                self.wait_for(lambda process=process: process.said("worker.started"), "the worker's start")
                code = process.stop(seconds)
                assert code == 0, f"exit code {code}\n{process.text()}"
        broken = broken_promises(self)
        assert not broken, "\n".join([*broken[:40], self.report()])

    def report(self) -> str:
        """What a person needs to see why a test failed."""
        parts = [f"waiting: {self.waiting()[:20]}"]
        parts += [f"runs of {task_id}: {self.runs(task_id)[-4:]}" for task_id in self.waiting()[:3]]
        for process in self.processes[-3:]:
            parts.append(f"--- pid {process.pid}, {process.fate}, exit code {process.popen.poll()}")
            parts += process.text().splitlines()[-15:]
        names = sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())
        told = [name for name in names if not name.startswith(("results/", "triggers/"))]
        parts.append(f"--- {len(names)} files: {told[:40]}")
        return "\n".join(parts)

    @staticmethod
    def _listed(folder: Path) -> set[str]:
        try:
            return set(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):  # gone meanwhile, or a lock
            return set()


def _state(pid: int) -> str:
    """The letter of its state; X when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return "X"
    return chr(text[text.rfind(b")") + 2])
