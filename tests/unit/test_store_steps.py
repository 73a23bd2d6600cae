"""Guards of the store between two of its steps: a name that is taken meanwhile, a folder or lock that is exchanged."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.collecting import Site, site
from tests.doubles import HandClock, Memory
from tests.powercut import PowerCut
from tests.unit.test_webhook_accept import run as accepting
from tests.unit.test_webhook_accept import submission
from watcher.errors import InvalidTask, LockLost, NameTaken, SettingError
from watcher.formats.receipt_and_notice import Notice
from watcher.intake.webhook import deliveries
from watcher.intake.webhook.durable_posts import Accepter
from watcher.policy.budget_limits import BudgetLimits
from watcher.store import changes, in_hand, reassign, rescue, result_writer, results, run_again, submitting
from watcher.store.folders import WorkerFolders
from watcher.store.hold_cache import KnownHolds
from watcher.store.holds import hold_provider
from watcher.store.layout import LISTENER_LOCK, WEBHOOK_DATABASE
from watcher.store.listener_database import Ledger
from watcher.store.listener_lock import ListenerLock
from watcher.store.notice_publisher import Findings, Recorder
from watcher.store.queue_interface import Settlement
from watcher.store.spending import Spending
from watcher.store.submitting import submit
from watcher.store.task_reader import TaskBytes, Unreadable, read_task_file
from watcher.store.worker_locks import Incarnation, take_lock
from watcher.system import no_links
from watcher.system.files import Folder, fsync_file
from watcher.telemetry.events import LeftoversKilled
from watcher_config import Folders, folders, read_layers

__all__ = ["site"]

EVENT = LeftoversKilled("", 1)
OTHERS = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")


@pytest.fixture
def root(tmp_path: Path) -> Folders:
    return folders(read_layers({"WATCHER_ROOT": str(tmp_path)}))


@pytest.fixture
def places(root: Folders) -> Iterator[WorkerFolders]:
    made = WorkerFolders(root.tasks, root.triggers, root.results, root.dlq, "marie", "a" * 32)
    yield made
    made.close()


@pytest.fixture
def private(tmp_path: Path) -> Iterator[Path]:
    """A file that nobody of us may write to: links lead to it."""
    path = tmp_path / "private"
    path.write_text("mine")
    yield path
    assert path.read_text() == "mine"


def text(path: Path) -> str:
    return str(json.loads(path.read_text())["description"])


# --- a name that is taken meanwhile


def test_posted_task_replaces_none_that_came_under_its_name(root: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    real = submitting.move_new
    theirs = root.tasks / "marie/t.json"

    def first(*arguments: Any) -> bool:
        theirs.write_text('{"description": "theirs"}')
        return real(*arguments)

    monkeypatch.setattr(submitting, "move_new", first)
    found: list[str] = []

    async def post(accepter: Accepter) -> None:
        found.append((await accepter.accept(submission("t"))).outcome)

    accepting(root, post)
    assert found == ["conflict"] and text(theirs) == "theirs"


def test_held_and_released_task_replaces_none_of_its_name(root: Folders) -> None:
    submit(root.tasks, "marie", {"task_id": "t", "description": "one"})
    assert changes.hold(root, "marie", "t")
    submit(root.tasks, "marie", {"task_id": "t", "description": "two"})
    with pytest.raises(InvalidTask, match="another task"):
        changes.hold(root, "marie", "t")
    assert changes.release(root, "marie", "t")
    inbox = root.tasks / "marie"
    assert sorted(text(path) for path in [*inbox.glob("*.json"), *(inbox / ".retry").iterdir()]) == ["one", "two"]


def test_task_in_hand_goes_back_beside_one_that_came_meanwhile(root: Folders, places: WorkerFolders) -> None:
    submit(root.tasks, "marie", {"task_id": "t", "description": "one"})
    taken = in_hand.take_in_hand(places, "t", 1 << 20)
    assert taken is not None
    submit(root.tasks, "marie", {"task_id": "t", "description": "two"})
    assert in_hand.put_back(places, taken.handle) == "t~0-0-0.json"
    assert text(root.tasks / "marie/t.json") == "two"


def test_rescued_claim_replaces_no_task_that_waits_under_its_name(root: Folders, places: WorkerFolders) -> None:
    dead = root.tasks / "marie/.claims" / ("b" * 32)
    dead.mkdir()
    (root.tasks / "marie/.retry/t~0-1-0.json").write_text('{"description": "waits"}')
    (dead / "t~1-0.json").write_text('{"description": "claimed"}')
    (root.tasks / "marie/bad-name-1!.json").write_text("waits")
    (dead / "bad-name-1!.json").write_text("claimed")
    rescue.rescue(places, Memory())
    assert text(root.tasks / "marie/.retry/t~0-1-0.json") == "waits"
    assert (root.tasks / "marie/bad-name-1!.json").read_text() == "waits"
    assert text(dead / "t~1-0.json") == "claimed" and (dead / "bad-name-1!.json").read_text() == "claimed"


def test_archived_result_and_output_replace_none(root: Folders, places: WorkerFolders) -> None:
    aside = root.results / "marie/.archive"
    aside.mkdir()
    (aside / "t~1.json").write_text("first")
    (aside / "t~2.stdout").write_text("first")
    places.results.write_new("t.json", b"second")
    places.output.write_new("t.stdout", b"second")
    assert run_again._archive(places.results, "t.json", "t") == "t~2.json"
    run_again._archive_outputs(places, "t", "t~2.json")
    assert (aside / "t~1.json").read_text() == (aside / "t~2.stdout").read_text() == "first"


def test_dead_letter_replaces_none_that_came_under_its_name(places: WorkerFolders) -> None:
    places.dlq.write_new("t.json", b'{"dlq_reason": "theirs"}')
    places.dlq_tmp.write_new("x", b'{"dlq_reason": "ours"}')
    assert result_writer._publish_numbered(places.dlq_tmp, "x", places.dlq, "t") == "t~2.json"
    assert places.dlq.read("t.json", 100) == b'{"dlq_reason": "theirs"}'


def test_reassigned_task_replaces_none_that_came_under_its_name(root: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(root.tasks, "marie", {"task_id": "t", "description": "ours"})
    (root.tasks / "anga").mkdir()
    real = submitting.move_new

    def first(*arguments: Any) -> bool:
        (root.tasks / "anga/t.json").write_text('{"description": "theirs"}')
        return real(*arguments)

    monkeypatch.setattr(submitting, "move_new", first)
    inbox = Folder(root.tasks / "marie")
    mover = reassign.Reassigner(root.tasks, root.results, ["marie:anga"], 0.0, HandClock(), Memory())
    mover._hold(inbox, "marie", "anga")
    mover._finish("marie", [])
    inbox.close()
    assert text(root.tasks / "anga/t.json") == "theirs"
    assert os.listdir(root.tasks / "anga") == ["t.json"]


def test_held_files_of_a_dead_worker_are_safe_before_they_are_published(
    root: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(root.tasks, "marie", {"task_id": "t", "description": "x"})
    (root.tasks / "anga").mkdir()
    inbox = Folder(root.tasks / "marie")
    cut = PowerCut(monkeypatch)
    mover = reassign.Reassigner(root.tasks, root.results, ["marie:anga"], 0.0, HandClock(), Memory())
    mover._hold(inbox, "marie", "anga")
    assert cut.unsafe(root.tasks / "marie/.reassign/anga") == []
    inbox.close()


def test_name_that_others_serve_in_common_is_not_the_listeners(root: Folders) -> None:
    """A worker with an instance has a shared lock; the listener that moves its tasks needs it alone."""
    incarnation = Incarnation(root.tasks / "marie", "marie", "one")
    with reassign._name_lock(root.tasks / "marie") as is_ours:
        assert not is_ours
    incarnation.close()


# --- another file system


@pytest.mark.parametrize("has_link", [False, True])
def test_refused_file_is_copied_whole_and_its_link_is_not_followed(
    places: WorkerFolders, private: Path, has_link: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_link:
        os.symlink(private, "t~1-0.json", dir_fd=places.mine.fd)
    else:
        places.mine.write_new("t~1-0.json", b"x" * 100)
    cut = PowerCut(monkeypatch)
    monkeypatch.setattr(result_writer, "move_new", lambda *_: (_ for _ in ()).throw(OSError(18, "across")))
    seen: list[str] = []

    def look(name: str, folder: int | None) -> None:
        if name == "t~1-0.json":
            seen.extend([*cut.unsafe(*places.originals.path.iterdir()), "looked"])

    cut.before_removal = look
    result_writer._keep_original(places, Settlement("t", "t~1-0.json", None, None, None, EVENT, keep_original=True))
    assert seen == ["looked"]
    assert [path.read_bytes() for path in places.originals.path.iterdir()] == ([] if has_link else [b"x" * 100])


def test_copy_writes_through_no_link_that_came_under_its_name(
    places: WorkerFolders, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.mine.write_new("t.out", b"theirs")
    real = Folder.remove

    def plant(folder: Folder, name: str) -> bool:
        done = real(folder, name)
        os.symlink(private, name, dir_fd=folder.fd)
        return done

    monkeypatch.setattr(Folder, "remove", plant)
    with pytest.raises(FileExistsError):
        result_writer._copy_across(places.mine, "t.out", places.output, "t.stdout")


# --- links, and what is no file


def test_lock_is_taken_through_no_link(root: Folders, private: Path) -> None:
    claims = root.tasks / "marie/.claims"
    claims.mkdir(parents=True)
    (claims / "name.lock").symlink_to(private)
    with pytest.raises(OSError, match="symbolic"):
        Incarnation(root.tasks / "marie", "marie", None)
    folder = Folder(claims)
    with pytest.raises(OSError, match="symbolic"):
        take_lock(folder, "name.lock")
    folder.close()


@pytest.mark.parametrize("kind", ["link", "two names", "folder", "FIFO"])
def test_books_are_one_file_of_ours(tmp_path: Path, private: Path, kind: str) -> None:
    place = tmp_path / "control/marie"
    place.mkdir(parents=True)
    path = place / "spend-20270115.jsonl"
    if kind == "link":
        path.symlink_to(private)
    elif kind == "two names":
        os.link(private, path)
    else:
        (os.mkfifo if kind == "FIFO" else os.mkdir)(path)
    memory = Memory()
    books = Spending(tmp_path / "control", "marie", "me", HandClock(1_800_014_400.0), memory, BudgetLimits(0, 9.0, 0))
    if kind != "FIFO":
        books.record("t", "claude", "mark", 1.0)
        assert [event.name for event in memory.events if event.name == "hint.failed"] == ["hint.failed"]
    assert books.spent_today() == (0.0 if kind == "FIFO" else 1.0)
    books.close()


def test_books_are_not_read_through_a_link(tmp_path: Path) -> None:
    place = tmp_path / "control/marie"
    place.mkdir(parents=True)
    (tmp_path / "theirs").write_text('{"task_id": "t", "cost_usd": 5.0}\n')
    (place / "spend-20270115.jsonl").symlink_to(tmp_path / "theirs")
    books = Spending(tmp_path / "control", "marie", "me", HandClock(1_800_014_400.0), Memory(), BudgetLimits(0, 9.0, 0))
    assert books.spent_today() == 0.0
    books.close()


def test_books_that_limit_are_safe_when_an_attempt_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    books = Spending(tmp_path, "marie", "me", HandClock(1_800_014_400.0), Memory(), BudgetLimits(0, 9.0, 0))
    cut = PowerCut(monkeypatch)
    for total in (1.0, 2.0):
        books.record("t", "claude", "mark", total)
        assert cut.unsafe(tmp_path / "marie/spend-20270115.jsonl") == []
    books.close()


@pytest.mark.parametrize("kind", ["link", "folder", "FIFO", "two names", "written"])
def test_task_is_read_from_one_closed_file(tmp_path: Path, kind: str) -> None:
    folder, path = Folder(tmp_path / "inbox"), tmp_path / "inbox/t.json"
    (tmp_path / "other").write_text('{"description": "x"}')
    makers: dict[str, Callable[[], object]] = {
        "link": lambda: path.symlink_to(tmp_path / "other"),
        "folder": path.mkdir,
        "FIFO": lambda: os.mkfifo(path),
        "two names": lambda: os.link(tmp_path / "other", path),
        "written": lambda: path.write_text('{"description": "x"}'),
    }
    makers[kind]()
    if kind == "written":
        with path.open("a"):
            found = read_task_file(folder, "t.json", 1000)
            assert isinstance(found, TaskBytes) and found.being_written
        found = read_task_file(folder, "t.json", 1000)
        assert isinstance(found, TaskBytes) and not found.being_written
    else:
        found = read_task_file(folder, "t.json", 1000)
        assert isinstance(found, Unreadable)
        assert found.error.reason == ("hard_link" if kind == "two names" else "not_regular")
    folder.close()


def test_status_is_read_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text('{"task_id": "t", "worker": "marie", "status": "completed"}')
    folder = Folder(tmp_path / "results")
    os.symlink(tmp_path / "theirs", "t.json", dir_fd=folder.fd)
    with pytest.raises(OSError, match="symbolic"):
        results.read_status("t.json", folder.fd)
    folder.close()


def test_result_that_is_a_link_or_a_folder_is_reported_and_not_read(site: Site, private: Path) -> None:
    (site.folders["results"] / "marie/a.json").symlink_to(private)
    (site.folders["results"] / "marie/b.json").mkdir()
    assert site.collect() == ["file_unreadable not_regular", "file_unreadable not_regular"]


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_databases_are_opened_through_no_link(tmp_path: Path, private: Path, suffix: str) -> None:
    for opened, name in ((Ledger, "orchestrator.db"), (deliveries.Memory, WEBHOOK_DATABASE)):
        state = tmp_path / name
        state.mkdir()
        opened(state, 0.0).close()
        (state / f"{name}{suffix}").unlink(missing_ok=True)
        (state / f"{name}{suffix}").symlink_to(private)
        with pytest.raises(SettingError, match="symbolic link"):
            opened(state, 0.0)


def test_flush_goes_through_no_link(tmp_path: Path, private: Path) -> None:
    folder = Folder(tmp_path / "x")
    os.symlink(private, "a", dir_fd=folder.fd)
    with pytest.raises(OSError, match="symbolic"):
        fsync_file(folder, "a")
    folder.close()


@pytest.mark.parametrize("has_openat2", [True, False])
def test_folder_that_becomes_a_link_while_it_is_made_is_not_followed(
    tmp_path: Path, has_openat2: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(no_links, "_HAS_OPENAT2", has_openat2 and no_links._HAS_OPENAT2)
    (tmp_path / "private").mkdir()
    real = os.mkdir

    def plant(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(name, mode, dir_fd=dir_fd)
        os.rmdir(name, dir_fd=dir_fd)
        os.symlink(tmp_path / "private", name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", plant)
    with pytest.raises(OSError, match="symbolic"):
        no_links.open_folder(tmp_path / "new", create=True)


# --- who else is there


@OTHERS
def test_folders_of_another_user_are_not_used(root: Folders) -> None:
    (root.tasks / "marie/.claims").mkdir(parents=True)
    (root.results / "marie/.tmp").mkdir(parents=True)
    os.chown(root.results / "marie/.tmp", 12_345, -1)
    with pytest.raises(SettingError, match="another user"):
        WorkerFolders(root.tasks, root.triggers, root.results, root.dlq, "marie", "a" * 32)
    os.chown(root.tasks / "marie/.claims", 12_345, -1)
    with pytest.raises(SettingError, match="another user"):
        Incarnation(root.tasks / "marie", "marie", None)
    Incarnation(root.tasks / "marie", "marie", None, visit="edit").close()


@OTHERS
def test_folder_of_another_user_is_not_taken_for_the_one_that_was_removed(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "a", private=True)
    assert folder.mend() is False
    os.rmdir(tmp_path / "a")
    (tmp_path / "a").mkdir()
    os.chown(tmp_path / "a", 12_345, -1)
    with pytest.raises(OSError, match="another user"):
        folder.mend()
    folder.close()


@pytest.mark.parametrize(("first", "second"), [(None, None), (None, "one"), ("one", None), ("one", "one")])
def test_process_that_is_there_keeps_its_name_for_itself(root: Folders, first: str | None, second: str | None) -> None:
    there = Incarnation(root.tasks / "marie", "marie", first)
    with pytest.raises(NameTaken):
        Incarnation(root.tasks / "marie", "marie", second)
    there.close()


@pytest.mark.parametrize("loss", ["folder", "lock", "replaced lock", "busy"])
def test_incarnation_notices_that_its_locks_are_gone(root: Folders, loss: str) -> None:
    mine = Incarnation(root.tasks / "marie", "marie", None)
    mine.check()
    claims = root.tasks / "marie/.claims"
    if loss == "folder":
        claims.rename(root.tasks / "away")
        claims.mkdir()
        for path in (root.tasks / "away").iterdir():
            os.link(path, claims / path.name)
    else:
        lock = claims / f"{mine.id}.{'busy' if loss == 'busy' else 'lock'}"
        lock.rename(root.tasks / "away")
        if loss == "replaced lock":
            lock.write_text("")
    with pytest.raises(LockLost):
        mine.check()
    mine.close()


@pytest.mark.parametrize("loss", ["deleted", "replaced"])
def test_listener_notices_that_its_lock_is_gone(tmp_path: Path, loss: str) -> None:
    lock = ListenerLock(tmp_path)
    lock.check()
    with pytest.raises(NameTaken):
        ListenerLock(tmp_path)
    (tmp_path / LISTENER_LOCK).rename(tmp_path / "away")
    if loss == "replaced":
        (tmp_path / LISTENER_LOCK).write_text("")
    with pytest.raises(LockLost):
        lock.check()
    lock.close()


def test_lock_has_one_owner_and_readers_see_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    lock = take_lock(folder, "x.lock")
    assert lock is not None and take_lock(folder, "x.lock") is None
    with (tmp_path / "x.lock").open() as reader, pytest.raises(BlockingIOError):
        fcntl.flock(reader, fcntl.LOCK_SH | fcntl.LOCK_NB)
    lock.release()
    folder.close()


@pytest.mark.parametrize("planted", ["link", "two names", "FIFO", "linked folder"])
def test_claims_behind_what_somebody_planted_stay(
    root: Folders, places: WorkerFolders, tmp_path: Path, planted: str
) -> None:
    claims, dead = root.tasks / "marie/.claims", "b" * 32
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "t~1-0.json").write_text('{"description": "x"}')
    (tmp_path / "lock").write_text("")
    if planted == "linked folder":
        (claims / dead).symlink_to(theirs)
    else:
        theirs.rename(claims / dead)
        theirs = claims / dead
        busy = claims / f"{dead}.busy"
        {"link": busy.symlink_to, "two names": busy.hardlink_to}.get(planted, lambda _: os.mkfifo(busy))(
            tmp_path / "lock"
        )
    assert rescue.rescue(places, Memory()) == []
    assert (theirs / "t~1-0.json").exists() and not (claims / f"{dead}.lock").exists()


# --- folders that are exchanged


def test_holds_are_read_from_the_folder_that_is_there_now(tmp_path: Path) -> None:
    holds = tmp_path / "holds"
    folder = Folder(holds)
    known = KnownHolds(folder, "me", "", HandClock())
    holds.rename(tmp_path / "away")
    hold_provider(tmp_path, "claude", now=0.0)
    assert list(known.names()[0]) == ["claude.json"]
    folder.close()


def test_spending_is_read_from_the_folder_that_is_there_now(tmp_path: Path) -> None:
    clock = HandClock(1_800_014_400.0)
    mine, other = (Spending(tmp_path, "marie", name, clock, Memory(), BudgetLimits(0, 9.0, 0)) for name in "ab")
    (tmp_path / "marie").rename(tmp_path / "away")
    other.refresh()
    other.record("t", "claude", "mark", 1.0)
    mine.refresh()
    assert mine.spent_today() == 1.0 and (tmp_path / "marie/spend-20270115.jsonl").exists()
    for books in (mine, other):
        books.close()


@pytest.mark.parametrize("gone", ["orchestrator", "orchestrator/.tmp"])
def test_notices_go_to_the_folder_that_is_there_now(tmp_path: Path, gone: str) -> None:
    ledger = Ledger(tmp_path / "state", 0.0)
    recorder = Recorder(tmp_path / "triggers", ledger, HandClock(), Memory())
    shutil.rmtree(tmp_path / "triggers" / gone)
    recorder.record(_news("a"))
    assert [path.name for path in (tmp_path / "triggers/orchestrator").glob("*.json")] == ["a.json"]
    recorder.close()
    ledger.close()


# --- notices


@pytest.mark.parametrize("count", [1, 5])
def test_notices_are_safe_before_they_are_remembered_and_again_before_they_are_forgotten(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "state", 0.0)
    recorder = Recorder(tmp_path / "triggers", ledger, HandClock(), Memory())
    cut = PowerCut(monkeypatch)
    folder, seen = tmp_path / "triggers/orchestrator", []
    real = ledger.commit

    def commit(entry: Any) -> None:
        if entry.outbox:
            seen.extend(cut.unsafe(*(folder / ".tmp" / file for file, *_ in entry.outbox)))
        if entry.sent:
            seen.extend(cut.unsafe(folder))
        seen.append("looked")
        real(entry)

    monkeypatch.setattr(ledger, "commit", commit)
    recorder.record(_news(*(f"a{number}" for number in range(count))))
    recorder.record(_news(*(f"b{number}" for number in range(count))))
    recorder.settle()
    assert seen == ["looked"] * 3
    recorder.close()
    ledger.close()


def test_notice_replaces_none_and_the_same_one_comes_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "state", 0.0)
    recorder = Recorder(tmp_path / "triggers", ledger, HandClock(), Memory())
    for stem, notice in (("a", "one"), ("a", "two"), ("a", "one")):
        recorder.record(_news(stem, notice=notice))
    told = [json.loads(p.read_text())["notice_id"] for p in (tmp_path / "triggers/orchestrator").glob("*.json")]
    assert sorted(told) == ["one", "two"]
    recorder.close()
    ledger.close()


def _news(*stems: str, notice: str | None = None) -> Findings:
    made = Findings()
    made.notices = [(Notice("task_done", stem, notice or stem, 0.0, {}), None) for stem in stems]
    return made
