"""Files that a power cut has emptied: each reader takes them for files that are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.doubles import HandClock, Memory
from tests.waiting import wait_for
from watcher.cli import health_probe
from watcher.formats.breakers import parse_breakers
from watcher.listener.worker_health import WorkerHealth
from watcher.store import holds, listener_lock, listener_state, overview, workers
from watcher.store.listener_database import Ledger
from watcher.store.worker_locks import Incarnation, living_notes
from watcher.supervisor import adopted_children
from watcher.supervisor.child_health import ChildHealth
from watcher.system.files import Folder
from watcher.telemetry.events import FileIgnored
from watcher_config import Folders

DEAD = "0123456789abcdef" * 2
PROJECT = Path(__file__).parents[2]


@pytest.fixture(params=[b"", b"\0" * 512], ids=["empty", "NUL bytes"])
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A root on which everything that is not flushed was lost."""
    for name in (
        "heartbeats/marie.json", "heartbeats/marie@2.json", f"tasks/marie/.claims/{DEAD}.json",
        f"tasks/marie/.claims/{DEAD}.lock", f"tasks/marie/.claims/{DEAD}.busy", "triggers/marie/a.json",
        "control/holds/claude.json", "control/holds/claude.ramp.json", "control/marie/breakers.json",
        "state/listener.json", "state/.listener.lock",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if name.endswith(("lock", "busy")) else request.param)
    (tmp_path / "tasks/marie/.claims" / DEAD).mkdir()
    return tmp_path


def folders_of(root: Path) -> Folders:
    return Folders(root, *(root / name for name in ("tasks", "triggers", "results", "heartbeats", "dlq", "control")))


def test_views_and_probes_see_no_heartbeat_and_complain_of_none(root: Path) -> None:
    problems: list[str] = []
    assert workers.read_beats(root / "heartbeats", time.time(), problems) == [] and problems == []
    assert adopted_children.find_all(root / "heartbeats", "marie") == {}
    seen = overview.look(folders_of(root))
    assert seen.as_json()["problems"] == []
    assert [health.is_well for health in health_probe.probe(folders_of(root), "marie", None, 0.1, False)] in (
        [],
        [False],
    )
    health = ChildHealth(root / "heartbeats/marie.json")
    health.look(None, 0.0)
    assert not health.has_beaten


def test_listener_sees_no_heartbeat_and_complains_of_none(root: Path) -> None:
    memory, ledger = Memory(), Ledger(root / "state", 0.0)
    worker_health = WorkerHealth(root / "heartbeats", root / "tasks", (), ledger, HandClock(), memory, 10.0)
    worker_health._read_beats()
    assert worker_health.members == {} and memory.of(FileIgnored) == []
    ledger.close()
    assert listener_state.read_status(root / "state") == {} and listener_lock.notes(root / "state") == {}


def test_caution_that_was_lost_holds_nobody(root: Path) -> None:
    assert holds.list_holds(root / "control") == []
    folder = Folder(root / "control/holds")
    assert holds.read_ramp(folder, "claude") is None
    folder.close()
    assert parse_breakers((root / "control/marie/breakers.json").read_bytes()) == {}


def test_notes_of_a_living_process_that_were_lost_stop_nobody(root: Path) -> None:
    mine = Incarnation(root / "tasks/marie", "marie", None)
    notes = root / "tasks/marie/.claims" / f"{mine.id}.json"
    notes.write_bytes((root / "heartbeats/marie.json").read_bytes())
    claims = Folder(notes.parent)
    assert living_notes(claims) == []
    claims.close()
    read = workers.read_claims(root / "tasks/marie", [])
    states = {one.incarnation: one.state for one in workers.processes("marie", [], read, time.time())}
    assert states[mine.id] == "starting"
    mine.close()


def test_worker_listener_and_commands_run_on_such_a_root(root: Path) -> None:
    (root / "tasks/marie/a.json").write_text('{"description": "hello"}')
    environment = {
        "PATH": os.environ.get("PATH", os.defpath), "WATCHER_ROOT": str(root), "WATCHER_ENV_FILE": os.devnull,
        "PROVIDER": "command", "AGENT_COMMAND": "cat", "ENABLE_METRICS": "false", "PYTHONPATH": str(PROJECT),
    }  # fmt: skip

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], env=environment, cwd=root, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr and "not a heartbeat" not in done.stdout + done.stderr
        return done.stdout

    run(str(PROJECT / "orchestrator_listener.py"), "--once")
    run("-m", "watcher", "list")
    run("-m", "watcher", "workers")
    worker = subprocess.Popen([sys.executable, str(PROJECT / "worker_watcher.py"), "marie"], env=environment, cwd=root)
    try:
        wait_for("the result", (root / "results/marie/a.json").exists)
    finally:
        worker.terminate()
        assert worker.wait(60) == 0
    assert json.loads((root / "results/marie/a.json").read_text())["status"] == "completed"


def test_heartbeat_that_is_a_fifo_is_told(tmp_path: Path) -> None:
    """Nobody writes to it, so that it reads as empty: only a file may be one that a power cut has emptied."""
    os.mkfifo(tmp_path / "marie.json")
    problems: list[str] = []
    workers.read_beats(tmp_path, 0.0, problems)
    assert len(problems) == 1
