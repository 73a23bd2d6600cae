"""Which processes have outlived their supervisor, and that nobody else's is ever taken for one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_for
from watcher.supervisor.adopted_children import SUPERVISED, AdoptedChild, find, find_all, own_name
from watcher.system import procfs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and pidfds of Linux")

DEAD_SUPERVISOR = f"{os.getpid()}-1.00"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def sleeper(started: list[subprocess.Popen[bytes]], supervisor: str | None, script: str = "sleep 300") -> int:
    env = {"PATH": os.environ["PATH"]} | ({} if supervisor is None else {SUPERVISED: supervisor})
    started.append(subprocess.Popen(["/bin/sh", "-c", script], env=env))
    pid = started[-1].pid
    wait_for("its program", lambda: procfs.variable_of(pid, "PATH"))
    return pid


def told(pid: int, **more: Any) -> dict[str, Any]:
    return {"worker": "marie", "status": "healthy", "sequence": 1, "pid": pid, "host": socket.gethostname()} | more


def test_process_whose_supervisor_is_gone_is_found(started: list[subprocess.Popen[bytes]]) -> None:
    pid = sleeper(started, DEAD_SUPERVISOR)
    found = find(told(pid))
    assert found is not None and found.pid == pid and not found.has_ended()
    found.signal(signal.SIGKILL)
    wait_for("its end", found.has_ended)
    found.close()


def test_process_of_a_living_supervisor_or_of_a_person_is_nobodys_business(
    started: list[subprocess.Popen[bytes]],
) -> None:
    assert find(told(sleeper(started, own_name()))) is None
    assert find(told(sleeper(started, None))) is None
    assert find(told(sleeper(started, "nonsense"))) is None


def test_beat_of_another_host_or_without_a_process_finds_nothing(started: list[subprocess.Popen[bytes]]) -> None:
    pid = sleeper(started, DEAD_SUPERVISOR)
    assert find(told(pid, host="elsewhere")) is None
    for wrong in (None, True, "1", 0, 1, 1 << 30):
        assert find(told(pid) | {"pid": wrong}) is None
    assert find({}) is None


def test_all_processes_of_a_worker_are_found_by_name(started: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    pids = {name: sleeper(started, DEAD_SUPERVISOR) for name in ("marie", "marie@2", "anga")}
    for name, pid in pids.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(told(pid, worker=name.split("@")[0])))
    (tmp_path / "marie@3.json").write_text("{")
    found = find_all(tmp_path, "marie")
    assert {name: survivor.pid for name, survivor in found.items()} == {n: pids[n] for n in ("marie", "marie@2")}
    for survivor in found.values():
        survivor.close()


def test_one_is_asked_once_then_again_then_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[signal.Signals] = []
    survivor = AdoptedChild(1, -1)
    monkeypatch.setattr(survivor, "signal", sent.append)
    survivor.end(100.0, hurry_after=30.0, kill_after=90.0)
    survivor.end(101.0, hurry_after=30.0, kill_after=90.0)
    survivor.push(130.9)
    assert sent == [signal.SIGTERM, signal.SIGCONT]
    survivor.push(131.0)
    survivor.push(150.0)
    assert sent[2:] == [signal.SIGTERM]
    survivor.push(191.0)
    assert sent[3:] == [signal.SIGKILL]
