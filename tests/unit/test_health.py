"""Life and death by silence alone: the figures are those of policy/health, the clock is only ours."""

from __future__ import annotations

import pytest

from watcher.policy.health import Health, Signs, is_late, judge, lease_seconds, recovery_wait


def judged(silent: float, **more: object) -> Health:
    return judge(Signs(silent, 10.0, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("silent", "is_locked", "expected"),
    [
        (0.0, None, Health.HEALTHY), (20.4, None, Health.HEALTHY), (20.5, None, Health.STALE),
        (30.4, None, Health.STALE), (30.5, None, Health.DEAD), (20.5, False, Health.DEAD),
        (20.4, False, Health.HEALTHY), (30.5, True, Health.STALE), (9999.0, True, Health.STALE),
    ],
)  # fmt: skip
def test_silence_and_the_lock_say_how_it_is(silent: float, is_locked: bool | None, expected: Health) -> None:
    assert judged(silent, is_locked=is_locked) is expected


def test_stopped_worker_never_becomes_dead() -> None:
    assert judged(1e9, says_stopped=True, is_locked=False) is Health.STOPPED


def test_old_beat_alone_says_nothing_until_it_has_been_silent_here() -> None:
    assert judged(0.0, has_moved=False) is Health.UNKNOWN
    assert judged(0.0, has_moved=False, is_locked=True) is Health.HEALTHY
    assert judged(30.5, has_moved=False) is Health.DEAD


def test_recovery_of_a_flapping_worker_is_told_later_each_time() -> None:
    waits = [recovery_wait(deaths, 1.0) for deaths in range(1, 12)]
    assert waits[0] == 0.0
    assert waits == sorted(waits)
    assert waits[1] == 4.0 and waits[-1] == 300.0


@pytest.mark.parametrize(("age", "interval", "expected"), [
    (32.0, 10.0, False), (32.1, 10.0, True), (2.3, 0.1, False), (2.4, 0.1, True), (32.0, None, False),
    (32.1, None, True),
])  # fmt: skip
def test_beat_is_late_by_its_age_after_three_intervals_and_a_margin(
    age: float, interval: float | None, expected: bool
) -> None:
    assert is_late(age, interval) is expected


def test_lease_is_three_intervals_and_never_too_short_for_a_busy_machine() -> None:
    assert lease_seconds(10.0) == 30.0 and lease_seconds(0.1) == 5.0
