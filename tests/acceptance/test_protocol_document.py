"""What docs/protocol.md and docs/commands.md show is run here as it stands there, against real workers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.acceptance.conftest import REPOSITORY, Site
from tests.schemacheck import fits
from tests.waiting import wait_for
from watcher.formats.operator_command import FIELDS, PLAIN_WORDS, WORDS, InvalidCommand, parse_command
from watcher.formats.schemas import all_schemas

PROTOCOL = (REPOSITORY / "docs" / "protocol.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def client_script() -> str:
    (script,) = [block for block in blocks(PROTOCOL, "sh") if "until ls" in block]
    return script


def start_client(site: Site) -> subprocess.Popen[str]:
    environment = {"PATH": os.environ["PATH"], "ROOT": str(site.root)}
    return subprocess.Popen(
        ["/bin/sh", "-eu", "-c", client_script()], env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def test_shell_client_of_the_document_gets_its_result(site: Site) -> None:
    client = start_client(site)
    wait_for("the client's task", lambda: site.pending())
    site.start()
    out, err = client.communicate(timeout=120)
    assert (client.returncode, err) == (0, "")
    result = json.loads(out)
    assert (result["status"], result["stdout"]) == ("completed", "Say hello")
    assert fits(all_schemas()["result"], result)


def test_shell_client_of_the_document_hears_of_a_failure_too(site: Site) -> None:
    client = start_client(site)
    wait_for("the client's task", lambda: site.pending())
    site.start(AGENT_COMMAND="false", MAX_RETRIES=0)
    out, _ = client.communicate(timeout=120)
    assert (client.returncode, json.loads(out)["status"]) == (0, "failed")


def test_commands_by_hand_do_what_the_document_says(site: Site) -> None:
    (script,) = [block for block in blocks(PROTOCOL, "sh") if "/pause" in block]
    pause, resume, drain, cancel = script.strip().splitlines()

    def run(line: str) -> None:
        environment = {"PATH": os.environ["PATH"], "ROOT": str(site.root)}
        subprocess.run(["/bin/sh", "-eu", "-c", line], env=environment, check=True)

    worker = site.start()
    run(pause)
    site.beat_that(lambda beat: beat["status"] == "paused", what="paused")
    site.drop("hello")
    run(cancel)
    assert site.result("hello")["status"] == "cancelled"
    run(resume)
    site.beat_that(lambda beat: beat["status"] == "healthy", what="healthy")
    run(drain)
    assert worker.ended() == 0


def test_python_of_the_document_runs_as_it_stands(site: Site) -> None:
    (script,) = blocks((REPOSITORY / "docs" / "commands.md").read_text(), "python")
    site.start()
    done = subprocess.run(
        [sys.executable, "-c", script], env=site.environment({}) | {"PYTHONPATH": str(REPOSITORY)}, cwd=site.home,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines()
    assert first == "List the files" and [line.split()[1] for line in rest] == ["completed"] * 3


def test_document_tells_every_command_and_field() -> None:
    part = PROTOCOL[PROTOCOL.index("## Commands") : PROTOCOL.index("## Heartbeat")]
    for word in (*WORDS, *(set(FIELDS) - {"command"})):
        assert f"`{word}`" in part, word


def test_document_tells_every_field_of_receipts_and_notices() -> None:
    receipt = PROTOCOL[PROTOCOL.index("## The receipt") : PROTOCOL.index("## Read a result")]
    notices = PROTOCOL[PROTOCOL.index("## Notices") : PROTOCOL.index("## Claims")]
    for name, part in (("receipt", receipt), ("notice", notices)):
        words = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([^`]*)`", part))))
        assert set(all_schemas()[name]["properties"]) - words == set(), name


@pytest.mark.parametrize(
    ("text", "is_good"),
    [
        ('{"command": "pause"}', True),
        ('{"command": "cancel", "task_id": "x", "x_more": 1}', True),
        ('{"command": "prio", "task_id": "x", "priority": "high"}', True),
        ('{"command": "edit", "task_id": "x", "changes": {"timeout": null}}', True),
        ('{"command": "cancel"}', False),
        ('{"command": "cancel", "task_id": "../x"}', False),
        ('{"command": "prio", "task_id": "x"}', False),
        ('{"command": "edit", "task_id": "x"}', False),
        ('{"command": "fly"}', False),
    ],
)
def test_schema_of_commands_and_the_worker_agree(text: str, is_good: bool) -> None:
    judge = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    assert judge.Draft202012Validator(all_schemas()["command"]).is_valid(json.loads(text)) == is_good
    if is_good:
        assert parse_command(text.encode()) is not None
    else:
        with pytest.raises(InvalidCommand):
            parse_command(text.encode())


def test_state_files_are_no_commands() -> None:
    assert parse_command(b'{"failures": 3}') is None
    assert parse_command(b'{"command": {"failures": 3, "probe_at": "2026-11-21T23:33:00Z"}}') is None, (
        "a breaker's file"
    )
    assert set(PLAIN_WORDS) < set(WORDS)
