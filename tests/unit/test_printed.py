"""How much an attempt may print: what is too much, what fills a disk, how often it is looked at, and how it ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.adoption import family
from tests.handlerpools import Site
from tests.workshop import Workshop, reason, run, shop
from watcher.policy.after_attempt import Failure
from watcher.policy.output_limit import FULL_BYTES, PrintWatch, has_filled_disk
from watcher.runner import attempt_files
from watcher.runner.warm.pool import HandlerFault

__all__ = ["family", "shop"]

MIB = 1 << 20


@pytest.mark.parametrize(
    ("printed", "before", "free", "fault"),
    [
        (30 * MIB, 30 * MIB, 0, True),
        (30 * MIB, 30 * MIB, FULL_BYTES, False),
        (MIB - 1, MIB, 0, False),
        (6 * MIB, 30 * MIB, 0, False),
        (10 * MIB, 30 * MIB, 0, True),
        (10 * MIB, 0, 0, True),
    ],
    ids=["all of it", "enough is free", "little", "others took most", "a third", "it was full before"],
)
def test_disk_is_full_by_an_attempt_that_took_a_fair_part_of_it(
    printed: int, before: int, free: int, fault: bool
) -> None:
    assert has_filled_disk(printed, before, free, FULL_BYTES) is fault


def test_attempt_whose_output_would_not_end_the_shortage_has_not_made_it() -> None:
    assert not has_filled_disk(2 * MIB, 2 * MIB, 0, 16 * MIB)


def test_quiet_attempt_is_looked_at_once_a_second_and_one_near_its_limit_often() -> None:
    watch = PrintWatch(100 * MIB, 1 << 40, 0.0)
    for second in range(5):
        assert watch.too_much(0, 1 << 40, float(second)) is None
    assert watch.pause_seconds == 1.0
    assert watch.too_much(90 * MIB, 1 << 40, 5.0) is None
    assert watch.pause_seconds < 0.1
    assert "MAX_ATTEMPT_OUTPUT_BYTES" in (watch.too_much(101 * MIB, 1 << 40, 5.1) or "")


def test_one_that_prints_on_is_at_fault_for_a_smaller_part_and_a_quiet_one_is_not() -> None:
    watch = PrintWatch(1 << 40, 30 * MIB, 0.0)
    assert watch.too_much(3 * MIB, MIB, 1.0) is None
    assert watch.too_much(3 * MIB, 0, 2.0) is None
    assert watch.too_much(4 * MIB, 0, 3.0) is not None


linux = pytest.mark.skipif(sys.platform != "linux", reason="memfds, sessions and /proc of Linux")


@linux
@pytest.mark.parametrize("stream", [1, 2])
@pytest.mark.parametrize("trap", ["", "trap '' TERM; "], ids=["hears TERM", "hears none"])
def test_flood_is_ended_and_counts_and_no_more_is_kept_than_it_may_print(
    shop: Workshop, stream: int, trap: str
) -> None:
    runner = shop.shell(f"{trap}yes >&{stream} & wait; sleep 600", max_attempt_output_bytes=MIB, max_output_bytes=1000)
    outcome = run(runner)
    assert reason(outcome) == (Failure.TRANSIENT, "output_too_large")
    assert "MAX_ATTEMPT_OUTPUT_BYTES" in (outcome.ending.detail or "")
    kept = outcome.stdout.kept if stream == 1 else outcome.stderr.kept
    assert kept is not None and (shop.folder / kept).stat().st_size <= MIB


@linux
def test_both_streams_count_together(shop: Workshop) -> None:
    say = "head -c 700000 /dev/zero; head -c 700000 /dev/zero >&2; sleep 600"
    assert reason(run(shop.shell(say, max_attempt_output_bytes=MIB)))[1] == "output_too_large"


@linux
@pytest.mark.parametrize(
    "say",
    [
        "head -c 700000 /dev/zero",
        "head -c 700000 /dev/zero >&2; exit 1",
        "head -c 60000 /dev/zero; truncate -s 1T /dev/stdout",
        "setsid sh -c 'head -c 700000 /dev/zero' & sleep 0.1",
    ],
    ids=["at once", "and fails", "a hole", "by what it leaves behind"],
)
def test_command_that_ends_between_two_looks_has_printed_too_much_all_the_same(shop: Workshop, say: str) -> None:
    outcome = run(shop.shell(say, max_attempt_output_bytes=50_000, max_output_bytes=1000))
    assert reason(outcome) == (Failure.TRANSIENT, "output_too_large")
    for output in (outcome.stdout, outcome.stderr):
        assert output.kept is None or (shop.folder / output.kept).stat().st_size <= 50_000


@linux
@pytest.mark.parametrize(("share", "ending"), [(20, "output_too_large"), (200, "exit_code")])
def test_failure_on_a_disk_that_its_own_output_has_filled_is_its_own(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, share: int, ending: str
) -> None:
    real, began = os.fstatvfs, []

    def small(fd: int) -> os.statvfs_result:
        free = 0 if began else share * MIB
        began.append(fd)
        found = list(real(fd))
        found[0] = found[1] = 1
        found[3] = found[4] = free
        return os.statvfs_result(found)

    monkeypatch.setattr(attempt_files.os, "fstatvfs", small)
    outcome = run(shop.shell(f"head -c {6 * MIB} /dev/zero; exit 1", max_output_bytes=1000))
    assert reason(outcome) == (Failure.TRANSIENT, ending)
    if ending == "output_too_large":
        assert outcome.stdout.size_bytes <= 1000, "there is room again"


@linux
@pytest.mark.parametrize("do", ["flood", "endless line"])
def test_handler_that_prints_too_much_for_one_task_is_replaced(tmp_path: Path, do: str) -> None:
    site = Site(tmp_path)
    pool = site.ready(1, max_printed_bytes=MIB, max_line_bytes=1 << 40, grace_seconds=0.2)
    try:
        assert pool.execute("default", site.event("flood", bytes=MIB // 2)).answer
        assert pool.execute("default", site.event("flood", bytes=MIB // 2)).answer, "each task counts for itself"
        with pytest.raises(HandlerFault) as caught:
            pool.execute("default", site.event(do, bytes=1 << 40))
        assert caught.value.reason == "output_too_large"
        assert pool.execute("default", site.event()).answer
    finally:
        pool.shutdown()
