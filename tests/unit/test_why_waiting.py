"""What keeps a waiting task from starting, as the folders tell it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from watcher.cli.why_waiting import holdup
from watcher.clock import rfc3339
from watcher.formats.breakers import dump_breakers
from watcher.store.holds import hold_provider
from watcher.store.operator_commands import pause
from watcher_config import Folders, Given, Layers, folders

INCARNATION = "a" * 32


@pytest.fixture
def root(tmp_path: Path) -> Folders:
    return folders(Layers({"WATCHER_ROOT": Given(str(tmp_path), "flag")}))


@pytest.fixture
def lock(root: Folders) -> Iterator[None]:
    """What a living process holds."""
    claims = root.tasks / "marie" / ".claims"
    claims.mkdir(parents=True)
    fd = os.open(claims / f"{INCARNATION}.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    yield
    os.close(fd)


def beat(root: Folders, status: str = "healthy", breaker: str = "closed", **more: Any) -> None:
    fields = {
        "worker": "marie", "timestamp": rfc3339(time.time()), "uptime_seconds": 1, "queue_size": 1, "active_tasks": 0,
        "circuit_breaker_state": breaker, "stats": {}, "status": status, "incarnation": INCARNATION, "pid": 1,
        "host": "h", "sequence": 1,
    }  # fmt: skip
    root.heartbeats.mkdir(parents=True, exist_ok=True)
    (root.heartbeats / "marie.json").write_text(json.dumps(fields | more))


def test_worker_that_is_away_starts_nothing_whatever_it_said_last(root: Folders) -> None:
    assert holdup(root, "marie", None) == "no process of marie runs"
    beat(root)
    assert holdup(root, "marie", None) == "no process of marie runs"


@pytest.mark.usefixtures("lock")
def test_worker_that_serves_is_no_reason(root: Folders) -> None:
    beat(root)
    assert holdup(root, "marie", None) is None and holdup(root, "marie", "claude") is None


@pytest.mark.usefixtures("lock")
def test_paused_and_draining_workers_say_so(root: Folders) -> None:
    beat(root, "draining")
    assert holdup(root, "marie", None) == "marie drains and takes nothing more"
    pause(root.control, "marie", None)
    assert holdup(root, "marie", None) == "marie is paused; end the pause: watcher resume marie"


@pytest.mark.usefixtures("lock")
def test_hold_counts_for_tasks_of_its_provider(root: Folders) -> None:
    beat(root)
    hold_provider(root.control, "claude", account="team", reason="usage_limit", until=4e9, now=0.0)
    said = holdup(root, "marie", "claude")
    assert said == "held: claude (account team): usage_limit, until 2096-10-02T07:06:40.000000Z"
    assert holdup(root, "marie", "codex") is None


@pytest.mark.usefixtures("lock")
def test_task_without_a_provider_gets_the_words_of_its_worker_with_an_if(root: Folders) -> None:
    beat(root, "held", reason="claude: usage_limit", held_until="2096-10-02T07:06:40Z")
    said = "held: claude: usage_limit, until 2096-10-02T07:06:40Z"
    assert holdup(root, "marie", None) == f"{said}, if claude is the PROVIDER of marie"
    assert holdup(root, "marie", "claude") == said
    assert holdup(root, "marie", "codex") is None
    beat(root, "held", reason="daily_budget: 5.1 of 5 USD spent today (UTC)")
    assert holdup(root, "marie", "codex") == "held: daily_budget: 5.1 of 5 USD spent today (UTC)"


@pytest.mark.usefixtures("lock")
def test_open_breaker_counts_for_its_provider_while_the_worker_says_so(root: Folders) -> None:
    (root.control / "marie").mkdir(parents=True)
    (root.control / "marie" / "breakers.json").write_bytes(dump_breakers({"claude": (5, 4e9)}))
    beat(root)
    assert holdup(root, "marie", None) is None
    beat(root, "degraded", "open")
    said = "the circuit breaker of claude is open after 5 failures in a row; one task tries it at " + rfc3339(4e9)
    assert holdup(root, "marie", "claude") == said
    assert holdup(root, "marie", None) == f"{said}, if claude is the PROVIDER of marie"
    assert holdup(root, "marie", "codex") is None
    beat(root, "held", "open", reason="codex: operator")
    assert holdup(root, "marie", "codex") == "held: codex: operator"
    assert holdup(root, "marie", "claude") == said
    assert str(holdup(root, "marie", None)).startswith(
        "held: codex: operator, if codex is the PROVIDER of marie; the circuit"
    )
