"""How many handlers there should be."""

from __future__ import annotations

import pytest

from watcher.policy.pool_size import PoolLimits, restart_delay, size_after_look, size_after_request

LIMITS = PoolLimits(2, 4, 6)


@pytest.mark.parametrize(
    ("size", "waiting", "unused", "wanted"),
    [
        (4, 10, 0, 4), (4, 11, 0, 5), (4, 500, 0, 5), (6, 500, 0, 6),  # one more, for more than ten, up to the most
        (4, 0, 0, 4), (4, 0, 1, 3), (6, 0, 6, 2), (2, 0, 2, 2),  # those that nobody needs, down to the least
        (4, 1, 3, 4),  # somebody waits: keep all
    ],
)  # fmt: skip
def test_the_monitor_grows_for_a_crowd_and_shrinks_at_rest(size: int, waiting: int, unused: int, wanted: int) -> None:
    assert size_after_look(LIMITS, size, waiting, unused) == wanted


def test_requests_bring_a_pool_back_to_its_usual_size_and_no_further() -> None:
    assert [size_after_request(LIMITS, size) for size in (2, 3, 4, 5, 6)] == [3, 4, 4, 5, 6]


def test_restarts_are_at_once_and_then_slower_up_to_a_limit() -> None:
    assert [restart_delay(n, 0.5, 30.0) for n in (0, 1, 2, 3, 4, 8, 9, 10_000)] == [0, 0, 0.5, 1, 2, 30, 30, 30]


def test_sizes_are_kept_within_the_limits() -> None:
    assert [LIMITS.clamp(size) for size in (0, 2, 5, 99)] == [2, 2, 5, 6]
