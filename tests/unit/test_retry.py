"""How long a failed task waits for its next attempt."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.policy.retry import RetryDelays


def test_the_documented_delays_are_one_two_and_four_seconds() -> None:
    delays = RetryDelays()
    assert [delays.base(attempt) for attempt in (1, 2, 3)] == [1.0, 2.0, 4.0]


def test_delay_grows_by_its_factor_up_to_the_maximum() -> None:
    delays = RetryDelays(initial_seconds=0.5, backoff=3.0, maximum_seconds=10.0, jitter=0.0)
    assert [delays.after(attempt) for attempt in (1, 2, 3, 4, 50)] == [0.5, 1.5, 4.5, 10.0, 10.0]


def test_backoff_of_one_waits_the_same_time_each_time() -> None:
    assert {RetryDelays(2.0, 1.0, jitter=0.0).after(attempt) for attempt in (1, 7, 1000)} == {2.0}


def test_no_initial_delay_means_no_delay_at_all() -> None:
    assert [RetryDelays(initial_seconds=0.0).after(attempt) for attempt in (1, 9)] == [0.0, 0.0]


def test_jitter_is_spread_over_its_whole_share() -> None:
    delays, rng = RetryDelays(jitter=0.5), random.Random(1)
    seen = [delays.after(1, rng) for _ in range(500)]
    assert 1.0 <= min(seen) < 1.05 and 1.45 < max(seen) <= 1.5


@pytest.mark.parametrize("attempt", [1, 64, 10**9])
def test_the_largest_settings_overflow_nothing(attempt: int) -> None:
    delays = RetryDelays(86_400.0, 100.0, 86_400.0, 1.0)
    assert 86_400.0 <= delays.after(attempt) <= delays.longest() == 172_800.0


@given(
    initial=st.floats(0, 86_400), backoff=st.floats(1, 100), maximum=st.floats(0, 86_400), jitter=st.floats(0, 1),
    attempt=st.integers(1, 10_000), seed=st.integers(0, 99),
)  # fmt: skip
def test_jitter_only_adds_and_nothing_is_longer_than_the_longest(
    initial: float, backoff: float, maximum: float, jitter: float, attempt: int, seed: int
) -> None:
    delays = RetryDelays(initial, backoff, maximum, jitter)
    delay = delays.after(attempt, random.Random(seed))
    assert delays.base(attempt) <= delay <= delays.longest() and math.isfinite(delay)
    assert delays.base(attempt) <= delays.base(attempt + 1)
