"""Tasks that wait for others: across workers, broken, missing, in circles, and filled in."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.conftest import Office
from watcher.errors import InvalidTask, WorkerTrouble
from watcher.store import blocked, dependencies


def test_task_waits_for_its_dependency_and_gets_its_text_once(office: Office) -> None:
    desk = office.desk()
    desk.drop("b", dependencies=["a"], description="use {{a.stdout}} and {{other.stdout}}")
    desk.drop("a")
    desk.scan()
    [first] = desk.claim()
    assert first.task.task_id == "a" and desk.spool.blocked() == 1
    desk.finish(first, stdout="{{a.stdout}} text")
    [second] = desk.claim()
    assert desk.spool.prompt(second) == "use {{a.stdout}} text and {{other.stdout}}"


def test_dependency_of_another_worker_is_found_by_event_or_scan(office: Office) -> None:
    marie, anga = office.desk("marie"), office.desk("anga")
    marie.drop("sum", dependencies=["anga/part", "other"])
    anga.drop("part")
    anga.drop("other")
    marie.scan()
    anga.scan()
    assert marie.claim() == []
    for claim in anga.claim():
        anga.finish(claim, stdout=claim.task.task_id)
    marie.spool.notice_result("anga", "part.json")
    assert marie.claim() == []
    marie.scan()
    assert [c.task.task_id for c in marie.claim()] == ["sum"]


def test_answer_of_another_workers_task_may_be_called_by_its_id_alone_where_only_one_is_meant(office: Office) -> None:
    marie, anga = office.desk("marie"), office.desk("anga")
    for desk in (anga, marie):
        for stem in ("part", "twin"):
            desk.drop(stem)
        desk.scan()
        for claim in desk.claim():
            desk.finish(claim, stdout=f"{claim.task.task_id} of {desk.worker}")
    needs = ["anga/part", "twin", "anga/twin"]
    marie.drop("sum", dependencies=needs, description="{{part.stdout}}, {{anga/part.stdout}}, {{twin.stdout}}")
    marie.drop("both", dependencies=["anga/twin", "marie/twin"], description="{{twin.stdout}}")
    marie.scan()
    assert {claim.task.task_id: marie.spool.prompt(claim) for claim in marie.claim()} == {
        "sum": "part of anga, part of anga, twin of marie",
        "both": "{{twin.stdout}}",
    }


def test_age_of_the_oldest_task_counts_one_that_waits_for_others(office: Office) -> None:
    desk = office.desk()
    assert desk.spool.oldest_arrival() is None
    desk.drop("waits", dependencies=["missing"])
    came = desk.clock.wall()
    desk.scan()
    assert desk.spool.oldest_arrival() == pytest.approx(came)
    desk.clock.pass_seconds(5)
    desk.drop("ready")
    desk.scan()
    assert desk.spool.blocked() == 1 and desk.spool.oldest_arrival() == pytest.approx(came)
    (desk.inbox / "waits.json").unlink()
    desk.scan()
    assert desk.spool.oldest_arrival() == pytest.approx(came + 5, abs=0.1)


def test_answer_that_the_machine_cannot_read_now_ends_no_task(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = office.desk()
    desk.drop("a")
    desk.scan()
    desk.finish(desk.claim()[0], stdout="text")
    desk.drop("b", dependencies=["a"], description="{{a.stdout}}")
    desk.scan()

    [claim] = desk.claim()

    def read(path: object, limit: int) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as short:
        short.setattr(dependencies, "read_regular", read)
        with pytest.raises(WorkerTrouble):
            desk.spool.prompt(claim)
    assert desk.spool.prompt(claim) == "text" and desk.dead_letter("b") is None


@pytest.mark.parametrize("times", [3, 60_000])
def test_prompt_that_would_be_too_large_is_refused_before_it_is_made(office: Office, times: int) -> None:
    desk = office.desk(max_prompt_bytes=2_000_000)
    desk.drop("big")
    desk.scan()
    desk.finish(desk.claim()[0], stdout="x" * 900_000)
    desk.drop("two", dependencies=["big"], description="{{big.stdout}}" * 2)
    desk.drop("more", dependencies=["big"], description="{{big.stdout}}" * times)
    desk.scan()
    claims = {claim.task.task_id: claim for claim in desk.claim()}
    assert len(desk.spool.prompt(claims["two"])) == 1_800_000
    tracemalloc.start()
    with pytest.raises(InvalidTask, match=r"prompt_too_large.*MAX_PROMPT_BYTES"):
        desk.spool.prompt(claims["more"])
    assert tracemalloc.get_traced_memory()[1] < 8_000_000
    tracemalloc.stop()


def test_description_alone_may_be_as_long_as_a_task_may(office: Office) -> None:
    desk = office.desk(max_prompt_bytes=64)
    desk.drop("a", description="{{nobody.stdout}}" * 100)
    desk.scan()
    assert [len(prompt) for prompt in desk.prompts()] == [1700]


def test_own_worker_is_asked_first_for_a_plain_id(office: Office) -> None:
    marie, anga = office.desk("marie"), office.desk("anga")
    for desk in (anga, marie):
        desk.drop("x")
        desk.scan()
        desk.finish(desk.claim()[0], stdout=desk.worker)
    marie.drop("y", dependencies=["x"], description="{{x.stdout}}")
    marie.scan()
    assert marie.prompts() == ["marie"]


def test_failed_dependency_ends_the_task_with_result_and_dead_letter(office: Office) -> None:
    desk = office.desk()
    desk.drop("a")
    desk.drop("b", dependencies=["a"])
    desk.drop("c", dependencies=["b"])
    desk.scan()
    desk.finish(desk.claim()[0], "failed")
    while desk.claim():
        pass
    desk.claim()
    for stem in ("b", "c"):
        result, letter = desk.result(stem), desk.dead_letter(stem)
        assert result is not None and result["reason"] == "dependency_failed", stem
        assert letter is not None and letter["dlq_reason"] == "dependency_failed"
        assert letter["dependencies"] == [{"b": "a", "c": "b"}[stem]]


def test_cycle_over_two_workers_is_found_by_the_last_one(office: Office) -> None:
    marie, anga = office.desk("marie"), office.desk("anga")
    marie.drop("m", dependencies=["anga/a"])
    marie.scan()
    assert marie.claim() == []
    anga.drop("a", dependencies=["marie/m"])
    anga.scan()
    assert anga.claim() == []
    result = anga.result("a")
    assert result is not None and result["reason"] == "dependency_cycle"
    assert "marie/m -> anga/a" in result["detail"]
    marie.scan()
    marie.claim()
    broken = marie.result("m")
    assert broken is not None and broken["reason"] == "dependency_failed"


def test_task_that_needs_itself_is_a_cycle(office: Office) -> None:
    desk = office.desk()
    desk.drop("a", dependencies=["a"])
    desk.scan()
    assert desk.claim() == []
    result = desk.result("a")
    assert result is not None and result["reason"] == "dependency_cycle"


def test_dependency_that_nobody_submits_is_given_up_after_its_time(office: Office) -> None:
    desk = office.desk(dependency_timeout=60.0)
    desk.drop("a", dependencies=["ghost"])
    desk.scan()
    desk.clock.pass_seconds(59)
    desk.scan()
    assert desk.claim() == [] and desk.result("a") is None
    desk.clock.pass_seconds(2)
    desk.scan()
    assert desk.claim() == []
    result = desk.result("a")
    assert result is not None and result["reason"] == "dependency_missing" and "ghost" in result["detail"]


def test_dependency_that_waits_somewhere_is_waited_for_without_end(office: Office) -> None:
    desk, other = office.desk(dependency_timeout=60.0), office.desk("anga")
    desk.drop("a", dependencies=["slow"])
    other.drop("slow")
    desk.scan()
    desk.clock.pass_seconds(600)
    desk.scan()
    assert desk.claim() == [] and desk.result("a") is None
    other.scan()
    other.finish(other.claim()[0])
    desk.scan()
    assert len(desk.claim()) == 1


def test_ten_thousand_dependencies_are_waited_for(office: Office) -> None:
    desk = office.desk(fifo_mode="relaxed")
    results = desk.root / "results" / "marie"
    for number in range(10_000):
        (results / f"d{number}.json").write_text('{"task_id": "d", "worker": "marie", "status": "completed"}')
    desk.drop("last-one")
    desk.drop("all", dependencies=[f"d{n}" for n in range(10_000)] + ["last-one"])
    desk.scan()
    [claim] = desk.claim()
    assert claim.task.task_id == "last-one"
    desk.finish(claim)
    assert [c.task.task_id for c in desk.claim()] == ["all"]


def test_blocked_task_does_not_hold_its_agents_lane(office: Office) -> None:
    desk = office.desk()
    desk.drop("first", agent_id="x", dependencies=["second"])
    desk.drop("second", agent_id="x")
    desk.scan()
    [claim] = desk.claim()
    assert claim.task.task_id == "second"
    desk.finish(claim)
    assert [c.task.task_id for c in desk.claim()] == ["first"]


@pytest.mark.parametrize("plant", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_under_a_dependencys_name_blocks_nobody(office: Office, plant: Callable[[Path], None]) -> None:
    desk = office.desk()
    planted = desk.root / "results" / "anga" / "a.json"
    planted.parent.mkdir(parents=True)
    plant(planted)
    desk.drop("b", dependencies=["anga/a"])
    desk.drop("c")
    desk.scan()
    assert [claim.task.task_id for claim in desk.claim()] == ["c"]
    assert desk.result("b") is None and desk.dead_letter("b") is None


def test_circle_of_plain_ids_over_workers_is_named(office: Office) -> None:
    marie, anga = office.desk("marie"), office.desk("anga")
    marie.drop("a", dependencies=["b"])
    anga.drop("b", dependencies=["a"])
    marie.scan()
    anga.scan()
    assert marie.claim() == [] and anga.claim() == []
    for desk, stem in ((marie, "a"), (anga, "b")):
        result = desk.result(stem)
        assert result is not None and result["reason"] == "dependency_cycle"
        assert "marie/a -> anga/b" in result["detail"] and "anga/b -> marie/a" in result["detail"]


def test_plain_id_that_several_workers_have_closes_no_circle(office: Office) -> None:
    marie, anga, fabien = office.desk("marie"), office.desk("anga"), office.desk("fabien")
    marie.drop("a", dependencies=["b"])
    anga.drop("b", dependencies=["a"])
    fabien.drop("b")
    marie.scan()
    assert marie.claim() == [] and marie.result("a") is None, "fabien's may complete"


def test_long_circle_is_found_by_a_scan_and_one_task_of_it_ends(office: Office) -> None:
    desk = office.desk()
    for number in range(300):
        desk.drop(f"t{number}", dependencies=[f"t{(number + 1) % 300}"])
    desk.scan()
    assert desk.claim() == []
    [ended] = [f"t{number}" for number in range(300) if desk.result(f"t{number}") is not None]
    result = desk.result(ended)
    assert result is not None and result["reason"] == "dependency_cycle"
    assert result["detail"].count(" -> ") == 19 and "282 more" in result["detail"]


def test_more_dependencies_than_are_remembered_at_once_are_all_waited_for(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked, "MAX_WAITED_FOR", 10)
    desk = office.desk(fifo_mode="relaxed")
    for number in range(60):
        desk.drop(f"t{number}")
    desk.drop("all", dependencies=[f"t{number}" for number in range(60)])
    desk.scan()
    for claim in desk.claim():
        assert claim.task.task_id != "all"
        desk.finish(claim)
        desk.spool.tick()
    assert [claim.task.task_id for claim in desk.claim()] == ["all"]


def test_result_that_was_removed_is_not_called_a_task_that_nobody_submitted(office: Office) -> None:
    desk = office.desk(dependency_timeout=60.0)
    desk.drop("a")
    desk.scan()
    [claim] = desk.claim()
    desk.spool.taken(claim)
    desk.finish(claim)
    (desk.root / "results" / "marie" / "a.json").unlink()
    desk.drop("b", dependencies=["a"])
    desk.drop("c", dependencies=["ghost"])
    desk.scan()
    desk.clock.pass_seconds(61)
    desk.scan()
    assert desk.claim() == []
    removed, missing = desk.result("b"), desk.result("c")
    assert removed is not None and "a ran before and has no result any more" in removed["detail"]
    assert missing is not None and "never submitted, or its result was removed" in missing["detail"]


def test_edit_that_would_close_a_circle_is_refused_and_changes_nothing(office: Office) -> None:
    desk, anga = office.desk(), office.desk("anga")
    desk.drop("a")
    anga.drop("b", dependencies=["marie/a"])
    desk.scan()
    before = (desk.inbox / "a.json").read_bytes()
    with pytest.raises(InvalidTask, match=r"dependency_cycle.*marie/a -> anga/b -> marie/a"):
        desk.spool.edit("a", {"dependencies": ["anga/b"]})
    assert (desk.inbox / "a.json").read_bytes() == before
