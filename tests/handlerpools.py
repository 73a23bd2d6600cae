"""Pools of real handler processes, for tests: a folder, its pools, and requests under way."""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import Memory
from tests.waiting import wait_for
from watcher.clock import Clock, SystemClock
from watcher.policy.pool_size import PoolLimits
from watcher.runner.warm.handler_process import Start
from watcher.runner.warm.jsonrpc import Executed
from watcher.runner.warm.pool import HandlerFault, HandlerPool, HandlerState, PoolSettings, Reply, Ticket
from watcher.system import procfs
from watcher.telemetry import events

SOON = 60.0
RUDE = (sys.executable, "-I", "-S", str(Path(__file__).parent / "rude_handler.py"))


def marked(prefix: str) -> list[int]:
    """Living processes whose mark begins so."""
    found = []
    for pid in procfs.all_pids():
        facts = procfs.facts_of(pid)
        if facts is not None and not facts.is_dead and procfs.mark_of(pid).startswith(prefix.encode()):
            found.append(pid)
    return found


class Site:
    """A folder, and pools that are shut down in the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = folder / "gate"
        self.note = folder / "note"
        self.memory = Memory()
        self.pools: list[HandlerPool] = []
        self.prefix = f"{secrets.token_hex(16)}.h"

    def pool(
        self, size: int = 2, *argv: str, clock: Clock | None = None, least: int = 1, most: int = 10, **more: Any
    ) -> HandlerPool:
        """A pool of rude handlers (or of `argv`), started."""
        environment = {b"PATH": os.environ["PATH"].encode()}
        line_bytes = more.pop("max_line_bytes", 1 << 20)
        start = Start(argv or RUDE, environment, max_line_bytes=line_bytes)
        given = {"request_seconds": SOON, "start_seconds": SOON, "grace_seconds": SOON, **more}
        settings = PoolSettings(start, self.prefix, PoolLimits(least, size, most), **given)
        pool = HandlerPool(size, settings, clock or SystemClock(), self.memory)
        self.pools.append(pool)
        pool.start()
        return pool

    def ready(self, *arguments: Any, **more: Any) -> HandlerPool:
        """The same, with every handler idle."""
        pool = self.pool(*arguments, **more)
        size = pool._settings.limits.nominal
        wait_for("idle handlers", lambda: [state.state for state in pool.states()] == ["idle"] * size)
        return pool

    def event(self, do: str = "answer", **more: Any) -> dict[str, Any]:
        return {"do": do, "gate": str(self.gate), "note": str(self.note), "say": "something", **more}

    def failures(self) -> list[str]:
        return [event.reason for event in self.memory.of(events.HandlerFailed)]

    def noted(self) -> list[int]:
        try:
            return [int(line) for line in self.note.read_text().split()]
        except FileNotFoundError:
            return []


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for pool in site.pools:
        pool.shutdown()
    assert marked(site.prefix) == []


def ask(pool: HandlerPool, event: dict[str, Any], **more: Any) -> Reply:
    return pool.execute("default", event, **more)


def output(reply: Reply) -> str:
    assert isinstance(reply.answer, Executed), reply
    return reply.answer.output


def fault(pool: HandlerPool, event: dict[str, Any], **more: Any) -> HandlerFault:
    with pytest.raises(HandlerFault) as caught:
        ask(pool, event, **more)
    return caught.value


class Asking:
    """A request under way in a thread."""

    def __init__(self, pool: HandlerPool, event: dict[str, Any], **more: Any) -> None:
        self.ticket = Ticket()
        self._box: list[Reply | BaseException] = []
        self._pool, self._event, self._more = pool, event, more
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._box.append(ask(self._pool, self._event, ticket=self.ticket, **self._more))
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self._box.append(error)

    def end(self) -> Reply | BaseException:
        self._thread.join(SOON)
        return self._box[0]


def pids(pool: HandlerPool) -> set[int]:
    return {state.pid for state in pool.states()}


def idle(pool: HandlerPool) -> list[HandlerState]:
    return [state for state in pool.states() if state.state == "idle"]
