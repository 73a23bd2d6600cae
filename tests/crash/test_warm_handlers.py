"""A worker with warm handlers is killed: nobody is left to end them, and yet nothing of them stays."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import Process, Site, is_alive
from tests.waiting import wait_for

RUDE = [sys.executable, "-I", "-S", str(Path(__file__).parents[1] / "rude_handler.py")]
PYTHON_HANDLER = [sys.executable, "-m", "watcher.handler"]
PATIENCE = 60.0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def start(site: Site, command: list[str], size: int, **settings: object) -> Process:
    return site.start(
        PROVIDER="handler", HANDLER_COMMAND=shlex.join(command), HANDLER_POOL_SIZE=size, HANDLER_POOL_MAX=size,
        HANDLER_POOL_MIN=size, LOG_LEVEL="DEBUG", PYTHONPATH=str(Path(__file__).parents[2]), **settings,
    )  # fmt: skip


def full_pool(site: Site, worker: Process, size: int) -> list[int]:
    """All of them, once each has answered its first ping."""
    wait_for(f"{size} warm handlers", lambda: len(worker.lines("handler.started")) == size, PATIENCE)
    found = site.command_pids()
    assert len(found) == size
    return found


@pytest.mark.parametrize("words", [[*RUDE, "deaf"], PYTHON_HANDLER], ids=["deaf to TERM and to the end", "python"])
def test_no_handler_of_twenty_outlives_a_killed_worker(site: Site, words: list[str]) -> None:
    worker = start(site, words, 20)
    handlers = full_pool(site, worker, 20)
    worker.kill()
    wait_for("the end of all handlers", lambda: not any(is_alive(pid) for pid in handlers), PATIENCE)
    assert site.command_pids() == []


def test_handlers_at_work_and_what_they_started_die_with_the_worker_and_the_tasks_run_again(site: Site) -> None:
    note, gate = site.home / "left", site.home / "gate"
    script = site.home / "handler.py"
    script.write_text(
        "import os, subprocess, sys, time\n"
        "from watcher.handler import handler, serve\n"
        "@handler\n"
        "def default(event):\n"
        f"    if not os.path.exists({str(gate)!r}):\n"
        "        child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"        print(child.pid, file=open({str(note)!r}, 'a'), flush=True)\n"
        "        time.sleep(600)\n"
        "    return event['attempt']\n"
        "serve()\n"
    )
    command = [sys.executable, str(script)]
    worker = start(site, command, 3, AGENT_ENV="PYTHONPATH")
    for stem in ("a", "b", "c"):
        site.drop(stem)
    wait_for("three at work", lambda: note.exists() and len(note.read_text().split()) == 3, PATIENCE)
    family = site.command_pids()
    assert len(family) == 6
    worker.kill()
    wait_for("the end of all of them", lambda: not any(is_alive(pid) for pid in family), PATIENCE)
    gate.touch()
    again = start(site, command, 3, AGENT_ENV="PYTHONPATH")
    results = [site.result(stem, seconds=PATIENCE) for stem in ("a", "b", "c")]
    assert [(result["status"], result["stdout"], result["attempts"]) for result in results] == [
        ("completed", "1", 2)
    ] * 3
    assert again.stop() == 0
    assert (site.command_pids(), site.leftovers()) == ([], [])


def test_without_its_guard_the_next_process_of_the_worker_ends_them(site: Site) -> None:
    worker = start(site, [*RUDE, "deaf"], 2)
    handlers = full_pool(site, worker, 2)
    (guard,) = [pid for pid in children(worker.pid) if pid not in handlers]
    os.kill(guard, signal.SIGKILL)
    worker.kill()
    assert all(is_alive(pid) for pid in handlers)
    start(site, [*RUDE, "deaf"], 2)
    wait_for("the end of the old ones", lambda: not any(is_alive(pid) for pid in handlers), PATIENCE)


def children(parent: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found
