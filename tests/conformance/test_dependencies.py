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
from watcher.spool import dependencies


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
    desk = office.desk(dependency_timeout_seconds=60.0)
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
    desk, other = office.desk(dependency_timeout_seconds=60.0), office.desk("anga")
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
