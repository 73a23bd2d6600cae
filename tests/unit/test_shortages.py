"""Without a descriptor left nothing is gone, replaced or free: what cannot be seen is asked again later."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.collecting import Site, site
from tests.doubles import HandClock
from watcher.errors import WorkerTrouble, tells_nothing
from watcher.intake.drop_zones.arrivals import Arrivals, is_being_written
from watcher.store.listener_lock import ListenerLock
from watcher.store.other_workers import Elsewhere
from watcher.store.reassign import Reassigner
from watcher.store.worker_locks import Incarnation
from watcher.system import no_links
from watcher.system.files import Folder
from watcher.system.inotify import Waker

__all__ = ["site"]


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(usual[0], 512), usual[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


def test_what_cannot_be_seen_is_neither_there_nor_gone(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    folder = Folder(tmp_path / "kept")
    for ask in (no_links.is_there, no_links.is_folder, no_links.names_in):
        with no_descriptors(), pytest.raises(OSError) as caught:
            ask(tmp_path / "a")
        assert caught.value.errno == errno.EMFILE and tells_nothing(caught.value)
    with no_descriptors():
        assert not no_links.is_gone(tmp_path / "a") and not no_links.is_gone(tmp_path / "nothing")
        with pytest.raises(OSError):
            folder.is_current()
        with pytest.raises(OSError):
            folder.mend()
    assert folder.is_current() and no_links.is_gone(tmp_path / "nothing")
    folder.close()


def test_process_without_descriptors_has_not_lost_its_locks(tmp_path: Path) -> None:
    incarnation, seat = (
        Incarnation(tmp_path / "marie", "marie", None),
        ListenerLock(tmp_path / "told", state=tmp_path / "state"),
    )
    for held in (incarnation, seat):
        with no_descriptors(), pytest.raises(OSError) as caught:
            held.check()
        assert caught.value.errno == errno.EMFILE
        held.check()
        held.close()


def test_kept_file_of_a_zone_is_not_forgotten(tmp_path: Path) -> None:
    (tmp_path / "note.txt").touch()
    gone: list[str] = []

    async def look() -> None:
        waker = Waker(asyncio.get_running_loop())
        arrivals = Arrivals(waker, HandClock(0.0), 0.0, lambda *_: False, gone.append)
        with no_descriptors():
            arrivals.notice(str(tmp_path), "note.txt")
            with pytest.raises(OSError):
                is_being_written(str(tmp_path / "note.txt"))
        assert gone == []
        arrivals.notice(str(tmp_path), "other.txt")
        waker.close()

    asyncio.run(look())
    assert gone == [str(tmp_path / "other.txt")]


def test_task_elsewhere_is_not_missing_but_unseen(tmp_path: Path) -> None:
    inbox = tmp_path / "tasks" / "anga"
    inbox.mkdir(parents=True)
    (inbox / "a.json").write_text(json.dumps({"description": "x"}))
    elsewhere = Elsewhere(tmp_path / "tasks", tmp_path / "results", tmp_path / "triggers", 1 << 20)
    with no_descriptors():
        assert not elsewhere.is_known("anga/a") and elsewhere.is_blind
    elsewhere.refresh()
    assert elsewhere.is_known("anga/a") and not elsewhere.is_blind


def test_nothing_is_moved_from_a_dead_worker(site: Site) -> None:
    site.task("a")
    (site.folders["tasks"] / "marie" / ".claims").mkdir()
    service = Reassigner(site.folders["tasks"], site.folders["results"], ["marie:anga"], 50.0, site.clock, site.memory)
    with no_descriptors():
        assert service.check(lambda _: 100.0, {"marie"}).is_empty
    assert (site.folders["tasks"] / "marie" / "a.json").exists()
    assert not service.check(lambda _: 100.0, {"marie"}).is_empty


def test_listener_calls_no_folder_lost(site: Site) -> None:
    site.result("a")
    for _ in site.collector.scan(["marie"]):
        pass
    with no_descriptors(), pytest.raises(WorkerTrouble):
        for _ in site.collector.scan(["marie"]):
            pass
    assert not [event for event in site.memory.events if type(event).__name__ == "FolderLost"]
