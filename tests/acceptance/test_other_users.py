"""What another user of the machine may try who can write into the folders: links, exchanged folders, folders of theirs.

The worker is the user of the tests, root; the other user is a real one, without any right but those that the folders
give. Behind every link lies a private folder: nothing in it may be read, written, moved or deleted.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.acceptance.conftest import Process, Site, names
from tests.waiting import wait_for
from tests.zones import NOTING, SECONDS, drop, noted, start_zones
from watcher.system import files
from watcher.system.files import Folder
from watcher.system.no_links import Refused

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="acts as two users of the machine, so it needs root"),
]

STRANGER = 64_123
ZONE = """
zones:
  - name: notes
    dirs: in
    worker: marie
    recursive: true
    on_done: %s
    prompt: "{relative} {text}"
"""
SECRET = "the private key"


def stranger(folder: Path, script: str) -> subprocess.Popen[str]:
    """Start a shell of the other user in a folder; it comes in by the folder itself, whatever lies above."""
    return subprocess.Popen(
        ["/bin/sh", "-c", script], cwd=folder, user=STRANGER, group=STRANGER, extra_groups=[], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def act(folder: Path, script: str) -> None:
    process = stranger(folder, f"set -e; {script}")
    assert process.wait(60) == 0, process.communicate()


@contextmanager
def exchanged(folder: Path, name: str, target: Path) -> Iterator[None]:
    """Let the other user exchange a folder for a link to `target` and back, a thousand times a second and more, each
    in one step, so that something is always there; put it back in the end."""
    act(folder, f"ln -s {target} .link")
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(folder)
            os.setgroups([])
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            while _exchange(name, ".link"):
                time.sleep(0.0005)  # two cores: without a pause it takes one, and the test waits for the other's work
        finally:
            os._exit(1)
    try:
        yield
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the other user could not go on"
    finally:
        os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        if (folder / name).is_symlink():
            assert _exchange(folder / name, folder / ".link")


def _exchange(one: str | Path, other: str | Path) -> bool:
    """renameat2 with RENAME_EXCHANGE."""
    at = -100  # AT_FDCWD
    return files._RENAMEAT2(at, os.fsencode(one), at, os.fsencode(other), 2) == 0


def open_to_all(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    return folder


@pytest.fixture
def private(site: Site) -> Iterator[Path]:
    """A folder of the worker's user with one file; the test fails when anything in it has changed."""
    folder = site.home / "private"
    folder.mkdir(mode=0o700)
    (folder / "secret.txt").write_text(SECRET)
    yield folder
    assert names(folder) == ["secret.txt"] == sorted(os.listdir(folder))
    assert (folder / "secret.txt").read_text() == SECRET


def says_nothing_of_it(site: Site) -> None:
    for path in [*site.root.rglob("*.json"), *site.home.glob("in/**/*")]:
        assert path.is_symlink() or not path.is_file() or SECRET not in path.read_text(), path


@pytest.mark.parametrize("on_done", ["keep", "move", "delete"])
def test_folder_of_a_zone_that_is_exchanged_for_a_link_gives_nothing_from_behind_it(
    site: Site, private: Path, on_done: str
) -> None:
    site.start(AGENT_COMMAND=site.script(NOTING))
    folder = open_to_all(site.home / "in")
    act(folder, "mkdir sub")
    zones = start_zones(site, ZONE % on_done, SCAN_INTERVAL="0.1")
    drop(folder, "sub/first.txt", "one")
    zones.block_that("the folder is watched", completed=1)
    act(folder, f"mv sub .x; ln -s {private} sub; touch .x/secret.txt")
    drop(folder, "good.txt", "two")
    zones.block_that("the other file", completed=2)
    wait_for("two scans more", lambda: len(zones.blocks()) > 5)
    assert sorted(site.noted()) == ["good.txt two", "sub/first.txt one"]
    says_nothing_of_it(site)


@pytest.mark.parametrize("hidden", [".done", ".processing", ".aside"])
@pytest.mark.parametrize("how", ["ln -s {private} {hidden}", "mkdir -m 777 {hidden}; touch {hidden}/keep"])
def test_hidden_folder_of_a_zone_that_another_user_made_takes_no_file(
    site: Site, private: Path, hidden: str, how: str
) -> None:
    site.start(AGENT_COMMAND=site.script(NOTING))
    folder = open_to_all(site.home / "in")
    act(folder, how.format(private=private, hidden=hidden))
    planted = os.lstat(folder / hidden).st_ino
    zones = start_zones(site, ZONE % "move", SCAN_INTERVAL="0.1")
    drop(folder, "bad.txt", "x").write_bytes(b"\0")  # no text: it goes aside
    drop(folder, "good.txt", "two")
    said = wait_for("a word about it", lambda: [line for line in zones.lines() if hidden in line["message"]], SECONDS)
    assert any("symbolic link" in line["message"] or "another user" in line["message"] for line in said or [])
    there = folder / hidden
    assert there.is_symlink() or os.listdir(there) == ["keep"]
    assert os.lstat(there).st_ino == planted
    zones.stop()
    there.unlink() if there.is_symlink() else shutil.rmtree(there)
    again = start_zones(site, ZONE % "move", SCAN_INTERVAL="0.1")
    wait_for("the file in its place", lambda: (folder / ".done" / "good.txt").exists(), SECONDS)
    wait_for("the other aside or at rest", lambda: again.last()[1] == 0, SECONDS)
    assert site.noted() == ["good.txt two"]


def test_zone_whose_folder_is_exchanged_all_the_time_reads_only_what_was_dropped(site: Site, private: Path) -> None:
    site.start(AGENT_COMMAND=site.script(NOTING), MAX_CONCURRENT_TASKS=4)
    folder = open_to_all(site.home / "in")
    act(folder, "mkdir -m 777 sub")
    start_zones(site, ZONE % "move", SCAN_INTERVAL="0.05")
    sub = Folder(folder / "sub")  # the test itself must not go behind the link
    with exchanged(folder, "sub", private):
        for number in range(20):
            drop(folder, f"n{number}.txt", "x")
            sub.remove("secret.txt")
            sub.write_new("secret.txt", b"dropped")
        noted(site, 20)
    sub.close()
    drop(folder, "good.txt", "two")
    wait_for("the last file", lambda: "good.txt two" in site.noted(), SECONDS)
    says_nothing_of_it(site)


OURS = [
    "tasks/marie/.claims", "tasks/marie/.retry", "tasks/marie/.held", "results/marie/.tmp", "results/marie/.output",
    "dlq/marie/.tmp", "dlq/marie/.originals",
]  # fmt: skip
SHARED = ["tasks/marie", "results/marie", "dlq/marie", "triggers/marie", "control/marie", "control/holds"]


@pytest.mark.parametrize("place", OURS + SHARED)
def test_worker_does_not_start_behind_a_link_that_another_user_planted(site: Site, private: Path, place: str) -> None:
    path = site.root / place
    act(open_to_all(path.parent), f"ln -s {private} {path.name}")
    worker = site.launch("marie")
    assert worker.ended() == 2
    assert place in worker.text() and "symbolic link" in worker.text(), worker.text()
    path.unlink()
    site.start("marie")
    site.drop("x")
    assert site.result("x")["status"] == "completed"


@pytest.mark.parametrize("place", OURS)
def test_worker_does_not_keep_its_tasks_in_a_folder_of_another_user(site: Site, place: str) -> None:
    path = site.root / place
    act(open_to_all(path.parent), f"mkdir -m 777 {path.name}")
    worker = site.launch("marie")
    assert worker.ended() == 2
    assert place in worker.text() and "belongs to another user" in worker.text(), worker.text()
    assert os.listdir(path) == []


def test_inbox_that_another_user_made_for_all_is_served(site: Site) -> None:
    act(open_to_all(site.root / "tasks"), "mkdir -m 777 marie")
    site.start("marie")
    act(site.inbox(), """echo '{"description": "x"}' > .x; mv .x x.json""")
    assert site.result("x")["status"] == "completed"


def test_task_in_a_sticky_inbox_of_another_user_is_told_with_the_cure_until_it_can_be_taken(site: Site) -> None:
    """The worker is root without the right to move every file, as in a container: the interpreter may lie where no
    other user can start it."""
    inbox = site.inbox()
    site.drop("x")
    os.chown(inbox, STRANGER, STRANGER)
    os.chown(inbox / "x.json", STRANGER + 1, STRANGER)
    inbox.chmod(0o1777)
    started: list[Process] = []

    def start() -> None:
        assert ctypes.CDLL(None).prctl(24, 3, 0, 0, 0) == 0  # PR_CAPBSET_DROP, CAP_FOWNER: of this thread and its own
        started.append(site.launch("marie", SCAN_INTERVAL="0.1"))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    beat = site.beat_that(lambda beat: "sticky" in (beat.get("reason") or ""), what="that says it")
    assert f"chmod -t {inbox}" in beat["reason"] and beat["status"] == "healthy"
    os.chown(inbox / ".claims", STRANGER + 2, STRANGER)  # whose the worker is, for those who ask
    shown = site.run("show", "marie/x").stdout
    assert "held up" in shown and f"chmod -t {inbox}" in shown, shown
    site.pass_beats(10)
    (told,) = [line for line in started[0].lines("file.ignored") if "sticky" in line["message"]]
    assert f"chmod -t {inbox}" in told["message"]
    inbox.chmod(0o777)
    assert site.result("x")["status"] == "completed"
    site.beat_that(lambda beat: not beat.get("reason"), what="without it")


@pytest.mark.parametrize("place", ["tasks/marie/.claims", "results/marie/.tmp", "results/marie", "dlq/marie"])
def test_worker_whose_folder_is_exchanged_all_the_time_loses_nothing(site: Site, private: Path, place: str) -> None:
    path = site.root / place
    worker = site.start("marie", SCAN_INTERVAL="0.05", AGENT_COMMAND=site.script(NOTING))
    open_to_all(path.parent)
    stems = [f"t{number}" for number in range(20)]
    with exchanged(path.parent, path.name, private):
        for stem in stems:
            site.drop(stem)
        wait_for("work or an end", lambda: len(site.noted()) >= 20 or worker.popen.poll() is not None, SECONDS)
    if worker.popen.poll() is not None:
        assert "replaced" in worker.text() or "symbolic link" in worker.text()
        site.start("marie")
    for stem in stems:
        assert site.result(stem)["status"] == "completed"


def test_lock_that_is_a_link_ends_nobody_who_has_its_target_open(site: Site, private: Path) -> None:
    site.start("marie").stop()
    claims = site.root / "tasks/marie/.claims"
    claims.chmod(0o777)
    with (private / "secret.txt").open() as file:
        bystander = subprocess.Popen(["/bin/sleep", "600"], stdin=file)
    try:
        act(claims, f"ln -s {private}/secret.txt {'a' * 32}.busy; mkdir {'a' * 32}")
        site.start("marie")
        site.drop("x")
        site.result("x")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_file_that_another_user_planted_as_a_second_name_is_not_written_to(site: Site, private: Path) -> None:
    """Kernels forbid such links as a rule (fs.protected_hardlinks); the worker does not rely on it."""
    worker = site.start("marie")
    incarnation = site.beat()["incarnation"]
    os.link(private / "secret.txt", site.root / "heartbeats" / f".marie.json.{incarnation}.tmp")
    site.pass_beats(3)
    assert worker.popen.poll() is None
    assert json.loads((site.root / "heartbeats/marie.json").read_text())["status"] == "healthy"


def test_folder_of_root_is_as_good_as_ones_own(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    Folder(tmp_path / "own", private=True).close()
    os.chown(tmp_path / "own", STRANGER, STRANGER)
    with pytest.raises(Refused, match="belongs to another user"):
        Folder(tmp_path / "own", private=True)
