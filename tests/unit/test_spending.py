"""The books: what counts, for whom, until when, and what a crash or a full disk does to them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles import HandClock, Memory
from watcher.cli import main
from watcher.clock import rfc3339
from watcher.policy.budget_limits import BudgetLimits
from watcher.store import spending
from watcher.store.spending import Spending, raise_daily_budget, raised_on_day, spent_on_day
from watcher.telemetry.events import BudgetLifted, BudgetReached, HintFailed, SpendingRecorded

MADE: list[Spending] = []
#: Noon of 2027-01-15, UTC.
NOON = 1_800_014_400.0
DAY = "20270115"


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().close()


def books(
    path: Path,
    clock: HandClock | None = None,
    memory: Memory | None = None,
    per_task: float = 0.0,
    daily: float = 0.0,
    tokens: int = 0,
) -> Spending:
    out = Spending(
        path, "marie", "owner", clock or HandClock(NOON), memory or Memory(), BudgetLimits(per_task, daily, tokens)
    )
    MADE.append(out)
    return out


def file(path: Path, day: str = DAY) -> Path:
    return path / "marie" / f"spend-{day}.jsonl"


def test_what_an_attempt_tells_again_and_again_is_counted_once(tmp_path: Path) -> None:
    memory = Memory()
    mine = books(tmp_path, memory=memory)
    for total in (0.25, 0.25, 1.0, 0.5, None, 1.0):
        mine.record("t", "claude", "mark", total)
    assert mine.spent_on("t") == mine.spent_today() == 1.0
    assert [event.cost_usd for event in memory.of(SpendingRecorded)] == [0.25, 0.75]
    lines = [json.loads(line) for line in file(tmp_path).read_text().splitlines() if line]
    assert [(line["task_id"], line["attempt"], line["cost_usd"]) for line in lines] == [
        ("t", "mark", 0.25),
        ("t", "mark", 0.75),
    ]


def test_nothing_is_written_for_attempts_that_cost_nothing(tmp_path: Path) -> None:
    mine = books(tmp_path, per_task=1)
    for cost in (None, 0.0, -1.0, float("nan"), float("inf")):
        mine.record("t", "command", "mark", cost)
    mine.settled("t")
    assert not file(tmp_path).exists()


def test_attempts_of_a_task_add_up_over_restarts_and_days_until_it_is_over(tmp_path: Path) -> None:
    clock = HandClock(NOON)
    books(tmp_path, clock, per_task=1).record("t", "claude", "first", 0.6)
    clock.pass_seconds(86_400)
    mine = books(tmp_path, clock, per_task=1)
    assert mine.spent_today() == 0 and mine.spent_on("t") == 0.6 and not mine.is_task_over_budget("t")
    allowance = mine.allowance("t")
    assert allowance is not None and allowance.usd == pytest.approx(0.4) and not allowance.is_the_days
    mine.record("t", "claude", "second", 0.4)
    assert mine.is_task_over_budget("t") and "MAX_COST_PER_TASK allows one task 1" in mine.words_about("t")
    mine.settled("t")
    assert not mine.is_task_over_budget("t"), "run again on purpose, it may cost as much again"
    assert books(tmp_path, clock, per_task=1).spent_on("t") == 0


def test_processes_of_one_worker_share_the_day(tmp_path: Path) -> None:
    clock, memory = HandClock(NOON), Memory()
    one, other = books(tmp_path, clock, daily=2), books(tmp_path, clock, memory, daily=2)
    one.record("a", "claude", "m1", 1.5)
    assert not other.is_day_over_budget()
    other.refresh()
    other.record("b", "claude", "m2", 0.5)
    assert other.is_day_over_budget() and other.spent_today() == 2
    (event,) = memory.of(BudgetReached)
    assert (event.spent_usd, event.budget_usd, event.until) == (2, 2, rfc3339(other.day_ends_at()))


def test_day_ends_at_midnight_utc_and_with_it_the_hold(tmp_path: Path) -> None:
    clock, memory = HandClock(NOON), Memory()
    mine = books(tmp_path, clock, memory, daily=1)
    mine.record("t", "claude", "m", 5)
    assert mine.is_day_over_budget() and mine.day_ends_at() == NOON + 43_200
    clock.pass_seconds(43_199)
    assert mine.is_day_over_budget()
    clock.pass_seconds(1)
    assert not mine.is_day_over_budget() and not mine.is_day_over_budget()
    assert len(memory.of(BudgetReached)) == len(memory.of(BudgetLifted)) == 1


def test_raised_budget_holds_for_its_day_only(tmp_path: Path) -> None:
    clock = HandClock(NOON)
    mine = books(tmp_path, clock, daily=1)
    mine.record("t", "claude", "m", 1)
    assert raise_daily_budget(tmp_path, "marie", 2, NOON) == 2 and raise_daily_budget(tmp_path, "marie", 1, NOON) == 3
    assert mine.is_day_over_budget(), "not seen yet"
    mine.refresh()
    assert not mine.is_day_over_budget() and mine.budget_today() == 4 == 1 + raised_on_day(tmp_path, "marie", NOON)
    clock.pass_seconds(86_400)
    assert mine.budget_today() == 1
    mine.refresh()
    assert mine.budget_today() == 1


def test_smaller_of_the_tasks_and_the_days_money_is_what_an_attempt_may_cost(tmp_path: Path) -> None:
    assert books(tmp_path).allowance("t") is None
    mine = books(tmp_path, per_task=2, daily=3)
    assert [(a.usd, a.is_the_days) for a in [mine.allowance("t")] if a] == [(2, False)]
    mine.record("other", "claude", "m", 2.5)
    assert [(a.usd, a.is_the_days) for a in [mine.allowance("t")] if a] == [(0.5, True)]


def test_task_that_needs_more_than_a_whole_day_does_not_burn_one_after_the_other(tmp_path: Path) -> None:
    mine = books(tmp_path, daily=1)
    mine.record("t", "claude", "m", 1)
    assert mine.is_task_over_budget("t") and "DAILY_BUDGET allows one task 1" in mine.words_about("t")


def test_line_that_a_kill_has_torn_costs_only_itself(tmp_path: Path) -> None:
    first = books(tmp_path, daily=9)
    first.record("a", "claude", "m1", 1)
    with file(tmp_path).open("ab") as out:
        out.write(b'\n{"task_id": "b", "cost_u')
    assert first.spent_today() == 1
    first.record("c", "claude", "m3", 2)
    assert first.spent_today() == 3 and books(tmp_path).spent_today() == 3 == spent_on_day(tmp_path, "marie", NOON)


def test_line_that_is_being_written_is_counted_once_when_it_is_whole(tmp_path: Path) -> None:
    mine = books(tmp_path, daily=9)
    file(tmp_path).write_bytes(b'\n{"task_id": "b", "cost_usd')
    mine.refresh()
    assert mine.spent_today() == 0
    with file(tmp_path).open("ab") as out:
        out.write(b'": 2}\n')
    mine.refresh()
    mine.refresh()
    assert mine.spent_today() == 2


def test_full_disk_forgets_nothing_and_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    memory = Memory()
    mine = books(tmp_path, memory=memory, per_task=1, daily=1)
    monkeypatch.setattr(spending, "write_all", full)
    mine.record("t", "claude", "m", 1)
    assert mine.spent_today() == 1 == mine.spent_on("t") and mine.is_day_over_budget() and mine.is_task_over_budget("t")
    assert "No space left" in memory.of(HintFailed)[0].detail
    monkeypatch.undo()
    mine.refresh()
    assert mine.spent_today() == 1 and books(tmp_path).spent_today() == 1


@pytest.mark.parametrize(
    "raw", [b"\xff\n", b"[]\n7\nnull\n", b'{"task_id": 7, "cost_usd": 1}\n', b'{"task_id": "t", "cost_usd": true}\n',
            b'{"task_id": "t", "cost_usd": -5}\n{"task_id": "t", "cost_usd": 1e300}\n', b"[" * 100_000 + b"\n"]
)  # fmt: skip
def test_odd_lines_count_nothing(tmp_path: Path, raw: bytes) -> None:
    file(tmp_path).parent.mkdir()
    file(tmp_path).write_bytes(raw)
    (tmp_path / "marie" / f"budget-{DAY}.json").write_bytes(raw)
    mine = books(tmp_path, daily=1)
    assert mine.spent_today() == 0 and mine.budget_today() == 1


def test_books_that_are_a_link_are_not_followed(tmp_path: Path) -> None:
    file(tmp_path).parent.mkdir()
    (tmp_path / "elsewhere").write_text('{"task_id": "t", "cost_usd": 5}\n')
    os.symlink(tmp_path / "elsewhere", file(tmp_path))
    assert books(tmp_path, daily=1).spent_today() == 0


def test_command_shows_and_raises_what_a_day_may_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WATCHER_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main.main(["budget", "marie", "--raise", "2.5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["worker"], told["spent_usd"], told["raised_by_usd"]) == ("marie", 0, 2.5)
    assert main.main(["budget", "marie"]) == 0 and "raised by 2.5 USD until" in capsys.readouterr().out
    for words in (["budget", "../x"], ["budget", "marie", "--raise", "-1"], ["budget", "marie", "--raise", "nan"]):
        assert main.main(words) == 2


def test_tokens_of_a_task_are_counted_over_attempts_and_a_kill(tmp_path: Path) -> None:
    mine = books(tmp_path, tokens=1000)
    for used in (300, 300, 700):
        mine.record("t", "codex", "first", None, used)
    assert mine.has_limits and not mine.is_task_over_budget("t")
    again = books(tmp_path, tokens=1000)
    again.record("t", "codex", "second", None, 300)
    assert again.is_task_over_budget("t") and again.tokens_of("t") == 1000
    assert "have used 1000 tokens, and MAX_TOKENS_PER_TASK allows one task 1000" in again.words_about("t")
    assert again.spent_today() == 0.0 and not again.is_task_over_budget("other")
    again.settled("t")
    assert books(tmp_path, tokens=1000).tokens_of("t") == 0
