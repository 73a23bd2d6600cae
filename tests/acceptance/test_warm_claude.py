"""Agents that are started before their tasks, by a real worker: nothing goes from one task to another, nothing stays.

With the stand-in everywhere, and with the real claude where it is installed (`pip install '.[claude]'`), offline.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Process, Site, is_alive
from tests.acceptance.realcli import program_of
from tests.stub_model import StubModel
from tests.stub_wires import Error, Json, Reply
from tests.waiting import wait_for

CLAUDE = program_of("claude")
needs_claude = pytest.mark.skipif(CLAUDE is None, reason="the claude program is not installed: pip install '.[claude]'")
pytestmark = pytest.mark.timeout(900)
STANDIN = Path(__file__).parents[1] / "waiting_claude.py"
PATIENCE = 180.0
#: What the two tasks of a test must not share.
CANARY = "canary-5d1f0c"


class Listening(StubModel):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        super().__init__()

    def answer(self, body: Json) -> Reply | Error | str:
        self.heard.append(json.dumps(body))
        return super().answer(body)


@pytest.fixture
def stub() -> Iterator[Listening]:
    model = Listening()
    yield model
    model.close()


def with_stand_in(site: Site, **settings: Any) -> Process:
    command = shlex.join([sys.executable, "-I", str(STANDIN), str(site.home / "notes")])
    return start(site, CLAUDE_COMMAND=command, IS_SANDBOX="1", **settings)


def with_claude(site: Site, stub: StubModel, **settings: Any) -> Process:
    return start(
        site, CLAUDE_COMMAND=shlex.quote(str(CLAUDE)), IS_SANDBOX="1", ANTHROPIC_BASE_URL=stub.url,
        ANTHROPIC_API_KEY="not-a-key", **settings,
    )  # fmt: skip


def start(site: Site, **settings: Any) -> Process:
    given: dict[str, Any] = {
        "PROVIDER": "claude", "AGENT_COMMAND": None, "WARM_AGENTS": "1", "MAX_CONCURRENT_TASKS": "1", "KILL_GRACE": "5"
    }  # fmt: skip
    return site.start("marie", **(given | settings))


def waiting(site: Site) -> list[int]:
    """Processes that have answered `initialize` and have no task: their outputs hold that answer alone."""
    found = []
    for pid in site.command_pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            printed = Path(f"/proc/{pid}/fd/1").read_bytes()
        except OSError:
            continue
        lines = printed.count(b"\n")
        if b"--input-format" in words and lines == 1 and b'"control_response"' in printed:
            found.append(pid)
    return found


def one_waits(site: Site, number: int = 1) -> list[int]:
    def look() -> list[int] | None:
        found = waiting(site)
        return found if len(found) == number else None

    found = wait_for(f"{number} that wait", look, PATIENCE)
    assert found is not None  # wait_for returns nothing that is false
    return found


def test_tasks_are_served_by_those_that_waited_and_none_is_left_when_the_worker_stops(site: Site) -> None:
    worker = with_stand_in(site)
    served = []
    for number in range(3):
        served += one_waits(site)
        site.drop(f"t{number}")
        result = site.result(f"t{number}", seconds=PATIENCE)
        assert (result["status"], result["stdout"], result["attempts"]) == ("completed", f"warm: do t{number}", 1)
    assert len(set(served)) == 3
    one_waits(site)
    assert worker.stop() == 0
    assert (site.command_pids(), site.leftovers()) == ([], [])


def test_one_that_died_while_it_waited_costs_no_attempt(site: Site) -> None:
    worker = with_stand_in(site)
    (pid,) = one_waits(site)
    os.kill(pid, signal.SIGKILL)
    site.drop("t")
    result = site.result("t", seconds=PATIENCE)
    # The next one may wait by the time the task is taken.
    assert result["stdout"] in ("cold: do t", "warm: do t") and (result["status"], result["attempts"]) == (
        "completed",
        1,
    )
    assert worker.stop() == 0


def test_a_killed_worker_leaves_none_that_waits(site: Site) -> None:
    worker = with_stand_in(site, WARM_AGENTS="3")
    pids = one_waits(site, 3)
    worker.kill()
    wait_for("their end", lambda: not any(map(is_alive, pids)), PATIENCE)
    wait_for("the end of their guard, which looks a few times", lambda: not site.command_pids(), PATIENCE)


def test_nothing_is_started_ahead_unless_it_is_asked_for(site: Site) -> None:
    with_stand_in(site, WARM_AGENTS=None)
    for stem in ("a", "b", "c"):
        site.drop(stem)
        assert site.result(stem, seconds=PATIENCE)["stdout"] == f"cold: do {stem}"
    assert not [line for line in site.noted() if "started" in line]


@needs_claude
def test_real_claude_tells_the_next_task_nothing_of_the_last(site: Site, stub: Listening) -> None:
    worker = with_claude(site, stub)
    used = one_waits(site)
    site.drop("one", description=f"Remember the word {CANARY}. [[say I keep {CANARY} in mind]]")
    first = site.result("one", seconds=PATIENCE)
    assert (first["status"], first["stdout"]) == ("completed", f"I keep {CANARY} in mind")
    assert CANARY in "".join(stub.heard)
    stub.heard.clear()
    used += one_waits(site)
    site.drop("two", description="Which word did I tell you? [[say none]]")
    second = site.result("two", seconds=PATIENCE)
    assert (second["status"], second["stdout"], second["attempts"]) == ("completed", "none", 1)
    assert stub.heard and not [body for body in stub.heard if CANARY in body]
    assert CANARY not in json.dumps(second)
    assert len(set(used)) == 2
    assert first["usage"]["session_id"] != second["usage"]["session_id"]
    assert 0 < second["usage"]["cost_usd"] < 2 * first["usage"]["cost_usd"]
    one_waits(site)
    assert worker.stop() == 0
    assert (site.command_pids(), site.leftovers()) == ([], [])


@needs_claude
def test_real_claude_that_waits_dies_with_a_killed_worker_and_its_task_runs_again(site: Site, stub: Listening) -> None:
    worker = with_claude(site, stub, WARM_AGENTS="2")
    one_waits(site, 2)
    site.drop("t", description="[[hang]]")
    wait_for("the call of the model", lambda: stub.calls, PATIENCE)
    one_waits(site, 2)
    pids = site.command_pids()
    worker.kill()
    wait_for("their end", lambda: not any(map(is_alive, pids)), PATIENCE)
    stub.always = "[[say hi]]"
    worker = with_claude(site, stub)
    assert site.result("t", seconds=PATIENCE)["stdout"] == "hi"
    assert worker.stop() == 0
    assert (site.command_pids(), site.leftovers()) == ([], [])


@needs_claude
def test_real_claude_that_died_while_it_waited_costs_no_attempt(site: Site, stub: Listening) -> None:
    worker = with_claude(site, stub)
    (pid,) = one_waits(site)
    os.kill(pid, signal.SIGKILL)
    site.drop("t", description="[[say hi]]")
    result = site.result("t", seconds=PATIENCE)
    assert (result["status"], result["stdout"], result["attempts"]) == ("completed", "hi", 1)
    assert worker.stop() == 0
