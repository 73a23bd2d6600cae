"""Gates of one process or of several that share a folder, on a clock that the test moves; all are closed in the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.configs import worker_config
from tests.doubles import HandClock, Memory
from watcher.settings.worker import WatcherConfig
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


def gate_config(control: Path, **values: object) -> WatcherConfig:
    """Threshold 2, 60 seconds."""
    return worker_config(control, **{"control_dir": control, "circuit_breaker_threshold": 2, **values})


def gates(control: Path, clock: HandClock, memory: Memory | None = None, worker: str = "marie") -> Gates:
    """The gates of one process: threshold 2, 60 seconds."""
    out = Gates(gate_config(control), Mock(worker=worker, id="owner"), clock, memory or Memory())
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
