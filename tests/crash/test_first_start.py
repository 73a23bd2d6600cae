"""A machine that is short of something at the first start: every process says so with exit code 5, and later starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.disks import fill, mount
from tests.crash.harness import PATIENCE_SECONDS, PROJECT

__all__ = ["mount"]
pytestmark = [pytest.mark.crash, pytest.mark.timeout(400)]

PROCESSES = {
    "worker": ["worker_watcher.py", "marie"],
    "listener": ["orchestrator_listener.py"],
    "webhook": ["-m", "watcher", "webhook", "--port", "0"],
    "supervisor": ["-m", "watcher", "up", "marie"],
}


def start(name: str, root: Path, descriptors: int | None = None) -> subprocess.Popen[str]:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "WATCHER_ROOT": str(root),
        "WATCHER_ENV_FILE": os.devnull,
        "PYTHONPATH": str(PROJECT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PROVIDER": "command",
        "AGENT_COMMAND": "true",
        "ENABLE_METRICS": "false",
        "WEBHOOK_WORKERS": "marie",
    }
    words = [str(PROJECT / word) if word.endswith(".py") else word for word in PROCESSES[name]]
    limit = () if descriptors is None else ("prlimit", f"--nofile={descriptors}:{descriptors}")
    return subprocess.Popen(
        [*limit, sys.executable, *words], env=environment, cwd=root.parent, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        text = process.communicate(timeout=PATIENCE_SECONDS)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        text = process.communicate()[0]
        raise AssertionError(f"it did not end\n{text}") from None
    return process.returncode, text


@pytest.mark.needs_mount
@pytest.mark.parametrize("name", ["worker", "listener", "webhook"])
def test_full_disk_at_the_first_start_is_trouble_of_the_machine(
    mount: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    disk = mount("ext4", 8)
    fill(disk)
    code, text = end_of(start(name, disk / "root"))
    assert code == 5, text
    assert "No space left on device" in text and "nothing is lost" in text and "Traceback" not in text


@pytest.mark.parametrize("descriptors", [8, 9, 10])
@pytest.mark.parametrize("name", ["worker", "listener", "webhook"])
def test_too_few_descriptors_at_the_first_start_are_trouble_of_the_machine(
    tmp_path: Path, name: str, descriptors: int
) -> None:
    code, text = end_of(start(name, tmp_path / "root", descriptors))
    assert code == 5, text
    assert "EMFILE: Too many open files; nothing is lost" in text


def test_supervisor_starts_a_worker_again_that_the_machine_refused_once(
    mount: Callable[..., Path], tmp_path: Path
) -> None:
    """Until now exit code 2 made it leave the worker for good."""
    disk = mount("ext4", 8)
    ballast = fill(disk)
    process = start("supervisor", disk / "root")
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if "exit code 5" in line:
            ballast.unlink(missing_ok=True)
        if "worker.started" in line or "worker started" in line:
            process.terminate()
    assert process.wait(PATIENCE_SECONDS) == 0, "".join(seen)
    assert any("exit code 5" in line for line in seen), "".join(seen)
