"""`demo_watcher.py` for those who look: the status, the table that is redrawn, and the whole show."""

from __future__ import annotations

import json
import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.acceptance.desk import Desk, Screen, desk, one_line
from tests.waiting import PATIENCE_SECONDS, wait_for
from watcher.cli import demo
from watcher.cli.terminal import LEAVE_SCREEN, TerminalStyle

__all__ = ["desk"]


def processes_of(root: Path) -> list[int]:
    """Every process that was started for this root."""
    found = []
    for place in Path("/proc").iterdir():
        with suppress(OSError):
            if place.name.isdigit() and f"WATCHER_ROOT={root}\0".encode() in (place / "environ").read_bytes():
                found.append(int(place.name))
    return found


# --- looking


def test_status_of_nothing_says_what_to_do(desk: Desk) -> None:
    code, out, complaint = desk.run("--status")
    assert (code, out) == (2, "")
    assert str(desk.root) in complaint and "--setup" in complaint
    assert not desk.root.exists()
    desk.root.mkdir()
    code, out, _ = desk.run("--status")
    assert code == 0 and "--setup" in out


def test_status_counts_and_survives_rubbish(desk: Desk) -> None:
    desk.run("--task", "marie", "hi")
    desk.answer("done")
    desk.answer("bad", "failed")
    for place in ("heartbeats/anga.json", "results/marie/half.json", "dlq/anga/x.json"):
        path = desk.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'{"half')
    code, out, complaint = desk.run("--status")
    assert (code, complaint) == (0, "")
    assert re.search(r"^marie +not started +1 +0 +1 +1 +0 +- ", out, re.MULTILINE)
    assert re.search(r"^anga +unknown +0 +0 +0 +0 +1 +- ", out, re.MULTILINE)
    assert "marie: 1 task waiting and no process serves them; start one: python worker_watcher.py marie" in out
    told = json.loads(desk.run("--status", "--json")[1])
    assert [(w["worker"], w["pending"], w["done"], w["failed"]) for w in told["workers"]] == [
        ("anga", 0, 0, 0), ("marie", 1, 1, 1),
    ]  # fmt: skip


def test_reader_that_leaves_early_is_no_error(desk: Desk) -> None:
    desk.run("--setup")
    reader, writer = os.pipe()
    os.close(reader)
    process = desk.start("--status", stdout=writer)
    os.close(writer)
    _, complaint = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, complaint) == (0, b"")


def test_watch_redraws_until_ctrl_c_and_gives_the_terminal_back(desk: Desk) -> None:
    desk.run("--setup")
    screen = Screen(desk, "--watch")
    screen.read_until("OLDEST WAITING")
    desk.run("--task", "fabien", "hi")
    screen.read_until("fabien: 1 task waiting")
    screen.process.send_signal(signal.SIGINT)
    assert screen.finish() == 0
    assert screen.seen.endswith(LEAVE_SCREEN)
    assert "Traceback" not in screen.seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_watch_in_a_pipe_draws_nothing_and_ends_cleanly(desk: Desk, number: signal.Signals) -> None:
    desk.run("--setup")
    process = desk.start("--watch")
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(number)
    rest, complaint = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, complaint) == (0, b"")
    assert b"WORKER" in first
    assert b"\x1b" not in first + rest


# --- with a real worker


def test_status_tells_a_living_worker_from_a_killed_and_from_a_stopped_one(desk: Desk) -> None:
    marie, anga = desk.serve("marie"), desk.serve("anga")
    desk.run("--task", "marie", "[sleep 600]", "--id", "long")
    desk.site.beat_that(lambda beat: beat["active_tasks"] == 1, what="of the running task")
    _, out, _ = desk.run("--status")
    assert re.search(r"^anga +healthy for .*? +0 +0 +0 +0 +0 +closed +-$", out, re.MULTILINE)
    assert re.search(r"^marie +healthy for .*? +0 +1 +0 ", out, re.MULTILINE)
    assert re.search(r"^long +marie +1 +\d", out, re.MULTILINE)
    marie.kill()
    assert anga.stop() == 0
    _, out, _ = desk.run("--status")
    assert re.search(r"^marie +DEAD for .*? +0 +0 +0 +0 +0 +- ", out, re.MULTILINE)
    assert re.search(r"^anga +stopped .*? ago", out, re.MULTILINE)
    assert "marie: 1 task orphaned by a killed process" in out


def test_frozen_worker_is_not_called_dead(desk: Desk) -> None:
    desk.serve("marie", HEARTBEAT_INTERVAL="0.1").signal(signal.SIGSTOP)
    wait_for("the word about it", lambda: "its last heartbeat is" in desk.run("--status")[1])
    assert "DEAD" not in desk.run("--status")[1]


# --- the whole show


def test_demo_shows_everything_and_ends_by_itself(desk: Desk, tmp_path: Path) -> None:
    root = tmp_path / "show"
    code, out, complaint = desk.run("--demo", "--demo-root", str(root))
    assert (code, complaint) == (0, ""), out
    assert "\x1b" not in out
    for text in (
        "[13/13]",
        "fabien/notes invalid_json",
        "fabien/broken max_retries_exceeded",
        "Heartbeats",
        "Try next",
    ):
        assert text in out
    assert "A story of 42" in out
    assert len(list((root / "results").glob("*/*.json"))) == 12
    assert processes_of(root) == []
    code, out, complaint = desk.run("--demo", "--demo-root", str(root))
    assert (code, out) == (2, "")
    assert "not empty" in one_line(complaint)


def test_demo_in_a_terminal_redraws_its_table(desk: Desk, tmp_path: Path) -> None:
    screen = Screen(desk, "--demo", "--demo-root", str(tmp_path / "show"))
    assert screen.finish() == 0
    assert "OLDEST WAITING" in screen.seen
    assert re.search(r"\x1b\[\d+F", screen.seen)
    assert "13 of 13 tasks have ended" in screen.seen
    assert "Everything came out as it must" in screen.seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_demo_that_is_ended_in_the_middle_leaves_no_worker(desk: Desk, tmp_path: Path, number: signal.Signals) -> None:
    root = tmp_path / "show"
    process = desk.start("--demo", "--demo-root", str(root))
    wait_for("the first result", lambda: list((root / "results").glob("*/*.json")))
    assert len(processes_of(root)) >= 3  # a command that is just starting shows the environment of its worker
    process.send_signal(number)
    _, complaint = process.communicate(timeout=PATIENCE_SECONDS)
    if number == signal.SIGKILL:
        wait_for("the end of the workers", lambda: not processes_of(root))
        return
    assert process.returncode == 130
    assert "Traceback" not in complaint.decode()
    assert processes_of(root) == []


def test_demo_whose_agent_is_broken_fails_in_time_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("watcher.standin.command", lambda: ("/bin/false",))
    monkeypatch.setattr(demo, "_TASKS_SECONDS", 5.0)
    said: list[str] = []
    code = demo.Demo(tmp_path / "show", said.append, TerminalStyle, redrawn=False).run()
    assert code == 1
    assert "The demo FAILED" in "".join(said)
    assert "anga/numbers" in "".join(said)
    assert "came out as it must" not in "".join(said)
    assert processes_of(tmp_path / "show") == []


def test_demo_whose_worker_dies_fails_at_once_and_shows_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(demo._SETTINGS, "MAX_RETRIES", "many")
    said: list[str] = []
    assert demo.Demo(tmp_path / "show", said.append, TerminalStyle, redrawn=False).run() == 1
    assert "the worker marie does not start" in "".join(said)
    assert "MAX_RETRIES=many" in "".join(said)
