"""The listener's loop goes on whatever one turn meets, says what it is, and ends only for a lock that is lost."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import MagicMock

import pytest

from tests.doubles import HandClock, Memory
from watcher.errors import LockLost
from watcher.listener import loop as loop_module
from watcher.listener.loop import Orchestrator
from watcher.telemetry.events import TroubleBegan, TroubleEnded


def orchestrator(memory: Memory, monkeypatch: pytest.MonkeyPatch, turns: list[Any]) -> Orchestrator:
    made = Orchestrator(MagicMock(workers=("marie",)), MagicMock(), HandClock(0.0), memory, None, "a test")

    async def turn() -> None:
        step = turns.pop(0)
        if not turns:
            made.stop("enough")
        if isinstance(step, Exception):
            raise step

    monkeypatch.setattr(loop_module, "_TROUBLE_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(made, "_turn", turn)
    monkeypatch.setattr(made, "_wait", lambda _seconds: asyncio.sleep(0))
    monkeypatch.setattr(made, "_pause", lambda: 0.0)
    monkeypatch.setattr(made, "_finish", lambda: None)
    return made


@pytest.mark.parametrize("error", [ValueError, RecursionError, MemoryError, OverflowError, KeyError, OSError])
def test_loop_outlives_whatever_goes_wrong_in_a_turn_and_says_so(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    memory = Memory()
    asyncio.run(orchestrator(memory, monkeypatch, [error("injected"), None, None]).run())
    assert [error.__name__ in began.detail for began in memory.of(TroubleBegan)] == [True]
    assert len(memory.of(TroubleEnded)) == 1


def test_loop_ends_when_its_lock_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LockLost):
        asyncio.run(orchestrator(Memory(), monkeypatch, [LockLost("gone"), None]).run())
