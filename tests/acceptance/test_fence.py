"""What an agent does to processes that are not its own: nothing. With the fence, and where the kernel has none."""

from __future__ import annotations

import sys

import pytest

from tests.acceptance.conftest import Site, is_alive
from tests.acceptance.supervised import Up
from tests.waiting import wait_for
from watcher.system.process_fence import IN_FORCE, Fence

pytestmark = pytest.mark.skipif(
    Fence().state() != IN_FORCE, reason="this kernel has no Landlock with scopes (Linux 6.12)"
)

#: Every way that a process has to signal another, tried on one that is named; signal 0 asks and does no harm.
ATTACK = """
import ctypes, os, signal, sys
target = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def raw(*words):
    if libc.syscall(*map(ctypes.c_long, words)) < 0:
        raise OSError(ctypes.get_errno(), "")
def by_pidfd():
    signal.pidfd_send_signal(os.pidfd_open(target), 0)
info = (ctypes.c_int * 32)(0, 0, -1)
queue = 138 if os.uname().machine == "aarch64" else 129
attacks = {
    "kill": lambda: os.kill(target, 0),
    "killpg": lambda: os.killpg(os.getpgid(target), 0),
    "pidfd": by_pidfd,
    "queue": lambda: raw(queue, target, 0, ctypes.addressof(info)),
    "seize": lambda: (libc.ptrace(0x4206, target, 0, 0) < 0) and (_ for _ in ()).throw(PermissionError()),
}
for thread in os.listdir(f"/proc/{target}/task"):
    attacks["thread " + thread] = lambda thread=int(thread): os.kill(thread, 0)
for name, attack in attacks.items():
    try:
        attack()
        print(name, "ALLOWED")
    except (PermissionError, ProcessLookupError):  # a thread may have ended meanwhile
        print(name, "refused")
"""


def attacking(site: Site, target: str) -> str:
    program = site.home / "attack.py"
    program.write_text(ATTACK)
    return site.script(f'"{sys.executable}" "{program}" {target}')


def test_agent_can_signal_its_worker_in_no_way(site: Site) -> None:
    worker = site.start(AGENT_COMMAND=attacking(site, "$PPID"))
    site.drop("attack")
    result = site.result("attack")
    assert result["status"] == "completed"
    allowed = [line for line in result["stdout"].splitlines() if line.endswith("ALLOWED")]
    # The one thread that started this very command is in its domain; nothing but a guess at its number reaches it.
    assert "kill refused" in result["stdout"] and len(allowed) <= 1, result["stdout"]
    assert all(line.startswith("thread") for line in allowed), allowed
    assert site.beat()["fence"] == IN_FORCE
    assert worker.stop() == 0


#: No other process of the machine has this name in its command line, whatever becomes of the fence.
TARGET = "target-of-a-broad-kill"


@pytest.mark.parametrize("broad", ["kill -TERM $PPID", "kill -KILL $PPID", f"pkill -KILL -f watcher.py.{TARGET}"])
def test_broad_kill_of_an_agent_ends_its_own_processes_alone(site: Site, broad: str) -> None:
    worker = site.start(TARGET, AGENT_COMMAND=site.script(f"sleep 1000 & {broad}; kill $! && wait $!; echo $?"))
    site.drop("broad", TARGET)
    result = site.result("broad", TARGET)
    assert (result["status"], result["attempts"]) == ("completed", 1)
    assert result["stdout"] == "143\n", "its own child was ended by its TERM"
    assert worker.popen.poll() is None and worker.stop() == 0


def test_agent_can_signal_neither_another_attempt_nor_what_has_left_its_session(site: Site) -> None:
    wait = 'echo "$$" > "$SITE/other"; while test ! -e "$SITE/go"; do sleep 0.05; done; echo unharmed'
    attack = f'"{sys.executable}" "$SITE/attack.py" "$(cat "$SITE/other")"'
    attacking(site, "1")
    both = f'case "$WATCHER_TASK_ID" in victim) {wait};; *) setsid --wait {attack}; {attack};; esac'
    site.start(AGENT_COMMAND=site.script(both), MAX_CONCURRENT_TASKS="2")
    site.drop("victim")
    wait_for("the victim", (site.home / "other").exists)
    site.drop("attack")
    told = site.result("attack")["stdout"]
    (site.home / "go").touch()
    assert "refused" in told and "ALLOWED" not in told, told
    assert site.result("victim")["stdout"] == "unharmed\n"


def test_attempts_are_ended_from_outside_as_ever(site: Site) -> None:
    stubborn = 'trap "" TERM; echo "$$" >> "$SITE/notes"; while :; do sleep 1; done'
    site.start(AGENT_COMMAND=site.script(stubborn), MAX_RETRIES="0", KILL_GRACE="0.1")
    site.drop("stubborn", timeout=1)
    assert site.result("stubborn")["status"] == "timeout"
    assert [pid for pid in map(int, site.noted()) if is_alive(pid)] == []


def test_supervisor_and_its_other_processes_are_out_of_reach(site: Site) -> None:
    attacking(site, "1")
    every = f'for pid in $(cat "$SITE/pids"); do "{sys.executable}" "$SITE/attack.py" $pid; done'
    up = Up(site, "marie", "anga", "--listener", AGENT_COMMAND=site.script(every))
    pids = up.beating("marie", "anga", "orchestrator")
    (site.home / "pids").write_text(" ".join(map(str, [*pids.values(), up.pid])))
    site.drop("attack")
    told = site.result("attack")["stdout"]
    assert told.count("kill refused") == 4 and told.count("ALLOWED") <= 1, told
    assert up.stop() == 0


def test_agents_gain_no_privileges_unless_they_may_use_sudo(site: Site) -> None:
    command = site.script("grep NoNewPrivs /proc/self/status; kill -0 $PPID && echo reached")
    worker = site.start(AGENT_COMMAND=command)
    site.drop("fenced")
    assert site.result("fenced")["stdout"].split() == ["NoNewPrivs:", "1"]
    assert worker.stop() == 0 and worker.lines("fence.missing") == []
    worker = site.start(AGENT_COMMAND=command, AGENT_SUDO="yes")
    site.drop("open")
    assert site.result("open")["stdout"].split() == ["NoNewPrivs:", "0", "reached"]
    assert "AGENT_SUDO=yes" in site.beat()["fence"]
    assert "AGENT_SUDO=yes" in worker.lines("fence.missing")[0]["detail"]
