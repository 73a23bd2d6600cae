"""Short tasks are claimed ahead of the slots; a long one never waits in a process that has no room for it."""

from __future__ import annotations

import signal

from tests.acceptance.conftest import Site
from tests.waiting import wait_for


def test_tasks_claimed_ahead_go_back_when_tasks_become_long(site: Site) -> None:
    agent = site.script("#!/bin/sh\nread line\ncase $line in long*) exec sleep 60;; esac\n")
    for number in range(8):
        site.drop(f"short-{number}")
    worker = site.start("marie", AGENT_COMMAND=agent, MAX_CONCURRENT_TASKS=2, KILL_GRACE=1)
    wait_for("the short ones", lambda: len(site.results()) == 8)
    for number in range(6):
        site.drop(f"long-{number}", description="long")
    site.beat_that(lambda beat: beat["active_tasks"] == 2 and beat["queue_size"] == 4, what="two run and four wait")
    assert len(site.pending()) == 4
    worker.signal(signal.SIGTERM)
    worker.signal(signal.SIGINT)
    assert worker.ended() == 0
    assert sorted(site.pending()) == [f"long-{number}" for number in range(6)]
    assert [line["reason"] for line in worker.lines("task.retry_scheduled")] == []
