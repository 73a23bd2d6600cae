"""Hidden files that killed writers leave: which go, when, and what becomes of a writer that was only frozen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.configs import made
from tests.doubles import HandClock, Memory
from tests.waiting import wait_for
from watcher.clock import NeverAhead
from watcher.settings.worker_groups import QueueSettings
from watcher.store.abandoned_files import ABANDONED_SECONDS, remove_abandoned
from watcher.store.folders import WorkerFolders
from watcher.store.queue import DirectorySpool
from watcher.system.files import Folder

LATER = ABANDONED_SECONDS + 60
WRITERS = {
    "submit": "from watcher.store.submitting import submit; submit(root / 'tasks', 'marie', {'description': 'secret'})",
    "tell": "from watcher.store.operator_commands import tell; tell(root / 'control', 'marie', 'drain')",
    "pause": "from watcher.store.operator_commands import pause; pause(root / 'control', 'marie', 'secret')",
    "hold": "from watcher.store.holds import hold_provider; hold_provider(root / 'control', 'claude', now=0.0)",
}
#: Stops the writer where its file is complete and hidden: at its first fsync.
BEFORE = """
import os, pathlib, signal
root, real = pathlib.Path({!r}), os.fsync
os.fsync = lambda fd: (real(fd), os.kill(os.getpid(), signal.SIGSTOP))
"""


def frozen_writer(root: Path, what: str) -> tuple[subprocess.Popen[str], Path]:
    text = BEFORE.format(str(root)) + WRITERS[what]
    process = subprocess.Popen([sys.executable, "-c", text], stderr=subprocess.PIPE, text=True)
    found = wait_for("its hidden file", lambda: [p for p in root.rglob(".*.tmp") if p.stat().st_size])
    assert found is not None
    wait_for("its stop", lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    return process, found[0]


def places(root: Path) -> WorkerFolders:
    made = WorkerFolders(*(root / name for name in ("tasks", "triggers", "results", "dlq")), "marie", "a" * 32)
    made.shared = [root / "control" / "holds", root / "control" / "marie"]
    return made


@pytest.mark.parametrize("what", WRITERS)
def test_what_a_killed_writer_left_goes_after_an_hour_and_not_before(tmp_path: Path, what: str) -> None:
    process, hidden = frozen_writer(tmp_path, what)
    process.kill()
    process.communicate()
    worker = places(tmp_path)
    assert worker.remove_abandoned(time.time() + ABANDONED_SECONDS - 60) == [] and hidden.exists()
    assert worker.remove_abandoned(time.time() + LATER) == [hidden.name] and not hidden.exists()
    worker.close()


@pytest.mark.parametrize("what", WRITERS)
def test_writer_that_was_frozen_for_longer_says_that_it_failed(tmp_path: Path, what: str) -> None:
    process, hidden = frozen_writer(tmp_path, what)
    worker = places(tmp_path)
    assert worker.remove_abandoned(time.time() + LATER) == [hidden.name]
    worker.close()
    while process.poll() is None:
        process.send_signal(signal.SIGCONT)
        time.sleep(0.02)  # it stops again at each further fsync
    assert process.returncode == 1 and "FileNotFoundError" in process.communicate()[1]
    assert not [p for p in hidden.parent.iterdir() if p.is_file() and not p.name.startswith(".")]


def test_what_is_not_ours_stays_whatever_its_age(tmp_path: Path) -> None:
    ours = {".submit-0123456789abcdef.tmp", ".webhook-0123456789abcdef.tmp", ".reassign-0123456789abcdef.tmp"}
    others = {".hello.tmp", ".x.json.swp", ".submit-1.tmp", "a.json", f".marie.json.{'a' * 32}.tmp", ".probe"}
    for name in ours | others:
        (tmp_path / name).write_text("x")
    (tmp_path / ".submit-1123456789abcdef.tmp").symlink_to(tmp_path / "a.json")
    (tmp_path / ".submit-2123456789abcdef.tmp").mkdir()
    folder = Folder(tmp_path)
    assert set(remove_abandoned(folder, time.time() + LATER)) == ours
    folder.close()
    assert others < set(os.listdir(tmp_path))


def test_clock_that_jumps_makes_no_file_old(tmp_path: Path) -> None:
    (tmp_path / ".submit-0123456789abcdef.tmp").write_text("x")
    clock = HandClock(time.time())
    never_ahead = NeverAhead(clock)
    clock.now_wall += 86_400
    folder = Folder(tmp_path)
    assert remove_abandoned(folder, never_ahead.now()) == []
    folder.close()


def test_worker_looks_for_them_again_and_again(tmp_path: Path) -> None:
    worker, clock = places(tmp_path), HandClock(time.time() + LATER)
    spool = DirectorySpool(worker, made(QueueSettings, provider="command"), clock, Memory())
    for seconds in (0.0, 601.0):
        (worker.inbox.path / ".submit-0123456789abcdef.tmp").write_text("secret")
        clock.pass_seconds(seconds)
        spool.rescue()
        assert not worker.inbox.has(".submit-0123456789abcdef.tmp")
    worker.close()
