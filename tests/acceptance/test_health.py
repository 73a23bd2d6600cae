"""`watcher health` tells a container's probe whether a real worker is well, by its exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal

from tests.acceptance.conftest import Site
from watcher.policy.health import AGE_SLACK_SECONDS, DEAD_INTERVALS

#: Seconds. A beat may be late by three of them, which a busy machine keeps.
BEAT = 5


def test_serving_worker_is_well_and_one_that_stopped_is_not(site: Site) -> None:
    worker = site.start("marie", HEARTBEAT_INTERVAL=BEAT)
    assert site.run("health", "marie").returncode == 0
    worker.stop()
    done = site.run("health", "marie")
    assert (done.returncode, "stopped" in done.stdout) == (1, True)


def test_worker_that_never_was_is_not_well(site: Site) -> None:
    done = site.run("health", "marie")
    assert done.returncode == 1
    assert "marie: unhealthy: WATCHER_ROOT=" in done.stdout
    site.inbox("marie")
    done = site.run("health", "marie")
    assert done.returncode == 1
    assert "no heartbeat found" in done.stdout


def test_killed_worker_is_not_well_although_its_last_beat_is_young(site: Site) -> None:
    worker = site.start("marie", HEARTBEAT_INTERVAL=60)
    worker.kill()
    done = site.run("health", "marie", "--json")
    assert done.returncode == 1
    assert "killed" in json.loads(done.stdout)["processes"][0]["why"]


def test_frozen_worker_is_not_well_until_its_sequence_moves_again(site: Site) -> None:
    worker = site.start("marie")
    worker.freeze()
    beat = site.root / "heartbeats" / "marie.json"
    stamp = beat.stat().st_mtime - DEAD_INTERVALS * 0.1 - AGE_SLACK_SECONDS - 1  # as if it had been frozen for so long
    os.utime(beat, (stamp, stamp))
    assert site.run("health", "marie").returncode == 1
    worker.signal(signal.SIGCONT)
    assert site.run("health", "marie", "--within", "60").returncode == 0


def test_clock_of_another_machine_does_not_make_a_beating_worker_sick(site: Site) -> None:
    worker = site.start("marie", HEARTBEAT_INTERVAL=0.2)
    worker.freeze()
    beat = site.root / "heartbeats" / "marie.json"
    os.utime(beat, (1_000_000_000, 1_000_000_000))  # as its writer's slow clock would stamp it
    assert site.run("health", "marie", "--within", "0.3").returncode == 1
    worker.signal(signal.SIGCONT)
    assert site.run("health", "marie", "--within", "60").returncode == 0


def test_worker_whose_inbox_is_gone_is_not_well(site: Site) -> None:
    worker = site.start("marie", HEARTBEAT_INTERVAL=60, SCAN_INTERVAL=600)
    worker.freeze()  # or it would make a new one
    shutil.rmtree(site.inbox())
    done = site.run("health", "marie")
    assert done.returncode == 1


def test_one_living_instance_of_several_is_enough_and_each_can_be_asked_alone(site: Site) -> None:
    site.start("marie", "--instance", "1", HEARTBEAT_INTERVAL=BEAT)
    second = site.start("marie", "--instance", "2", HEARTBEAT_INTERVAL=BEAT)
    second.kill()
    assert site.run("health", "marie").returncode == 0
    assert site.run("health", "marie@1").returncode == 0
    assert site.run("health", "marie", "--instance", "2").returncode == 1
    assert site.run("health", "marie", WATCHER_INSTANCE="2").returncode == 1, "a container asks about itself"
    assert site.run("health", "marie", WATCHER_INSTANCE="1").returncode == 0


def test_degraded_worker_is_well_unless_asked_strictly(site: Site) -> None:
    site.start("marie", MIN_FREE_BYTES=1 << 50, HEARTBEAT_INTERVAL=BEAT)
    site.beat_that(lambda beat: beat["status"] == "degraded", what="that is degraded")
    assert site.run("health", "marie").returncode == 0
    assert site.run("health", "marie", "--strict").returncode == 1


def test_listener_is_asked_by_its_lock(site: Site) -> None:
    assert site.run("health", "--listener").returncode == 1
    assert site.run("health").returncode == 2
