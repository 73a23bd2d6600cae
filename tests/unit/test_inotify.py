"""From real file-system events to the loop's flag: what is named, what is told as lost, what is told as missing."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from watchdog.observers import inotify_c

from watcher.system.inotify import Waker

Seen = tuple[set[tuple[str, str]], bool]


def run(body: Callable[[Waker], Awaitable[None]]) -> None:
    """Run `body` with a waker on a fresh loop."""

    async def main() -> None:
        waker = Waker(asyncio.get_running_loop())
        try:
            async with asyncio.timeout(60):
                await body(waker)
        finally:
            waker.close()

    asyncio.run(main())


async def until(waker: Waker, is_enough: Callable[[set[tuple[str, str]], bool], bool]) -> Seen:
    """Take what comes until it is enough; `run` ends one that waits for ever."""
    names: set[tuple[str, str]] = set()
    lost = False
    while not is_enough(names, lost):
        await waker.flag.wait()
        more, some_lost = waker.take()
        names.update(more)
        lost = lost or some_lost
    return names, lost


async def named(waker: Waker, *wanted: tuple[str, str]) -> set[tuple[str, str]]:
    return (await until(waker, lambda names, _: set(wanted) <= names))[0]


def test_file_that_is_renamed_in_wakes_the_loop_with_its_name(tmp_path: Path) -> None:
    inbox, outside = tmp_path / "inbox", tmp_path / "outside"
    inbox.mkdir()

    async def body(waker: Waker) -> None:
        assert waker.watch("inbox", inbox) and waker.mode == "events" and waker.problem is None
        outside.write_text("x")
        outside.rename(inbox / "from-outside.json")
        (inbox / ".hidden").write_text("x")
        (inbox / ".hidden").rename(inbox / "inside.json")
        names = await named(waker, ("inbox", "from-outside.json"), ("inbox", "inside.json"))
        assert all(key == "inbox" for key, _ in names)

    run(body)


def test_file_that_is_written_in_place_is_named_when_its_writer_closes_it_and_not_before(tmp_path: Path) -> None:
    async def body(waker: Waker) -> None:
        waker.watch("inbox", tmp_path)
        with (tmp_path / "slow.json").open("w") as writer:
            writer.write("half")
            writer.flush()
            (tmp_path / "marker.json").write_text("x")
            assert ("inbox", "slow.json") not in await named(waker, ("inbox", "marker.json"))
        await named(waker, ("inbox", "slow.json"))

    run(body)


def test_what_leaves_the_folder_wakes_nobody(tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    for name in ("claimed.json", "deleted.json"):
        (tmp_path / name).write_text("x")

    async def body(waker: Waker) -> None:
        waker.watch("inbox", tmp_path)
        (tmp_path / "claimed.json").rename(tmp_path / "claims" / "claimed.json")
        (tmp_path / "deleted.json").unlink()
        (tmp_path / "marker.json").write_text("x")
        assert await named(waker, ("inbox", "marker.json")) == {("inbox", "marker.json")}

    run(body)


def test_what_leaves_the_folder_wakes_the_loop_where_that_was_asked_for(tmp_path: Path) -> None:
    holds = tmp_path / "holds"
    holds.mkdir()
    for name in ("deleted.json", "moved.json"):
        (holds / name).write_text("x")

    async def body(waker: Waker) -> None:
        assert waker.watch("holds", holds, removals=True)
        (holds / "deleted.json").unlink()
        (holds / "moved.json").rename(tmp_path / "moved.json")
        (holds / "new.json").write_text("x")
        await named(waker, ("holds", "deleted.json"), ("holds", "moved.json"), ("holds", "new.json"))

    run(body)


def test_claiming_a_file_does_not_delay_the_next_one(tmp_path: Path) -> None:
    """watchdog's own observers hold the next event for half a second after each claim."""
    (tmp_path / "claims").mkdir()

    async def body(waker: Waker) -> None:
        waker.watch("inbox", tmp_path)
        loop = asyncio.get_running_loop()
        (tmp_path / "0.json").write_text("x")
        await named(waker, ("inbox", "0.json"))
        took = []
        for number in range(1, 11):
            began = loop.time()
            (tmp_path / f"{number - 1}.json").rename(tmp_path / "claims" / "x")
            (tmp_path / f"{number}.json").write_text("x")
            await named(waker, ("inbox", f"{number}.json"))
            took.append(loop.time() - began)
        assert min(took) < 0.5, "each was held back; a machine that is only busy lets one of ten through"

    run(body)


def test_each_folder_has_its_own_key_and_one_that_is_given_up_is_silent(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()

    async def body(waker: Waker) -> None:
        assert waker.watch("a", tmp_path / "a") and waker.watch("b", tmp_path / "b")
        (tmp_path / "a" / "x").write_text("")
        (tmp_path / "b" / "x").write_text("")
        await named(waker, ("a", "x"), ("b", "x"))
        waker.unwatch("a")
        waker.unwatch("a")
        assert not waker.is_watching("a") and waker.is_watching("b")
        (tmp_path / "a" / "y").write_text("")
        (tmp_path / "b" / "y").write_text("")
        assert ("a", "y") not in await named(waker, ("b", "y"))

    run(body)


def test_key_moves_to_another_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()

    async def body(waker: Waker) -> None:
        waker.watch("inbox", tmp_path / "a")
        waker.watch("inbox", tmp_path / "b")
        (tmp_path / "a" / "old").write_text("")
        (tmp_path / "b" / "new").write_text("")
        assert await named(waker, ("inbox", "new")) == {("inbox", "new")}

    run(body)


def test_root_behind_a_symbolic_link_gives_events(tmp_path: Path) -> None:
    (tmp_path / "real" / "inbox").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "direct").symlink_to("real/inbox")

    async def body(waker: Waker) -> None:
        assert waker.watch("below", tmp_path / "link" / "inbox")
        (tmp_path / "real" / "inbox" / "1").write_text("")
        await named(waker, ("below", "1"))
        waker.unwatch("below")
        assert waker.watch("itself", tmp_path / "direct")
        (tmp_path / "real" / "inbox" / "2").write_text("")
        await named(waker, ("itself", "2"))

    run(body)


def test_folder_that_is_deleted_is_told_as_lost_and_can_be_watched_again(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()

    async def body(waker: Waker) -> None:
        waker.watch("inbox", inbox)
        inbox.rmdir()
        inbox.mkdir()
        await until(waker, lambda _, lost: lost)
        assert not waker.is_watching("inbox"), "nobody would ever watch the new folder"
        assert waker.watch("inbox", inbox)
        (inbox / "x").write_text("")
        await named(waker, ("inbox", "x"))

    run(body)


def test_folder_that_is_watched_again_before_its_end_was_read_stays_watched(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()

    async def body(waker: Waker) -> None:
        waker.watch("inbox", inbox)
        for number in range(20):
            inbox.rmdir()
            inbox.mkdir()
            waker.watch("inbox", inbox)
            (inbox / str(number)).write_text("")
            await named(waker, ("inbox", str(number)))
            (inbox / str(number)).unlink()
        assert waker.is_watching("inbox")

    run(body)


def test_events_that_the_kernel_dropped_are_told_as_lost(tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 50_000:
        pytest.skip(f"filling a queue of {limit} events takes too long")

    async def body(waker: Waker) -> None:
        waker.watch("inbox", tmp_path)
        reader = waker._inotify
        assert reader is not None
        # The reader takes this lock between two reads: it reads once at most, and the queue fills up.
        one_read = inotify_c.DEFAULT_EVENT_BUFFER_SIZE // 16
        with reader._lock:
            names = [os.fsencode(tmp_path / name) for name in ("a", "b")]
            for number in range(limit + one_read):
                os.close(os.open(names[number % 2], os.O_WRONLY | os.O_CREAT))
        _, lost = await until(waker, lambda _, lost: lost)
        assert lost and waker.is_watching("inbox")
        (tmp_path / "after.json").write_text("x")
        await named(waker, ("inbox", "after.json"))

    run(body)


def test_name_that_is_no_text_is_carried_as_it_is(tmp_path: Path) -> None:
    async def body(waker: Waker) -> None:
        waker.watch("inbox", tmp_path)
        odd = os.fsencode(tmp_path) + b"/\xff\xfe.json"
        os.close(os.open(odd, os.O_WRONLY | os.O_CREAT))
        names = await until(waker, lambda names, _: bool(names))
        [(_, name)] = names[0]
        assert os.fsencode(name) == b"\xff\xfe.json"

    run(body)


def test_same_name_many_times_costs_one_entry_and_one_wake_up(tmp_path: Path) -> None:
    async def body(waker: Waker) -> None:
        waker.watch("inbox", tmp_path)
        for _ in range(50):
            (tmp_path / "same.json").write_text("x")
        (tmp_path / "last.json").write_text("x")
        while ("inbox", "last.json") not in waker._names:  # noqa: ASYNC110 - the loop gets one wake-up for both
            await asyncio.sleep(0.001)
        assert waker.take() == ([("inbox", "same.json"), ("inbox", "last.json")], False)
        assert waker.take() == ([], False)

    run(body)


def test_system_without_watches_left_says_so_and_scanning_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> int:
        raise OSError(errno.ENOSPC, "inotify watch limit reached")

    async def body(waker: Waker) -> None:
        monkeypatch.setattr(inotify_c.InotifyFD, "add_callback", none_left)
        assert waker.watch("inbox", tmp_path) is False
        assert waker.mode == "polling" and "watch limit" in (waker.problem or "")
        assert not waker.is_watching("inbox")
        monkeypatch.undo()
        assert waker.watch("inbox", tmp_path) and waker.mode == "events" and waker.problem is None

    run(body)


def test_system_without_inotify_instances_left_still_has_a_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(inotify_c.InotifyFD, "_create_inotify_fd", none_left)

    async def body(waker: Waker) -> None:
        assert waker.mode == "polling" and "Too many open files" in (waker.problem or "")
        assert waker.watch("inbox", tmp_path) is False
        waker.unwatch("inbox")
        waker.poke()
        await waker.flag.wait()

    run(body)


def test_inotify_that_could_not_be_had_is_tried_again_after_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async def body(waker: Waker) -> None:
        monkeypatch.undo()
        assert waker.watch("inbox", tmp_path) is False, "not before a minute is over"
        monkeypatch.setattr(waker, "_try_at", 0.0)
        assert waker.watch("inbox", tmp_path) and waker.mode == "events" and waker.problem is None
        (tmp_path / "came.json").write_text("{}")
        await waker.flag.wait()
        assert ("inbox", "came.json") in waker.take()[0]
        waker.close()
        assert waker.watch("inbox", tmp_path) is False, "what is closed stays so"

    monkeypatch.setattr(inotify_c.InotifyFD, "_create_inotify_fd", none_left)
    run(body)


def test_folder_that_is_not_there_is_a_problem_and_no_error(tmp_path: Path) -> None:
    async def body(waker: Waker) -> None:
        assert waker.watch("inbox", tmp_path / "nowhere") is False
        assert "inbox" in (waker.problem or "")

    run(body)


def test_poke_wakes_the_loop_from_any_thread_and_after_its_end_does_nothing() -> None:
    async def body(waker: Waker) -> None:
        threading.Thread(target=waker.poke).start()
        await waker.flag.wait()
        assert waker.take() == ([], False) and not waker.flag.is_set()

    run(body)
    loop = asyncio.new_event_loop()
    waker = Waker(loop)
    loop.close()
    waker.poke()
    waker.close()


def test_closing_ends_the_reader_and_gives_its_descriptors_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))

    async def body(waker: Waker) -> None:
        waker.watch("inbox", tmp_path)
        reader = waker._inotify
        assert reader is not None and reader.is_alive()
        waker.close()
        waker.close()
        await asyncio.to_thread(reader.join, 50)
        assert not reader.is_alive()

    run(body)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_mode_after_closing_is_the_last_one(tmp_path: Path) -> None:
    async def body(waker: Waker) -> None:
        waker.watch("inbox", tmp_path)
        waker.close()
        assert waker.mode == "events"
        waker.problem = "later"
        assert waker.mode == "events"

    run(body)


def test_folder_watched_for_changes_also_names_what_is_made_and_what_goes(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "old").write_text("x")

    async def body(waker: Waker) -> None:
        assert waker.watch("place", place, creations=True, removals=True)
        (place / "folder").mkdir()
        (place / "old").unlink()
        await named(waker, ("place", "folder"), ("place", "old"))

    run(body)


def test_names_that_come_faster_than_they_are_taken_are_for_the_next_call() -> None:
    async def body(waker: Waker) -> None:
        class Flood(dict[tuple[str, str], None]):
            """Somebody names a file each time that one is taken."""

            rounds = 0

            def _more(self) -> None:
                self.rounds += 1
                assert self.rounds < 1000, "it never ends"
                self["in", f"more-{self.rounds}"] = None

            def popitem(self) -> tuple[tuple[str, str], None]:
                found = super().popitem()
                self._more()
                return found

            def pop(self, *of: Any) -> Any:
                self._more()
                return super().pop(*of)

        waker._names = Flood({("in", "a"): None, ("in", "b"): None})
        assert waker.take() == ([("in", "a"), ("in", "b")], False)
        assert waker.take() == ([("in", "more-1"), ("in", "more-2")], False)

    run(body)
