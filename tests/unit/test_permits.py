"""Permits: one owner a place, taken over only when its owner has gone silent for its whole lease."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles import HandClock
from watcher.store.probe_permits import Permits
from watcher.system.files import Folder

MADE: list[Folder] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().close()


def permits(path: Path, owner: str, clock: HandClock, lease: float = 30.0) -> Permits:
    folder = Folder(path)
    MADE.append(folder)
    return Permits(folder, owner, lease, clock)


def take(of: Permits, path: Path, places: int = 1, key: str = "claude") -> str | None:
    of.observe(os.listdir(path))
    return of.take(key, places)


def test_one_place_has_one_owner_until_it_is_given_back(tmp_path: Path) -> None:
    clock = HandClock()
    marie, anga = permits(tmp_path, "m", clock), permits(tmp_path, "a", clock)
    permit = take(marie, tmp_path)
    assert permit is not None and take(anga, tmp_path) is None and take(marie, tmp_path) is None
    marie.give_back(permit)
    assert take(anga, tmp_path) is not None


def test_there_are_as_many_owners_as_places_and_accounts_do_not_share_them(tmp_path: Path) -> None:
    clock = HandClock()
    some = [permits(tmp_path, str(number), clock) for number in range(5)]
    assert [take(one, tmp_path, 3) is not None for one in some] == [True, True, True, False, False]
    assert take(some[4], tmp_path, 1, "claude@b") is not None


def test_permit_that_nobody_touches_for_its_lease_is_taken_over_by_one(tmp_path: Path) -> None:
    clock = HandClock()
    dead, *others = (permits(tmp_path, name, clock) for name in "dxyz")
    old = take(dead, tmp_path)
    assert [take(one, tmp_path) for one in others] == [None] * 3
    clock.pass_seconds(29)
    assert [take(one, tmp_path) for one in others] == [None] * 3
    clock.pass_seconds(1)
    taken = [take(one, tmp_path) for one in others]
    assert sum(name is not None for name in taken) == 1
    assert os.listdir(tmp_path) == [name for name in taken if name is not None] != [old]


def test_touched_permit_stays_however_long_it_lasts(tmp_path: Path) -> None:
    clock = HandClock()
    marie, anga = permits(tmp_path, "m", clock), permits(tmp_path, "a", clock)
    permit = take(marie, tmp_path)
    assert permit is not None
    for beat in range(10):
        clock.pass_seconds(20)
        marie.renew()
        os.utime(tmp_path / permit, (beat, beat))  # file systems with coarse time stamps
        assert take(anga, tmp_path) is None


def test_wall_clock_that_is_set_takes_nothing_over(tmp_path: Path) -> None:
    clock = HandClock()
    marie, anga = permits(tmp_path, "m", clock), permits(tmp_path, "a", clock)
    take(marie, tmp_path)
    assert take(anga, tmp_path) is None
    clock.now_wall += 1e6
    assert take(anga, tmp_path) is None


def test_owner_that_was_frozen_does_not_give_back_or_touch_what_is_anothers_by_now(tmp_path: Path) -> None:
    clock = HandClock()
    frozen, heir, third = (permits(tmp_path, name, clock) for name in "fht")
    old = take(frozen, tmp_path)
    take(heir, tmp_path)
    clock.pass_seconds(30)
    second = take(heir, tmp_path)
    assert old is not None and second is not None and second != old
    heir.give_back(second)
    assert take(third, tmp_path) == old, "the name comes again"
    os.utime(tmp_path / old, (5, 5))
    frozen.renew()
    frozen.give_back(old)
    assert os.listdir(tmp_path) == [old] and os.stat(tmp_path / old).st_mtime == 5


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'{"lease_seconds": "x"}', b'{"lease_seconds": 1e999}'])
def test_permit_that_cannot_be_read_keeps_its_place_for_a_lease(tmp_path: Path, raw: bytes) -> None:
    clock = HandClock()
    (tmp_path / ".claude~start1~1").write_bytes(raw)
    anga = permits(tmp_path, "a", clock, 30)
    assert take(anga, tmp_path) is None
    clock.pass_seconds(900)
    assert take(anga, tmp_path) == ".claude~start1~2"


def test_permits_of_accounts_that_are_no_longer_held_are_cleared_away(tmp_path: Path) -> None:
    clock = HandClock()
    marie, anga = permits(tmp_path, "m", clock), permits(tmp_path, "a", clock)
    take(marie, tmp_path, key="claude")
    kept = take(marie, tmp_path, key="gemini")
    anga.clear(os.listdir(tmp_path), {"gemini"})
    assert os.listdir(tmp_path) == [kept]


def test_many_who_see_the_same_abandoned_permit_make_one_new_owner(tmp_path: Path) -> None:
    clock = HandClock()
    take(permits(tmp_path, "dead", clock), tmp_path)
    racers = [permits(tmp_path, str(number), clock) for number in range(16)]
    for one in racers:
        take(one, tmp_path)
    clock.pass_seconds(30)
    for one in racers:
        one.observe(os.listdir(tmp_path))
    start, won = threading.Barrier(len(racers)), []

    def race(one: Permits) -> None:
        start.wait(60)
        won.append(one.take("claude", 1))

    threads = [threading.Thread(target=race, args=(one,)) for one in racers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(won) == 16 and sum(name is not None for name in won) == 1
