"""The compose file brought up as a project of its own, and the ways to look into it: what the container checks share.

Everything is asked through the engine and through Prometheus' HTTP interface, so that it works wherever the engine
keeps its volumes. Raises Failed with what was expected and what was there.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

REPO = Path(__file__).resolve().parent.parent
FILE = REPO / "docker-compose.watcher.yml"
#: Generous: two cores that others use as well.
PATIENCE_SECONDS = 120.0

T = TypeVar("T")


class Failed(Exception):
    """A check did not hold."""


def expect(holds: object, what: str) -> None:
    if not holds:
        raise Failed(what)


def wait_for(what: str, look: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """What `look` gives as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > end:
            raise Failed(f"waited {seconds:.0f} s for {what}; last seen: {found!r}")
        time.sleep(0.2)
    return found


# What runs inside a container: it reads a question as JSON and prints an answer.
_INSIDE = r"""
import glob, json, os, sys
ask = json.load(sys.stdin)
root = "/data"
if ask["do"] == "submit":
    for stem, fields in ask["tasks"].items():
        folder = f"{root}/tasks/{ask['worker']}"
        os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/.{stem}.new", "w") as file:
            json.dump(fields, file); file.flush(); os.fsync(file.fileno())
        os.rename(f"{folder}/.{stem}.new", f"{folder}/{stem}.json")
    print("{}")
elif ask["do"] == "read":
    out = {}
    for path in glob.glob(f"{root}/{ask['pattern']}"):
        try:
            with open(path) as file: out[os.path.relpath(path, root)] = json.load(file)
        except FileNotFoundError: pass
    print(json.dumps(out))
elif ask["do"] == "list":
    found = glob.glob(f"{root}/{ask['pattern']}", include_hidden=True, recursive=True)
    print(json.dumps([os.path.relpath(path, root) for path in found]))
elif ask["do"] == "processes":
    out = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = dict(l.rstrip("\n").split(":\t", 1) for l in open(f"/proc/{pid}/status") if ":\t" in l)
            out[pid] = {k: words[k].strip() for k in ("Name", "State", "PPid", "CapEff", "NoNewPrivs", "Uid")}
        except (OSError, KeyError): pass
    out.pop(str(os.getpid()), None)
    print(json.dumps(out))
"""


class Site:
    """One compose project. `settings` is the environment that the compose file reads."""

    def __init__(self, compose: str, project: str, settings: dict[str, str]) -> None:
        self.project = project
        self.settings = settings
        self._compose = [compose, "-p", project, "-f", str(FILE), "--project-directory", str(REPO)]

    # --- the engine

    def compose(self, *words: str, check: bool = True, **settings: str) -> str:
        return run([*self._compose, *words], {**self.settings, **settings}, check)

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "-q", "-a", service).split()

    def container(self, service: str) -> str:
        found = self.containers(service)
        expect(len(found) == 1, f"one container of {service}, not {found}")
        return found[0]

    def inspect(self, container: str, template: str) -> Any:
        return json.loads(run(["docker", "inspect", container, "--format", "{{json " + template + "}}"]))

    # --- the volume

    def ask(self, do: str, service: str = "listener", container: str | None = None, **question: Any) -> Any:
        command = ["docker", "exec", "-i", container or self.container(service), "python", "-I", "-c", _INSIDE]
        return json.loads(run(command, stdin=json.dumps({"do": do, **question})))

    def submit(self, worker: str, tasks: dict[str, str], **fields: Any) -> None:
        """Tasks by id, each with its description."""
        self.ask("submit", worker=worker, tasks={stem: {"description": text, **fields} for stem, text in tasks.items()})

    def results(self, worker: str, prefix: str = "") -> dict[str, Any]:
        found = self.ask("read", pattern=f"results/{worker}/{prefix}*.json")
        return {Path(path).stem: value for path, value in found.items()}

    def result(self, worker: str, stem: str) -> Any:
        wait_for(f"the result of {worker}/{stem}", lambda: self.names(f"results/{worker}/{stem}.json"))
        return self.results(worker, stem)[stem]

    def names(self, pattern: str) -> list[str]:
        return sorted(self.ask("list", pattern=pattern))

    def beats(self, worker: str) -> dict[str, Any]:
        """The heartbeats of a worker by file name, those of processes that have ended left out."""
        found = self.ask("read", pattern=f"heartbeats/{worker}*.json")
        return {Path(path).name: beat for path, beat in found.items() if beat["status"] != "stopped"}

    def wait_until_running(self, worker: str, stem: str) -> None:
        wait_for(f"{worker}/{stem} to run", lambda: self.names(f"tasks/{worker}/.claims/*/{stem}~*"))

    # --- Prometheus

    def prometheus(self, path: str, **parameters: str) -> Any:
        port = self.settings["PROMETHEUS_PORT"]
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Any]:
        found: list[Any] = self.prometheus("query", query=expression)["result"]
        return found


def run(
    command: list[str], settings: dict[str, str] | None = None, check: bool = True, stdin: str | None = None
) -> str:
    """The standard output of a command that must succeed, within ten minutes."""
    environment = {**os.environ, **(settings or {})}
    done = subprocess.run(
        command, env=environment, input=stdin, capture_output=True, text=True, timeout=600, check=False
    )  # fmt: skip
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip()[-3000:]
        raise Failed(f"{' '.join(command[:8])} ...: exit code {done.returncode}: {said}")
    return done.stdout
