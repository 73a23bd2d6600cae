"""Putting tasks in: what a submitter may rely on when `submit` returns, and when it does not."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from watcher.errors import InvalidTask
from watcher.formats import strict_json
from watcher.formats.task import TASK_FILE_NAME, parse_task
from watcher.store.submitting import AlreadySubmitted, new_task_id, submit, submit_many
from watcher.system.files import fsync_file, move_new


def read(path: Path) -> dict[str, Any]:
    value = strict_json.loads(path.read_bytes())
    assert isinstance(value, dict)
    return value


def everything_below(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_task_is_in_the_inbox_under_its_id_and_nothing_else_is(tmp_path: Path) -> None:
    task_id = submit(tmp_path, "marie", {"description": "List files"})
    assert everything_below(tmp_path) == ["marie", f"marie/{task_id}.json"]
    assert read(tmp_path / "marie" / f"{task_id}.json") == {
        "task_id": task_id, "worker": "marie", "description": "List files",
    }  # fmt: skip


def test_what_is_submitted_is_what_a_worker_accepts(tmp_path: Path) -> None:
    fields = {
        "description": "Write \u00fcber \U0001f600", "priority": "high", "timeout": 12.5, "dependencies": ["anga/x"],
        "metadata": {"a": [1, None]}, "agent_id": "me", "not_before": "2026-11-21T23:33:00Z", "max_retries": 0,
    }  # fmt: skip
    task_id = submit(tmp_path, "marie", fields)
    raw = (tmp_path / "marie" / f"{task_id}.json").read_bytes()
    task = parse_task(raw, task_id, "marie")
    assert (task.description, task.priority, task.dependencies) == (fields["description"], 50, ("anga/x",))


def test_fields_that_nobody_knows_are_kept(tmp_path: Path) -> None:
    task_id = submit(tmp_path, "marie", {"description": "x", "colour": "green"})
    assert read(tmp_path / "marie" / f"{task_id}.json")["colour"] == "green"


def test_id_that_was_given_is_used(tmp_path: Path) -> None:
    assert submit(tmp_path, "marie", {"description": "x", "task_id": "review-42"}) == "review-42"
    assert (tmp_path / "marie" / "review-42.json").is_file()


def test_fresh_ids_are_task_ids_all_different_and_in_order_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1_795_219_200_000_000_000, 1_795_219_202_000_000_000, 20_000_000))
    monkeypatch.setattr("watcher.store.submitting.time.time_ns", lambda: next(now))
    ids = [new_task_id() for _ in range(100)]
    assert ids == sorted(set(ids))
    assert all(TASK_FILE_NAME.fullmatch(f"{task_id}.json") for task_id in ids)
    monkeypatch.setattr("watcher.store.submitting.time.time_ns", lambda: 1_795_219_200_000_000_000)
    assert new_task_id() != new_task_id()


# --- names that are taken


def test_task_that_waits_is_never_replaced(tmp_path: Path) -> None:
    submit(tmp_path, "marie", {"description": "first", "task_id": "x"})
    with pytest.raises(AlreadySubmitted, match="'x'"):
        submit(tmp_path, "marie", {"description": "second", "task_id": "x"})
    assert everything_below(tmp_path) == ["marie", "marie/x.json"]
    assert read(tmp_path / "marie/x.json")["description"] == "first"


def test_of_many_who_submit_one_id_at_once_exactly_one_is_told_that_it_is_in(tmp_path: Path) -> None:
    start, told = threading.Barrier(8), []

    def try_it(number: int) -> None:
        start.wait()
        try:
            submit(tmp_path, "marie", {"description": f"from {number}", "task_id": "x"})
        except AlreadySubmitted:
            return
        told.append(f"from {number}")

    threads = [threading.Thread(target=try_it, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [read(tmp_path / "marie/x.json")["description"]] == told
    assert everything_below(tmp_path) == ["marie", "marie/x.json"]


# --- what is refused


@pytest.mark.parametrize("worker", ["", "..", ".marie", "a/b", "../marie", "/etc", "mar ie", "m" * 65, "marie\n"])
def test_worker_name_that_is_none_makes_no_folder(tmp_path: Path, worker: str) -> None:
    with pytest.raises(InvalidTask) as refusal:
        submit(tmp_path / "tasks", worker, {"description": "x"})
    assert refusal.value.reason == "bad_worker" and "at most 64 letters" in refusal.value.detail
    assert everything_below(tmp_path) == []


@pytest.mark.parametrize("task_id", ["", "..", ".x", "../x", "a/b", "/etc/passwd", "x\0", "x~1-0", "y" * 129, 7, True])
def test_id_that_is_none_puts_nothing_anywhere(tmp_path: Path, task_id: object) -> None:
    with pytest.raises(InvalidTask):
        submit(tmp_path / "tasks", "marie", {"description": "x", "task_id": task_id})
    assert everything_below(tmp_path) == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "missing_description"),
        ({"description": "   "}, "missing_description"),
        ({"description": 7}, "invalid_field"),
        ({"description": "x", "priority": "urgent"}, "invalid_field"),
        ({"description": "x", "timeout": 0}, "invalid_field"),
        ({"description": "x", "cwd": "relative"}, "invalid_field"),
        ({"description": "x", "worker": "anga"}, "worker_mismatch"),
        ({"description": "nul \0"}, "invalid_json"),
        ({"description": "x", "metadata": {"n": float("nan")}}, "invalid_json"),
        ({"description": "x", "timeout": float("inf")}, "invalid_json"),
    ],
)
def test_task_that_its_worker_would_refuse_is_refused_before(
    tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidTask) as refusal:
        submit(tmp_path / "tasks", "marie", fields)
    assert refusal.value.reason == reason
    assert everything_below(tmp_path) == []


def test_one_bad_task_among_many_keeps_all_of_them_out(tmp_path: Path) -> None:
    with pytest.raises(InvalidTask):
        submit_many(tmp_path, "marie", [{"description": "good"}, {"description": ""}])
    assert everything_below(tmp_path) == []


def test_id_that_stands_twice_or_waits_already_keeps_all_of_them_out(tmp_path: Path) -> None:
    same = {"description": "x", "task_id": "same"}
    with pytest.raises(InvalidTask, match="'same' is given to two"):
        submit_many(tmp_path, "marie", [{"description": "good"}, same, same])
    assert everything_below(tmp_path) == []
    submit(tmp_path, "marie", same)
    with pytest.raises(AlreadySubmitted, match="'same'") as refusal:
        submit_many(tmp_path, "marie", [{"description": "good"}, same])
    assert refusal.value.accepted == []
    assert everything_below(tmp_path) == ["marie", "marie/same.json"]


# --- order and durability


def test_order_of_many_survives_in_the_times_of_their_files(tmp_path: Path) -> None:
    ids = submit_many(tmp_path, "marie", [{"description": f"task {n}"} for n in range(50)])
    times = [(tmp_path / "marie" / f"{task_id}.json").stat().st_mtime_ns for task_id in ids]
    assert times == sorted(times)
    assert len(set(times)) == len(times)


def test_file_is_durable_before_it_is_shown_and_its_name_before_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    file_sync, rename, folder_sync = fsync_file, move_new, os.fsync

    def sync_file(folder: Any, name: str) -> None:
        steps.append("file")
        file_sync(folder, name)

    def show(*arguments: Any) -> bool:
        steps.append("show")
        return rename(*arguments)

    def sync_folder(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            steps.append("folder")
        folder_sync(fd)

    monkeypatch.setattr("watcher.store.submitting.fsync_file", sync_file)
    monkeypatch.setattr("watcher.store.submitting.move_new", show)
    monkeypatch.setattr("watcher.store.submitting.os.fsync", sync_folder)
    submit_many(tmp_path, "marie", [{"description": "x"}, {"description": "y"}])
    assert [step for step in steps if step != "file"] == ["show", "show", "folder"]
    shows = [place for place, step in enumerate(steps) if step == "show"]
    assert [steps[:place].count("file") > number for number, place in enumerate(shows)] == [True, True]


def test_full_disk_leaves_no_file_behind_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("watcher.store.submitting.fsync_file", full)
    with pytest.raises(OSError, match="No space"):
        submit(tmp_path, "marie", {"description": "x"})
    assert everything_below(tmp_path) == ["marie"]


def test_name_that_a_worker_sees_before_the_rename_is_no_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def stop(*_: Any) -> bool:
        seen.extend(os.listdir(tmp_path / "marie"))
        raise KeyboardInterrupt

    monkeypatch.setattr("watcher.store.submitting.move_new", stop)
    with pytest.raises(KeyboardInterrupt):
        submit(tmp_path, "marie", {"description": "x"})
    assert len(seen) == 1
    assert TASK_FILE_NAME.fullmatch(seen[0]) is None
    assert everything_below(tmp_path) == ["marie"]
