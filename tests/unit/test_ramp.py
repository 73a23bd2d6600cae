"""When a hold is over: one worker of all probes, and success lets more and more of them start."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.doubles import HandClock, Memory
from tests.gating import MADE, allowed, cleared, clock, gate_config, limit
from watcher.store.holds import lift_hold
from watcher.worker.provider_gates import Gates

__all__ = ["cleared", "clock"]


def ready(_: object) -> bool:
    """Something waits for every provider."""
    return True


def may_probe(found: Gates) -> bool:
    """Whether this one gets to start something for claude now; a mark of its own is then running."""
    excluded, _ = found.closed_to()
    return "claude" not in excluded and "claude" not in found.refused_permits(excluded, ready)


def crew(
    tmp_path: Path,
    clock: HandClock,
    *names: str,
    jitter: Callable[[float], float] = lambda seconds: 0.0,
    **values: object,
) -> list[Gates]:
    out = []
    for name in names:
        owner = Mock(worker=name, id=f"owner-{name}")
        config = gate_config(tmp_path, circuit_breaker_threshold=9, **values)
        MADE.append(Gates(config, owner, clock, Memory(), jitter))
        out.append(MADE[-1])
    return out


def begin_ramp(one: Gates, clock: HandClock) -> None:
    """It has met a limit, and after its end has probed with success."""
    limit(one, clock)
    clock.pass_seconds(100)
    assert may_probe(one)
    one.started("claude", "m")
    one.succeeded("claude", "m")


def test_of_all_workers_one_probes_and_its_success_lets_two_start_then_four(tmp_path: Path, clock: HandClock) -> None:
    workers = crew(tmp_path, clock, *"abcdef")
    limit(workers[0], clock)
    assert [may_probe(one) for one in workers] == [False] * 6
    clock.pass_seconds(100)
    assert [may_probe(one) for one in workers] == [True] + [False] * 5
    workers[0].started("claude", "m0")
    workers[0].succeeded("claude", "m0")
    assert [may_probe(one) for one in workers] == [True, True] + [False] * 4
    workers[1].started("claude", "m1")
    workers[1].succeeded("claude", "m1")
    assert [may_probe(one) for one in workers[1:]] == [True, True, True, False, False], "the first has one in hand"


def test_probe_that_is_limited_again_leaves_the_next_one_until_the_new_time(tmp_path: Path, clock: HandClock) -> None:
    one, other = crew(tmp_path, clock, "a", "b")
    limit(one, clock)
    other.refresh()
    clock.pass_seconds(100)
    assert may_probe(one)
    one.started("claude", "m")
    one.hold("claude", "usage_limit", None, clock.wall() + 50, None, "m")
    assert not may_probe(other) and not may_probe(one)
    clock.pass_seconds(50)
    assert may_probe(other) and not may_probe(one)


def test_what_was_started_before_the_hold_ends_nothing_by_ending_well(tmp_path: Path, clock: HandClock) -> None:
    (mine,) = crew(tmp_path, clock, "a")
    mine.started("claude", "early")
    mine.hold("claude", "usage_limit", None, clock.wall() + 100, None, "other")
    mine.succeeded("claude", "early")
    assert mine.closed_to() == ({"claude"}, False) and (tmp_path / "holds" / "claude.json").exists()


def test_straggler_that_meets_the_old_limit_does_not_disturb_the_probe(tmp_path: Path, clock: HandClock) -> None:
    (mine,) = crew(tmp_path, clock, "a")
    mine.started("claude", "late")
    until = clock.wall() + 100
    mine.hold("claude", "usage_limit", None, until, 60.0, "first")
    clock.pass_seconds(100)
    assert may_probe(mine)
    mine.started("claude", "probe")
    mine.hold("claude", "usage_limit", None, until, 60.0, "late")
    assert not may_probe(mine)
    mine.succeeded("claude", "probe")
    assert mine.holds() == {} and may_probe(mine)


def test_end_that_is_over_already_is_none(tmp_path: Path, clock: HandClock) -> None:
    (mine,) = crew(tmp_path, clock, "a")
    mine.hold("claude", "usage_limit", None, clock.wall() - 5, 60.0)
    assert not may_probe(mine), "it would be tried again and again"
    clock.pass_seconds(60)
    assert may_probe(mine)


def test_end_that_is_over_already_is_none_for_the_other_workers_too(tmp_path: Path, clock: HandClock) -> None:
    one, other, starter = crew(tmp_path, clock, "a", "b", "c")
    limit(one, clock)
    over_at = clock.wall() + 100
    other.refresh()
    clock.pass_seconds(101)
    assert may_probe(one)
    one.started("claude", "m")
    one.hold("claude", "usage_limit", None, over_at, 60.0, "m")
    assert not may_probe(other), "it would meet the same refusal, and then each in turn"
    assert not may_probe(starter), "nor does a process that sees this hold first"
    assert json.loads((tmp_path / "holds" / "claude.json").read_text())["until"] is None
    clock.pass_seconds(60)
    assert may_probe(other) and not may_probe(one)


def test_probe_of_a_killed_worker_is_taken_over_after_its_lease(tmp_path: Path, clock: HandClock) -> None:
    dead, heir, third = crew(tmp_path, clock, "a", "b", "c", heartbeat_interval=10.0)
    limit(dead, clock)
    clock.pass_seconds(100)
    assert may_probe(dead) and not may_probe(heir) and not may_probe(third)
    dead.started("claude", "m")
    assert heir.due_in(clock.monotonic()) == pytest.approx(10), "it looks again by itself"
    clock.pass_seconds(30)
    assert may_probe(heir) and not may_probe(third)


def test_no_permit_is_taken_when_no_task_waits_and_one_that_was_not_used_goes_back(
    tmp_path: Path, clock: HandClock
) -> None:
    one, other = crew(tmp_path, clock, "a", "b")
    limit(one, clock)
    clock.pass_seconds(100)
    one.closed_to()
    assert one.refused_permits((), lambda _: False) == {"claude"} and may_probe(other)
    other.put_back_permits()
    assert not may_probe(other), "not at once again"
    clock.pass_seconds(10)
    assert may_probe(one)


def test_answer_to_a_probe_that_still_runs_begins_the_ramp(tmp_path: Path, clock: HandClock) -> None:
    one, other = crew(tmp_path, clock, "a", "b")
    limit(one, clock)
    clock.pass_seconds(100)
    assert may_probe(one)
    one.started("claude", "hours")
    one.answered("claude", "someone else's")
    assert not may_probe(other)
    one.answered("claude", "hours")
    assert may_probe(other) and other.holds() == {}
    one.failed("claude", "hours")
    assert one.gate("claude").ramp == 2, "it is no probe any more"


def test_ramp_is_seen_by_a_worker_that_starts_then(tmp_path: Path, clock: HandClock) -> None:
    (one,) = crew(tmp_path, clock, "a")
    begin_ramp(one, clock)
    assert may_probe(one)
    later = crew(tmp_path, clock, "b", "c")
    assert [may_probe(other) for other in later] == [True, False]


def test_ramp_that_nothing_widens_for_a_quarter_of_an_hour_is_over(tmp_path: Path, clock: HandClock) -> None:
    (one,) = crew(tmp_path, clock, "a")
    begin_ramp(one, clock)
    clock.pass_seconds(901)
    one.refresh()
    assert one.closed_to() == (set(), False) and os.listdir(tmp_path / "holds") == []


def test_ramp_ends_when_somebody_lifts_it(tmp_path: Path, clock: HandClock) -> None:
    (one,) = crew(tmp_path, clock, "a")
    begin_ramp(one, clock)
    lift_hold(tmp_path, "claude")
    one.refresh()
    assert one.closed_to() == (set(), False)


def test_accounts_are_held_each_for_itself(tmp_path: Path, clock: HandClock) -> None:
    (one,) = crew(tmp_path, clock, "a", provider_account="x@y")
    (other,) = crew(tmp_path, clock, "b", provider_account="z")
    (same,) = crew(tmp_path, clock, "c", provider_account="x@y")
    limit(one, clock)
    for each in (other, same):
        each.refresh()
    assert [allowed(each) for each in (one, other, same)] == [0, None, 0]


def test_hold_is_met_between_the_claim_and_the_start(tmp_path: Path, clock: HandClock) -> None:
    one, other = crew(tmp_path, clock, "a", "b")
    one.refresh()
    one.started("claude", "m")
    assert one.may_start("claude", "m")
    limit(other, clock)
    assert not one.may_start("claude", "m") and one.may_start("gemini", "n")


def test_end_of_a_hold_is_jittered_and_never_earlier(tmp_path: Path, clock: HandClock) -> None:
    (one,) = crew(tmp_path, clock, "a", jitter=lambda seconds: seconds / 10)
    limit(one, clock)
    clock.pass_seconds(109)
    assert allowed(one) == 0
    clock.pass_seconds(1.1)
    assert allowed(one) == 1


def test_holds_that_every_worker_shares_stay_when_the_command_is_missing_too(tmp_path: Path, clock: HandClock) -> None:
    (one,) = crew(tmp_path, clock, "a")
    limit(one, clock)
    one.hold("claude", "command_missing", None, None, None)
    assert one.holds()["claude"].reason == "usage_limit"
