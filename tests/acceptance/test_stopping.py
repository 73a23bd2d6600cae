"""Ctrl-C and SIGTERM: what runs is finished or goes back untouched, and no process is left behind."""

from __future__ import annotations

import signal
import time

import pytest

from tests.acceptance.conftest import Process, Site, is_alive
from tests.waiting import wait_for

#: A shell with every way to stay behind: it ignores TERM, has a child, and a grandchild in a session of its own.
STUBBORN = """
trap "" TERM INT HUP
echo "$$ $WATCHER_ATTEMPT" >> "$SITE/notes"
sleep 3000 & echo "$! child" >> "$SITE/notes"
setsid sh -c 'trap "" TERM; echo "$$ grandchild" >> "$0/notes"; sleep 3001' "$SITE" &
while test ! -e "$SITE/go"; do sleep 0.05; done
cat
"""


#: One that behaves, with a child that does too.
GENTLE = """
echo "$$ $WATCHER_ATTEMPT" >> "$SITE/notes"
sleep 3000 & echo "$! child" >> "$SITE/notes"
while test ! -e "$SITE/go"; do sleep 0.05; done
cat
"""


def noted_pids(site: Site) -> list[int]:
    return [int(line.split()[0]) for line in site.noted()]


def all_started(site: Site, count: int = 3) -> None:
    wait_for("the command and its children", lambda: len(site.noted()) >= count)


def assert_nothing_is_left(site: Site, worker: Process) -> None:
    assert [pid for pid in noted_pids(site) if is_alive(pid)] == []
    assert site.command_pids() == []
    assert site.leftovers() == []
    beat = site.beat()
    assert (beat["status"], beat["active_tasks"], beat["pid"]) == ("stopped", 0, worker.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_task_is_finished_and_nothing_new_is_started(site: Site, number: signal.Signals) -> None:
    worker = site.start(AGENT_COMMAND=site.script(GENTLE), MAX_CONCURRENT_TASKS="1")
    site.drop("running")
    all_started(site, 2)
    raw = site.drop("waiting")
    site.beat_that(lambda beat: beat["queue_size"] == 1, what="with a waiting task")
    worker.signal(number)
    beat = site.beat_that(lambda beat: beat["status"] == "draining", what="that says draining")
    assert (beat["active_tasks"], beat["reason"]) == (1, number.name)
    (site.home / "go").touch()
    assert worker.ended() == 0
    assert site.result("running")["status"] == "completed" and site.results() == ["running"]
    assert (site.inbox() / "waiting.json").read_bytes() == raw and site.pending() == ["waiting"]
    assert_nothing_is_left(site, worker)
    assert [line["reason"] for line in worker.lines("worker.draining")] == [number.name]
    assert worker.lines("worker.stopped")[0]["released_tasks"] == 0


def test_task_that_takes_longer_than_the_grace_goes_back_untouched_and_runs_again_uncounted(site: Site) -> None:
    worker = site.start(AGENT_COMMAND=site.script(STUBBORN), SHUTDOWN_GRACE="0.3")
    raw = site.drop("long", x_note="kept")
    all_started(site)
    began = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 0
    assert time.monotonic() - began >= 0.3, "the grace"
    assert (site.inbox() / "long.json").read_bytes() == raw and site.pending() == ["long"]
    assert site.results() == site.dead_letters() == []
    assert_nothing_is_left(site, worker)
    (site.home / "go").touch()
    site.start(AGENT_COMMAND=site.script(GENTLE))
    result = site.result("long")
    assert (result["status"], result["attempts"], result["retry_count"]) == ("completed", 1, 0)
    assert [line.split()[1] for line in site.noted()].count("1") == 2, "both runs were attempt 1"


def test_second_signal_stops_now(site: Site) -> None:
    worker = site.start(AGENT_COMMAND=site.script(STUBBORN), SHUTDOWN_GRACE="3600", HEARTBEAT_INTERVAL="1800")
    raw = site.drop("long")
    all_started(site)
    worker.signal(signal.SIGINT)
    site.beat_that(lambda beat: beat["status"] == "draining", what="that says draining")
    worker.signal(signal.SIGINT)
    assert worker.ended() == 0, "long before the grace is over"
    assert (site.inbox() / "long.json").read_bytes() == raw
    assert_nothing_is_left(site, worker)


def test_retry_that_waits_keeps_its_count_over_a_stop(site: Site) -> None:
    fail = site.script('echo "$$ $WATCHER_ATTEMPT" >> "$SITE/notes"; exit 1')
    worker = site.start(AGENT_COMMAND=fail, INITIAL_RETRY_DELAY="3600", MAX_RETRY_DELAY="3600", MAX_RETRIES="1")
    site.drop("again")
    wait_for("the retry to be planned", lambda: worker.lines("task.retry_scheduled"))
    assert worker.stop() == 0
    assert site.pending() == [] and [name.split("/")[-2] for name in site.leftovers()] == [".retry"]
    site.start(AGENT_COMMAND=fail, MAX_RETRY_DELAY="0.1", MAX_RETRIES="1")
    result = site.result("again")
    assert (result["status"], result["retry_count"], result["attempts"]) == ("failed", 1, 2)
    assert [line.split()[1] for line in site.noted()] == ["1", "2"]


def test_command_that_ends_and_leaves_processes_behind_leaves_none(site: Site) -> None:
    leave = """
    sleep 300 & echo "$! child" >> "$SITE/notes"
    setsid sh -c 'echo "$$ grandchild" >> "$0/notes"; exec sleep 301' "$SITE" > /dev/null 2>&1 < /dev/null &
    setsid setsid sleep 302 & echo "$! third" >> "$SITE/notes"
    while test "$(wc -l < "$SITE/notes")" -lt 3; do sleep 0.01; done
    echo done
    """
    worker = site.start(AGENT_COMMAND=site.script(leave))
    site.drop("leaves")
    assert site.result("leaves")["stdout"] == "done\n"
    assert [pid for pid in noted_pids(site) if is_alive(pid)] == []
    assert sum(line["processes"] for line in worker.lines("process.leftovers_killed")) >= 3
    assert worker.stop() == 0
    assert_nothing_is_left(site, worker)


def test_idle_worker_stops_at_once(site: Site) -> None:
    worker = site.start(HEARTBEAT_INTERVAL="3600", SCAN_INTERVAL="3600")
    worker.signal(signal.SIGTERM)
    assert worker.ended() == 0, "long before it would look at anything again"
    assert_nothing_is_left(site, worker)


def test_last_heartbeat_says_how_the_worker_was_woken(site: Site) -> None:
    worker = site.start()
    wake = site.beat()["wake"]
    assert worker.stop() == 0
    assert (site.beat()["status"], site.beat()["wake"]) == ("stopped", wake)
