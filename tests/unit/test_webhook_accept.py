"""The accepting thread: durable before it answers, copies and conflicts told apart, one bad folder harms no other."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import HandClock
from watcher.errors import WorkerTrouble
from watcher.intake.webhook.deliveries import Delivery, Memory
from watcher.intake.webhook.durable_posts import Accepter, Submission, Submitted
from watcher.store.layout import WEBHOOK_DATABASE
from watcher.system import files
from watcher_config import Folders, folders, read_layers


@pytest.fixture
def places(tmp_path: Path) -> Folders:
    return folders(read_layers({"WATCHER_ROOT": str(tmp_path)}))


def submission(task_id: str, text: str = "x", worker: str = "marie", identity: str | None = "") -> Submission:
    data = f'{{"description": "{text}"}}\n'.encode()
    name = f"task:{worker}/{task_id}" if identity == "" else identity
    return Submission(worker, task_id, data, name, hashlib.sha256(data).digest())


def run(places: Folders, work: Callable[[Accepter], Awaitable[None]], max_pending: int = 100) -> list[int]:
    """Let an accepter work; returns the sizes of the groups that it made."""
    groups: list[int] = []

    async def whole() -> None:
        memory = Memory(places.root / "state", 60.0)
        accepter = Accepter(places, memory, max_pending, HandClock(), lambda size, seconds: groups.append(size))
        try:
            await work(accepter)
        finally:
            await accepter.close()
            memory.close()

    asyncio.run(whole())
    return groups


async def outcomes(accepter: Accepter, *many: Submission) -> list[str]:
    async def one(given: Submission) -> str:
        try:
            return (await accepter.accept(given)).outcome
        except WorkerTrouble:
            return "trouble"

    return list(await asyncio.gather(*map(one, many)))


def test_a_task_is_durable_and_visible_before_its_verdict(places: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        steps.append(os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2][:8])
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)

    async def work(accepter: Accepter) -> None:
        steps.clear()
        verdict = await accepter.accept(submission("a"))
        assert verdict == Submitted("accepted", "marie", "a")
        assert (places.tasks / "marie" / "a.json").read_bytes() == b'{"description": "x"}\n'
        assert steps[-2:] == [".submit-", "marie"]  # first what it holds, then its name

    run(places, work)
    assert os.listdir(places.tasks / "marie") == ["a.json"]


def test_posts_that_come_together_share_their_flushes(places: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes: list[int] = []
    real = files.syncfs
    monkeypatch.setattr(files, "syncfs", lambda fd: (flushes.append(fd), real(fd))[1])

    all_there = threading.Event()
    in_hand: list[int] = []

    async def work(accepter: Accepter) -> None:
        decide = accepter._decide

        def decide_then(works: list[Any]) -> None:
            in_hand.append(len(works))
            assert all_there.wait(60)
            decide(works)

        monkeypatch.setattr(accepter, "_decide", decide_then)
        many = [submission(f"t{number}") for number in range(60)]
        asking = asyncio.create_task(outcomes(accepter, *many))
        while sum(in_hand) + accepter._queue.qsize() < 60:  # noqa: ASYNC110 - the thread waits with the first group
            await asyncio.sleep(0.001)
        all_there.set()
        assert await asking == ["accepted"] * 60

    groups = run(places, work)
    assert sum(groups) == 60
    assert len(groups) < 30
    assert len(flushes) <= len(groups)
    assert len(os.listdir(places.tasks / "marie")) == 60


def test_copies_and_conflicts_are_told_apart_within_a_group_and_after(places: Folders) -> None:
    async def work(accepter: Accepter) -> None:
        together = [submission("a"), submission("a"), submission("a", "other"), submission("b")]
        assert await outcomes(accepter, *together) == ["accepted", "copy", "conflict", "accepted"]
        assert await outcomes(accepter, submission("a"), submission("a", "other")) == ["copy", "conflict"]

    run(places, work)
    run(places, work_again)
    assert sorted(os.listdir(places.tasks / "marie")) == ["a.json", "b.json"]


async def work_again(accepter: Accepter) -> None:
    assert await outcomes(accepter, submission("a"), submission("b", "other")) == ["copy", "conflict"]


@pytest.mark.parametrize(
    ("place", "name", "form"),
    [
        ("tasks", "a.json", "{task}"),
        ("tasks", ".retry/a~1-0-1763768000123.json", "{task}"),
        ("tasks", ".claims/0123456789abcdef0123456789abcdef/a~1-0.json", "{task}"),
        ("dlq", "a.json", '{{"task_id": "a", "dlq_reason": "failed", "dlq_task_sha256": "{sha}"}}'),
    ],
)
def test_without_the_database_the_folders_tell_a_copy_wherever_it_is(
    places: Folders, place: str, name: str, form: str
) -> None:
    task = submission("a").data
    path = places.root / place / "marie" / name
    path.parent.mkdir(parents=True)
    path.write_text(task.decode() if form == "{task}" else form.format(sha=hashlib.sha256(task).hexdigest()))

    async def work(accepter: Accepter) -> None:
        assert await outcomes(accepter, submission("a")) == ["copy"]
        assert await outcomes(accepter, submission("a", "other")) == ["conflict"]

    run(places, work)
    visible = [path.name for path in (places.tasks / "marie").glob("*.json")]
    assert visible == (["a.json"] if (place, name) == ("tasks", "a.json") else [])


def test_a_folder_that_cannot_be_used_is_trouble_for_its_own_posts_only(places: Folders) -> None:
    places.tasks.mkdir()
    (places.tasks / "anga").write_text("no folder")

    async def work(accepter: Accepter) -> None:
        many = [submission(f"t{n}", worker="anga" if n == 3 else "marie") for n in range(6)]
        found = await outcomes(accepter, *many)
        assert found[3] == "trouble"
        assert found.count("accepted") == 5

    run(places, work)
    assert sorted(os.listdir(places.tasks / "marie")) == ["t0.json", "t1.json", "t2.json", "t4.json", "t5.json"]


def test_an_inbox_over_its_bound_takes_no_more_but_knows_its_copies(places: Folders) -> None:
    async def work(accepter: Accepter) -> None:
        many = [submission(f"t{number}") for number in range(4)]
        assert await outcomes(accepter, *many) == ["accepted", "accepted", "full", "full"]
        assert await outcomes(accepter, submission("t0"), submission("t0", worker="anga")) == ["copy", "accepted"]

    run(places, work, max_pending=2)


def test_a_broken_database_is_put_aside_and_stops_nobody(places: Folders) -> None:
    (places.root / "state").mkdir()
    (places.root / "state" / WEBHOOK_DATABASE).write_bytes(b"no database at all" * 100)
    run(places, lambda accepter: accepter.accept(submission("a")))  # type: ignore[arg-type,return-value]
    assert (places.root / "state" / f"{WEBHOOK_DATABASE}.old").exists()
    assert os.listdir(places.tasks / "marie") == ["a.json"]


def test_an_inbox_that_was_removed_meanwhile_is_made_again(places: Folders) -> None:
    async def work(accepter: Accepter) -> None:
        assert await outcomes(accepter, submission("a")) == ["accepted"]
        (places.tasks / "marie" / "a.json").unlink()
        (places.tasks / "marie").rmdir()
        assert await outcomes(accepter, submission("b")) == ["accepted"]

    run(places, work)
    assert os.listdir(places.tasks / "marie") == ["b.json"]


def test_old_hidden_files_of_killed_endpoints_are_swept_and_young_ones_left(places: Folders) -> None:
    inbox = places.tasks / "marie"
    inbox.mkdir(parents=True)
    now = HandClock().wall()
    old, young = f".webhook-{'0' * 16}.tmp", f".webhook-{'1' * 16}.tmp"
    for name, age in ((old, 3700), (young, 1), (".webhook-other.tmp", 3700)):
        (inbox / name).touch()
        os.utime(inbox / name, (now - age, now - age))
    run(places, lambda accepter: asyncio.sleep(0))
    assert sorted(os.listdir(inbox)) == [young, ".webhook-other.tmp"]


def test_names_are_forgotten_after_their_retention(tmp_path: Path) -> None:
    memory = Memory(tmp_path, 60.0)
    memory.remember([Delivery("a", "w", "a", b"1")], 100.0)
    memory.remember([Delivery("a", "w", "a", b"2"), Delivery("b", "w", "b", b"1")], 150.0)  # the first one stands
    assert memory.forget_old(161.0) == 1
    assert memory.find("a") is None
    assert memory.find("b") == Delivery("b", "w", "b", b"1")
    memory.close()


@pytest.mark.parametrize("step", ["_find_copy", "_write"])
def test_post_that_fails_in_an_unforeseen_way_fails_no_other_of_its_group(
    places: Folders, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    true = getattr(Accepter, step)

    def fails(self: Accepter, given: Any) -> None:
        works = given if isinstance(given, list) else [given]
        if any(work.submission.task_id == "poison" for work in works):
            raise RecursionError("injected")
        true(self, given)

    monkeypatch.setattr(Accepter, step, fails)
    names = ["a", "poison", "z"]

    async def work(accepter: Accepter) -> None:
        answers = (accepter.accept(submission(name)) for name in names)
        ends = await asyncio.gather(*answers, return_exceptions=True)
        assert [getattr(end, "outcome", type(end).__name__) for end in ends] == [
            "accepted", "RecursionError", "accepted",
        ]  # fmt: skip

    run(places, work)
    assert sorted(os.listdir(places.tasks / "marie")) == ["a.json", "z.json"]
