"""Every recorded run of a real agent CLI is judged as it should be: class, reason, reset time, answer, usage."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from tests.recorded import Recorded, recorded, seen_of
from watcher.runner.providers.built_in import BUILT_IN

CASES = recorded()
REASONS = {"no_output", "denied", "context_overflow", "not_authenticated", "usage_limit", "bad_argument"}


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A clock time without a zone is local; the recordings were made with TZ=UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_recorded_run_is_judged_as_it_was_reviewed(case: Recorded) -> None:
    assert seen_of(case) == case.fields["expected"]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_recorded_run_says_where_it_comes_from_and_holds_no_place_of_a_machine(case: Recorded) -> None:
    source = case.fields["source"]
    assert re.fullmatch(rf"recorded with {case.provider} \d+\.\d+\.\d+|documentation: .+", source)
    text = (case.folder / "stdout").read_text() + (case.folder / "stderr").read_text()
    assert re.search(r"(?<!agent)/work/|/(?:root/|tmp/(?!x\b)|home/(?!agent\b))", text) is None


@pytest.mark.parametrize("provider", list(BUILT_IN))
def test_each_built_in_provider_has_recorded_turns_and_failures(provider: str) -> None:
    found = {case.fields["expected"]["class"] for case in CASES if case.provider == provider}
    assert {"success", "auth", "permanent", "transient"} <= found


def test_told_reset_times_are_read_to_the_minute() -> None:
    told = [case for case in CASES if case.fields["told_reset"]]
    assert {case.provider for case in told} >= {"claude", "codex"}
    for case in told:
        assert case.fields["expected"]["resets_at"] == case.fields["told_reset"], case.name


def test_reasons_that_people_look_for_occur_in_real_runs() -> None:
    assert {case.fields["expected"]["reason"] for case in CASES} >= REASONS
