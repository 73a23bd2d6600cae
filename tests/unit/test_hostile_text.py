"""What a task, an agent, a file or an operator says is shown without anything that a terminal obeys, by every view."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import demo_watcher
from watcher.cli import main
from watcher.clock import rfc3339
from watcher.store.worker_locks import Incarnation

#: Clears the screen, sets the title, forges a line, turns the text round, begins a control sequence in one character.
EVIL = "evil\x1b[2J\x1b]0;owned\x07\rwell\n\x9b31mNOT WELL\u202eabc\u2028x\x08\x7f\U000e0041end"
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\U000e0000-\U000e007f]")

VIEWS = [
    ["list"], ["list", "--state", "held"], ["show", "waits"], ["show", "held"], ["show", "ended"], ["show", "lost"],
    ["show", "broken"], ["results"], ["workers"], ["health", "marie"], ["qshape"], ["qshape", "--all"],
    ["tail", "ended"],
    ["cancel", EVIL], ["hold", EVIL], ["redrive", EVIL], ["redrive", "lost"], ["show", EVIL], ["tail", EVIL],
    ["rerun", EVIL], ["release", EVIL], ["edit", EVIL, "--priority", "high"], ["edit", "waits", "--unset", EVIL],
    ["hold", "--provider", EVIL], ["pause", EVIL], ["drain", EVIL], ["budget", EVIL], ["submit", EVIL, "x"],
    ["purge", "--results", "--worker", EVIL], ["purge", "--dead-letters", "--worker", "marie"], ["validate", EVIL],
    ["resume", "--provider", EVIL], ["report"], [EVIL], ["list", "--state", EVIL], ["zones", EVIL], ["resume", EVIL],
    ["purge", "--archives", "--worker", "marie"],
]  # fmt: skip


@pytest.fixture
def evil_root(made_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WATCHER_ROOT", str(made_root))
    monkeypatch.chdir(made_root.parent)
    return made_root


@pytest.fixture(scope="module")
def made_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which every text that somebody may choose is EVIL; no view changes it."""
    root = tmp_path_factory.mktemp("evil") / "root"
    fields: dict[str, Any] = {
        "description": EVIL, "agent_id": "a", "batch_id": EVIL, "metadata": {EVIL: EVIL}, EVIL: EVIL,
        "dependencies": ["none"],
    }  # fmt: skip
    result = {
        "task_id": "ended", "worker": "marie", "status": "failed", "exit_code": 1, "stdout": EVIL, "stderr": EVIL,
        "duration_seconds": 1.0, "timestamp": rfc3339(time.time()), "retry_count": 0, "reason": EVIL, "detail": EVIL,
        "provider": EVIL, "attempts": EVIL, "stdout_truncated": True, "stdout_path": EVIL, "submitted": fields,
    }  # fmt: skip
    letter = {"task_id": EVIL, "worker": EVIL, "dlq_reason": EVIL, "dlq_detail": EVIL, "retry_count": 3}
    incarnation = Incarnation(root / "tasks" / "marie", "marie", None)
    beat = {
        "worker": "marie", "timestamp": rfc3339(time.time()), "uptime_seconds": 1.0, "queue_size": 0, "active_tasks": 1,
        "circuit_breaker_state": "closed", "status": "paused", "reason": EVIL, "held_until": "2030-01-01T00:00:00Z",
        "incarnation": incarnation.id, "host": EVIL, "pid": 1, "sequence": 1, "heartbeat_interval_seconds": 5.0,
        "stats": {"tasks_processed": 0, "tasks_failed": 0, "tasks_retried": 0, "tasks_dlq": 0},
        "active": [{"task_id": "runs", "last_event": EVIL, "started_at": rfc3339(time.time())}],
    }  # fmt: skip
    files = {
        "tasks/marie/waits.json": fields, "tasks/marie/.held/held.json": fields,
        "tasks/marie/broken.json": {"description": "x", "timeout": EVIL}, "results/marie/ended.json": result,
        f"tasks/marie/.claims/{incarnation.id}/runs~1-0.json": fields, "dlq/marie/lost.json": letter,
        "heartbeats/marie.json": beat, "control/marie/paused.json": {"reason": EVIL, "by": EVIL},
        "state/listener.json": {"taken_at": EVIL, "trouble": EVIL},
        "results/marie/.archive/ended~1.json": result,
    }  # fmt: skip
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    for name in (f"{EVIL}.json", f"{EVIL}.JSON"):
        (root / "tasks" / "marie" / name).write_text("{}")
        (root / "dlq" / "marie" / name).write_text("{}")
        (root / "results" / "marie" / name).write_text("{}")
    (root / "results" / "marie" / ".archive" / f"{EVIL}.json").write_text("{}")
    return root


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("words", VIEWS, ids=lambda words: "-".join(w if w.isprintable() else "EVIL" for w in words))
def test_no_view_repeats_what_a_terminal_would_obey(
    words: list[str], flags: list[str], evil_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        main.main([*words, *flags])
    except SystemExit as ended:
        assert ended.code == 2  # the parser's own words
    said = capsys.readouterr()
    assert said.out + said.err
    if words == ["tail", "ended"] and flags:
        return  # into a pipe it copies every byte, as its help says
    assert not _OBEYED.findall(said.out + said.err)


@pytest.mark.parametrize("words", [["--status"], ["--report"], [f"--{EVIL}"]], ids=["status", "report", "EVIL"])
def test_the_demo_command_does_not_either(
    words: list[str], evil_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["demo_watcher.py", *words])
    monkeypatch.setattr("watcher.cli.command_output._SPEAKER", ["watcher"])  # it changes who is heard
    try:
        demo_watcher.main()
    except SystemExit as ended:
        assert ended.code == 2
    said = capsys.readouterr()
    assert said.out + said.err
    assert not _OBEYED.findall(said.out + said.err)


def test_a_pause_cannot_forge_a_line_of_the_health_probe(evil_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.main(["health", "marie"])
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_only_one_module_prints_for_the_commands() -> None:
    """The linter refuses `print` elsewhere; this finds what it does not: writing to the stream."""
    allowed = {"shared.py", "tail.py"}
    folder = Path(main.__file__).parent / "commands"
    for path in folder.glob("*.py"):
        if path.name not in allowed:
            assert not re.search(r"\bprint\(|std(out|err)\.(buffer\.)?write", path.read_text()), path


@pytest.mark.parametrize("program", ["worker_watcher.py", "orchestrator_listener.py"])
def test_an_error_of_an_entry_file_does_not_either(program: str, tmp_path: Path) -> None:
    home = Path(main.__file__).parents[1]
    environ = {**os.environ, "LOG_LEVEL": EVIL, "WATCHER_ROOT": str(tmp_path)}
    words = ["marie"] if program.startswith("worker") else []
    for more in ([], [f"--x{EVIL}"], ["--log-level", EVIL], ["--metrics-port", EVIL]):
        done = subprocess.run(
            [sys.executable, str(home / program), *words, *more], env=environ, cwd=tmp_path, capture_output=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 2 and done.stderr
        assert not _OBEYED.findall((done.stdout + done.stderr).decode("utf-8", "surrogateescape"))
