"""Each signal that a person, a terminal or an init sends has its meaning, and none leaves an agent behind."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import REPOSITORY, Site, is_alive
from tests.acceptance.test_stopping import GENTLE, STUBBORN, all_started, assert_nothing_is_left, noted_pids
from tests.waiting import wait_for

#: Makes Landlock's calls fail as they do on a kernel that has none, for the program that it then becomes.
OLD_KERNEL = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
rows = [(0x20, 0, 0, 0), (0x35, 0, 2, 444), (0x25, 1, 0, 446), (0x06, 0, 0, 0x50000 | 38), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(rows), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.parametrize("number", ["SIGHUP", "SIGPWR", "SIGXCPU", "SIGRTMIN"])
def test_signal_that_ends_others_drains(site: Site, number: str) -> None:
    worker = site.start(AGENT_COMMAND=site.script(GENTLE))
    site.drop("running")
    all_started(site, 2)
    worker.signal(getattr(signal, number))
    assert site.beat_that(lambda beat: beat["status"] == "draining", what="that says draining")["reason"].startswith(
        number
    )
    (site.home / "go").touch()
    assert worker.ended() == 0
    assert site.result("running")["status"] == "completed"
    assert_nothing_is_left(site, worker)


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGABRT])
def test_signal_that_asks_for_a_core_ends_what_runs_now(site: Site, number: signal.Signals) -> None:
    worker = site.start(AGENT_COMMAND=site.script(STUBBORN), SHUTDOWN_GRACE="3600")
    raw = site.drop("long")
    all_started(site)
    worker.signal(number)
    assert worker.ended() == 0, "long before the grace is over"
    assert (site.inbox() / "long.json").read_bytes() == raw
    assert_nothing_is_left(site, worker)


def test_signal_without_a_meaning_is_told_and_passed_over(site: Site) -> None:
    worker = site.start(AGENT_COMMAND="cat")
    meaningless = [
        "SIGUSR1",
        "SIGUSR2",
        "SIGALRM",
        "SIGVTALRM",
        "SIGPROF",
        "SIGSTKFLT",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
    ]
    for name in meaningless:
        worker.signal(getattr(signal, name))
    told = worker.logged("signal.passed_over", len(meaningless))
    assert sorted(line["signal"] for line in told) == sorted(meaningless)
    for name in ["SIGPIPE", "SIGWINCH", "SIGCONT", "SIGURG", "SIGCHLD", "SIGIO", "SIGXFSZ"]:
        worker.signal(getattr(signal, name))
    site.drop("after")
    assert site.result("after")["status"] == "completed"
    assert worker.stop() == 0


def test_agent_starts_with_no_signal_blocked_or_ignored(site: Site) -> None:
    site.start(AGENT_COMMAND=site.script("grep -E '^Sig(Blk|Ign)' /proc/self/status"))
    site.drop("mask")
    of_libc = 1 << 31 | 1 << 32  # 32 and 33, which no program can set
    masks = [int(line.split()[1], 16) & ~of_libc for line in site.result("mask")["stdout"].splitlines()]
    assert masks == [0, 0]


def in_terminal(site: Site, *command: str, **settings: str) -> tuple[subprocess.Popen[bytes], int]:
    """A program in a terminal of its own; closing the returned descriptor closes that terminal."""
    ours, theirs = pty.openpty()
    log = (site.home / "terminal.log").open("w")
    popen = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
         "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])", *command],
        cwd=site.home, env=site.environment({"PYTHONPATH": str(REPOSITORY), **settings}), stdin=theirs, stdout=log,
        stderr=log, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    log.close()
    return popen, ours


@pytest.mark.parametrize("program", ["worker_watcher.py", "worker with zones", "watcher up"])
def test_closed_terminal_drains(site: Site, program: str, tmp_path: Path) -> None:
    words = (
        ["-m", "watcher", "up", "marie"]
        if program == "watcher up"
        else [str(REPOSITORY / "worker_watcher.py"), "marie"]
    )
    zones = tmp_path / "drops.yaml"
    zones.write_text("zones: [{name: in, dirs: in, patterns: ['*.md'], worker: marie, prompt: read}]\n")
    (tmp_path / "in").mkdir()
    more = {"ZONES_FILE": str(zones)} if program == "worker with zones" else {}
    popen, terminal = in_terminal(site, *words, AGENT_COMMAND=site.script(GENTLE), **more)
    try:
        site.drop("running")
        all_started(site, 2)
        os.close(terminal)
        site.beat_that(lambda beat: beat["status"] == "draining", what="that says draining")
        (site.home / "go").touch()
        assert popen.wait(120) == 0, (site.home / "terminal.log").read_text()
    finally:
        popen.kill()
        popen.wait()
    assert site.result("running")["status"] == "completed"
    assert [pid for pid in noted_pids(site) if is_alive(pid)] == []


@pytest.mark.parametrize(
    "how", ["kill -TERM $PPID", "kill -INT $PPID; true", 'env -i /bin/sh -c "kill -HUP $PPID; sleep 1"']
)
def test_old_kernel_is_told_and_a_signal_from_an_agent_is_passed_over(site: Site, how: str) -> None:
    program = site.home / "old_kernel.py"
    program.write_text(OLD_KERNEL)
    log = (site.home / "old.log").open("w")
    command = site.script(f"sleep 0.5; {how}; sleep 0.2; echo went on")
    popen = subprocess.Popen(
        [sys.executable, str(program), str(REPOSITORY / "worker_watcher.py"), "marie"],
        cwd=site.home, env=site.environment({"AGENT_COMMAND": command}), stdout=log, stderr=log,
    )  # fmt: skip
    log.close()
    try:
        site.drop("poison")
        result = site.result("poison")
        assert (result["status"], result["stdout"], result["attempts"]) == ("completed", "went on\n", 1)
        assert "the kernel has no Landlock" in site.beat()["fence"]
        text = (site.home / "old.log").read_text()
        assert "signal.passed_over" in text and "which an agent has started" in text, text
        popen.terminate()
        assert popen.wait(60) == 0, "a person is obeyed"
    finally:
        popen.kill()
        popen.wait()
    wait_for("the last beat", lambda: site.beat()["status"] == "stopped")
