"""Totals: the same in every order, and taken back exactly."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.store.outcome_totals import Finished, Sums, bucket_of, seconds_in

outcomes = st.builds(
    Finished,
    worker=st.just("marie"), folder=st.just("results"), name=st.just("x.json"), inode=st.just(1), print=st.just(""),
    task_id=st.just("x"), status=st.sampled_from(["completed", "failed", "timeout", "refused"]),
    duration_us=st.none() | st.integers(0, 10**13), attempts=st.integers(0, 3), retries=st.integers(0, 3),
    input_tokens=st.integers(0, 10**9), cost_nano=st.integers(0, 10**12),
)  # fmt: skip


@given(st.lists(outcomes, max_size=30), st.randoms(use_true_random=False))
def test_order_and_portions_do_not_matter(many: list[Finished], chance: random.Random) -> None:
    one = Sums()
    for outcome in many:
        one.add(outcome)
    shuffled = chance.sample(many, len(many))
    cut = chance.randrange(len(many) + 1)
    halves = Sums(), Sums()
    for number, outcome in enumerate(shuffled):
        halves[number < cut].add(outcome)
    halves[0].merge(Sums.load(halves[1].dump()))
    assert halves[0].dump() == one.dump()


@given(st.lists(outcomes, max_size=10), outcomes)
def test_what_is_taken_out_leaves_no_trace(many: list[Finished], extra: Finished) -> None:
    tally = Sums()
    for outcome in many:
        tally.add(outcome)
    before = tally.dump()
    tally.add(extra)
    assert tally.dump() != before
    tally.add(extra, -1)
    assert tally.dump() == before


@given(st.integers(1, 10**14))
def test_bucket_is_as_narrow_as_promised(duration_us: int) -> None:
    assert seconds_in(bucket_of(duration_us)) == pytest.approx(duration_us / 1e6, rel=0.026)


def test_percentiles_of_a_hundred_durations() -> None:
    tally = Sums()
    for second in range(1, 101):
        tally.add(Finished("m", "results", "x", 1, "", "x", "completed", duration_us=second * 1_000_000, attempts=1))
    assert [tally.percentile(p) for p in (50, 95, 99)] == [pytest.approx(s, rel=0.026) for s in (50, 95, 99)]
    assert Sums().percentile(50) is None


def test_success_rate_counts_what_was_refused() -> None:
    tally = Sums(counts={"completed": 3, "failed": 1, "refused": 8})
    assert tally.as_json()["success_rate"] == 0.25
    assert Sums(counts={"refused": 1}).as_json()["success_rate"] == 0.0
    assert Sums().as_json()["success_rate"] is None
