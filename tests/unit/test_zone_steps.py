"""Each step that a zone takes with a dropped file: what others do between two of them, and what a power cut leaves."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import HandClock
from tests.powercut import PowerCut
from watcher.intake.drop_zones import file_to_task, finishing, recovery
from watcher.intake.drop_zones.arrivals import Arrival, Arrivals, FileSignature, is_being_written
from watcher.intake.drop_zones.file_memory import Handled, Record, ZoneMemory
from watcher.intake.drop_zones.file_to_task import Claimer, DropRefused, Not
from watcher.intake.drop_zones.outcomes import TaskEnding, TaskEndings
from watcher.intake.drop_zones.prompt_template import Template
from watcher.intake.drop_zones.zone_file import PROCESSING, Zone
from watcher_config import Folders, folders, read_layers


class Desk:
    """One zone, whose files are `drop`ped in `base`, with everything that works on them."""

    def __init__(self, root: Path, on_done: str = "move", prompt: str = "{path}") -> None:
        self.site: Folders = folders(read_layers({"WATCHER_ROOT": str(root)}))
        self.base = root / "in"
        self.base.mkdir(exist_ok=True)
        self.zone = Zone("notes", (self.base,), "marie", Template(prompt), on_done=on_done, settle=1.0)
        self.clock = HandClock()
        self.claimer = Claimer(self.site.tasks, 1 << 20, 60.0, self.clock)
        memory = ZoneMemory.take(root / "state", "notes")
        assert memory is not None
        self.memory = memory

    def drop(self, name: str = "a.txt", text: str = "x") -> Path:
        path = self.base / name
        path.write_text(text)
        return path

    def arrival(self, path: Path) -> Arrival:
        return Arrival(str(path), self.zone, self.base, FileSignature.of(os.lstat(path)), 0.0, 0.0, 0.0)

    def take(self, path: Path) -> Record:
        record = self.claimer.take(self.arrival(path), self.memory)
        assert isinstance(record, Record)
        return record


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.memory.close()


# --- who else has it


def test_only_a_file_of_one_name_tells_whether_it_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("w"):
        assert is_being_written(str(path)) is True
    assert is_being_written(str(path)) is False
    assert is_being_written(str(tmp_path)) is False
    (tmp_path / "link").symlink_to("a")
    assert is_being_written(str(tmp_path / "link")) is False
    os.link(path, tmp_path / "b")
    assert is_being_written(str(path)) is None


def test_file_settles_when_its_writer_has_closed_it(desk: Desk) -> None:
    arrivals = Arrivals(_NoEvents(), desk.clock, 5.0, lambda *_: False, lambda _: None)  # type: ignore[arg-type]
    arrivals.serve((desk.zone,), frozenset(["notes"]))
    path = desk.drop()
    with path.open("a"):
        list(arrivals.scan())
        desk.clock.pass_seconds(2)
        arrivals.tick()
        assert arrivals.settled == {}
    desk.clock.pass_seconds(2)
    arrivals.tick()
    assert list(arrivals.settled) == [str(path)]


class _NoEvents:
    def watch(self, *_: Any, **__: Any) -> bool:
        return False


@pytest.mark.parametrize("prompt", ["{path}", "{text}"])
def test_file_that_is_open_for_writing_is_not_taken(tmp_path: Path, prompt: str) -> None:
    desk = Desk(tmp_path, on_done="keep", prompt=prompt)
    path = desk.drop()
    with path.open("a"):
        assert desk.claimer.take(desk.arrival(path), desk.memory) is Not.SETTLED
    assert path.exists() and os.listdir(desk.base) == ["a.txt"]
    desk.memory.close()


@pytest.mark.parametrize("change", ["other bytes", "a second name"])
def test_file_that_changed_since_it_was_seen_is_not_judged(tmp_path: Path, change: str) -> None:
    desk = Desk(tmp_path, on_done="keep")
    path = desk.drop()
    seen = desk.arrival(path)
    if change == "other bytes":
        desk.drop(text="other")
    else:
        os.link(path, tmp_path / "b")
    assert desk.claimer.take(seen, desk.memory) is Not.SETTLED
    desk.memory.close()


def test_file_that_changes_while_it_is_read_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path, on_done="keep", prompt="{text}")
    path = desk.drop()
    real = file_to_task.read_up_to

    def change(fd: int, limit: int) -> bytes:
        raw = real(fd, limit)
        desk.drop(text="other")
        return raw

    monkeypatch.setattr(file_to_task, "read_up_to", change)
    assert desk.claimer.take(desk.arrival(path), desk.memory) is Not.SETTLED
    desk.memory.close()


@pytest.mark.parametrize("kind", ["folder", "fifo", "link", "two names"])
def test_what_is_no_file_of_one_name_is_refused(desk: Desk, kind: str) -> None:
    path = desk.base / "a"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/etc/hostname")
    else:
        path.write_text("x")
        os.link(path, desk.base / "b")
    found = desk.claimer.take(desk.arrival(path), desk.memory)
    assert isinstance(found, DropRefused)
    assert found.reason == ("hard_link" if kind == "two names" else "not_regular")


@pytest.mark.parametrize("exchange", ["another file", "a writer"])
def test_file_that_is_exchanged_before_the_rename_goes_back(
    desk: Desk, exchange: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = desk.drop()
    arrival = desk.arrival(path)
    real = file_to_task.move_new
    opened: list[Any] = []

    def first(*arguments: Any) -> bool:
        if not opened:
            if exchange == "another file":
                (desk.base / ".new").write_text("not read")
                os.replace(desk.base / ".new", path)
            opened.append(path.open("r+"))
            if exchange == "another file":
                opened[0].close()
        return real(*arguments)

    monkeypatch.setattr(file_to_task, "move_new", first)
    assert desk.claimer.take(arrival, desk.memory) is Not.SETTLED
    opened[0].close()
    assert path.read_text() == ("not read" if exchange == "another file" else "x")
    assert desk.memory.records() == []


def test_file_that_goes_back_replaces_no_newer_one(desk: Desk) -> None:
    record = desk.take(desk.drop(text="old"))
    desk.drop(text="new")
    where = file_to_task.give_back(record)
    assert (desk.base / "a.txt").read_text() == "new"
    assert Path(where).read_text() == "old" and where != record.path


def test_agent_that_changes_its_file_is_counted(tmp_path: Path) -> None:
    desk = Desk(tmp_path, on_done="keep")
    record = desk.take(desk.drop())
    finishing.finish(record, TaskEnding("completed"), desk.memory)
    assert desk.memory.handled[record.path].chain == 0
    desk.drop(text="edited")
    finishing.finish(record, TaskEnding("completed"), desk.memory)
    assert desk.memory.handled[record.path].chain == 1
    desk.memory.close()


def test_file_that_changed_before_it_is_refused_stays(desk: Desk) -> None:
    path = desk.drop()
    seen = FileSignature.of(os.lstat(path))
    desk.drop(text="other")
    why = DropRefused("x", "y")
    assert finishing.refuse(str(path), desk.base, "notes", seen, why, desk.memory) is None
    assert os.listdir(desk.base) == ["a.txt"]
    seen = FileSignature.of(os.lstat(path))
    assert finishing.refuse(str(path), desk.base, "notes", seen, why, desk.memory) == str(desk.base / ".aside/a.txt")


def test_completed_file_replaces_no_earlier_one(desk: Desk) -> None:
    for text in ("one", "two"):
        finishing.finish(desk.take(desk.drop(text=text)), TaskEnding("completed"), desk.memory)
    assert sorted(path.read_text() for path in (desk.base / ".done").iterdir()) == ["one", "two"]


@pytest.mark.parametrize("changed", [False, True])
def test_kept_file_that_changed_before_its_task_was_submitted_is_a_new_drop(tmp_path: Path, changed: bool) -> None:
    desk = Desk(tmp_path, on_done="keep")
    record = desk.take(desk.drop())
    if changed:
        desk.drop(text="other")
    kept = recovery.adopt(desk.memory, desk.zone, TaskEndings(desk.site))
    assert [one.task_id for one in kept] == ([] if changed else [record.task_id])
    desk.memory.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("name", [PROCESSING, ".done"])
def test_folder_of_another_user_takes_no_files(desk: Desk, name: str) -> None:
    path = desk.drop()
    record = desk.take(path) if name == ".done" else None
    (desk.base / name).mkdir(exist_ok=True)
    os.chown(desk.base / name, 12_345, -1)
    if record is None:
        assert not isinstance(desk.claimer.take(desk.arrival(path), desk.memory), Record)
        assert path.exists()
        return
    with pytest.raises(OSError, match="another user"):
        finishing.finish(record, TaskEnding("completed"), desk.memory)
    assert Path(record.place).exists()


# --- what a power cut leaves


def test_file_is_safe_wherever_it_goes(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    path = desk.drop()
    cut = PowerCut(monkeypatch)
    record = desk.take(path)
    place = Path(record.place)
    assert cut.unsafe(place, place.parent, desk.base) == []
    assert cut.unsafe(next((desk.memory._folder.path / "open").glob("*.json"))) == []
    where = Path(finishing.finish(record, TaskEnding("completed"), desk.memory))
    assert cut.unsafe(where, where.parent) == []


def test_reason_is_safe_before_its_file_is_put_aside(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    record = desk.take(desk.drop())
    cut = PowerCut(monkeypatch)
    real = finishing.move_new
    seen: list[str] = []

    def move(*arguments: Any) -> bool:
        seen.extend([*cut.unsafe(next((desk.base / ".aside").glob("*.reason.json"))), "looked"])
        return real(*arguments)

    monkeypatch.setattr(finishing, "move_new", move)
    where = Path(finishing.finish(record, TaskEnding("failed"), desk.memory))
    assert seen == ["looked"] and cut.unsafe(where) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_file_goes_whole_and_safe_to_another_file_system(
    desk: Desk, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = desk.base / "a"
    if kind == "folder":
        source.mkdir()
    else:
        source.write_bytes(b"x" * 100)
        source.chmod(0o640)
    cut = PowerCut(monkeypatch)
    real = finishing.move_new

    def move(origin: Any, name: str, target: Any, final: str) -> bool:
        if origin.path != target.path:
            raise OSError(18, "another file system")
        return real(origin, name, target, final)

    monkeypatch.setattr(finishing, "move_new", move)
    if kind == "folder":
        with pytest.raises(OSError, match="another file system"):
            finishing._move_numbered(source, desk.base / ".done", "a")
        assert os.listdir(desk.base / ".done") == []
        return
    safe_then: list[str] = []
    cut.before_removal = lambda name, _: safe_then.extend(cut.unsafe(desk.base / ".done/a") if name == "a" else [])
    where = finishing._move_numbered(source, desk.base / ".done", "a")
    assert safe_then == [] and cut.unsafe(where) == []
    assert where.read_bytes() == b"x" * 100 and stat.S_IMODE(where.stat().st_mode) == 0o640
    assert not source.exists()


def test_copy_goes_through_no_link_that_came_under_its_name(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, private = desk.drop(), tmp_path / "private"
    private.write_text("mine")
    target = finishing.Folder(desk.base / ".done")
    real = finishing.Folder.write_new

    def exchange(folder: Any, name: str, data: bytes, **more: Any) -> None:
        real(folder, name, data, **more)
        folder.remove(name)
        os.symlink(private, name, dir_fd=folder.fd)

    monkeypatch.setattr(finishing.Folder, "write_new", exchange)
    with pytest.raises(OSError, match="symbolic"):
        finishing._copy_into(source, target)
    target.close()
    assert private.read_text() == "mine"


@pytest.mark.parametrize("how", ["one more", "written anew"])
def test_journal_is_safe_and_never_written_through_a_link(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = ZoneMemory.take(tmp_path, "zone")
    assert memory is not None
    memory.remember("/f", Handled(1, 2, 3))
    memory.close()
    journal = next(tmp_path.rglob("handled.jsonl"))
    if how == "written anew":
        journal.write_bytes(journal.read_bytes() + b'{"torn')
    cut = PowerCut(monkeypatch)
    again = ZoneMemory.take(tmp_path, "zone")
    assert again is not None
    if how == "written anew":
        assert cut.unsafe(journal) == []
    again.remember("/g", Handled(4, 5, 6))
    assert cut.unsafe(journal) == []
    journal.rename(tmp_path / "private")
    journal.symlink_to(tmp_path / "private")
    before = (tmp_path / "private").read_bytes()
    with pytest.raises(OSError, match="symbolic"):
        again.remember("/h", Handled(7, 8, 9))
    again.close()
    assert (tmp_path / "private").read_bytes() == before


def test_record_is_one_that_reads_back(desk: Desk) -> None:
    record = desk.take(desk.drop())
    assert [dataclasses.asdict(one) for one in desk.memory.records()] == [dataclasses.asdict(record)]
