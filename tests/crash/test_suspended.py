"""Processes that stand still and clocks that jump: neither runs a task twice, and both end by themselves."""

from __future__ import annotations

import signal
import struct
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from tests.crash.harness import Site, WorkerProcess

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]

A_DAY = 86_400


def ran_once(site: Site) -> None:
    for _, task_id in site.submitted:
        assert len(site.runs(task_id)) == 1, site.runs(task_id)


def two_at_work(site: Site) -> tuple[WorkerProcess, WorkerProcess]:
    """Two instances with three running tasks each, which wait at a gate."""
    first = site.start(instance="1")
    for number in range(3):
        site.drop(f"a{number}", "gate go say 10")
    site.wait_for(lambda: len(site.runs()) == 3, "three runs")
    second = site.start(instance="2")
    for number in range(3):
        site.drop(f"b{number}", "gate go say 10")
    site.wait_for(lambda: len(site.runs()) == 6, "three more runs")
    return first, second


def let_beats_pass(site: Site, instance: str, beats: int) -> None:
    start = site.heartbeat(instance=instance)["sequence"]
    site.wait_for(lambda: site.heartbeat(instance=instance)["sequence"] >= start + beats, f"{beats} beats")


def test_stopped_worker_keeps_its_tasks_and_settles_them_when_it_goes_on(site: Site) -> None:
    first, _ = two_at_work(site)
    first.signal(signal.SIGSTOP)
    site.open_gate("go")
    for number in range(10):
        site.drop(f"c{number}", "say 10")
    site.wait_for(lambda: len(site.waiting()) == 6, "the tasks of the other instance")  # three, and their claims
    let_beats_pass(site, "2", 5)
    assert sorted(task_id for task_id in site.waiting() if "~" not in task_id) == ["a0", "a1", "a2"]
    site.wait_for(lambda: all(run.end is not None for run in site.runs()), "the end of the commands, which went on")
    first.signal(signal.SIGCONT)
    site.finish()
    ran_once(site)


def test_worker_that_is_killed_while_it_stands_still_is_rescued(site: Site) -> None:
    first, second = two_at_work(site)
    first.signal(signal.SIGSTOP)
    let_beats_pass(site, "2", 2)
    first.kill()
    site.wait_for(lambda: second.said("task.rescued"), "the rescue")
    site.open_gate("go")
    site.finish()
    assert {len(site.runs(f"a{number}")) for number in range(3)} == {2}


def test_stop_and_go_at_random_loses_and_repeats_nothing(make_site: Callable[..., Site]) -> None:
    site = make_site(MAX_CONCURRENT_TASKS=4)
    processes = [site.start(instance=name) for name in ("1", "2")]
    for number in range(200):
        site.drop(f"t{number}", f"sleep {number % 7 * 5}" + (" escape" if number % 10 == 0 else ""))
        if number % 20 == 0:
            victim = processes[number // 20 % 2]
            victim.signal(signal.SIGSTOP)
            time.sleep(0.15)  # the standstill itself
            victim.signal(signal.SIGCONT)
    site.finish()
    ran_once(site)


class JumpingClock:
    """The wall clock of workers that preload the faults library."""

    def __init__(self, path: Path, library: Path) -> None:
        self.path = path
        self.environment = {"LD_PRELOAD": str(library), "FAULTS_CLOCK": str(path)}
        path.write_bytes(struct.pack("d", 0.0))

    def jump(self, seconds: float) -> None:
        with self.path.open("r+b") as file:
            file.write(struct.pack("d", seconds))


@pytest.fixture
def jumping(tmp_path: Path, faults: Path) -> JumpingClock:
    return JumpingClock(tmp_path / "clock", faults)


@pytest.mark.parametrize("jump", [A_DAY, -A_DAY])
def test_clock_that_jumps_neither_repeats_nor_delays(
    make_site: Callable[..., Site], jumping: JumpingClock, jump: int
) -> None:
    site = make_site(INITIAL_RETRY_DELAY=1, MAX_RETRY_DELAY=1.5)
    process = site.start(environment=jumping.environment)
    site.drop("long", "gate go say 1")
    site.drop("again", "fail 2")
    site.wait_for(lambda: process.said("task.retry_scheduled"), "a retry")
    jumping.jump(jump)
    site.drop("after", "say 1")
    # A clock that was believed would delay them by a day.
    site.wait_for(lambda: site.result("after") and site.result("again"), "the retries")
    assert process.is_running() and site.heartbeat()["status"] == "healthy"
    ended_at = datetime.fromisoformat((site.result("after") or {})["timestamp"]).timestamp()
    assert abs(ended_at - time.time() - jump) < 3600, "the clock of the worker has not jumped"
    site.open_gate("go")
    site.finish()
    assert [len(site.runs(task_id)) for task_id in ("long", "again", "after")] == [1, 3, 1]


@pytest.mark.parametrize("jump", [A_DAY, -A_DAY])
def test_retry_comes_in_time_when_the_clock_jumps_and_the_worker_dies(
    make_site: Callable[..., Site], jumping: JumpingClock, jump: int
) -> None:
    # Without the fence, which keeps an agent from its worker.
    site = make_site(INITIAL_RETRY_DELAY=1, MAX_RETRY_DELAY=1.5, AGENT_SUDO="yes")
    process = site.start(environment=jumping.environment)
    site.drop("again", "fail 1")
    site.drop("dies", "kill-worker gate go")
    site.wait_for(process.was_killed, "the worker's end")
    jumping.jump(jump)
    site.open_gate("go")
    site.start(environment=jumping.environment)
    site.wait_for(lambda: site.result("again") and site.result("dies"), "both, and not a day later")
    site.finish()
