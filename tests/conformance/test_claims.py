"""What the spool promises about claiming, giving back and settling; on the directory engine."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conformance.conftest import Office
from watcher.errors import NameTaken, WorkerTrouble
from watcher.policy.claim_order import doubted
from watcher.policy.give_back_limit import GiveBackCounts
from watcher.system.files import Folder
from watcher.telemetry.events import (
    FileIgnored,
    OutcomeDiscarded,
    TaskDropped,
    TaskFieldsUnknown,
    TaskReferencesUnknown,
    TaskRefused,
    TaskRescued,
)


def test_task_is_claimed_once_and_its_result_ends_it(office: Office) -> None:
    desk = office.desk()
    desk.drop("a", agent_id="x", batch_id="b", metadata={"k": 1})
    desk.scan()
    [claim] = desk.claim()
    assert (claim.task.task_id, claim.attempt, desk.spool.prompt(claim)) == ("a", 1, "do a")
    assert not (desk.inbox / "a.json").exists()
    desk.scan()
    assert desk.claim() == []
    desk.finish(claim, stdout="done")
    result = desk.result("a")
    assert result is not None and result["stdout"] == "done" and result["status"] == "completed"
    assert desk.spool.waiting() == 0
    assert [name for name in desk.leftovers() if "~" in name] == []


def test_higher_priority_goes_first_then_arrival_then_name(office: Office) -> None:
    desk = office.desk()
    desk.drop("late-low", priority="low")
    desk.drop("first")
    desk.drop("second")
    desk.drop("number", priority=10)
    desk.drop("urgent", priority="critical")
    desk.scan()
    assert [c.task.task_id for c in desk.claim()] == ["urgent", "number", "first", "second", "late-low"]


def test_excluded_provider_stays_in_the_inbox(office: Office) -> None:
    desk = office.desk()
    desk.drop("held", provider="claude", priority="critical")
    desk.drop("free")
    desk.scan()
    assert [c.task.task_id for c in desk.claim(excluded=frozenset({"claude"}))] == ["free"]
    assert (desk.inbox / "held.json").exists()
    assert [c.task.task_id for c in desk.claim()] == ["held"]


def test_released_task_is_back_under_its_own_name_and_costs_no_attempt(office: Office) -> None:
    desk = office.desk()
    path = desk.drop("a", note="kept")
    before = path.read_bytes()
    desk.scan()
    [claim] = desk.claim()
    desk.spool.release(claim, "test")
    assert path.read_bytes() == before
    [again] = desk.claim()
    assert again.attempt == 1


def test_what_is_remembered_of_give_backs_survives_a_kill_a_hold_and_an_edit(office: Office) -> None:
    dead = office.desk()
    dead.drop("a")
    dead.drop("b")
    dead.scan()
    a, b = dead.claim()
    dead.spool.release(replace(a, given=GiveBackCounts(1, 2, 3, 4)), "test")
    dead.spool.retry_in(replace(b, given=GiveBackCounts(0, 0, 1)), 0.0)
    [a] = dead.claim(limit=1)
    assert a.given == GiveBackCounts(1, 2, 3, 4) and a.attempt == 1
    office.fire(dead)
    dead.die()
    desk = office.desk()
    assert desk.spool.rescue() == 1
    assert desk.spool.hold("a") == "held" and desk.spool.hold("b") == "held"
    assert desk.spool.edit("a", {"priority": "high"}) == "held"
    assert desk.spool.release_held("a") == "waits" and desk.spool.release_held("b") == "waits"
    desk.clock.pass_seconds(1)
    assert desk.spool.has_ready(()) and not desk.spool.has_undoubted("command")
    assert desk.claim(excluded=frozenset({doubted("command")})) == [] == desk.claim(excluded=frozenset({doubted()}))
    again = desk.claim()
    assert [(c.task.task_id, c.attempt, c.deaths, c.given) for c in again] == [
        ("a", 1, 1, GiveBackCounts(1, 2, 3, 4)), ("b", 2, 0, GiveBackCounts(0, 0, 1)),
    ]  # fmt: skip


def test_release_never_replaces_a_newer_file_of_the_same_name(office: Office) -> None:
    desk = office.desk()
    desk.drop("a", note="old")
    desk.scan()
    [claim] = desk.claim()
    desk.drop("a", note="new")
    desk.spool.release(claim, "test")
    assert json.loads((desk.inbox / "a.json").read_text())["note"] == "new"
    [old] = [c for c in desk.claim() if c.task.submitted.get("note") == "old"]
    desk.finish(old)
    desk.clock.pass_seconds(5)
    desk.scan()
    assert desk.claim() == []
    letter = desk.dead_letter("a")
    assert letter is not None and letter["dlq_reason"] == "duplicate_id" and letter["note"] == "new"


def test_retry_waits_for_its_time_and_counts_across_a_restart(office: Office) -> None:
    desk = office.desk()
    desk.drop("a")
    desk.scan()
    [claim] = desk.claim()
    desk.spool.retry_in(claim, 4)
    assert desk.claim() == []
    office.fire(desk)
    desk.close()
    desk = office.desk()
    desk.scan()
    assert desk.claim() == []
    desk.clock.pass_seconds(4.1)
    [again] = desk.claim()
    assert again.attempt == 2


def test_clock_that_jumped_back_delays_a_retry_by_the_longest_delay_at_most(office: Office) -> None:
    desk = office.desk(max_retry_delay=10.0, retry_jitter=0.0)
    desk.drop("a")
    desk.scan()
    [claim] = desk.claim()
    desk.spool.retry_in(claim, 4)
    office.fire(desk)
    desk.close()
    desk = office.desk(max_retry_delay=10.0, retry_jitter=0.0)
    desk.clock.now_wall -= 3600
    desk.scan()
    assert desk.claim() == []
    desk.clock.pass_seconds(10.1)
    assert [c.attempt for c in desk.claim()] == [2]


def test_not_before_is_waited_for(office: Office) -> None:
    desk = office.desk()
    desk.drop("later", not_before=desk.clock.wall() + 60)
    desk.scan()
    assert desk.claim() == []
    due = desk.spool.next_due_in()
    assert due is not None and 59 < due <= 60
    desk.clock.pass_seconds(60)
    assert [c.task.task_id for c in desk.claim()] == ["later"]


def test_edited_task_runs_with_its_new_content(office: Office) -> None:
    desk = office.desk()
    desk.drop("a", priority="critical")
    desk.drop("b")
    desk.scan()
    desk.drop("a", priority="low", description="new")
    claims = desk.claim()
    assert [(c.task.task_id, c.task.description) for c in claims] == [("b", "do b"), ("a", "new")]


def test_same_task_again_is_dropped_and_another_one_of_its_id_is_a_dead_letter(office: Office) -> None:
    desk = office.desk()
    raw = desk.drop("a").read_bytes()
    desk.scan()
    desk.finish(desk.claim()[0])
    (desk.inbox / "a.json").write_bytes(raw)
    desk.scan()
    assert desk.claim() == []
    assert len(desk.memory.of(TaskDropped)) == 1 and desk.dead_letter("a") is None
    desk.drop("a", other=True)
    desk.scan()
    assert desk.claim() == []
    letter = desk.dead_letter("a")
    assert letter is not None and letter["dlq_reason"] == "duplicate_id" and letter["other"] is True
    assert [p.name for p in desk.inbox.glob("*.json")] == []


def test_same_id_waits_while_the_first_one_runs(office: Office) -> None:
    desk = office.desk()
    raw = desk.drop("a").read_bytes()
    desk.scan()
    [claim] = desk.claim()
    (desk.inbox / "a.json").write_bytes(raw)
    desk.scan()
    assert desk.claim() == []
    desk.finish(claim)
    desk.clock.pass_seconds(3)
    desk.spool.tick()
    assert desk.claim() == []
    assert len(desk.memory.of(TaskDropped)) == 1


def test_same_id_waits_while_another_instance_runs_it(office: Office) -> None:
    one, two = office.desk(instance="1"), office.desk(instance="2")
    raw = one.drop("a").read_bytes()
    one.scan()
    [claim] = one.claim()
    (one.inbox / "a.json").write_bytes(raw)
    two.scan()
    assert two.claim() == []
    one.finish(claim)
    two.clock.pass_seconds(3)
    two.spool.tick()
    assert two.claim() == [] and len(two.memory.of(TaskDropped)) == 1


def test_two_instances_never_get_the_same_task(office: Office) -> None:
    one, two = office.desk(instance="1"), office.desk(instance="2")
    for number in range(50):
        one.drop(f"t{number:02d}")
    one.scan()
    two.scan()
    got: list[str] = []
    while more := one.claim(3) + two.claim(4):
        got += [c.task.task_id for c in more]
    assert sorted(got) == sorted(set(got)) and len(got) == 50


def test_second_process_of_a_name_is_refused_and_told_who_holds_it(office: Office) -> None:
    office.desk()
    with pytest.raises(NameTaken, match=f"pid {os.getpid()}"):
        office.desk()
    with pytest.raises(NameTaken):
        office.desk(instance="1")


def test_same_instance_twice_is_refused(office: Office) -> None:
    office.desk(instance="1")
    office.desk(instance="2")
    with pytest.raises(NameTaken, match="another --instance"):
        office.desk(instance="1")


def test_claims_of_a_killed_process_run_again_with_one_death_more(office: Office) -> None:
    dead = office.desk()
    dead.drop("a")
    dead.scan()
    dead.claim()
    office.fire(dead)
    dead.die()
    desk = office.desk()
    assert desk.spool.rescue() == 1
    [claim] = desk.claim()
    assert (claim.attempt, claim.deaths) == (1, 1)
    desk.finish(claim)
    assert desk.memory.of(TaskRescued)[0].outcome == "waits_again"
    office.fire(desk)
    desk.close()
    assert desk.leftovers() == []


def test_claims_of_a_living_process_are_left_alone(office: Office) -> None:
    one, two = office.desk(instance="1"), office.desk(instance="2")
    one.drop("a")
    one.scan()
    [claim] = one.claim()
    assert two.spool.rescue() == 0
    one.finish(claim)


def test_claim_whose_result_is_there_is_not_run_again(office: Office) -> None:
    dead = office.desk()
    dead.drop("a")
    dead.scan()
    [claim] = dead.claim()
    handle = dead.places.mine.path / claim.handle
    copy = handle.read_bytes()
    dead.finish(claim)
    handle.write_bytes(copy)
    office.fire(dead)
    dead.die()
    desk = office.desk()
    desk.spool.rescue()
    desk.scan()
    assert desk.claim() == []
    assert desk.memory.of(TaskRescued)[0].outcome == "result_exists"


def test_task_that_kills_its_workers_ends_as_dead_letter(office: Office) -> None:
    desk = office.desk()
    desk.drop("poison")
    for _ in range(3):
        desk.scan()
        assert len(desk.claim()) == 1
        office.fire(desk)
        desk.die()
        desk = office.desk()
        desk.spool.rescue()
    desk.scan()
    assert desk.claim() == []
    letter, result = desk.dead_letter("poison"), desk.result("poison")
    assert letter is not None and letter["dlq_reason"] == "worker_died"
    assert result is not None and result["reason"] == "worker_died" and result["status"] == "failed"


def test_crash_between_dead_letter_and_result_is_finished_without_running_again(office: Office) -> None:
    dead = office.desk()
    dead.drop("a")
    dead.scan()
    [claim] = dead.claim()
    settlement = dead.settlement(claim, "failed")
    letter = {
        "task_id": "a", "worker": "marie", "dlq_reason": "max_retries_exceeded", "dlq_timestamp": "2026-11-21T00:00:00Z",  # noqa: E501
        "retry_count": 3, "dlq_task_sha256": claim.task.sha256, "dlq_result": json.loads(settlement.result or b""),
    }  # fmt: skip
    (dead.root / "dlq" / "marie" / "a.json").write_text(json.dumps(letter))
    office.fire(dead)
    dead.die()
    desk = office.desk()
    desk.spool.rescue()
    desk.scan()
    assert desk.claim() == []
    result = desk.result("a")
    assert result is not None and result["status"] == "failed"
    assert not (desk.root / "dlq" / "marie" / "a~2.json").exists()


def test_outcome_of_a_claim_that_was_taken_away_is_not_published(office: Office) -> None:
    desk = office.desk()
    desk.drop("a")
    desk.scan()
    [claim] = desk.claim()
    (desk.places.mine.path / claim.handle).unlink()
    desk.finish(claim)
    assert desk.result("a") is None
    assert len(desk.memory.of(OutcomeDiscarded)) == 1


def test_outcome_after_the_inbox_was_removed_says_that_nobody_runs_the_task(office: Office) -> None:
    desk = office.desk()
    desk.drop("a")
    desk.scan()
    [claim] = desk.claim()
    shutil.rmtree(desk.root / "tasks" / "marie")
    desk.finish(claim)
    [told] = desk.memory.of(OutcomeDiscarded)
    assert "nobody runs it again" in told.detail and "kept in" in told.detail


def test_result_that_is_there_is_never_replaced(office: Office) -> None:
    desk = office.desk()
    desk.drop("a")
    desk.scan()
    [claim] = desk.claim()
    first = desk.root / "results" / "marie" / "a.json"
    first.write_text('{"task_id": "a", "worker": "marie", "status": "completed"}')
    desk.finish(claim, "failed")
    assert json.loads(first.read_text())["status"] == "completed"
    assert len(desk.memory.of(OutcomeDiscarded)) == 1


def test_unknown_fields_are_kept_and_told(office: Office) -> None:
    desk = office.desk()
    desk.drop("a", colour="blue")
    desk.scan()
    [claim] = desk.claim()
    assert claim.task.submitted["colour"] == "blue"
    assert desk.memory.of(TaskFieldsUnknown)[0].fields == "colour"


def test_output_of_what_is_no_dependency_is_not_filled_in_and_told_once(office: Office) -> None:
    desk = office.desk()
    desk.drop("a", description="use {{x.stdout}}")
    desk.drop("plain", description="use {{x}}")
    desk.scan()
    claims = {claim.task.task_id: claim for claim in desk.claim()}
    assert claims["a"].task.description == "use {{x.stdout}}"
    desk.spool.retry_in(claims["a"], 2)
    desk.clock.pass_seconds(2.1)
    [again] = desk.claim()
    assert again.task.task_id == "a"
    assert [(told.task_id, told.references) for told in desk.memory.of(TaskReferencesUnknown)] == [("a", "x")]


def test_per_agent_runs_one_at_a_time_in_order_and_a_retry_keeps_its_place(office: Office) -> None:
    desk = office.desk(fifo_mode="per_agent")
    for stem in ("x1", "x2", "y1"):
        desk.drop(stem, agent_id=stem[0])
    desk.drop("free")
    desk.scan()
    claims = {c.task.task_id: c for c in desk.claim()}
    assert sorted(claims) == ["free", "x1", "y1"]
    desk.spool.retry_in(claims["x1"], 2)
    assert desk.claim() == []
    desk.clock.pass_seconds(2.1)
    [again] = desk.claim()
    assert again.task.task_id == "x1"
    desk.finish(again)
    assert [c.task.task_id for c in desk.claim()] == ["x2"]


def test_strict_runs_one_at_a_time(office: Office) -> None:
    desk = office.desk(fifo_mode="strict")
    desk.drop("a")
    desk.drop("b")
    desk.scan()
    [first] = desk.claim()
    assert first.task.task_id == "a" and desk.claim() == []
    desk.finish(first)
    assert [c.task.task_id for c in desk.claim()] == ["b"]


def test_relaxed_does_not_hold_back_the_same_agent(office: Office) -> None:
    desk = office.desk(fifo_mode="relaxed")
    desk.drop("a", agent_id="x")
    desk.drop("b", agent_id="x")
    desk.scan()
    assert [c.task.task_id for c in desk.claim()] == ["a", "b"]


def test_order_in_a_lane_survives_a_restart_with_a_retry_under_way(office: Office) -> None:
    desk = office.desk()
    desk.drop("x1", agent_id="x")
    desk.drop("x2", agent_id="x")
    desk.scan()
    [claim] = desk.claim()
    desk.spool.retry_in(claim, 2)
    office.fire(desk)
    desk.close()
    desk = office.desk()
    desk.scan()
    assert desk.claim() == []
    desk.clock.pass_seconds(2.1)
    assert [c.task.task_id for c in desk.claim()] == ["x1"]


def test_file_that_is_no_json_name_is_left_and_told_once(office: Office) -> None:
    desk = office.desk()
    (desk.inbox / "readme.txt").write_text("hello")
    (desk.inbox / ".hidden.json").write_text("{}")
    desk.scan()
    desk.scan()
    assert desk.claim() == []
    assert len(desk.memory.of(FileIgnored)) == 1
    assert (desk.inbox / "readme.txt").exists()


def test_half_written_file_is_neither_run_nor_thrown_away(office: Office) -> None:
    desk = office.desk(settle_seconds=2.0)
    path = desk.inbox / "slow.json"
    with path.open("w") as writer:
        writer.write('{"description": "a lo')
        writer.flush()
        desk.scan()
        for _ in range(20):
            desk.clock.pass_seconds(1)
            desk.spool.tick()
            assert desk.claim() == []
        assert path.exists()
        writer.write('ng one"}')
        writer.flush()
        desk.spool.notice(["slow.json"])
        assert desk.claim() == [], "its writer still has it open"
    desk.spool.notice(["slow.json"])
    [claim] = desk.claim()
    assert claim.task.description == "a long one"


def test_garbage_that_stays_garbage_is_refused_after_the_settle_time_with_its_bytes(office: Office) -> None:
    desk = office.desk(settle_seconds=2.0)
    (desk.inbox / "bad.json").write_bytes(b'{"description": \xff}')
    desk.scan()
    assert desk.claim() == [] and (desk.inbox / "bad.json").exists()
    desk.clock.pass_seconds(2.5)
    desk.spool.tick()
    assert desk.claim() == []
    letter = desk.dead_letter("bad")
    assert letter is not None and letter["dlq_reason"] == "invalid_json"
    original = desk.root / "dlq" / "marie" / letter["dlq_original"]
    assert original.read_bytes() == b'{"description": \xff}'
    assert not (desk.inbox / "bad.json").exists()
    assert desk.memory.of(TaskRefused)[0].task_id == "bad"


def test_refused_file_whose_worker_died_is_refused_once(office: Office, tmp_path: Path) -> None:
    desk = office.desk(settle_seconds=0.0)
    (desk.inbox / "bad.json").write_bytes(b"no")
    desk.scan()
    desk.clock.pass_seconds(1)
    desk.spool.tick()
    taken = desk.spool.claim(1, frozenset())
    assert len(taken.endings) == 1
    office.fire(desk)
    desk.die()
    desk = office.desk(settle_seconds=0.0)
    desk.spool.rescue()
    desk.scan()
    desk.clock.pass_seconds(1)
    desk.spool.tick()
    desk.claim()
    letters = sorted(p.name for p in (tmp_path / "dlq" / "marie").glob("*.json"))
    assert letters == ["bad.json"]
    letter = desk.dead_letter("bad")
    assert letter is not None
    assert (desk.root / "dlq" / "marie" / letter["dlq_original"]).read_bytes() == b"no"


def test_process_that_came_in_the_same_tick_as_the_last_look_is_seen(office: Office) -> None:
    """Many file systems stamp in steps of milliseconds: then a folder's stamp does not show its second change."""
    one = office.desk(instance="1")
    raw = one.drop("a").read_bytes()
    stamp = one.places.claims_changed()
    one.clock.now_wall = stamp / 1e9
    one.scan()
    one.claim(0)
    assert one.spool._other_incarnations() == []
    two = office.desk(instance="2")
    two.scan()
    [claim] = two.claim()
    os.utime(one.inbox / ".claims", ns=(stamp, stamp))
    assert one.spool._other_incarnations() == [two.incarnation.id]
    (one.inbox / "a.json").write_bytes(raw)
    one.scan()
    assert one.claim() == [], "it runs in the other process"
    two.finish(claim)


def test_task_that_was_held_in_the_same_tick_as_the_last_look_is_counted(office: Office) -> None:
    desk = office.desk()
    held = desk.inbox / ".held"
    stamp = held.stat().st_mtime_ns
    desk.clock.now_wall = stamp / 1e9
    assert desk.spool.held() == 0
    (held / "a.json").write_text('{"description": "x"}')
    os.utime(held, ns=(stamp, stamp))
    assert desk.spool.held() == 1


@pytest.mark.parametrize("what", ["results", "dlq"])
def test_outcome_that_cannot_be_read_for_want_of_descriptors_is_no_reason_to_run_again(
    office: Office, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    dead = office.desk()
    dead.drop("a")
    dead.scan()
    [claim] = dead.claim()
    settlement = dead.settlement(claim)
    if what == "results":
        (dead.root / "results" / "marie" / "a.json").write_bytes(settlement.result or b"")
    else:
        letter = {
            "dlq_reason": "x",
            "dlq_task_sha256": claim.task.sha256,
            "dlq_result": json.loads(settlement.result or b""),
        }
        (dead.root / "dlq" / "marie" / "a.json").write_text(json.dumps(letter))
    office.fire(dead)
    dead.die()
    desk = office.desk()
    read = Folder.read

    def short(folder: Folder, name: str, limit: int) -> bytes:
        if folder.path.parent.name == what:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), name)
        return read(folder, name, limit)

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "read", short)
        with pytest.raises((OSError, WorkerTrouble)):
            desk.spool.rescue()
            desk.clock.pass_seconds(1)
            desk.scan()
            assert desk.claim() == []
    desk.spool.rescue()
    desk.clock.pass_seconds(1)
    desk.scan()
    assert desk.claim() == [] and desk.result("a") is not None
