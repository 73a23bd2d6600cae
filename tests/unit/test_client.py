"""The Python client: what it puts in, what it gives out, and what importing it costs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from watcher import AsyncClient, Client, TaskFailed, TaskRef
from watcher.errors import InvalidTask
from watcher.store.results import AlreadyKnown


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path)


def task(client: Client, ref: TaskRef) -> dict[str, Any]:
    found = json.loads((client.folders.tasks / ref.worker / f"{ref.task_id}.json").read_text())
    assert isinstance(found, dict)
    return found


def end(client: Client, ref: TaskRef | tuple[str, str], status: str = "completed", **fields: Any) -> None:
    """What a worker does last."""
    worker, task_id = ref
    folder = client.folders.results / worker
    folder.mkdir(parents=True, exist_ok=True)
    record = {"task_id": task_id, "worker": worker, "status": status, "stdout": f"answer of {task_id}", **fields}
    hidden = folder / f".{task_id}"
    hidden.write_text(json.dumps(record))
    hidden.rename(folder / f"{task_id}.json")


def refuse(client: Client, task_id: str, **fields: Any) -> None:
    folder = client.folders.dlq / "marie"
    folder.mkdir(parents=True, exist_ok=True)
    letter = {"task_id": task_id, "worker": "marie", "dlq_reason": "invalid_json", **fields}
    (folder / f"{task_id}.json").write_text(json.dumps(letter))


def test_submitted_task_holds_what_was_given_and_leaves_out_none(client: Client) -> None:
    first = client.submit("anga", "outline")
    ref = client.submit(
        "marie", "text", dependencies=[first, "b"], not_before=datetime(2027, 1, 2, tzinfo=UTC), model=None,
        metadata={"n": 1}, cwd=Path("/tmp"), task_id="t",
    )  # fmt: skip
    assert ref == ("marie", "t")
    assert task(client, ref) == {
        "task_id": "t", "worker": "marie", "description": "text", "dependencies": [f"anga/{first.task_id}", "b"],
        "not_before": "2027-01-02T00:00:00.000000Z", "metadata": {"n": 1}, "cwd": "/tmp",
    }  # fmt: skip


def test_task_that_the_worker_would_refuse_is_not_put_in(client: Client) -> None:
    with pytest.raises(InvalidTask):
        client.submit("marie", "x", timeout=-1)
    with pytest.raises(InvalidTask):
        client.submit("marie", "x", not_before=datetime(2027, 1, 2))
    assert not list(client.folders.tasks.glob("*/*.json"))


def test_group_with_one_id_twice_is_refused_as_a_whole(client: Client) -> None:
    group = [{"description": "a"}, {"description": "b", "task_id": "t"}, {"description": "c", "task_id": "t"}]
    with pytest.raises(InvalidTask, match="'t' is given to two"):
        client.submit_many("marie", group)
    with pytest.raises(InvalidTask, match="'t' is given to two"):
        asyncio.run(AsyncClient(folders=client.folders).submit_many("marie", group))
    assert not list(client.folders.tasks.glob("*/*.json"))


def test_id_that_has_ended_already_is_refused(client: Client) -> None:
    end(client, ("marie", "t"))
    with pytest.raises(AlreadyKnown):
        client.submit("marie", "x", task_id="t")


def test_wait_gives_the_result_of_a_task_that_ended_before_or_ends_later(client: Client) -> None:
    ref = client.submit("marie", "x")
    with pytest.raises(TimeoutError):
        client.wait(ref, seconds=0)
    timer = threading.Timer(0.05, end, (client, ref))
    timer.start()
    assert client.wait(ref, seconds=30).stdout == f"answer of {ref.task_id}"
    assert client.wait(("marie", ref.task_id)).is_completed
    timer.join()


def test_failed_and_refused_tasks_say_why(client: Client) -> None:
    end(client, ("marie", "t"), "failed", reason="max_retries_exceeded", detail="exit 1")
    found = client.wait(("marie", "t"))
    assert (found.status, found.reason, found.detail) == ("failed", "max_retries_exceeded", "exit 1")
    with pytest.raises(TaskFailed, match=r"marie/t failed \(max_retries_exceeded\): exit 1"):
        found.or_raise()
    refuse(client, "u", dlq_detail="not JSON")
    refused = client.wait(("marie", "u"))
    assert (refused.status, refused.reason, refused.detail) == ("refused", "invalid_json", "not JSON")


def test_map_keeps_the_order_of_the_descriptions_whatever_ends_first(client: Client) -> None:
    results = client.map("marie", ["one", "two", "three"], seconds=30, priority="high")
    paths = sorted((client.folders.tasks / "marie").glob("*.json"))
    tasks = [json.loads(path.read_text()) for path in paths]
    assert [one["description"] for one in tasks] == ["one", "two", "three"]
    assert len({one["batch_id"] for one in tasks}) == 1
    for one in reversed(tasks):
        end(client, ("marie", one["task_id"]))
    assert [one.task_id for one in results] == [one["task_id"] for one in tasks]


def test_as_completed_gives_each_task_once_and_tells_what_did_not_end(client: Client) -> None:
    refs = [client.submit("marie", "a"), client.submit("anga", "b")]
    end(client, refs[1])
    found = client.as_completed(refs, seconds=0)
    assert next(found).ref == refs[1]
    with pytest.raises(TimeoutError, match=refs[0].task_id):
        next(found)


def test_results_come_newest_first_and_can_be_chosen(client: Client) -> None:
    import os

    for number, (name, status) in enumerate((("a", "completed"), ("b", "failed"), ("c", "completed"))):
        end(client, ("marie", name), status, batch_id=f"b{number}")
        os.utime(client.folders.results / "marie" / f"{name}.json", (number, number))
    end(client, ("anga", "d"))
    (client.folders.results / "marie" / "junk.json").write_text("{")
    assert [r.task_id for r in client.results()] == ["d", "c", "b", "a"]
    assert [r.task_id for r in client.results("marie", status="completed")] == ["c", "a"]
    assert [r.task_id for r in client.results(batch_id="b1")] == ["b"]
    assert list(client.results("nobody")) == []


def test_async_client_does_the_same_without_blocking_the_loop(client: Client) -> None:
    async def play() -> tuple[list[str], list[str]]:
        mine = AsyncClient(folders=client.folders)
        one = await mine.submit("marie", "x", task_id="one")
        waiting = asyncio.create_task(mine.wait(one, seconds=30))
        mapped = asyncio.create_task(mine.map("marie", ["a", "b"], seconds=30))
        while len(list((client.folders.tasks / "marie").glob("*.json"))) < 3:  # noqa: ASYNC110 - files give no event
            await asyncio.sleep(0.01)
        inbox = client.folders.tasks / "marie"
        ids = {json.loads(p.read_text())["description"]: p.stem for p in inbox.glob("*.json")}
        for task_id in reversed(ids.values()):
            end(client, ("marie", task_id))
        return [(await waiting).task_id, *(r.task_id for r in await mapped)], ["one", ids["a"], ids["b"]]

    found, expected = asyncio.run(play())
    assert found == expected


def test_async_client_lists_results_as_the_client_does(client: Client) -> None:
    for number, status in enumerate(["completed", "failed", "completed"]):
        end(client, ("marie", f"t{number}"), status)
    end(client, ("anga", "x"))

    async def listed(**chosen: Any) -> list[TaskRef]:
        return [result.ref async for result in AsyncClient(folders=client.folders).results(**chosen)]

    for chosen in ({}, {"worker": "marie"}, {"status": "failed"}, {"worker": "nobody"}):
        assert asyncio.run(listed(**chosen)) == [result.ref for result in client.results(**chosen)]
    assert len(asyncio.run(listed())) == 4


def test_one_task_where_several_are_expected_is_refused(client: Client) -> None:
    ref = client.submit("marie", "first", task_id="ab")
    for single in ("ab", ref):
        with pytest.raises(InvalidTask, match="dependencies: give a list"):
            client.submit("marie", "second", dependencies=single)
    assert [path.name for path in (client.folders.tasks / "marie").glob("*.json")] == ["ab.json"]


@pytest.mark.parametrize("word", ["ab", "marie/ab"])
def test_text_is_no_task_to_wait_for(client: Client, word: str) -> None:
    with pytest.raises(TypeError, match="give the TaskRef"):
        client.wait(word, seconds=0)  # type: ignore[arg-type]


def test_async_wait_is_over_in_time(client: Client) -> None:
    async def play() -> None:
        await AsyncClient(folders=client.folders).wait(("marie", "never"), seconds=0.01)

    with pytest.raises(TimeoutError):
        asyncio.run(play())


def test_package_itself_imports_none_of_its_parts() -> None:
    script = "import sys, watcher; sys.exit(any(name.startswith('watcher.') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_client_comes_without_the_worker_and_its_libraries() -> None:
    heavy = "pydantic prometheus_client watchdog filelock asyncio watcher.worker.loop"
    found = f"any(name in sys.modules for name in {heavy.split()})"
    script = f"import sys; from watcher import Client; Client('/tmp'); sys.exit({found})"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_what_is_no_file_among_the_results_is_left_out_and_waited_past(client: Client, tmp_path: Path) -> None:
    end(client, ("marie", "good"))
    place = client.folders.results / "marie"
    os.mkfifo(place / "fifo.json")
    (place / "folder.json").mkdir()
    (place / "link.json").symlink_to(place / "good.json")
    assert [result.task_id for result in client.results()] == ["good"]
    assert [client.result(("marie", name)) for name in ("fifo", "folder", "link")] == [None, None, None]
