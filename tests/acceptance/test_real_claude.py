"""The real Claude CLI does real tasks through the real worker, offline: its model is a stub on loopback.

The program comes with the package claude-agent-sdk (`pip install '.[claude]'`). A throw-away HOME keeps every login of
the user out.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import Site
from tests.acceptance.realcli import CLIS, PATIENCE, program_of, run_case
from tests.stub_model import StubModel
from tests.waiting import wait_for
from watcher.clock import parse_rfc3339, rfc3339

REPOSITORY = Path(__file__).parents[2]

CLAUDE = program_of("claude")
pytestmark = [
    pytest.mark.skipif(CLAUDE is None, reason="the claude program is not installed: pip install '.[claude]'"),
    pytest.mark.timeout(900),
]

MAKE_FILE = {"command": "echo made by claude > made.txt", "description": "make a file"}
TASKS = {
    "say-hi": "Say hi [[say hi there]]",
    "make-file": f"[[tool Bash {json.dumps(MAKE_FILE)}]]",
    "overloaded": "[[status 529 times 3]]",
    "refused": "[[status 400]]",
    **{f"more-{n}": f"[[say answer {n}]]" for n in range(6)},
}


@pytest.fixture
def stub() -> Iterator[StubModel]:
    model = StubModel()
    yield model
    model.close()


def results(root: Path, count: int, process: subprocess.Popen[bytes]) -> dict[str, dict[str, Any]]:
    folder, log = root / "results" / "marie", root / "log"

    def look() -> list[Path]:
        found = sorted(folder.glob("*.json"))
        assert len(found) >= count or process.poll() is None, log.read_text()
        return found if len(found) >= count else []

    return {path.stem: json.loads(path.read_text()) for path in wait_for("all results", look, 600, log.read_text)}


def test_ten_tasks_with_a_tool_a_retry_and_a_refusal(tmp_path: Path, stub: StubModel) -> None:
    root, home, work = tmp_path / "root", tmp_path / "home", tmp_path / "work"
    for folder in (home, work, root / "tasks" / "marie"):
        folder.mkdir(parents=True)
    for stem, description in TASKS.items():
        task = {"description": description, "cwd": str(work)}
        (root / "tasks" / "marie" / f"{stem}.json").write_text(json.dumps(task))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "WATCHER_ROOT": str(root),
        "CLAUDE_COMMAND": str(CLAUDE),
        "ENABLE_METRICS": "false",
        "INITIAL_RETRY_DELAY": "0.2",
        "MAX_RETRIES": "2",
        "CLAUDE_CODE_MAX_RETRIES": "1",
        "ANTHROPIC_BASE_URL": stub.url,
        "ANTHROPIC_API_KEY": "not-a-key",
        "IS_SANDBOX": "1",
        "LOG_LEVEL": "DEBUG",
    }
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "worker_watcher.py"), "marie", "--task-timeout", "120"],
            env=environment, cwd=tmp_path, stderr=log, stdout=log,
        )  # fmt: skip
        try:
            found = results(root, len(TASKS), process)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0

    assert found["say-hi"]["status"] == "completed" and found["say-hi"]["stdout"] == "hi there"
    assert found["say-hi"]["usage"]["input_tokens"] > 0
    assert found["make-file"]["status"] == "completed"
    assert (work / "made.txt").read_text() == "made by claude\n"
    assert found["overloaded"]["status"] == "completed" and found["overloaded"]["retry_count"] >= 1
    assert found["refused"]["status"] == "failed"
    letter = json.loads((root / "dlq" / "marie" / "refused.json").read_text())
    assert letter["dlq_reason"] == found["refused"]["reason"]
    assert all(found[f"more-{n}"]["stdout"] == f"answer {n}" for n in range(6))
    assert stub.calls >= len(TASKS)
    text = (root / "log").read_text()
    assert "not-a-key" not in text and "answer 3" not in text
    assert not list((root / "tasks" / "marie").glob("*.json"))


def serve_claude(site: Site, stub: StubModel, worker: str, **settings: str) -> None:
    site.start(
        worker, PROVIDER="claude", CLAUDE_COMMAND=str(CLAUDE), AGENT_COMMAND=None, IS_SANDBOX="1",
        ANTHROPIC_BASE_URL=stub.url, MAX_CONCURRENT_TASKS="1", **settings,
    )  # fmt: skip


def test_usage_limit_of_a_subscription_holds_all_workers_until_its_time(site: Site, stub: StubModel) -> None:
    for worker in ("marie", "anga"):
        login = {"CLAUDE_CODE_OAUTH_TOKEN": "made-up"}
        serve_claude(site, stub, worker, **login)
    stub.limited_until = int(time.time()) + 3600
    for number in range(3):
        for worker in ("marie", "anga"):
            site.drop(f"t{number}", worker, description="[[say hi]]")
    hold = site.root / "control" / "holds" / "claude.json"
    wait_for("the hold", hold.exists, PATIENCE)
    held = json.loads(hold.read_text())
    assert held["reason"] == "usage_limit" and parse_rfc3339(held["until"]) == stub.limited_until
    for worker in ("marie", "anga"):
        # One that was started just before the hold has met the limit, too, and is over by then.
        site.beat_that(lambda b: (b["status"], b["active_tasks"]) == ("held", 0), worker, "that says held", PATIENCE)
    assert stub.calls == 0 and stub.refused <= 2, "one start a worker, at most, met the limit"
    refused = stub.refused
    # However slow this machine is, the end of the limit comes only now.
    stub.limited_until = int(time.time()) + 1
    sooner = hold.with_name(".sooner")
    sooner.write_text(json.dumps({**held, "until": rfc3339(stub.limited_until)}))
    sooner.rename(hold)
    for number in range(3):
        for worker in ("marie", "anga"):
            result = site.result(f"t{number}", worker, PATIENCE)
            assert (result["status"], result["stdout"], result["attempts"]) == ("completed", "hi", 1)
            assert parse_rfc3339(result["started_at"]) >= stub.limited_until
    assert stub.refused == refused and not hold.exists()


def test_claude_keeps_to_the_money_of_a_task_and_its_beat_names_the_tool(site: Site, stub: StubModel) -> None:
    serve_claude(site, stub, "marie", ANTHROPIC_API_KEY="not-a-key", MAX_COST_PER_TASK="0.0002")
    command = {"command": "while [ ! -e go ]; do sleep 0.05; done", "description": "wait"}
    site.drop("t", description=f"[[tool Bash {json.dumps(command)}]]", cwd=str(site.home))
    site.beat_that(lambda b: b["active"] and b["active"][0]["last_event"] == "tool Bash", "marie", "of it", PATIENCE)
    (site.home / "go").touch()
    result = site.result("t", seconds=PATIENCE)
    assert (result["status"], result["reason"], result["attempts"]) == ("failed", "budget_exceeded", 1)
    assert result["usage"]["cost_usd"] > 0.0002 and site.dead_letters() == ["t"]


@pytest.mark.parametrize("case", CLIS["claude"].cases)
def test_each_way_to_end_has_its_class_and_leaves_nothing_running(case: str, site: Site, stub: StubModel) -> None:
    print(f"claude {case}: {run_case(site, stub, 'claude', case)}")


def test_result_says_that_an_mcp_server_was_not_there(site: Site, stub: StubModel) -> None:
    servers = json.dumps({"mcpServers": {"tracker": {"command": "/no/such/server", "args": []}}})
    command = f"{shlex.quote(str(CLAUDE))} --mcp-config {shlex.quote(servers)}"
    settings = {"ANTHROPIC_BASE_URL": stub.url, "ANTHROPIC_API_KEY": "not-a-key", "IS_SANDBOX": "1"}
    site.start("marie", PROVIDER="claude", CLAUDE_COMMAND=command, AGENT_COMMAND=None, **settings)
    site.drop("it", description="[[say hi]]")
    result = site.result("it", seconds=PATIENCE)
    assert (result["status"], result["stdout"]) == ("completed", "hi")
    assert "without the tools of the MCP servers tracker (failed)" in result["detail"]
