"""Gates of one process or of several that share a folder, on a clock that the test moves; all are closed in the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles import HandClock, Memory
from watcher.worker.provider_gates import Gates

MADE: list[Gates] = []


@pytest.fixture(autouse=True)
def cleared() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().close()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def memory() -> Memory:
    return Memory()


def gates(control: Path, clock: HandClock, memory: Memory | None = None, worker: str = "marie") -> Gates:
    """The gates of one process: threshold 2, 60 seconds."""
    out = Gates(control, worker, "owner", 2, 60.0, clock, memory or Memory())
    MADE.append(out)
    return out


def allowed(found: Gates, provider: str = "claude") -> int | None:
    return found.gate(provider).allows(found._clock.monotonic())


def limit(found: Gates, clock: HandClock, seconds: float = 100.0) -> None:
    """It has met claude's usage limit, which ends in so many seconds."""
    found.hold("claude", "usage_limit", None, clock.wall() + seconds, None)


def trip(found: Gates, provider: str = "claude") -> None:
    """As many failures as open a breaker of `gates`."""
    for _ in range(2):
        found.failed(provider)
