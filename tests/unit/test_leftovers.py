"""What a command leaves behind: processes that escaped, hide or hold a lock are found again and ended."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.adoption import family
from tests.realcommands import SOON, Started, adopted, ended_after, in_thread, is_alive, new_mark
from tests.waiting import wait_for
from watcher.system import leftover_processes, processes

__all__ = ["family"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sessions, /proc and pidfds of Linux")


def test_rest_of_the_group_is_ended_and_counted() -> None:
    def work() -> tuple[int, int, int | None, int]:
        started = Started("sleep 600 & echo $!; sleep 601 & echo $!; exit 3")
        return started.pid(), started.pid(), *started.finish()

    first, second, code, count = in_thread(work)
    assert (code, count) == (3, 2)
    assert not is_alive(first)
    assert not is_alive(second)


def test_what_belongs_to_a_command_that_was_ended_does_not_count_as_left_behind() -> None:
    started = Started("sleep 600 & echo $!; wait")
    inner = started.pid()
    assert started.child.end(SOON)
    assert started.finish() == (-signal.SIGTERM, 0)
    assert not is_alive(inner)


@pytest.mark.parametrize(
    "script",
    [
        "setsid sh -c 'echo $$; exec sleep 600' &",
        "(setsid sh -c 'echo $$; exec sleep 600' &) ; (sleep 0 &)",
        "setsid setsid sh -c 'trap \"\" TERM; echo $$; while :; do sleep 600; done' & sleep 0",
    ],
    ids=["setsid", "double_fork", "ignores_term"],
)
def test_process_that_escaped_into_another_session_is_ended(script: str) -> None:
    def work() -> tuple[int, int | None, int]:
        started = Started(f"{script}\nexit 0")
        return started.pid(), *started.finish()

    escaped, code, count = in_thread(work)
    with ended_after(escaped):
        assert code == 0
        assert count >= 1
        assert not is_alive(escaped)
        assert adopted() == []


def test_descendants_of_an_escaped_process_are_ended_too() -> None:
    started = Started("setsid sh -c 'sleep 600 & echo $!; (setsid sleep 601 & echo $!); wait' & exit 0")
    pids = [started.pid(), started.pid()]
    code, count = started.finish()
    assert code == 0
    assert count >= 3  # and maybe a shell between them
    assert not any(is_alive(pid) for pid in pids)


def test_escaped_process_that_cleared_its_environment_is_ended() -> None:
    started = Started("env -i setsid sh -c 'echo $$; exec sleep 600' & exit 0")
    escaped = started.pid()
    with ended_after(escaped):
        assert started.finish() == (0, 1)
        assert not is_alive(escaped)


def test_escaped_process_of_a_running_attempt_is_left_alone_until_that_attempt_is_over() -> None:
    serving = Started("(setsid sh -c 'echo $$; exec sleep 600' &); exec sleep 602")
    server = serving.pid()
    with ended_after(server):
        assert Started("exit 0").finish() == (0, 0)
        assert processes.sweep() == 0
        assert is_alive(server)
        assert serving.child.end(SOON)
        assert serving.finish() == (-signal.SIGTERM, 1)
        assert not is_alive(server)


def test_process_without_a_mark_may_belong_to_every_attempt_that_ran_when_it_began() -> None:
    older = Started("exec sleep 602")
    escaping = Started("env -i setsid sh -c 'echo $$; exec sleep 600' & exit 0")
    escaped = escaping.pid()
    with ended_after(escaped):
        assert escaping.finish() == (0, 0)
        assert is_alive(escaped)
        older.child.end(SOON)
        assert older.finish() == (-signal.SIGTERM, 1)
        assert not is_alive(escaped)


def test_process_without_a_mark_that_is_older_than_all_running_attempts_is_ended(
    family: leftover_processes._Family,
) -> None:
    older = Started("exec sleep 602")
    escaping = Started("env -i setsid sh -c 'echo $$; exec sleep 600' & exit 0")
    escaped = escaping.pid()
    escaping.finish()
    with ended_after(escaped):
        family.running[older.mark.encode()] += 3600.0  # as if that attempt had begun an hour later
        assert processes.sweep() == 1
        assert not is_alive(escaped)
        older.child.end(SOON)
        older.finish()


@pytest.mark.parametrize("escape", ["setsid", "env -i setsid"])
def test_what_an_attempt_leaves_behind_is_counted_once_though_a_sweep_comes_by(
    escape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = Started(f"{escape} sh -c 'echo $$; exec sleep 600' & exit 0")
    escaped = started.pid()
    wait, swept = leftover_processes._wait_until_ended, []

    def sweep_and_wait(targets: list[leftover_processes._Target], seconds: float) -> None:
        with monkeypatch.context() as once:
            once.setattr(leftover_processes, "_wait_until_ended", wait)
            swept.append(processes.sweep())
        wait(targets, seconds)

    monkeypatch.setattr(leftover_processes, "_wait_until_ended", sweep_and_wait)
    with ended_after(escaped):
        assert started.finish() == (0, 1)
        assert swept == [0]
        assert not is_alive(escaped)


PID_1 = """
import os, sys, threading
from watcher.system import processes
processes.become_subreaper()
busy = os.dup2(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), 99)
said, says = os.pipe()
hears, go_on = os.pipe()
environment = {b"PATH": os.environb[b"PATH"], b"WATCHER_MARK": b"m" * 32}
escape = "env -i setsid sh -c 'echo WHO $$; exec sleep 600' &\\n"
def slot():
    processes.attempt_began("m" * 32)
    script = escape.replace("WHO", "a") + "exec 99>&-\\n" + escape.replace("WHO", "b") + "read line"
    child = processes.spawn(["/bin/bash", "-c", script], environment, None, hears, says, 2, (busy,))
    lines = os.fdopen(said)
    said_pids = sorted(lines.readline().split() for _ in "ab")  # both are in sessions of their own now
    os.write(go_on, b"now\\n")
    child.wait()
    count = processes.attempt_over(child, "m" * 32)
    print(os.getpid(), count, [os.path.exists(f"/proc/{pid}") for _, pid in said_pids])
thread = threading.Thread(target=slot)
thread.start()
thread.join()
"""


def test_pid_1_of_a_container_ends_what_holds_its_lock_and_leaves_strangers_alone(tmp_path: Path) -> None:
    command = ["/usr/bin/unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", PID_1]
    done = subprocess.run([*command, str(tmp_path / "busy")], capture_output=True, text=True, timeout=60)
    if "unshare" in done.stderr:
        pytest.skip(f"no pid namespaces here: {done.stderr.strip()}")
    assert (done.stdout, done.stderr) == ("1 1 [False, True]\n", "")


def test_children_of_our_own_session_are_nobody_elses_business() -> None:
    ours = subprocess.Popen(["/bin/sleep", "600"])
    with ended_after(ours.pid):
        assert processes.sweep() == 0
        assert Started("exit 0").finish() == (0, 0)
        assert ours.poll() is None
    assert ours.wait(SOON) == -signal.SIGKILL


def test_exit_codes_of_our_own_session_are_left_for_who_waits_for_them() -> None:
    ours = subprocess.Popen(["/bin/sh", "-c", "exit 9"])
    os.waitid(os.P_PID, ours.pid, os.WEXITED | os.WNOWAIT)
    assert Started("exit 0").finish() == (0, 0)
    assert ours.wait(SOON) == 9


def test_dead_orphans_are_reaped() -> None:
    started = Started("(setsid sh -c 'echo up; exit 0' &); echo up; exit 0")
    started.line()
    started.line()
    assert started.finish()[0] == 0

    def are_gone() -> bool:
        processes.sweep()
        return not adopted()

    wait_for("the end of all orphans", are_gone)


def test_leftovers_are_ended_without_a_list_of_children_too(
    family: leftover_processes._Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel built without CONFIG_PROC_CHILDREN."""
    monkeypatch.setattr(family, "_children_fd", None)
    busy = Started("exec sleep 602")
    started = Started("setsid sh -c 'echo $$; exec sleep 600' & exit 0")
    escaped = started.pid()
    with ended_after(escaped):
        assert started.finish() == (0, 1)
        assert not is_alive(escaped)
        assert is_alive(busy.child.pid)
    busy.child.end(SOON)
    busy.finish()
    monkeypatch.undo()


def test_leftovers_are_ended_without_a_subreaper_too(family: leftover_processes._Family) -> None:
    ctypes.CDLL(None).prctl(leftover_processes._PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    family.is_adopting = False
    other = Started("exec sleep 602", mark := new_mark() + "0")
    started = Started("setsid sh -c 'echo $$; exec sleep 600' & exit 0", mark[:-1])
    escaped = started.pid()
    with ended_after(escaped):
        assert started.finish() == (0, 1)
        assert not is_alive(escaped)
        assert is_alive(other.child.pid), "a mark that starts alike is another attempt's"
    other.child.end(SOON)
    other.finish()


def test_many_threads_leave_nothing_behind() -> None:
    codes: list[tuple[int | None, int]] = []

    def slot() -> None:
        for _ in range(15):
            started = Started("setsid sleep 603 & sleep 604 & echo up; exit 2")
            started.line()
            codes.append(started.finish())

    threads = [threading.Thread(target=slot) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [code for code, _ in codes] == [2] * 45
    processes.sweep()
    assert adopted() == []


def test_all_that_carries_a_mark_is_killed_and_nothing_else() -> None:
    incarnation = "d" * 20 + f"{os.getpid():012x}"
    theirs = Started("(setsid sh -c 'echo $$; exec sleep 600' &); trap '' TERM; sleep 601; exit 1", f"{incarnation}.1")
    escaped = theirs.pid()
    other = Started("exec sleep 602")
    with ended_after(escaped):
        assert processes.kill_marked(incarnation) >= 2
        assert not is_alive(escaped)
        assert is_alive(other.child.pid)
        assert processes.kill_marked(incarnation) == 0
    assert theirs.finish()[0] in (-signal.SIGKILL, 1)
    other.child.end(SOON)
    other.finish()


def test_process_that_kills_the_marked_spares_itself() -> None:
    mark = new_mark()
    program = (
        "import os; from watcher.system import processes; print(processes.kill_marked(os.environ['WATCHER_MARK']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "WATCHER_MARK": mark}, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, b"0")


def test_mark_that_could_be_anybodys_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 8"):
        processes.kill_marked("")


@pytest.mark.parametrize("deleted", [False, True])
def test_holders_of_a_lock_are_killed_though_they_cleared_their_environment(tmp_path: Path, deleted: bool) -> None:
    lock = tmp_path / "x.busy"
    fd = os.open(lock, os.O_RDWR | os.O_CREAT)
    started = Started("env -i setsid sh -c 'echo $$; exec sleep 600' & exit 0", pass_fds=(fd,))
    escaped = started.pid()
    with ended_after(escaped):
        assert started.child.wait(SOON) == 0
        if deleted:
            lock.unlink()
        assert processes.kill_holders(lock) == 1  # and not we, who hold it too
        assert not is_alive(escaped)
        assert processes.kill_holders(str(lock)) == 0
    os.close(fd)
    assert started.over() == 0


def test_who_only_asks_for_a_lock_is_spared_where_those_are_meant_that_inherited_it(tmp_path: Path) -> None:
    lock = tmp_path / "x.busy"
    fd = os.open(lock, os.O_RDWR | os.O_CREAT)
    heir = Started("echo $$; exec sleep 600", pass_fds=(fd,))
    asks = f"import os, time; os.open({str(lock)!r}, os.O_RDWR); print(os.getpid(), flush=True); time.sleep(600)"
    asker = Started(f"exec {shlex.quote(sys.executable)} -I -S -c {shlex.quote(asks)}")
    pids = heir.pid(), asker.pid()
    with ended_after(pids[1]):
        assert processes.kill_holders(lock, inherited_only=True) == 1
        assert list(map(is_alive, pids)) == [False, True]
        assert processes.kill_holders(lock) == 1
        assert not is_alive(pids[1])
    os.close(fd)
    heir.finish()
    asker.finish()


def test_file_of_the_same_name_elsewhere_is_not_the_lock(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    fd = os.open(tmp_path / "elsewhere" / "x.busy", os.O_RDWR | os.O_CREAT)
    (tmp_path / "x.busy").touch()
    started = Started("exec sleep 600", pass_fds=(fd,))
    assert processes.kill_holders(tmp_path / "x.busy") == 0
    assert is_alive(started.child.pid)
    started.child.end(SOON)
    started.finish()
    os.close(fd)
