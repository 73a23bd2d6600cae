"""A worker whose agent speaks the Agent Client Protocol: tasks, permissions, a hang, a held login, a kill, a stop."""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import Process, Site, is_alive
from tests.waiting import wait_for

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("acp") is None, reason="the package agent-client-protocol is not installed: '.[dev]'"
)
PEER = Path(__file__).parents[1] / "acp_peer.py"
PLAYER = Path(__file__).parents[1] / "acp_player.py"


def start(site: Site, **settings: object) -> Process:
    command = shlex.join([sys.executable, str(PEER), str(site.home / "peer")])
    return site.start(PROVIDER="acp", ACP_COMMAND=command, **settings)


def noted(site: Site, word: str) -> list[int]:
    path = site.home / "peer"
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(line.split()[0]) for line in lines if line.split(" ", 1)[1].startswith(word)]


def test_tasks_run_in_sessions_of_their_own_in_one_process_that_ends_with_the_worker(site: Site) -> None:
    worker = start(site, MAX_CONCURRENT_TASKS=1)
    for number in range(3):
        site.drop(f"t{number}", description=f"say hello {number}")
        result = site.result(f"t{number}", seconds=60)
        assert (result["status"], result["stdout"]) == ("completed", f"hello {number} (turn 1)")
    assert len(noted(site, "started")) == 1 and len(noted(site, "session")) == 3
    site.drop("ask", description="ask")
    assert site.result("ask", seconds=60)["stdout"].startswith("once ")
    [agent] = noted(site, "started")
    assert worker.stop() == 0
    assert not is_alive(agent) and site.command_pids() == [] and site.leftovers() == []


def test_agent_that_hangs_costs_its_task_a_timeout_and_the_next_one_runs_in_another(site: Site) -> None:
    start(site, MAX_CONCURRENT_TASKS=1, MAX_RETRIES=0)
    site.drop("warm", description="say hello")
    site.result("warm", seconds=60)  # so that the start of a program is not in the two seconds
    site.drop("stuck", description="hang", timeout=2)
    site.drop("next", description="say fine")
    assert site.result("stuck", seconds=60)["status"] == "timeout"
    assert site.result("next", seconds=60)["stdout"] == "fine (turn 1)"
    first, second = noted(site, "started")
    assert not is_alive(first) and first != second


def test_agent_that_is_not_logged_in_is_held_and_the_task_waits_uncounted(site: Site) -> None:
    start(site)
    site.drop("locked", description="login")
    beat = site.beat_that(lambda beat: beat["status"] == "held", what="that is held")
    assert "not_authenticated" in beat["reason"]
    assert site.results() == [] and site.dead_letters() == []


def test_agent_of_a_killed_worker_dies_and_its_task_runs_again(site: Site) -> None:
    worker = start(site, MAX_CONCURRENT_TASKS=1)
    site.drop("long", description="hang", timeout=60)
    wait_for("the agent to hang", lambda: noted(site, "hangs"), 60)
    [agent] = noted(site, "started")
    worker.kill()
    wait_for("the agent's end", lambda: not is_alive(agent), 60)
    start(site, MAX_CONCURRENT_TASKS=1)
    wait_for("the second run", lambda: len(noted(site, "hangs")) == 2, 60)


def test_agent_is_logged_in_as_the_settings_say_and_its_use_and_answer_are_in_the_result(site: Site) -> None:
    words = [sys.executable, str(PLAYER), str(site.home / "peer"), json.dumps({"login": "api-key"})]
    site.start(PROVIDER="acp", ACP_COMMAND=shlex.join(words), ACP_AUTH_METHOD="api-key")
    said = {"sessionUpdate": "agent_message_chunk", "messageId": "m", "content": {"type": "text", "text": "42"}}
    notice = said | {"messageId": None, "content": {"type": "text", "text": "Warning: update me"}}
    used = {"totalTokens": 16, "inputTokens": 11, "outputTokens": 5}
    end = {"result": {"stopReason": "end_turn", "usage": used}}
    site.drop("one", description=json.dumps([notice, said, end]))
    result = site.result("one", seconds=60)
    assert (result["status"], result["stdout"], result["stderr"]) == ("completed", "42", "Warning: update me")
    assert result["usage"] == {"input_tokens": 11, "output_tokens": 5, "session_id": "s1"}
    failed = {"result": {"stopReason": "end_turn", "usage": None}}
    words_of_api = notice | {"content": {"type": "text", "text": "unexpected status 400 Bad Request: no"}}
    site.drop("two", description=json.dumps([words_of_api, failed]))
    result = site.result("two", seconds=60)
    assert (result["status"], result["reason"], result["attempts"]) == ("failed", "invalid_request", 1)
    assert noted(site, "authenticate api-key")
