"""SIGKILL for each process below the supervisor, and for the supervisor: all come back, every task ends once.

CRASH_SUPERVISED_KILLS sets how often each is killed, CRASH_SEED repeats a run's choices (not its timing).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.crash.harness import PROJECT, Site, WorkerProcess
from tests.crash.promises import broken_promises
from tests.crash.tools import agent_program

KILLS = int(os.environ.get("CRASH_SUPERVISED_KILLS", "10"))
SEED = int(os.environ.get("CRASH_SEED", str(random.randrange(1 << 32))))
CHILDREN = ("marie@1", "marie@2", "orchestrator")
TASKS = 150
#: What the listener writes belongs there; the harness knows workers alone.
LISTENERS = ("left behind: state/", "left behind: triggers/orchestrator/")


def supervise(site: Site) -> WorkerProcess:
    """Start the supervisor with two instances of marie and the listener; its log is that of all."""
    settings = {name: str(value) for name, value in site.settings.items()}
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": str(PROJECT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "WATCHER_ROOT": str(site.root),
        "WATCHER_ENV_FILE": "/dev/null",
        "AGENT_COMMAND": f"{agent_program()} {site.run_log} {site.locks} {site.root / 'results' / 'marie'}",
        **settings,
    }
    arguments = ["up", "marie", "--count", "2", "--listener", "--restart-delay", "0.05", "--healthy-after", "0.2"]
    log = site.base / f"supervisor-{len(site.processes) + 1}.log"
    with log.open("wb") as out:
        popen = subprocess.Popen(
            [sys.executable, "-m", "watcher", *arguments],
            env=env, cwd=site.base, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    process = WorkerProcess(popen, log, None)
    site.processes.append(process)
    return process


def pids(process: WorkerProcess) -> dict[str, int]:
    """The last process of each child that the log tells of."""
    return {line["child"]: int(line["pid"]) for line in process.lines() if line.get("event") == "child.started"}


def finish(site: Site, supervisor: WorkerProcess) -> None:
    """All tasks have ended; stop, and check every promise. Any incarnation may have been killed."""
    site.wait_until_all_ended(240)
    site.wait_for(lambda: supervisor.said("supervisor.started"), "the supervisor's start")
    code = supervisor.stop(120)
    for process in site.processes:
        process.fate = "killed"  # so the harness knows that its workers were
    broken = [line for line in broken_promises(site) if not line.startswith(LISTENERS)]
    assert not broken, "\n".join([*broken[:40], site.report()])
    assert code == 0, site.report()


def drop_some(site: Site, rng: random.Random, until: int) -> None:
    while len(site.submitted) < until:
        words = f"sleep {rng.randrange(400)}"
        site.drop(f"t{len(site.submitted)}", f"escape {words}" if rng.random() < 0.1 else words)


@pytest.mark.crash
@pytest.mark.timeout(900)
def test_each_child_comes_back_from_every_kill_and_every_task_ends_once(make_site: Callable[..., Site]) -> None:
    rng = random.Random(SEED)
    print(f"CRASH_SEED={SEED}")
    site = make_site(MAX_WORKER_DEATHS=100, HEARTBEAT_INTERVAL=0.1)
    supervisor = supervise(site)
    victims = rng.sample([child for child in CHILDREN for _ in range(KILLS)], k=KILLS * len(CHILDREN))
    killed: Counter[str] = Counter()
    seen: dict[str, int] = {}
    for number, victim in enumerate(victims, start=1):
        drop_some(site, rng, TASKS * number // len(victims))
        site.wait_for(
            lambda victim=victim: pids(supervisor).get(victim) not in (None, seen.get(victim)),  # type: ignore[misc]
            f"a new process of {victim}", 120,
        )  # fmt: skip
        # A random moment, from before Python has started until it has been at work for a while: no event to wait for.
        time.sleep(rng.uniform(0, 1.5))
        seen[victim] = pids(supervisor)[victim]
        os.kill(seen[victim], signal.SIGKILL)
        killed[victim] += 1
        site.look()
    assert killed == dict.fromkeys(CHILDREN, KILLS)
    site.wait_for(lambda: all(pids(supervisor)[c] != seen[c] for c in CHILDREN), "all to be back", 120)
    for instance in "12":  # the first beat comes after what killed ones left was taken over
        pid = pids(supervisor)[f"marie@{instance}"]
        site.wait_for(lambda i=instance, p=pid: site.heartbeat(instance=i).get("pid") == p, f"a beat of {pid}", 120)  # type: ignore[misc]
    finish(site, supervisor)
    assert not supervisor.said("child.given_up")
    print(f"{sum(killed.values())} kills, {len(site.submitted)} tasks, {len(site.runs())} runs")


@pytest.mark.crash
@pytest.mark.timeout(900)
def test_killed_supervisor_costs_no_run_and_the_next_one_takes_over(make_site: Callable[..., Site]) -> None:
    rng = random.Random(SEED)
    print(f"CRASH_SEED={SEED}")
    site = make_site(HEARTBEAT_INTERVAL=0.1)
    supervisor = supervise(site)
    for number in range(1, KILLS + 1):
        drop_some(site, rng, TASKS * number // KILLS)
        time.sleep(rng.uniform(0, 3))  # the random moment itself: there is no event to wait for
        supervisor.kill()
        supervisor = supervise(site)
    finish(site, supervisor)
    runs = Counter(run.task_id for run in site.runs())
    assert set(runs.values()) == {1}, "workers outlive their supervisor, so nothing ran again"
    print(f"{KILLS} kills of the supervisor, {len(runs)} tasks")
