"""A machine that is short of something: the worker stays, burns nothing, and goes on when it is well again."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from pathlib import Path

import pytest

from tests.acceptance.conftest import Process, Site
from tests.waiting import wait_for


def cpu_seconds(worker: Process) -> float:
    fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def first_free(worker: Process) -> int:
    """The lowest descriptor that the worker does not use just now."""
    used = {int(name) for name in os.listdir(f"/proc/{worker.pid}/fd")}
    return next(number for number in range(len(used) + 1) if number not in used)


def switches(worker: Process) -> int:
    """How often the threads of the worker went to sleep since it began."""
    total = 0
    for task in Path(f"/proc/{worker.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            lines = (task / "status").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
    return total


def test_worker_without_descriptors_stays_and_burns_no_attempt(site: Site) -> None:
    worker = site.start()
    site.drop("before")
    site.result("before")
    free = min(first_free(worker) for _ in range(200))  # less than what it has open just for a moment
    limits = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (free, limits[1]))
    site.drop("during")
    wait_for("a word about it", lambda: worker.lines("worker.trouble_began"))
    assert "EMFILE" in worker.lines("worker.trouble_began")[0]["detail"]
    before, began = cpu_seconds(worker), time.monotonic()
    # With no descriptor at all not even a heartbeat can be written; with the one that it just had open it can.
    wait_for("a sign of it", lambda: worker.lines("hint.failed") or site.beat()["status"] == "degraded")
    assert worker.popen.poll() is None and "during" not in site.results()
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, limits)
    result = site.result("during")
    assert (result["status"], result["attempts"]) == ("completed", 1)
    assert cpu_seconds(worker) - before < 1 + (time.monotonic() - began) / 10, "it does not turn all the time"
    site.beat_that(lambda beat: beat["status"] == "healthy", what="that is healthy again")
    assert site.dead_letters() == []


def test_full_disk_stops_claiming_and_says_so_and_burns_nothing(site: Site) -> None:
    """MIN_FREE_BYTES larger than any disk is a disk that is full."""
    worker = site.start(MIN_FREE_BYTES=str(1 << 50))
    raw = site.drop("waits")
    beat = site.beat_that(lambda beat: beat["status"] == "degraded", what="that says degraded")
    assert "MIN_FREE_BYTES" in beat["reason"] and str(site.root) in beat["reason"]
    site.pass_beats(3)
    assert (site.inbox() / "waits.json").read_bytes() == raw and site.results() == []
    assert worker.stop() == 0
    site.start()
    assert site.result("waits")["attempts"] == 1


@pytest.mark.parametrize("why", ["no slot is free", "its breaker may be probed"])
def test_worker_sleeps_while_something_is_due_that_cannot_start(site: Site, why: str) -> None:
    wait = site.script('case "$WATCHER_TASK_ID" in fails) exit 1;; esac; while test ! -e "$SITE/go"; do sleep 1; done')
    worker = site.start(
        AGENT_COMMAND=wait, MAX_CONCURRENT_TASKS="1", HEARTBEAT_INTERVAL="0.3", SCAN_INTERVAL="1", MAX_RETRIES="0",
        CIRCUIT_BREAKER_THRESHOLD="1", CIRCUIT_BREAKER_TIMEOUT="0.1",
    )  # fmt: skip
    if why == "no slot is free":
        site.drop("runs")
        site.beat_that(lambda beat: beat["active_tasks"] == 1, what="of a running task")
        site.drop("due", not_before=time.time() + 0.2)
    else:
        site.drop("fails")
        site.result("fails")
        site.drop("later", not_before="2999-01-01T00:00:00Z")
    site.beat_that(lambda beat: beat["queue_size"] == 1, what="of a waiting task")
    before = switches(worker)
    site.pass_beats(2)
    assert switches(worker) - before < 150, "a loop that turns every millisecond sleeps 450 times and more"
    (site.home / "go").touch()
