"""The anchor: the same file protocol with nothing around it, run as a process of its own.

For each task of a pre-filled inbox: rename into `.claims`, read and parse, run the command (Popen, prompt and
output in memfds), write the result beside its target, rename it into place, unlink the claim. No checks, no
logs, no retries: what a worker costs more than this is what its promises cost. `--sync each` adds one fsync
of the file and one of the folder before the claim goes; `--sync group` one syncfs for each 256 results.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import threading
import time
from dataclasses import dataclass, field

GROUP = 256
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class RawLoop:
    """The folders and the way of one run."""

    root: str
    worker: str
    command: list[str]
    sync: str
    written: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.inbox = f"{self.root}/tasks/{self.worker}"
        self.claims = f"{self.inbox}/.claims/raw"
        self.results = f"{self.root}/results/{self.worker}"
        os.makedirs(self.claims, exist_ok=True)
        os.makedirs(self.results, exist_ok=True)
        self.results_fd = os.open(self.results, os.O_RDONLY | os.O_DIRECTORY)

    def pending(self) -> list[str]:
        """Names of the waiting tasks, the first one last."""
        with os.scandir(self.inbox) as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith(".json"))
        names.reverse()
        return names

    def claim(self, name: str) -> None:
        os.rename(f"{self.inbox}/{name}", f"{self.claims}/{name}")

    def finish(self, name: str) -> None:
        """Run a claimed task and store its result."""
        began = time.time()
        with open(f"{self.claims}/{name}", "rb") as file:
            task = json.loads(file.read())
        code, stdout = self.run(task["description"]) if self.command else (0, task["description"])
        now = time.time()
        result = {
            "task_id": task["task_id"],
            "worker": self.worker,
            "status": "completed" if code == 0 else "failed",
            "exit_code": code,
            "stdout": stdout,
            "stderr": "",
            "duration_seconds": now - began,
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
            "retry_count": 0,
        }
        self.store(name, json.dumps(result).encode())

    def run(self, prompt: str) -> tuple[int, str]:
        """One command: exit code and what it printed."""
        stdin, stdout = os.memfd_create("in"), os.memfd_create("out")
        try:
            os.write(stdin, prompt.encode())
            os.lseek(stdin, 0, os.SEEK_SET)
            code = subprocess.Popen(self.command, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL).wait()
            os.lseek(stdout, 0, os.SEEK_SET)
            return code, os.read(stdout, 65536).decode()
        finally:
            os.close(stdin)
            os.close(stdout)

    def store(self, name: str, data: bytes) -> None:
        """Publish a result and drop the claim, as durably as `sync` says."""
        hidden = f"{self.results}/.{name}.tmp"
        fd = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(fd, data)
        if self.sync == "each":
            os.fsync(fd)
        os.close(fd)
        os.rename(hidden, f"{self.results}/{name}")
        if self.sync == "each":
            os.fsync(self.results_fd)
        if self.sync == "group":
            self.remember(name)
        else:
            os.unlink(f"{self.claims}/{name}")

    def remember(self, name: str) -> None:
        with self.lock:
            self.written.append(name)
            if len(self.written) < GROUP:
                return
            group, self.written = self.written, []
        self.commit(group)

    def commit(self, group: list[str]) -> None:
        """Make a group durable, then drop its claims."""
        if group and _libc.syncfs(self.results_fd) != 0:
            raise OSError(ctypes.get_errno(), "syncfs", self.results)
        for name in group:
            os.unlink(f"{self.claims}/{name}")

    def drain(self, threads: int, limit: int | None) -> None:
        """Do all that is waiting, or the first `limit` of it, then return."""
        names = self.pending()
        if limit is not None:
            names = names[-limit:]

        def work() -> None:
            while True:
                try:
                    name = names.pop()
                except IndexError:
                    return
                self.claim(name)
                self.finish(name)

        if threads == 1:
            work()
        else:
            crew = [threading.Thread(target=work) for _ in range(threads)]
            for one in crew:
                one.start()
            for one in crew:
                one.join()
        self.commit(self.written)


def main() -> None:
    parser = argparse.ArgumentParser(description="raw loop over a pre-filled inbox")
    parser.add_argument("root")
    parser.add_argument("worker")
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--command", default="", help="the command to run for each task; none: no process")
    parser.add_argument("--sync", default="none", choices=("none", "each", "group"))
    parser.add_argument("--limit", type=int, help="do only that many")
    options = parser.parse_args()
    loop = RawLoop(options.root, options.worker, options.command.split(), options.sync)
    loop.drain(options.threads, options.limit)


if __name__ == "__main__":
    main()
