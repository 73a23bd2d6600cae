"""Holds as files: what commands write, what they read back, how an account becomes a name."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.doubles import HandClock, Memory
from tests.gating import gate_config
from watcher.errors import SettingError
from watcher.store.holds import StoredHold, hold_provider, key_of, lift_hold, list_holds, safe_account, split_name
from watcher.worker.provider_gates import Gates

NOW = 1_800_000_000.0


def test_hold_by_hand_is_listed_and_lifted(tmp_path: Path) -> None:
    assert list_holds(tmp_path) == [] and lift_hold(tmp_path, "claude") is False
    path = hold_provider(tmp_path, "claude", account="team-a", detail="moving house", now=NOW)
    hold_provider(tmp_path, "gemini", until=NOW + 60, reason="usage_limit", now=NOW)
    assert path == tmp_path / "holds" / "claude@team-a.json"
    assert list_holds(tmp_path) == [
        StoredHold("claude", "team-a", "operator", "moving house", None, NOW, waits_for_word=True),
        StoredHold("gemini", "", "usage_limit", None, NOW + 60, NOW),
    ]
    assert lift_hold(tmp_path, "claude") is False, "another account is another hold"
    assert lift_hold(tmp_path, "claude", "team-a") is True
    assert [hold.provider for hold in list_holds(tmp_path)] == ["gemini"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", ".hidden", "x" * 65, "claude@b", "a~b"])
def test_name_that_is_no_providers_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingError):
        hold_provider(tmp_path, name, now=NOW)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("account", ["me@example.org", "../../etc", "a b", "\u00fc", "x" * 100, ".", "a/b\n"])
def test_account_that_makes_a_bad_name_becomes_a_good_one_of_its_own(account: str) -> None:
    name = safe_account(account)
    assert split_name(f"{key_of('claude', account)}.json") == ("claude", name)
    assert name != safe_account(account + "x") and safe_account(name) == name


def test_plain_accounts_stay_as_they_are() -> None:
    assert [safe_account(a) for a in ("", "  ", "team-a", " b.2 ")] == ["", "", "team-a", "b.2"]
    assert key_of("claude") == "claude" and key_of("claude", "x") == "claude@x"


def test_odd_files_are_not_listed(tmp_path: Path) -> None:
    folder = tmp_path / "holds"
    folder.mkdir()
    for number, raw in enumerate((b"", b"{", b"[]", b"7", b'{"reason": 1}', b'{"reason": "x", "until": "soon"}')):
        (folder / f"p{number}.json").write_bytes(raw)
    (folder / "link.json").symlink_to(tmp_path / "elsewhere")
    (folder / "good.json").write_text(json.dumps({"reason": "why"}))
    assert list_holds(tmp_path) == [StoredHold("good", "", "why")]


def test_gate_takes_a_hold_by_hand_as_one_that_waits_for_a_word(tmp_path: Path) -> None:
    clock, memory = HandClock(), Memory()
    hold_provider(tmp_path, "claude", now=clock.wall())
    gates = Gates(gate_config(tmp_path), Mock(worker="marie", id="owner"), clock, memory)
    clock.pass_seconds(1e6)
    assert gates.closed_to() == ({"claude"}, False) and gates.due_in(0) is None
    lift_hold(tmp_path, "claude")
    assert gates.closed_to() == (set(), False)
    gates.close()
