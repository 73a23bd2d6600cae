"""What people see of a task that runs, and what becomes of one that stops printing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.acceptance.conftest import REPOSITORY, Json, Process, Site
from tests.waiting import wait_for

TOOL = '{"type":"assistant","message":{"content":[{"type":"tool_use","name":"%s","input":{"secret":"s3cr3t"}}]}}'


def serve(site: Site, agent: str, **settings: Any) -> Process:
    given: Json = {"PROVIDER": "claude", "CLAUDE_COMMAND": site.script(agent), "AGENT_COMMAND": None, **settings}
    return site.start("marie", **given)


def active(site: Site) -> Json:
    beat = site.beat_that(lambda beat: beat["active"] and beat["active"][0]["last_event"], what="of a task that acts")
    found = beat["active"][0]
    assert isinstance(found, dict)
    return found


def test_heartbeat_and_status_say_what_a_running_task_does(site: Site) -> None:
    agent = f"""
    echo '{{"type":"system","subtype":"init"}}'; echo '{TOOL % "Bash"}'
    while [ ! -e "$SITE/next" ]; do sleep 0.05; done
    echo '{TOOL % "WebFetch"}'; printf '{{"type":"half'
    while [ ! -e "$SITE/go" ]; do sleep 0.05; done
    echo '"}}'; echo '{{"type":"result","subtype":"success","is_error":false,"result":"done"}}'
    """
    serve(site, agent)
    site.drop("t")
    site.beat_that(lambda b: b["active"] and b["active"][0]["last_event"] == "tool Bash", what="of the first tool")
    path = Path(active(site)["stdout_path"])
    assert path.read_text().count("\n") == 2, "tail -f shows it as it grows"
    (site.home / "next").touch()
    beat = site.beat_that(
        lambda b: b["active"] and b["active"][0]["last_event"] == "tool WebFetch", what="of a new tool"
    )
    assert beat["active"][0]["last_event_at"] >= beat["active"][0]["started_at"]
    assert "s3cr3t" not in json.dumps(beat)
    shown = status(site)
    assert "DOING" in shown and "tool WebFetch" in shown and "s3cr3t" not in shown
    (site.home / "go").touch()
    assert site.result("t")["stdout"] == "done"


def status(site: Site) -> str:
    demo = [sys.executable, str(REPOSITORY / "demo_watcher.py"), "--status"]
    environment = site.environment({}) | {"COLUMNS": "160"}
    out = subprocess.run(demo, env=environment, cwd=site.home, capture_output=True, text=True, timeout=60, check=True)
    return out.stdout


def test_command_that_prints_nothing_for_too_long_is_ended_and_tried_again(site: Site) -> None:
    agent = """
    echo "$WATCHER_ATTEMPT" >> "$SITE/notes"
    [ "$WATCHER_ATTEMPT" = 1 ] && { sleep 600 & sleep 600; }
    echo '{"type":"result","subtype":"success","is_error":false,"result":"done"}'
    """
    worker = serve(site, agent, STALL_TIMEOUT="4")
    site.drop("t")
    result = site.result("t")
    assert (result["status"], result["attempts"], result["retry_count"]) == ("completed", 2, 1)
    assert worker.lines("task.retry_scheduled")[0]["reason"] == "stalled"
    assert site.command_pids() == []


def test_output_puts_the_stall_off_but_not_the_deadline(site: Site) -> None:
    agent = """while :; do echo '{"type":"system","subtype":"api_retry"}'; sleep 0.1; done"""
    serve(site, agent, STALL_TIMEOUT="6", TASK_TIMEOUT="9", MAX_RETRIES="0")
    site.drop("t")
    result = site.result("t")
    assert result["status"] == "timeout" and result["duration_seconds"] >= 9


def test_stall_rule_leaves_silent_output_alone_and_says_so_once(site: Site) -> None:
    agent = """sleep 3; echo done"""
    worker = serve(site, agent, STALL_TIMEOUT="0.5", CLAUDE_COMMAND=f"{site.script(agent)} --output-format text")
    for name in ("a", "b"):
        site.drop(name)
        assert site.result(name)["status"] == "completed"
    wait_for("a word about it", lambda: worker.lines("stall.not_watched"))
    assert [(line["provider"], line["event"]) for line in worker.lines("stall.not_watched")] == [
        ("claude", "stall.not_watched")
    ]


def test_chatty_task_costs_a_beat_no_more_than_a_quiet_one(site: Site) -> None:
    """Only the end of what is new is read: the beats go on, and the last event is right."""
    agent = f"""
    i=0; while [ $i -lt 40 ]; do head -c 1000000 /dev/zero | tr '\\0' x; i=$((i+1)); done; echo
    echo '{TOOL % "Grep"}'
    while [ ! -e "$SITE/go" ]; do sleep 0.05; done
    echo '{{"type":"result","subtype":"success","is_error":false,"result":"done"}}'
    """
    serve(site, agent)
    site.drop("t")
    site.beat_that(lambda b: b["active"] and b["active"][0]["last_event"] == "tool Grep", what="of the tool")
    assert os.stat(active(site)["stdout_path"]).st_size > 40_000_000
    (site.home / "go").touch()
    assert site.result("t")["status"] == "completed"
