"""Real processes: how they are started, waited for and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.adoption import family
from tests.realcommands import SOON, Started, ended_after, in_thread, is_alive
from tests.waiting import wait_for
from watcher.system import leftover_processes, processes

__all__ = ["family"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sessions, /proc and pidfds of Linux")


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9), ("kill -TERM $$", -15)])
def test_exit_code_is_told_and_a_signal_is_negative(script: str, code: int) -> None:
    assert in_thread(lambda: Started(script).finish()) == (code, 0)


def test_thread_that_started_a_command_outlives_it() -> None:
    """Its end kills a command that asked for the death signal of its parent, as bwrap --die-with-parent does."""
    started = Started("echo up; sleep 600")
    started.line()

    def parents() -> list[str]:
        tasks = Path("/proc/self/task").iterdir()
        return [task.name for task in tasks if str(started.child.pid) in (task / "children").read_text().split()]

    assert parents() not in ([], [str(os.getpid())])
    started.child.end(0)
    started.finish()
    assert parents() == []


def test_exit_code_can_be_asked_again() -> None:
    started = Started("exit 3")
    assert [started.child.wait(), started.child.wait(0.0)] == [3, 3]
    started.over()


def test_wait_gives_none_when_the_time_is_over_and_the_code_later() -> None:
    started = Started("trap 'exit 4' TERM; echo up; sleep 600 & wait")
    started.line()
    assert started.child.wait(0.0) is None
    assert started.child.wait(0.01) is None
    started.child.end(SOON)
    assert started.finish() == (4, 0)


@pytest.mark.parametrize(("leader_alone", "lives"), [(True, True), (False, False)])
def test_only_the_leader_is_asked_where_that_is_wanted(leader_alone: bool, lives: bool) -> None:
    """A worker that drains lets its commands finish; one that it just starts is still of its group."""
    started = Started("trap 'exit 4' TERM; sh -c 'echo $$; exec sleep 600' & wait")
    beside = int(started.line())
    with ended_after(beside):
        started.child.end(SOON, leader_alone=leader_alone)
        assert started.child.wait() == 4
        if not lives:
            wait_for("the end of the other one", lambda: not is_alive(beside))
        assert is_alive(beside) == lives
        started.over()
        assert not is_alive(beside)


def test_command_that_hangs_times_out_and_ends_on_term() -> None:
    def work() -> tuple[int | None, bool, int | None, int]:
        started = Started(["/bin/sleep", "600"])
        return started.child.wait(0.05), started.child.end(SOON), *started.finish()

    assert in_thread(work) == (None, True, -signal.SIGTERM, 0)


@pytest.mark.parametrize("without_pidfd", [False, True])
def test_command_that_ignores_term_is_killed_after_the_grace(
    without_pidfd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftover_processes, "_HAS_PIDFD", not without_pidfd)
    started = Started("trap '' TERM; echo up; while :; do sleep 600; done")
    started.line()
    began = time.monotonic()
    assert started.child.end(0.2)
    assert started.child.wait() == -signal.SIGKILL
    assert time.monotonic() - began >= 0.2
    assert started.over() == 0


@pytest.mark.parametrize("without_pidfd", [False, True])
def test_other_thread_ends_a_command_while_one_waits(without_pidfd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftover_processes, "_HAS_PIDFD", not without_pidfd)
    started = Started("trap '' TERM; echo up; while :; do sleep 600; done")
    started.line()
    codes: list[int | None] = []
    waiting = threading.Thread(target=lambda: codes.append(started.child.wait(SOON)))
    waiting.start()
    assert started.child.end(0.1)  # whether the other thread is in `wait` yet must not matter
    waiting.join(SOON)
    assert codes == [-signal.SIGKILL]
    assert started.over() == 0


def test_ending_again_without_grace_kills_at_once() -> None:
    started = Started("trap '' TERM; echo up; while :; do sleep 600; done")
    started.line()
    assert started.child.end(3600.0)
    assert started.child.end(0.0)
    assert started.finish() == (-signal.SIGKILL, 0)


def test_stopped_command_is_ended() -> None:
    started = Started("kill -STOP $$; sleep 600")
    os.waitid(os.P_PID, started.child.pid, os.WSTOPPED | os.WNOWAIT)
    assert started.child.end(SOON)
    assert started.finish() == (-signal.SIGTERM, 0)


def test_command_that_ended_by_itself_is_not_said_to_have_been_ended() -> None:
    started = Started("exit 5")
    while started.line():
        pass  # its end closes the pipe; that it can be reaped comes a moment later
    os.waitid(os.P_PID, started.child.pid, os.WEXITED | os.WNOWAIT)
    assert started.child.end(SOON) is False
    assert started.finish() == (5, 0)
    assert started.child.end(SOON) is False


def test_exit_code_that_somebody_else_took_is_unknown() -> None:
    started = Started("exit 5")
    os.waitpid(started.child.pid, 0)
    assert started.finish() == (processes.EXIT_UNKNOWN, 0)


def test_exit_codes_are_told_when_sigchld_was_inherited_as_ignored() -> None:
    program = (
        "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "from watcher.system import processes\n"
        "processes.become_subreaper()\n"
        "child = processes.spawn(['/bin/sh', '-c', 'exit 6'], {}, None, None, 1, 2)\n"
        "print(child.wait())"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True, timeout=60).strip() == "6"


def test_missing_program_raises_and_leaves_nothing() -> None:
    with pytest.raises(FileNotFoundError):
        Started(["/no/such/program"])


def test_command_has_an_empty_stdin_and_only_the_descriptors_it_is_given(tmp_path: Path) -> None:
    ours = os.open(tmp_path / "ours", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(ours, True)
    given = os.open(tmp_path / "given", os.O_RDWR | os.O_CREAT)
    try:
        program = (
            "import os; fds = os.listdir('/proc/self/fd')\n"
            "print(*sorted(int(n) for n in fds if os.path.exists(f'/proc/self/fd/{n}')))\n"
            "print(os.read(0, 9))"
        )
        started = Started([sys.executable, "-I", "-c", program], pass_fds=(given,))
        assert started.line() == f"0 1 2 {given}"
        assert started.line() == "b''"
        assert started.finish() == (0, 0)
    finally:
        os.close(ours)
        os.close(given)


def test_waiting_costs_no_descriptors() -> None:
    Started("exit 0").finish()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        started = Started("exec sleep 600")
        started.child.end(SOON)
        started.finish()
    assert len(os.listdir("/proc/self/fd")) == before
