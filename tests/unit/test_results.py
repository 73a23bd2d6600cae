"""Waiting for ends: results, dead letters that hold none, and what was there before."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from watcher.store import results
from watcher.store.results import AlreadyKnown, Awaited, Ended, refuse_known, wait
from watcher_config import Folders, folders, read_layers


@pytest.fixture
def places(tmp_path: Path) -> Folders:
    return folders(read_layers(environ={"WATCHER_ROOT": str(tmp_path)}, env_file=os.devnull))


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes only by sleeping; the pauses in order."""
    pauses: list[float] = []
    monkeypatch.setattr("watcher.store.results.time.monotonic", lambda: sum(pauses))
    monkeypatch.setattr("watcher.store.results.time.sleep", pauses.append)
    return pauses


def put(path: Path, fields: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))
    return path


def result(places: Folders, task_id: str, status: str = "completed", worker: str = "marie") -> Path:
    fields = {"task_id": task_id, "worker": worker, "status": status, "stdout": "hi"}
    return put(places.results / worker / f"{task_id}.json", fields)


def letter(places: Folders, name: str, **fields: Any) -> Path:
    return put(places.dlq / "marie" / f"{name}.json", {"task_id": "x", "worker": "marie"} | fields)


def test_end_is_told_once_with_its_status_and_its_whole_result(places: Folders) -> None:
    awaited = Awaited(places, "marie", ["x", "y"])
    assert awaited.look() == []
    path = result(places, "x", "timeout")
    (ended,) = awaited.look()
    assert ended == Ended("x", "marie", "timeout", path)
    assert not ended.is_completed
    assert ended.read()["stdout"] == "hi"
    assert (awaited.look(), awaited.open) == ([], {"y"})


def test_results_of_others_are_not_ours(places: Folders) -> None:
    awaited = Awaited(places, "marie", ["x"])
    result(places, "y")
    result(places, "x", worker="anga")
    assert awaited.look() == []


def test_result_that_tells_no_status_is_not_an_end(places: Folders) -> None:
    awaited = Awaited(places, "marie", ["x"])
    put(places.results / "marie/x.json", {})
    assert awaited.look() == []
    result(places, "x")
    assert [ended.status for ended in awaited.look()] == ["completed"]


def test_dead_letter_without_a_result_is_the_end_of_a_file_that_never_became_a_task(places: Folders) -> None:
    awaited = Awaited(places, "marie", ["x"])
    path = letter(places, "x", dlq_reason="invalid_json")
    (ended,) = awaited.look()
    assert (ended.status, ended.path, ended.read()["dlq_reason"]) == ("refused", path, "invalid_json")


def test_dead_letter_with_a_result_waits_for_the_result(places: Folders) -> None:
    awaited = Awaited(places, "marie", ["x"])
    letter(places, "x", dlq_reason="max_retries_exceeded", dlq_result={"status": "failed"})
    assert awaited.look() == []
    result(places, "x", "failed")
    assert [ended.status for ended in awaited.look()] == ["failed"]


def test_dead_letter_that_was_there_before_is_not_the_end_and_a_second_one_is(places: Folders) -> None:
    letter(places, "x", dlq_reason="invalid_json")
    awaited = Awaited(places, "marie", ["x"])
    assert awaited.look() == []
    second = letter(places, "x~2", dlq_reason="duplicate_id")
    assert [(ended.task_id, ended.path) for ended in awaited.look()] == [("x", second)]


def test_wait_returns_when_all_have_ended_and_tells_each(places: Folders, slept: list[float]) -> None:
    both = [Awaited(places, "marie", ["x"]), Awaited(places, "anga", ["y"])]
    told: list[str] = []

    def each(ended: list[Ended]) -> None:
        told.extend(outcome.task_id for outcome in ended)
        if len(slept) == 2:
            result(places, "x")
        if len(slept) == 4:
            result(places, "y", worker="anga")

    assert wait(both, None, each)
    assert told == ["x", "y"]


def test_wait_gives_up_after_its_time_and_not_before(places: Folders, slept: list[float]) -> None:
    assert not wait([Awaited(places, "marie", ["x"])], 10.0, lambda ended: None)
    assert sum(slept) == pytest.approx(10.0)


def test_pauses_grow_while_nothing_happens_and_are_short_again_after_something_did(
    places: Folders, slept: list[float]
) -> None:
    awaited = Awaited(places, "marie", ["x", "y"])

    def each(ended: list[Ended]) -> None:
        if len(slept) == 10:
            result(places, "x")
        if ended:
            slept.append(0.0)

    wait([awaited], 5.0, each)
    cut = slept.index(0.0)
    assert slept[0] < slept[1] < slept[2]
    assert max(slept) == results.PAUSE_SECONDS[1]
    assert slept[cut - 1] == results.PAUSE_SECONDS[1]
    assert slept[cut + 1] == results.PAUSE_SECONDS[0]


def test_pause_grows_with_what_a_look_costs(
    places: Folders, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing of a second must not be asked for four times a second."""
    real = Awaited.look

    def slow(self: Awaited) -> list[Ended]:
        slept.append(1.0)
        return real(self)

    monkeypatch.setattr(Awaited, "look", slow)
    wait([Awaited(places, "marie", ["x"])], 60.0, lambda ended: None)
    assert slept[:2] == [1.0, pytest.approx(10.0)]


@pytest.mark.parametrize(
    "place",
    [
        "results/marie/x.json",
        "tasks/marie/.retry/x~1-0-1800000000000.json",
        "tasks/marie/.held/x.json",
        "tasks/marie/.held/x~1-0-0.json",
        "tasks/marie/.reassign/anga/x.json",
        f"tasks/marie/.claims/{'a' * 32}/x~1-0.json",
    ],
)
def test_id_that_is_known_anywhere_is_refused(places: Folders, place: str) -> None:
    refuse_known(places, "marie", "x")
    put(places.root / place, {})
    with pytest.raises(AlreadyKnown, match="'x'"):
        refuse_known(places, "marie", "x")
    refuse_known(places, "marie", "xx")
    refuse_known(places, "anga", "x")
