"""The order that keeps tasks and outcomes through a power cut: everything is flushed before it is told or relied on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles import HandClock, Memory
from tests.powercut import PowerCut
from tests.unit.test_webhook_accept import run as accepting
from tests.unit.test_webhook_accept import submission
from watcher.errors import LockLost, NameTaken
from watcher.formats.dead_letter import DeadLetter
from watcher.formats.result import Result
from watcher.intake.drop_zones.file_memory import Handled, Record, ZoneMemory
from watcher.intake.webhook.durable_posts import Accepter
from watcher.store import changes, operator_commands, result_writer, run_again, spending
from watcher.store.folders import WorkerFolders
from watcher.store.holds import hold_provider
from watcher.store.listener_database import Ledger
from watcher.store.queue_interface import Settlement
from watcher.store.reassign import Reassigner
from watcher.store.rescue import rescue
from watcher.store.result_writer import Settler
from watcher.store.submitting import submit, submit_many
from watcher.store.worker_locks import Incarnation
from watcher.system.files import Folder, replace
from watcher.telemetry.events import LeftoversKilled
from watcher_config import Folders, folders, read_layers

EVENT = LeftoversKilled("", 1)


@pytest.fixture
def site(tmp_path: Path) -> Folders:
    return folders(read_layers({"WATCHER_ROOT": str(tmp_path)}))


@pytest.fixture
def places(site: Folders) -> Iterator[WorkerFolders]:
    made = WorkerFolders(site.tasks, site.triggers, site.results, site.dlq, "marie", "a" * 32)
    yield made
    made.close()


def result(task_id: str, text: str = "x") -> bytes:
    return Result(
        task_id=task_id, worker="marie", status="completed", exit_code=0, stdout=text, stderr="", duration_seconds=1.0,
        finished_at=1.0, started_at=1.0, retry_count=0, attempts=1, task_sha256="0" * 64,
        submitted={"description": "x"},
    ).dump()  # fmt: skip


def letter(task_id: str) -> bytes:
    return DeadLetter(task_id=task_id, worker="marie", reason="failed", at=1.0, retry_count=0, detail="x").dump()


# --- what is accepted


@pytest.mark.parametrize("count", [1, 5])
def test_submitted_tasks_are_safe_when_submit_returns(
    site: Folders, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    (site.tasks / "marie").mkdir(parents=True)
    cut = PowerCut(monkeypatch)
    ids = submit_many(site.tasks, "marie", [{"description": "x"}] * count)
    assert cut.unsafe(*(site.tasks / "marie" / f"{task_id}.json" for task_id in ids)) == []


@pytest.mark.parametrize("count", [1, 2, 9])
def test_posted_tasks_are_safe_before_their_answer(site: Folders, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    (site.tasks / "marie").mkdir(parents=True)
    cut = PowerCut(monkeypatch)
    found: list[str] = []

    async def one(accepter: Accepter, number: int) -> None:
        await accepter.accept(submission(f"t{number}"))
        found.extend(cut.unsafe(site.tasks / "marie" / f"t{number}.json"))

    async def post(accepter: Accepter) -> None:
        await asyncio.gather(*(one(accepter, number) for number in range(count)))

    accepting(site, post)
    assert found == []


# --- what has ended


@pytest.mark.parametrize("more", ["result", "kept", "dead letter", "all", "across", "many", "many results"])
def test_outcome_is_safe_before_its_claim_goes(
    places: WorkerFolders, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    has_kept, has_letter = more in ("kept", "all", "across", "many"), more in ("dead letter", "all", "many")
    ids = [f"t{number}" for number in range(5 if more.startswith("many") else 1)]
    cut = PowerCut(monkeypatch)
    batch = []
    for task_id in ids:
        places.mine.write_new(f"{task_id}~1-0.json", b"{}")
        kept = {}
        if has_kept:
            places.mine.write_new(f"{task_id}.out", b"long")
            cut.printed(places.mine.path / f"{task_id}.out")
            kept = {"stdout": f"{task_id}.out"}
        batch.append(
            Settlement(
                task_id,
                f"{task_id}~1-0.json",
                None,
                result(task_id),
                letter(task_id) if has_letter else None,
                EVENT,
                kept,
            )
        )
    if more == "across":
        monkeypatch.setattr(result_writer, "move", lambda *_: (_ for _ in ()).throw(OSError(18, "across")))
    seen: list[str] = []

    def look(name: str, folder: int | None) -> None:
        if folder == places.mine.fd and name.endswith("~1-0.json"):
            task_id = name.partition("~")[0]
            stored = [places.results.path / f"{task_id}.json"]
            stored += [places.output.path / f"{task_id}.stdout"] if has_kept else []
            stored += [places.dlq.path / f"{task_id}.json"] if has_letter else []
            seen.extend(cut.unsafe(*stored))
            seen.append(task_id)

    cut.before_removal = look
    assert Settler(places).settle(batch) == ([EVENT] * len(ids), None)
    assert seen == ids


def test_outcome_of_a_claim_that_is_gone_is_not_published(places: WorkerFolders) -> None:
    events, error = Settler(places).settle([Settlement("t", "t~1-0.json", None, result("t"), None, EVENT)])
    assert error is None and events[0] is not EVENT and not places.results.has("t.json")


def test_result_that_is_there_is_never_replaced(places: WorkerFolders) -> None:
    places.mine.write_new("t~1-0.json", b"{}")
    places.results.write_new("t.json", result("t", "the first"))
    Settler(places).settle([Settlement("t", "t~1-0.json", None, result("t", "the second"), None, EVENT)])
    assert json.loads(places.results.read("t.json", 1 << 20))["stdout"] == "the first"


# --- what is changed by command


def test_edited_task_is_safe_at_each_step(site: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(site.tasks, "marie", {"task_id": "t", "description": "x"})
    cut = PowerCut(monkeypatch)
    assert changes.edit(site, "marie", "t", {"description": "y"})
    assert cut.unsafe(site.tasks / "marie/t.json") == []
    assert changes.hold(site, "marie", "t")
    assert cut.unsafe(site.tasks / "marie/.held/t.json") == []
    assert changes.release(site, "marie", "t")
    assert cut.unsafe(site.tasks / "marie/t.json") == []


def test_task_that_is_run_again_is_safe_before_its_result_makes_way(
    site: Folders, places: WorkerFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.results.write_new("t.json", result("t"))
    cut = PowerCut(monkeypatch)
    seen: list[str] = []
    real = run_again._archive

    def archive(*arguments: object) -> str:
        waiting = next((site.tasks / "marie/.claims").glob("*/t~*.json"))
        seen.extend([*cut.unsafe(waiting, waiting.parent.parent), "looked"])
        return str(real(*arguments))  # type: ignore[arg-type]

    monkeypatch.setattr(run_again, "_archive", archive)
    run_again.rerun(site, "marie", "t")
    assert seen == ["looked"]
    assert cut.unsafe(site.results / "marie/.archive/t~1.json", site.results / "marie") == []
    assert cut.unsafe(next(iter((site.tasks / "marie").rglob("t*.json")))) == []


def test_words_to_workers_are_safe_when_they_are_said(site: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    (site.control / "marie").mkdir(parents=True)
    (site.control / "holds").mkdir()
    cut = PowerCut(monkeypatch)
    assert cut.unsafe(operator_commands.tell(site.control, "marie", "drain")) == []
    assert cut.unsafe(operator_commands.pause(site.control, "marie", "x")) == []
    assert operator_commands.resume(site.control, "marie") and cut.unsafe(site.control / "marie") == []
    hold_provider(site.control, "claude", now=0.0)
    assert cut.unsafe(next(iter((site.control / "holds").glob("*.json")))) == []
    spending.raise_daily_budget(site.control, "marie", 5.0, 0.0)
    assert cut.unsafe(next(iter((site.control / "marie").glob("budget-*.json")))) == []


def test_reassigned_task_is_safe_in_its_new_inbox_before_it_leaves_the_old(
    site: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(site.tasks, "marie", {"task_id": "t", "description": "x"})
    (site.tasks / "anga").mkdir()
    ledger = Ledger(site.root / "state", 0.0)
    reassigner = Reassigner(site.tasks, site.results, ["marie:anga"], 0.0, HandClock(), Memory())
    cut = PowerCut(monkeypatch)
    seen: list[str] = []

    def look(name: str, folder: int | None) -> None:
        if name == "t.json":
            seen.extend([*cut.unsafe(site.tasks / "anga/t.json"), "looked"])

    cut.before_removal = look
    moved: list[str] = []
    _move(reassigner, site, moved)
    assert (seen, moved) == (["looked"], ["t"])
    ledger.close()


def _move(reassigner: Reassigner, site: Folders, moved: list[str]) -> None:
    inbox = result_writer.Folder(site.tasks / "marie")
    reassigner._hold(inbox, "marie", "anga")
    inbox.close()
    reassigner._finish("marie", moved)
    assert os.listdir(site.tasks / "anga") == ["t.json"]


# --- what a zone remembers


def test_zone_remembers_safely_before_anything_happens_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = PowerCut(monkeypatch)
    memory = ZoneMemory.take(tmp_path, "zone")
    assert memory is not None
    memory.write(Record("t", "zone", "marie", "/", "/a", "/a", "keep", "", 1, 2, 3))
    assert cut.unsafe(next(tmp_path.rglob("t.json"))) == []
    for number in range(3):
        memory.remember(f"/f{number}", Handled(1, 2, 3))
        assert cut.unsafe(next(tmp_path.rglob("handled.jsonl"))) == []
    memory.close()


def test_inbox_that_the_endpoint_has_made_is_safe(site: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    site.tasks.mkdir()
    cut = PowerCut(monkeypatch)
    found: list[str] = []

    async def post(accepter: Accepter) -> None:
        await accepter.accept(submission("t"))
        found.extend(cut.unsafe(site.tasks, site.tasks / "marie/t.json"))

    accepting(site, post)
    assert found == []


# --- who may


def test_name_is_served_once_and_the_claims_of_the_living_are_nobody_elses(site: Folders) -> None:
    inbox = site.tasks / "marie"
    first = Incarnation(inbox, "marie", None)
    with pytest.raises(NameTaken):
        Incarnation(inbox, "marie", None)
    tool = WorkerFolders(site.tasks, site.triggers, site.results, site.dlq, "marie", "b" * 32)
    (inbox / ".claims" / first.id).mkdir(exist_ok=True)
    (inbox / ".claims" / first.id / "t~1-0.json").write_text("{}")
    assert rescue(tool, Memory()) == []
    assert (inbox / ".claims" / first.id / "t~1-0.json").exists()
    tool.close()
    first.close()


def test_claim_folder_that_was_taken_away_ends_an_incarnation(places: WorkerFolders) -> None:
    os.rmdir(places.mine.path)
    with pytest.raises(LockLost):
        places.mend()


def test_temporary_name_that_somebody_has_made_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "private").write_text("mine")
    (tmp_path / ".a.json.me.tmp").symlink_to("private")
    folder = Folder(tmp_path)
    with contextlib.suppress(OSError):
        replace(folder, "a.json", b"x", "me")
    folder.close()
    assert (tmp_path / "private").read_text() == "mine"
