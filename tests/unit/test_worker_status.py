"""How a worker is, as its heartbeat says it."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from watcher.policy.breaker import BreakerState
from watcher.policy.provider_gate import Hold
from watcher.worker.worker_status import Standing, pulse

STANDING = Standing("claude", None, None, None, "inotify", None, None)


@pytest.mark.parametrize(
    ("held", "ready", "status", "reason"),
    [
        ("claude", set(), "held", "claude: usage_limit: come back later"),
        ("gemini", set(), "healthy", None),
        ("gemini", {"gemini"}, "held", "gemini: usage_limit: come back later"),
        ("gemini", {"claude"}, "healthy", None),
    ],
)
def test_worker_is_held_by_the_holds_that_concern_it(
    held: str, ready: set[str], status: str, reason: str | None
) -> None:
    parts, executor = Mock(spending=None, unbound={}), Mock(trouble=None)
    parts.runner.remark.return_value = None
    executor.running.return_value = []
    parts.gates.worst_state.return_value = BreakerState.CLOSED
    parts.gates.holds.return_value = {held: Hold("usage_limit", "come back later", 1_800_000_600.0, 600.0, False)}
    parts.spool.waiting.return_value = parts.spool.held.return_value = 0
    parts.spool.waits_for.return_value = None
    parts.spool.providers_wanted.return_value = ready
    said = pulse(parts, executor, STANDING)
    assert (said.status, said.reason) == (status, reason)
    assert (said.held_until is not None) == (status == "held")
