"""Holds and breakers on disk: who sees them, what survives a restart, what an odd file does."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.doubles import HandClock, Memory
from tests.gating import allowed, cleared, clock, gates, limit, memory, trip
from watcher.clock import rfc3339
from watcher.policy.breaker import BreakerState
from watcher.telemetry.events import BreakerMoved, ProviderHeld, ProviderResumed

__all__ = ["cleared", "clock", "memory"]


def test_everything_is_open_at_first(tmp_path: Path) -> None:
    fresh = gates(tmp_path, HandClock())
    assert fresh.closed_to() == (set(), False) and fresh.holds() == {} and fresh.due_in(0) is None
    assert fresh.worst_state() is BreakerState.CLOSED


# --- holds


def test_hold_is_a_file_that_says_why_and_until_when(tmp_path: Path, clock: HandClock, memory: Memory) -> None:
    held = gates(tmp_path, clock, memory)
    until = clock.wall() + 3600
    held.hold("claude", "usage_limit", "resets at 1", until, 60.0)
    stored = json.loads((tmp_path / "holds" / "claude.json").read_text())
    assert stored == {
        "provider": "claude", "reason": "usage_limit", "detail": "resets at 1", "until": rfc3339(until),
        "since": rfc3339(clock.wall()), "pause_seconds": 60.0,
    }  # fmt: skip
    assert held.closed_to() == ({"claude"}, False)
    assert [(e.provider, e.reason, e.until) for e in memory.of(ProviderHeld)] == [
        ("claude", "usage_limit", rfc3339(until))
    ]
    held.hold("claude", "usage_limit", "resets at 1", until, 60.0)
    assert len(memory.of(ProviderHeld)) == 1, "the same hold again is no news"


def test_probe_goes_first_when_the_time_is_over_and_a_success_lifts_the_hold(
    tmp_path: Path, clock: HandClock, memory: Memory
) -> None:
    held = gates(tmp_path, clock, memory)
    limit(held, clock)
    clock.pass_seconds(100)
    assert held.closed_to() == (set(), True)
    held.started("claude")
    assert held.closed_to() == ({"claude"}, False)
    held.succeeded("claude")
    assert held.closed_to() == (set(), True) and held.holds() == {}, "the ramp begins"
    assert not (tmp_path / "holds" / "claude.json").exists()
    assert len(memory.of(ProviderResumed)) == 1


def test_hold_without_an_end_is_probed_after_a_while_or_never(tmp_path: Path, clock: HandClock) -> None:
    held = gates(tmp_path, clock)
    held.hold("claude", "not_authenticated", None, None, 60.0)
    held.hold("gemini", "command_missing", None, None, None)
    clock.pass_seconds(60)
    assert allowed(held, "claude") == 1
    clock.pass_seconds(10**6)
    assert allowed(held, "gemini") == 0


def test_hold_is_seen_by_the_other_workers_at_their_next_look_and_lifted_for_all(
    tmp_path: Path, clock: HandClock, memory: Memory
) -> None:
    marie, anga = gates(tmp_path, clock), gates(tmp_path, clock, memory, "anga")
    marie.hold("claude", "usage_limit", "why", clock.wall() + 100, None)
    assert allowed(anga) is None
    anga.refresh()
    assert allowed(anga) == 0 and memory.of(ProviderHeld)[0].detail == "why"
    marie.lift("claude")
    anga.refresh()
    assert allowed(anga) is None and len(memory.of(ProviderResumed)) == 1


def test_operator_lifts_a_hold_by_removing_its_file(tmp_path: Path, clock: HandClock, memory: Memory) -> None:
    held = gates(tmp_path, clock, memory)
    held.hold("claude", "billing", None, None, 60.0)
    held.refresh()
    assert allowed(held) == 0
    (tmp_path / "holds" / "claude.json").unlink()
    held.refresh()
    assert allowed(held) is None and len(memory.of(ProviderResumed)) == 1


def test_hold_survives_a_restart_and_keeps_its_end(tmp_path: Path, clock: HandClock) -> None:
    limit(gates(tmp_path, clock), clock)
    clock.pass_seconds(40)
    again = gates(tmp_path, clock)
    assert allowed(again) == 0 and again.due_in(clock.monotonic()) == pytest.approx(60, abs=0.01)
    clock.pass_seconds(61)
    assert allowed(again) == 1


def test_hold_without_an_end_is_probed_at_the_breakers_pace_after_a_restart(tmp_path: Path, clock: HandClock) -> None:
    gates(tmp_path, clock).hold("claude", "not_authenticated", None, None, 60.0)
    again = gates(tmp_path, clock)
    assert allowed(again) == 0
    clock.pass_seconds(60)
    assert allowed(again) == 1


@pytest.mark.parametrize("reason", ["command_missing", "refuses_root", "unknown_provider"])
def test_what_is_wrong_with_this_machine_or_user_holds_no_other_worker(
    tmp_path: Path, clock: HandClock, reason: str
) -> None:
    mine = gates(tmp_path, clock)
    mine.hold("claude", reason, None, None, None)
    mine.refresh()
    assert allowed(mine) == 0, "no file says so, and it holds all the same"
    assert allowed(gates(tmp_path, clock, worker="anga")) is None
    assert list((tmp_path / "holds").iterdir()) == []


def test_hold_that_ends_in_a_thousand_years_is_asked_again_within_days(tmp_path: Path, clock: HandClock) -> None:
    held = gates(tmp_path, clock)
    limit(held, clock, 1e10)
    clock.pass_seconds(8 * 24 * 3600 + 1)
    assert allowed(held) == 1


def test_clock_that_is_set_while_a_hold_lasts_changes_nothing(tmp_path: Path, clock: HandClock) -> None:
    held = gates(tmp_path, clock)
    limit(held, clock)
    clock.now_wall += 10**6
    assert allowed(held) == 0
    clock.now_wall -= 2 * 10**6
    clock.pass_seconds(100)
    assert allowed(held) == 1


# --- breakers


def test_breaker_opens_and_is_stored_and_closes_and_is_gone(tmp_path: Path, clock: HandClock, memory: Memory) -> None:
    mine = gates(tmp_path, clock, memory)
    for _ in range(2):
        mine.started("claude")
        mine.failed("claude")
    assert mine.closed_to() == ({"claude"}, False) and mine.worst_state() is BreakerState.OPEN
    stored = json.loads((tmp_path / "marie" / "breakers.json").read_text())
    assert stored == {"claude": {"failures": 2, "probe_at": rfc3339(clock.wall() + 60)}}
    clock.pass_seconds(60)
    mine.started("claude")
    mine.succeeded("claude")
    assert json.loads((tmp_path / "marie" / "breakers.json").read_text()) == {}
    moves = [(event.state, event.failures) for event in memory.of(BreakerMoved)]
    assert moves == [("open", 2), ("half_open", 2), ("closed", 2)]


def test_failure_count_of_one_provider_is_none_of_another(tmp_path: Path) -> None:
    mine = gates(tmp_path, HandClock())
    mine.failed("claude")
    mine.failed("gemini")
    assert mine.closed_to() == (set(), False)
    mine.failed("gemini")
    assert mine.closed_to() == ({"gemini"}, False) and mine.worst_state() is BreakerState.OPEN


def test_worst_state_is_open_before_half_open_before_closed(tmp_path: Path, clock: HandClock) -> None:
    mine = gates(tmp_path, clock)
    trip(mine)
    clock.pass_seconds(60)
    assert mine.worst_state() is BreakerState.HALF_OPEN
    trip(mine, "gemini")
    assert mine.worst_state() is BreakerState.OPEN


def test_open_breaker_survives_a_restart_for_the_rest_of_its_time(
    tmp_path: Path, clock: HandClock, memory: Memory
) -> None:
    first = gates(tmp_path, clock)
    trip(first)
    clock.pass_seconds(20)
    again = gates(tmp_path, clock, memory)
    assert again.closed_to() == ({"claude"}, False)
    assert again.due_in(clock.monotonic()) == pytest.approx(40, abs=0.01)
    assert [event.state for event in memory.of(BreakerMoved)] == ["open"]
    clock.pass_seconds(41)
    assert again.closed_to() == (set(), True)


def test_breaker_of_one_worker_is_none_of_another(tmp_path: Path, clock: HandClock) -> None:
    mine = gates(tmp_path, clock)
    trip(mine)
    assert gates(tmp_path, clock, worker="anga").closed_to() == (set(), False)


def test_breaker_is_probed_once_after_a_restart_that_met_the_probe(tmp_path: Path, clock: HandClock) -> None:
    first = gates(tmp_path, clock)
    trip(first)
    clock.pass_seconds(60)
    first.started("claude")
    again = gates(tmp_path, clock)
    assert again.closed_to() == (set(), True)


# --- when to look again


def test_gate_that_opened_already_is_waited_for_no_longer(tmp_path: Path, clock: HandClock) -> None:
    """It waits for a task then. A loop that slept until it is due would not sleep at all."""
    mine = gates(tmp_path, clock)
    trip(mine)
    looked_at = clock.monotonic()
    assert mine.due_in(looked_at) == 60
    clock.pass_seconds(60)
    assert mine.due_in(looked_at) == 0, "it has opened since the last look: look now"
    assert mine.due_in(clock.monotonic()) is None


def test_nearest_gate_is_waited_for(tmp_path: Path, clock: HandClock) -> None:
    mine = gates(tmp_path, clock)
    mine.hold("gemini", "usage_limit", None, clock.wall() + 30, None)
    trip(mine)
    assert mine.due_in(clock.monotonic()) == pytest.approx(30, abs=0.01)
    mine.lift("gemini")
    mine.hold("gemini", "command_missing", None, None, None)
    assert mine.due_in(clock.monotonic()) == 60


# --- odd files

ODD = [
    b"",
    b"{",
    b"[]",
    b"7",
    b"null",
    b"\xff",
    b"{}",
    b'{"reason": 1, "until": 5}',
    b'{"reason": "x", "until": "soon"}',
]


@pytest.mark.parametrize("raw", ODD)
def test_odd_files_hold_nothing_and_break_nothing(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "holds").mkdir(parents=True)
    (tmp_path / "marie").mkdir()
    (tmp_path / "holds" / "claude.json").write_bytes(raw)
    (tmp_path / "marie" / "breakers.json").write_bytes(raw)
    odd = gates(tmp_path, HandClock())
    assert odd.closed_to() == (set(), False)
    trip(odd)
    assert json.loads((tmp_path / "marie" / "breakers.json").read_bytes())["claude"]["failures"] == 2


@pytest.mark.parametrize(
    "stored",
    [
        {"claude": {"failures": "many", "probe_at": "x"}}, {"claude": []}, {"claude": None},
        {"claude": {"failures": 1}}, {"claude": {"failures": 10**400, "probe_at": "2026-11-21T23:33:00Z"}},
    ],
)  # fmt: skip
def test_odd_breakers_break_nothing(tmp_path: Path, stored: object) -> None:
    (tmp_path / "marie").mkdir(parents=True)
    (tmp_path / "marie" / "breakers.json").write_text(json.dumps(stored))
    gates(tmp_path, HandClock()).failed("claude")


def test_hold_that_is_a_link_a_folder_or_a_fifo_is_no_hold(tmp_path: Path) -> None:
    holds = tmp_path / "holds"
    holds.mkdir()
    (tmp_path / "elsewhere").write_text('{"reason": "x", "until": null}')
    (holds / "claude.json").symlink_to(tmp_path / "elsewhere")
    (holds / "gemini.json").mkdir()
    os.mkfifo(holds / "codex.json")
    assert gates(tmp_path, HandClock()).holds() == {}


def test_disk_that_takes_no_file_stops_no_gate(
    tmp_path: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    mine = gates(tmp_path, clock)
    monkeypatch.setattr("watcher.store.hold_cache.replace", full)
    limit(mine, clock)
    trip(mine, "gemini")
    mine.refresh()
    assert mine.closed_to() == ({"claude", "gemini"}, False)
