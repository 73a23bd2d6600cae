"""One step that a kill cannot split: told and remembered, or neither."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import HandClock, Memory
from watcher.formats.receipt_and_notice import NOTICE_FIELDS, Notice, notice_schema
from watcher.store import notice_publisher as recorder_module
from watcher.store.listener_database import VERSION, Entry, Ledger
from watcher.store.notice_publisher import Findings, Recorder
from watcher.store.outcome_totals import Finished


class Killed(Exception):
    """Stands for SIGKILL: nothing after it happens."""


class Desk:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "triggers" / "orchestrator"
        self.open()

    def open(self) -> None:
        self.ledger = Ledger(self.root / "state", 0.0)
        self.recorder = Recorder(self.root / "triggers", self.ledger, HandClock(), Memory())

    def restart(self) -> int:
        self.close()
        self.open()
        return self.recorder.recover()

    def close(self) -> None:
        self.recorder.close()
        self.ledger.close()

    def seen(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*.json"))

    def is_known(self, name: str) -> bool:
        return self.ledger.find("marie", "results", name) is not None


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.close()


def news(*stems: str) -> Findings:
    made = Findings()
    for stem in stems:
        made.entry.outcomes.append((Finished("marie", "results", f"{stem}.json", 1, "p", stem, "completed"), None))
        made.notices.append((Notice("task_done", f"marie--{stem}", f"task_done/marie/{stem}/p", 0.0, {}), None))
    return made


@pytest.mark.parametrize("step", ["write_new", "fsync_file", "commit", "publish_new", "remember"])
def test_kill_at_any_step_leaves_one_notice(desk: Desk, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_arguments: object, **_more: object) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        if step == "write_new":
            patch.setattr(recorder_module.Folder, "write_new", die)
        elif step == "commit":
            patch.setattr(Ledger, "commit", die)
        elif step != "remember":
            patch.setattr(recorder_module, step, die)
        if step == "remember":
            desk.recorder.record(news("a"))
        else:
            with pytest.raises(Killed):
                desk.recorder.record(news("a"))
    desk.restart()
    if not desk.is_known("a.json"):
        assert desk.seen() == []
        desk.recorder.record(news("a"))
    assert desk.seen() == ["marie--a.json"]
    assert list((desk.folder / ".tmp").iterdir()) == []
    desk.recorder.settle()
    assert desk.ledger.outbox() == []


def test_notice_that_was_consumed_before_the_kill_does_not_come_again(desk: Desk) -> None:
    desk.recorder.record(news("a", "b", "c"))
    (desk.folder / "marie--b.json").unlink()
    assert desk.ledger.outbox()  # the last step, to forget them, had not happened
    assert desk.restart() == 0
    assert desk.seen() == ["marie--a.json", "marie--c.json"]


def test_notice_that_an_error_held_up_is_published_by_the_next_call(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> bool:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(recorder_module, "publish_new", fail)
        with pytest.raises(OSError, match="Input"):
            desk.recorder.record(news("a"))
    assert desk.is_known("a.json") and desk.seen() == []
    desk.recorder.record(Findings())
    assert desk.seen() == ["marie--a.json"]


def test_disk_that_is_full_leaves_no_hidden_files(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(recorder_module, "fsync_file", fail)
        with pytest.raises(OSError, match="No space"):
            desk.recorder.record(news("a"))
    assert list((desk.folder / ".tmp").iterdir()) == []
    desk.recorder.record(news("a"))
    assert desk.seen() == ["marie--a.json"]


def test_other_news_of_the_same_name_gets_a_number(desk: Desk) -> None:
    desk.recorder.record(news("a"))
    other = Findings(notices=[(Notice("task_done", "marie--a", "task_done/marie/a/other", 0.0, {}), None)])
    desk.recorder.record(other)
    again = Findings(notices=[(Notice("task_done", "marie--a", "task_done/marie/a/other", 0.0, {}), None)])
    desk.recorder.record(again)
    assert desk.seen() == ["marie--a.json", "marie--a~2.json"]


def test_folder_that_somebody_removed_is_made_again(desk: Desk) -> None:
    desk.recorder.record(news("a"))
    (desk.folder / "marie--a.json").unlink()
    (desk.folder / ".tmp").rmdir()
    desk.folder.rmdir()
    desk.recorder.record(news("b"))
    assert desk.seen() == ["marie--b.json"]


def test_failed_commit_changes_nothing(desk: Desk) -> None:
    desk.recorder.record(news("a"))
    before = desk.ledger.totals("all")[""].dump()
    with pytest.raises(sqlite3.IntegrityError):
        desk.ledger.commit(Entry(outcomes=news("b", "a").entry.outcomes, told={"k": "v"}))
    assert not desk.is_known("b.json") and desk.ledger.told() == {}
    assert desk.ledger.totals("all")[""].dump() == before


@pytest.mark.parametrize("harm", ["version", "garbage"])
def test_database_that_cannot_be_used_is_put_aside_and_made_anew(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "orchestrator.db"
    Ledger(tmp_path, 0.0).close()
    if harm == "version":
        db = sqlite3.connect(path)
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
        db.close()
    else:
        path.write_bytes(b"this is no database at all" * 100)
    ledger = Ledger(tmp_path, 5.0)
    assert ledger.rebuilt is not None and ledger.silent_before == 5.0
    ledger.close()
    assert path.with_suffix(".old").exists()
    again = Ledger(tmp_path, 9.0)
    assert again.rebuilt is None and again.silent_before == 5.0
    again.close()


def test_notice_fits_its_schema_and_unknown_kinds_do_not() -> None:
    value = json.loads(Notice("worker_dead", "x", "worker_dead/x", 0.0, {"worker": "x", "claims": ["a"]}).dump())
    assert set(value) <= set(NOTICE_FIELDS)
    for name, kind in NOTICE_FIELDS.items():
        if name in value:
            kind.check(value[name])
    assert notice_schema()["required"] == ["kind", "notice_id", "timestamp"]
