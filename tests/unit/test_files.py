"""Files appear whole, replace nothing by accident, and are made durable in the right calls."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from watcher.system import files
from watcher.system.files import FEW, Folder, Sync, move, move_new, publish_new, read_up_to, replace, write_all


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path / "one")
    yield folder
    folder.close()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path / "two")
    yield folder
    folder.close()


def without_renameat2(*_: Any) -> int:
    """What NFS answers to a flag that it does not know."""
    ctypes.set_errno(errno.EINVAL)
    return -1


@pytest.fixture(params=["renameat2", "refused by the file system", "not in the C library"])
def any_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "refused by the file system":
        monkeypatch.setattr(files, "_RENAMEAT2", without_renameat2)
    elif request.param == "not in the C library":
        monkeypatch.setattr(files, "_RENAMEAT2", None)


# --- rename and publish


@pytest.mark.usefixtures("any_system")
@pytest.mark.parametrize("step", [move_new, publish_new])
def test_file_moves_when_the_name_is_free_and_replaces_nothing_when_it_is_not(
    step: Any, one: Folder, two: Folder
) -> None:
    one.write_new("a", b"first")
    assert step(one, "a", two, "b") is True
    assert (one.names(), two.read("b", 99)) == ([], b"first")
    one.write_new("a", b"second")
    assert step(one, "a", two, "b") is False
    assert (one.read("a", 99), two.read("b", 99)) == (b"second", b"first")


@pytest.mark.usefixtures("any_system")
@pytest.mark.parametrize("step", [move_new, publish_new])
def test_moving_what_is_not_there_is_an_error(step: Any, one: Folder, two: Folder) -> None:
    with pytest.raises(FileNotFoundError):
        step(one, "a", two, "b")
    assert two.names() == []


@pytest.mark.usefixtures("any_system")
def test_link_that_leads_nowhere_is_still_not_replaced(one: Folder, two: Folder) -> None:
    (two.path / "b").symlink_to("nowhere")
    one.write_new("a", b"x")
    assert move_new(one, "a", two, "b") is False and publish_new(one, "a", two, "b") is False
    assert (two.path / "b").is_symlink()


def test_publishing_looks_before_nothing_where_the_flag_is_missing(
    one: Folder, two: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a look and a rename another host may publish; only a call that never replaces is safe."""
    monkeypatch.setattr(files, "_RENAMEAT2", without_renameat2)
    monkeypatch.setattr(Folder, "has", lambda *_: False)
    one.write_new("a", b"late")
    two.write_new("b", b"first")
    assert publish_new(one, "a", two, "b") is False
    assert two.read("b", 99) == b"first"


def test_moving_to_another_file_system_says_so(one: Folder) -> None:
    if not Path("/dev/shm").is_dir() or os.stat("/dev/shm").st_dev == os.fstat(one.fd).st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    other = Folder(Path("/dev/shm"), create=False)
    one.write_new("a", b"x")
    try:
        with pytest.raises(OSError) as caught:
            move_new(one, "a", other, f"watcher-test-{os.getpid()}")
    finally:
        other.close()
    assert caught.value.errno == errno.EXDEV and one.names() == ["a"]


def test_claiming_rename_tells_whether_the_file_is_ours_now(one: Folder, two: Folder) -> None:
    one.write_new("a", b"x")
    assert move(one, "a", two, "mine") is True
    assert move(one, "b", two, "other") is False
    assert move(one, "a", two, "mine") is True, "a lost answer of a server: the rename has worked"


# --- write and replace


def test_new_file_never_goes_over_another_one_or_through_a_link(one: Folder, tmp_path: Path) -> None:
    one.write_new("a", b"x")
    (one.path / "link").symlink_to(tmp_path / "target")
    for name in ("a", "link"):
        with pytest.raises(FileExistsError):
            one.write_new(name, b"y")
    assert one.read("a", 9) == b"x" and not (tmp_path / "target").exists()


@pytest.mark.parametrize("rename", [move_new, publish_new])
def test_error_names_the_folder_and_not_only_a_name_below_a_descriptor(one: Folder, two: Folder, rename: Any) -> None:
    one.write_new("there", b"x")
    two.path.rmdir()
    with pytest.raises(FileNotFoundError) as writing:
        two.write_new("a", b"x")
    with pytest.raises(FileNotFoundError) as renaming:
        rename(one, "there", two, "a")
    assert writing.value.filename == str(two.path / "a")
    assert (renaming.value.filename, renaming.value.filename2) == (str(one.path / "there"), str(two.path / "a"))


def test_replacing_shows_the_old_or_the_new_and_leaves_nothing_else(one: Folder) -> None:
    replace(one, "a", b"old", "me")
    with (one.path / "a").open("rb") as reader:
        replace(one, "a", b"new", "me", durable=True)
        assert reader.read() == b"old", "who has the old one open keeps it whole"
    assert one.read("a", 9) == b"new" and one.names() == ["a"]


def test_replacing_that_fails_keeps_the_old_and_leaves_no_temporary_file(
    one: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(one, "a", b"old", "me")

    def full(fd: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        replace(one, "a", b"new", "me")
    monkeypatch.undo()
    assert one.read("a", 9) == b"old" and one.names() == ["a"]


def test_temporary_file_of_a_crash_is_written_over(one: Folder) -> None:
    one.write_new(".a.me.tmp", b"a long half of something")
    replace(one, "a", b"new", "me")
    assert one.read("a", 99) == b"new" and one.names() == ["a"]


def test_two_writers_of_one_file_do_not_share_a_temporary_name(one: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    real = os.rename

    def noted(source: str, target: str, **where: Any) -> None:
        names.append(source)
        real(source, target, **where)

    monkeypatch.setattr(files.os, "rename", noted)
    replace(one, "a", b"x", "me")
    replace(one, "a", b"x", "you")
    assert len(set(names)) == 2 and all(name.startswith(".") for name in names)


def test_every_byte_is_written_when_the_system_takes_few_at_a_time(
    one: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(files.os, "write", lambda fd, data: real(fd, bytes(data[:3])))
    fd = os.open(one.path / "a", os.O_WRONLY | os.O_CREAT)
    write_all(fd, b"0123456789")
    os.close(fd)
    assert one.read("a", 99) == b"0123456789"


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 200_000])
@pytest.mark.parametrize("limit", [1, 65_536, 100_000, 1 << 20])
def test_reading_gives_all_up_to_its_limit(one: Folder, size: int, limit: int) -> None:
    raw = os.urandom(size)
    one.write_new("a", raw)
    fd = os.open(one.path / "a", os.O_RDONLY)
    try:
        assert read_up_to(fd, limit) == raw[:limit]
    finally:
        os.close(fd)


def test_reading_follows_no_link_and_waits_for_no_fifo(one: Folder, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (one.path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(one.path / "fifo")
    (one.path / "folder").mkdir()
    for name in ("link", "fifo", "folder"):
        with pytest.raises(OSError):
            one.read(name, 99)
    assert one.has("link") and one.has("fifo") and not one.has("gone")
    assert one.remove("link") is True and one.remove("link") is False
    assert (tmp_path / "secret").exists()


# --- folders


def test_folder_that_was_replaced_is_noticed_and_the_open_one_stays_the_old_one(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "a")
    assert folder.is_current()
    (tmp_path / "a").rename(tmp_path / "old")
    assert not folder.is_current()
    (tmp_path / "a").mkdir()
    assert not folder.is_current()
    folder.write_new("x", b"")
    assert (tmp_path / "old" / "x").exists() and not (tmp_path / "a" / "x").exists()
    folder.close()
    folder.close()


def test_folder_is_only_made_when_that_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Folder(tmp_path / "a", create=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        Folder(tmp_path / "file")


def test_no_descriptor_is_inherited_by_commands(one: Folder) -> None:
    assert not os.get_inheritable(one.fd)


# --- durability


class Calls:
    """Counts what is made durable, by the name of what was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fsync: list[str] = []
        self.syncfs: list[str] = []
        monkeypatch.setattr(files.os, "fsync", lambda fd: self.fsync.append(self._name(fd)))
        monkeypatch.setattr(files, "_SYNCFS", lambda fd: self.syncfs.append(self._name(fd)) or 0)

    @staticmethod
    def _name(fd: int) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))


def test_few_folders_are_flushed_each_and_many_by_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [Folder(tmp_path / str(number)) for number in range(FEW + 1)]
    sync, calls = Sync(folders), Calls(monkeypatch)
    sync.flush_folders(folders[:FEW] * 3)
    assert sorted(calls.fsync) == [str(number) for number in range(FEW)] and calls.syncfs == []
    sync.flush_folders(folders)
    assert len(calls.fsync) == FEW and len(calls.syncfs) == 1
    sync.flush_files(folders)
    assert len(calls.syncfs) == 2
    sync.flush_files([])
    sync.flush_folders([])
    assert len(calls.fsync) == FEW and len(calls.syncfs) == 2
    for folder in folders:
        folder.close()


def test_folder_that_was_not_announced_is_flushed_all_the_same(
    one: Folder, two: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, calls = Sync([one]), Calls(monkeypatch)
    sync.flush_files([two])
    assert calls.syncfs == ["two"]


def test_durable_writing_flushes_the_file_before_it_is_shown_and_the_folder_after(
    one: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    replace(one, "a", b"x", "me", durable=True)
    assert calls.fsync == [".a.me.tmp", "one"]
    one.write_new("b", b"x", durable=True)
    assert calls.fsync[2:] == ["b"]
    one.write_new("c", b"x")
    replace(one, "a", b"x", "me")
    assert len(calls.fsync) == 3, "a heartbeat costs no flush"


def test_flush_that_fails_is_an_error(one: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    monkeypatch.setattr(files, "_SYNCFS", broken)
    with pytest.raises(OSError) as caught:
        Sync([one]).flush_files([one])
    assert caught.value.errno == errno.EIO


def test_system_without_syncfs_flushes_everything(one: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    monkeypatch.setattr(files, "_SYNCFS", None)
    monkeypatch.setattr(files.os, "sync", lambda: called.append(1))
    Sync([one]).flush_files([one])
    assert called == [1]
