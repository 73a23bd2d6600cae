"""Trouble with the machine or with the folders, under a running worker: it stays, says so, burns nothing, and recovers.

What is short (space, inodes, descriptors, processes), read-only, deleted, moved or replaced is so while tasks run and
wait. After the relief every task must have its one outcome with its first attempt.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.disks import fill, free_bytes, mount, run
from tests.crash.harness import PATIENCE_SECONDS, Site, WorkerProcess
from tests.waiting import wait_for

__all__ = ["mount"]
pytestmark = [pytest.mark.crash, pytest.mark.timeout(400)]

MakeSite = Callable[..., Site]


# --- means of trouble


def delete(folder: Path) -> None:
    """Remove it with all that is in it, although a worker makes and renames files there meanwhile."""
    while folder.exists():
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
            return


def is_degraded(site: Site) -> Callable[[], bool]:
    return lambda: site.heartbeat().get("status") == "degraded"


def is_healthy(site: Site) -> Callable[[], bool]:
    return lambda: site.heartbeat().get("status") == "healthy"


def has_trouble(process: WorkerProcess) -> Callable[[], bool]:
    return lambda: process.said("worker.trouble_began") or process.said("trouble.began")


def ran_once(site: Site, *task_ids: str) -> None:
    for task_id in task_ids:
        assert len(site.runs(task_id)) == 1, site.runs(task_id)


def let_scans_pass(site: Site, process: WorkerProcess, beats: int = 3) -> None:
    """Long enough for a hot loop or a wrong decision to show: some beats, or where none can be written, some time."""
    start = site.heartbeat().get("sequence", 0)
    end = time.monotonic() + beats * 0.5 + 0.5
    while time.monotonic() < end and site.heartbeat().get("sequence", 0) < start + beats:
        assert process.is_running(), process.text()
        time.sleep(0.02)  # there is no event that says that nothing happens


# --- the disk


@pytest.mark.needs_mount
def test_full_disk_keeps_outcomes_until_there_is_room(make_site: MakeSite, mount: Callable[..., Path]) -> None:
    disk = mount("ext4")
    site = make_site(HEARTBEAT_DIR=None)
    site.root = disk / "root"
    site.settings["HEARTBEAT_DIR"] = site.base / "heartbeats"
    process = site.start()
    for number in range(3):
        site.drop(f"run{number}", "say 3000 gate full")
    site.wait_for(lambda: len(site.runs()) == 3, "three runs")
    for number in range(20):
        site.drop(f"wait{number}", "say 3000")
    ballast = fill(disk)
    site.open_gate("full")
    site.wait_for(has_trouble(process), "the trouble")
    # Some were claimed before the first outcome could not be stored: what they run ends, too.
    has_come_to_rest = {"status": "degraded", "active_tasks": 0}.items()
    site.wait_for(lambda: has_come_to_rest <= _beat_beside(site).items(), "a degraded heartbeat with nothing running")
    runs = len(site.runs())
    let_scans_pass(site, process)
    assert len(site.runs()) == runs, "goes on although nothing can be stored"
    ballast.unlink()
    site.finish()
    ran_once(site, "run0", "run1", "run2")


def _beat_beside(site: Site) -> dict[str, object]:
    path = site.base / "heartbeats" / "marie.json"
    return json.loads(path.read_bytes()) if path.exists() else {}


@pytest.mark.needs_mount
def test_command_that_finds_the_disk_full_costs_no_attempt(make_site: MakeSite, mount: Callable[..., Path]) -> None:
    disk = mount("ext4")
    site = make_site(MAX_RETRIES=1)
    site.root = disk / "root"
    process = site.start()
    site.drop("a", "gate full say 100000")
    site.wait_for(site.runs, "a run")
    ballast = fill(disk)
    site.open_gate("full")
    site.wait_for(has_trouble(process), "the trouble")
    let_scans_pass(site, process)
    ballast.unlink()
    site.finish()


@pytest.mark.needs_mount
def test_little_room_stops_claiming_and_says_so(make_site: MakeSite, mount: Callable[..., Path]) -> None:
    disk = mount("ext4")
    site = make_site(MIN_FREE_BYTES=8 << 20)
    site.root = disk / "root"
    process = site.start()
    ballast = disk / "ballast"
    ballast.write_bytes(b"\0" * (free_bytes(disk) - (4 << 20)))
    site.wait_for(is_degraded(site), "a degraded heartbeat")  # the room is looked at once a second
    for number in range(5):
        site.drop(f"t{number}", "say 1")
    let_scans_pass(site, process)
    assert is_degraded(site)() and site.runs() == []
    assert len(list(site.inbox().glob("*.json"))) == 5
    ballast.unlink()
    site.finish()
    ran_once(site, *(task_id for _, task_id in site.submitted))


@pytest.mark.needs_mount
def test_no_inodes_is_waited_for(make_site: MakeSite, mount: Callable[..., Path]) -> None:
    disk = mount("tmpfs", inodes=400)
    site = make_site()
    site.root = disk / "root"
    process = site.start()
    site.drop("run", "say 3000 gate full")
    site.wait_for(site.runs, "a run")
    for number in range(5):
        site.drop(f"t{number}", "say 1")
    taken = disk / "taken"
    taken.mkdir()
    with contextlib.suppress(OSError):
        for number in range(1000):
            (taken / str(number)).touch()
    site.open_gate("full")
    site.wait_for(has_trouble(process), "the trouble")
    let_scans_pass(site, process)
    shutil.rmtree(taken)
    site.finish()
    ran_once(site, *(task_id for _, task_id in site.submitted if task_id == "run"))


@pytest.mark.needs_mount
def test_disk_that_breaks_under_a_worker_loses_nothing(make_site: MakeSite, mount: Callable[..., Path]) -> None:
    disk = mount("ext4")
    site = make_site(SHUTDOWN_GRACE=1)
    site.root = disk / "root"
    site.settings["HEARTBEAT_DIR"] = site.base / "heartbeats"
    process = site.start()
    site.drop("run", "say 10 gate broken")
    site.drop("wait", "say 10", not_before=time.time() + 3)
    site.wait_for(lambda: site.runs("run"), "a run")
    run("sync", "-f", disk)
    run("mount", "-o", "remount,abort", disk)  # what ext4 does by itself at an error of the disk: no write succeeds
    site.open_gate("broken")
    site.wait_for(has_trouble(process), "the trouble")
    site.wait_for(lambda: _beat_beside(site).get("status") == "degraded", "a degraded heartbeat")
    let_scans_pass(site, process)
    process.popen.terminate()
    assert process.popen.wait(PATIENCE_SECONDS) == 0, process.text()
    process.fate = "killed"  # its outcome could not be stored
    image = disk.parent / disk.name.replace("disk", "image")
    run("umount", disk)
    with contextlib.suppress(subprocess.CalledProcessError):  # it says 1 when it has mended something
        run("e2fsck", "-p", image)
    run("mount", "-o", "loop", image, disk)
    site.start()
    site.finish()


@pytest.mark.needs_mount
def test_dead_letters_on_another_file_system_keep_every_original(
    make_site: MakeSite, mount: Callable[..., Path]
) -> None:
    site = make_site(DLQ_DIR=mount("tmpfs", inodes=1000), SETTLE_SECONDS=0)
    site.start()
    folder = Path(str(site.settings["DLQ_DIR"])) / "marie"
    contents = [b"first {", b"second {", b"third {"]
    for number, content in enumerate(contents, 1):
        (site.inbox() / "bad.json").write_bytes(content)
        site.wait_for(lambda number=number: len(list(folder.glob("*.json"))) == number, "a dead letter")
        site.wait_for(lambda: not list(site.inbox().glob(".claims/*/*~*")), "the end of the claim")
    assert sorted(path.read_bytes() for path in (folder / ".originals").iterdir()) == sorted(contents)


# --- descriptors and processes


@pytest.mark.parametrize("spare", range(0, 12, 2))
def test_no_descriptors_burns_nothing(site: Site, spare: int) -> None:
    process = site.start()
    site.drop("warm", "say 1")
    site.wait_until_all_ended()
    site.drop("long", "say 3000 escape gate go")
    site.wait_for(lambda: site.runs("long"), "a run")
    usual = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    used = len(os.listdir(f"/proc/{process.pid}/fd"))
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + spare, usual[1]))
    for number in range(8):
        site.drop(f"t{number}", "say 100 escape")
    let_scans_pass(site, process)
    site.open_gate("go")
    let_scans_pass(site, process)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, usual)
    print("NOFILE", spare, has_trouble(process)(), len(site.runs()))
    site.finish()
    ran_once(site, *(task_id for _, task_id in site.submitted))


@contextlib.contextmanager
def few_processes(process: WorkerProcess, name: str) -> Iterator[Callable[[int | None], None]]:
    """Gives a function that limits how many tasks (threads count) the worker and its children may have."""
    for parent in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")):
        group = parent / f"watcher-crash-{name}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / "pids.max").exists():
            break
        group.rmdir()
    else:
        pytest.skip("needs a writable pids cgroup")
    try:
        (group / "cgroup.procs").write_text(str(process.pid))

        def limit(spare: int | None) -> None:
            value = "max" if spare is None else str(int((group / "pids.current").read_text()) + spare)
            (group / "pids.max").write_text(value)

        yield limit
    finally:
        (group / "pids.max").write_text("max")
        if process.is_running():
            process.stop()
        wait_for("the end of the group's last process", lambda: is_removed(group))


def is_removed(group: Path) -> bool:
    """Whether this control group could be removed; the kernel lets it go when the last process is reaped."""
    try:
        group.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


@pytest.mark.parametrize("spare", [0, 1, 2])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_fork_that_is_refused_burns_nothing(site: Site, spare: int, warm: bool) -> None:
    process = site.start()
    with few_processes(process, f"{os.getpid()}-{spare}-{warm}") as limit:
        if warm:
            site.drop("warm", "say 1")
            site.wait_until_all_ended()
        limit(spare)
        for number in range(8):
            site.drop(f"t{number}", "sleep 20")
        if spare == 0:
            site.wait_for(is_degraded(site), "a degraded heartbeat")
        let_scans_pass(site, process)
        limit(None)
        print("FORK", spare, warm, has_trouble(process)(), len(site.runs()), process.text()[-300:])
        site.finish()
    ran_once(site, *(task_id for _, task_id in site.submitted))


# --- the folders


@contextlib.contextmanager
def immutable(path: Path) -> Iterator[None]:
    try:
        run("chattr", "+i", path)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs root and a file system with immutable files")
    try:
        yield
    finally:
        run("chattr", "-i", path)


def test_inbox_that_is_read_only_is_waited_for(site: Site) -> None:
    site.inbox()
    process = site.start()
    site.drop("run", "gate go")
    site.drop("t0", "gate first", agent_id="x")
    site.wait_for(lambda: len(site.runs()) == 2, "two runs")
    site.drop("t1", "say 1", agent_id="x")
    with immutable(site.inbox()):
        site.open_gate("first")  # now it is the turn of t1
        site.wait_for(is_degraded(site), "a degraded heartbeat")
        site.open_gate("go")
        site.wait_for(lambda: site.result("run"), "a result: only the inbox is read-only")
        let_scans_pass(site, process)
        assert not site.runs("t1")
    site.finish()
    ran_once(site, "run", "t0", "t1")


def test_one_file_that_cannot_be_moved_stops_no_other(site: Site) -> None:
    site.drop("stuck", "say 1")
    with immutable(site.inbox() / "stuck.json"):
        process = site.start()
        for number in range(5):
            site.drop(f"t{number}", "say 1")
        site.wait_for(lambda: site.waiting() == ["stuck.json", "stuck"], "the other tasks")
        before = _cpu_seconds(process)
        let_scans_pass(site, process)
        assert _cpu_seconds(process) - before < 0.5, "a hot loop"
        site.wait_for(is_healthy(site), "a healthy heartbeat")
    site.finish()


def _cpu_seconds(process: WorkerProcess) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


FOLDERS = [
    "tasks/marie", "tasks/marie/.retry", "tasks/marie/.claims", "results/marie", "results/marie/.tmp", "dlq/marie",
    "dlq/marie/.originals", "triggers/marie", "heartbeats", "control/marie", "results", "tasks", ".",
]  # fmt: skip


@pytest.mark.parametrize("how", ["deleted", "moved"])
@pytest.mark.parametrize("name", FOLDERS)
def test_folder_that_goes_away_comes_back(site: Site, name: str, how: str) -> None:
    process = site.start()
    site.drop("before", "say 1")
    site.wait_until_all_ended()
    site.submitted.clear()
    path = (site.root / name).resolve()
    if how == "deleted":
        delete(path)
    else:
        path.rename(site.base / "moved")
        # Until this is noticed, outcomes go where the folder went, as if they had been there before it moved.
        site.wait_for(lambda: _has_noticed(process, name), "a word about the folder")
    site.drop("good", "say 1")
    site.drop("bad", "fail 9", max_retries=1)
    site.drop_raw("broken.json", b"{")
    site.wait_until_all_ended()
    site.wait_for(lambda: site.heartbeat().get("status") == "healthy", "a healthy heartbeat")
    site.drop("later", "say 1")
    site.wait_until_all_ended()
    assert process.is_running()
    _forget(site, "before")
    site.finish()


def _has_noticed(process: WorkerProcess, name: str) -> bool:
    if name in ("heartbeats", "control/marie"):
        return True
    return process.said("folder.lost") or len(process.incarnations()) == 2


def _forget(site: Site, task_id: str) -> None:
    for folder in ("results", "triggers"):
        (site.root / folder / "marie" / f"{task_id}.json").unlink(missing_ok=True)
    lines = [line for line in site.run_log.read_text().splitlines() if line.split()[1] != task_id]
    site.run_log.write_text("".join(line + "\n" for line in lines))


@pytest.mark.parametrize("name", ["results/marie", "results", "dlq/marie", "triggers/marie", "heartbeats"])
def test_folder_that_goes_away_while_tasks_run_costs_no_outcome(site: Site, name: str) -> None:
    process = site.start()
    site.drop("run", "say 10 gate go")
    site.drop("fails", "gate go fail 9", max_retries=0)
    site.wait_for(lambda: len(site.runs()) == 2, "two runs")
    delete(site.root / name)
    site.open_gate("go")
    site.finish()
    assert process.fate == "stopped"
    ran_once(site, "run", "fails")


def test_inbox_that_moves_while_tasks_run_gives_them_back(site: Site) -> None:
    process = site.start()
    site.drop("run", "gate go")
    site.wait_for(site.runs, "a run")
    away = site.base / "away"
    (site.root / "tasks/marie").rename(away)
    site.wait_for(lambda: process.said("worker.lock_lost"), "a new incarnation")
    site.wait_for(lambda: len(process.incarnations()) == 2, "a new incarnation")
    back = site.submitted.pop(("marie", "run"))
    site.drop("other", "say 1")
    site.wait_until_all_ended()
    assert (away / "run.json").read_bytes() == back.raw, sorted(away.rglob("*"))
    (away / "run.json").rename(site.inbox() / "run.json")
    site.submitted["marie", "run"] = back
    site.open_gate("go")
    site.finish()


@pytest.mark.parametrize("kind", ["lock", "busy"])
@pytest.mark.parametrize("instances", [1, 2])
def test_lock_that_is_deleted_while_it_is_held_makes_no_second_run_at_once(
    site: Site, kind: str, instances: int
) -> None:
    names = [str(number) for number in range(instances)] if instances > 1 else [None]
    processes = [site.start(instance=name) for name in names]
    for number in range(4):
        site.drop(f"t{number}", "sleep 300")
    for number in range(4, 10):
        site.drop(f"t{number}", "sleep 50 escape")
    site.wait_for(site.runs, "a run")
    lock = site.inbox() / ".claims" / f"{site.runs()[0].incarnation}.{kind}"
    lock.unlink()

    def all_ended() -> bool:
        for process, name in zip(list(processes), names, strict=True):
            if process.was_killed():  # by the other instance, which took it for dead: a supervisor starts it again
                processes[processes.index(process)] = site.start(instance=name)
        return not site.waiting()

    site.wait_for(all_ended, "an outcome of every task")
    site.finish()


def test_worker_whose_claims_are_taken_away_for_years_serves_on_while_it_gets_on(site: Site) -> None:
    process = site.start(SCAN_INTERVAL=0.1)
    for number in range(12):
        delete(site.inbox() / ".claims" / process.incarnations()[-1])
        site.wait_for(lambda number=number: len(process.incarnations()) == number + 2, "a fresh incarnation")
        site.drop(f"t{number}", "say 1")
        site.wait_until_all_ended()
    site.finish()
