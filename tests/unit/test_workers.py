"""Who lives and what runs, with real files, real locks and a clock driven by hand."""

from __future__ import annotations

import fcntl
import json
import os

import pytest

from tests.world import ALICE, BOB, NOW, World, world
from watcher.clock import rfc3339
from watcher.formats.heartbeat import ActiveTask

__all__ = ["world"]

# --- who lives


def test_process_that_holds_its_lock_is_alive_however_old_its_heartbeat_is(world: World) -> None:
    world.lives()
    world.beat(age=86_400.0)
    assert world.process().state == "healthy"
    assert world.process().is_silent
    assert world.process().for_seconds == pytest.approx(60.0 + 86_400.0)


def test_process_that_beats_in_time_is_not_silent(world: World) -> None:
    world.lives()
    world.beat(age=30.0)
    assert not world.process().is_silent


def test_process_without_its_lock_is_dead_however_new_its_heartbeat_is(world: World) -> None:
    world.died()
    world.beat(age=0.5)
    assert world.process().state == "dead"
    assert world.process().for_seconds == pytest.approx(0.5)
    assert world.process().breaker is None


def test_process_whose_lock_was_cleaned_away_by_a_rescuer_is_dead(world: World) -> None:
    world.beat(age=120.0)
    assert world.worker().state == "dead"
    assert world.worker().for_seconds == pytest.approx(120.0)


def test_process_that_said_goodbye_is_stopped(world: World) -> None:
    world.beat(age=120.0, status="stopped", reason="SIGTERM")
    assert world.worker().state == "stopped"
    assert world.worker().for_seconds == pytest.approx(120.0)


def test_process_that_writes_its_last_beat_is_still_draining(world: World) -> None:
    world.lives()
    world.beat(status="stopped")
    assert world.process().state == "draining"


def test_state_and_reason_of_a_living_process_are_those_of_its_heartbeat(world: World) -> None:
    world.lives()
    world.beat(status="held", reason="claude: usage_limit", held_until=NOW + 600, circuit_breaker_state="half_open")
    seen = world.process()
    assert (seen.state, seen.reason, seen.breaker) == ("held", "claude: usage_limit", "half_open")
    assert seen.held_until == rfc3339(NOW + 600)


def test_worker_that_nobody_ever_served_is_absent(world: World) -> None:
    world.put("tasks/marie/x.json")
    assert (world.worker().state, world.worker().processes) == ("absent", ())


def test_process_that_has_not_beaten_yet_is_starting(world: World) -> None:
    world.lives(started_at=rfc3339(NOW - 2), instance="pod-1")
    seen = world.process()
    assert (seen.state, seen.name, seen.pid) == ("starting", "marie@pod-1", 4711)
    assert seen.for_seconds == pytest.approx(2.0)


def test_successor_that_has_not_beaten_yet_hides_the_dead_one_before_it(world: World) -> None:
    world.died(incarnation=ALICE)
    world.beat(incarnation=ALICE, age=300.0)
    world.lives(incarnation=BOB)
    assert world.process().state == "starting"


def test_successor_that_died_before_its_first_beat_is_dead_not_stopped(world: World) -> None:
    world.beat(incarnation=ALICE, age=300.0, status="stopped")
    world.died(incarnation=BOB)
    assert world.process().state == "dead"


def test_remains_of_killed_processes_do_not_hide_the_living_one(world: World) -> None:
    world.died(incarnation=ALICE)
    world.lives(incarnation=BOB)
    world.died(incarnation="c" * 32)
    assert world.process().state == "starting"
    world.beat(incarnation=BOB)
    assert world.process().state == "healthy"


def test_lock_that_cannot_be_asked_leaves_the_state_unknown(world: World) -> None:
    world.died()
    world.beat()
    lock = world.root / f"tasks/marie/.claims/{ALICE}.lock"
    lock.unlink()
    lock.symlink_to("/dev/null")
    assert world.process().state == "unknown"


def test_somebody_else_who_looks_is_not_taken_for_the_owner(world: World) -> None:
    world.died()
    world.beat()
    fd = os.open(world.root / f"tasks/marie/.claims/{ALICE}.lock", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    try:
        assert world.process().state == "dead"
    finally:
        os.close(fd)


def test_looking_leaves_the_lock_free_for_a_rescuer(world: World) -> None:
    world.died()
    world.look()
    fd = os.open(world.root / f"tasks/marie/.claims/{ALICE}.lock", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)


def test_several_instances_are_shown_each_and_the_worst_that_lives_stands_for_all(world: World) -> None:
    world.lives(incarnation=ALICE, instance="1")
    world.beat("marie@1", ALICE)
    world.lives(incarnation=BOB, instance="2")
    world.beat("marie@2", BOB, status="degraded", circuit_breaker_state="open")
    world.beat("marie@3", "c" * 32, age=60.0)
    seen = world.worker()
    assert [(p.name, p.state) for p in seen.processes] == [
        ("marie@1", "healthy"), ("marie@2", "degraded"), ("marie@3", "dead"),
    ]  # fmt: skip
    assert (seen.state, seen.breaker) == ("degraded", "open")


@pytest.mark.parametrize(
    "raw",
    [b"{", b"[]", b"null", b"\xff\xfe", b'{"worker": "marie"}', b'{"worker": 1, "status": "x"}', b"[" * 9999],
)
def test_heartbeat_that_is_none_is_told_and_hides_nobody_else(world: World, raw: bytes) -> None:
    world.put("heartbeats/marie.json", raw)
    world.lives("anga")
    world.beat("anga")
    seen = {worker.worker: worker.state for worker in world.look().workers}
    assert seen == {"anga": "healthy", "marie": "unknown"}
    assert any("marie.json" in problem for problem in world.look().problems)


def test_heartbeat_that_is_a_fifo_a_folder_or_a_link_is_told_and_blocks_nothing(world: World) -> None:
    target = world.beat("marie")
    os.mkfifo(target.with_name("fifo.json"))
    target.with_name("folder.json").mkdir()
    target.with_name("link.json").symlink_to(target)
    seen = {worker.worker: worker.state for worker in world.look().workers}
    assert seen == {"fifo": "unknown", "folder": "unknown", "link": "unknown", "marie": "dead"}


def test_fields_of_a_heartbeat_that_make_no_sense_are_left_out(world: World) -> None:
    world.lives()
    nonsense = {
        "worker": "marie", "status": "healthy", "sequence": 1, "incarnation": ALICE, "uptime_seconds": "long",
        "pid": -1, "active": {"task_id": 1}, "circuit_breaker_state": "melted", "metrics_port": [], "host": None,
    }  # fmt: skip
    world.claim("x")
    world.put("heartbeats/marie.json", json.dumps(nonsense))
    seen = world.process()
    assert (seen.state, seen.for_seconds, seen.pid, seen.breaker) == ("healthy", None, None, None)


def test_incarnation_in_a_heartbeat_is_never_used_as_a_path(world: World) -> None:
    world.put("victim.lock", b"")
    fd = os.open(world.root / "victim.lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    world.held["victim"] = fd
    world.beat(incarnation="../../../victim")
    assert world.process().state == "dead"


# --- what runs


def test_claims_of_the_living_run_and_those_of_the_dead_are_orphaned(world: World) -> None:
    world.lives(incarnation=ALICE)
    world.beat(incarnation=ALICE)
    world.claim("x")
    world.claim("y")
    world.died(incarnation=BOB)
    world.claim("z", incarnation=BOB)
    seen = world.look()
    assert (seen.workers[0].running, seen.workers[0].orphaned) == (2, 1)
    assert sorted(task.task_id for task in seen.running) == ["x", "y"]


def test_claims_without_a_lock_file_belong_to_nobody_who_lives(world: World) -> None:
    world.claim("x")
    assert (world.worker().running, world.worker().orphaned) == (0, 1)


def test_outputs_and_refused_files_in_a_claim_folder_are_not_running(world: World) -> None:
    world.lives()
    for name in ("output-1.stdout", "output-1.stderr", "bad-name-7!.json"):
        world.put(f"tasks/marie/.claims/{ALICE}/{name}")
    assert world.worker().running == 0


def test_heartbeat_says_since_when_a_task_runs_and_its_output_file_when_it_last_wrote(world: World) -> None:
    world.lives(instance="1")
    output = world.put(f"tasks/marie/.claims/{ALICE}/output-1.stdout", b"so far", age=3.0)
    active = [ActiveTask("x", NOW - 42.0, NOW - 30.0, str(output))]
    world.beat("marie@1", active=active, active_tasks=1)
    world.claim("x", attempt=2)
    (task,) = world.look().running
    assert (task.task_id, task.worker, task.instance, task.attempt) == ("x", "marie", "1", 2)
    assert task.for_seconds == pytest.approx(42.0)
    assert task.output_age_seconds == pytest.approx(3.0)


def test_heartbeat_says_what_a_running_task_does(world: World) -> None:
    world.lives()
    world.beat(active=[ActiveTask("x", NOW - 42.0, None, None, "tool Bash", NOW - 7.0)])
    world.claim("x")
    (task,) = world.look().running
    assert (task.last_event, task.last_event_age_seconds) == ("tool Bash", pytest.approx(7.0))


def test_task_that_has_written_nothing_has_no_last_output(world: World) -> None:
    world.lives()
    output = world.put(f"tasks/marie/.claims/{ALICE}/output-1.stdout", b"")
    world.beat(active=[ActiveTask("x", NOW - 42.0, None, str(output))])
    world.claim("x")
    (task,) = world.look().running
    assert task.output_age_seconds is None


def test_task_that_no_heartbeat_knows_yet_runs_since_its_claim(world: World) -> None:
    world.lives()
    world.beat()
    world.clock.now_wall = world.claim("x").stat().st_ctime + 7.0
    (task,) = world.look().running
    assert task.for_seconds == pytest.approx(7.0)
