"""`demo_watcher.py` as people start it: a process, a terminal or a pipe, and folders.

Where a worker's part is small, the test plays it by writing the result; the real worker is started where it matters.
"""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import PATIENCE_SECONDS, REPOSITORY, Process, Site, wait_for
from watcher import showcase, standin
from watcher.formats.task import parse_task
from watcher.screen import LEAVE_SCREEN, Look

DEMO = REPOSITORY / "demo_watcher.py"
#: The longest that a demo may take that fails in every way.
SHOW_SECONDS = 280.0


class Desk:
    """A root, and the commands a person would type there."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.root = site.root
        self.away = site.home
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(site.home), "WATCHER_ROOT": str(site.root)}

    def start(
        self, *arguments: str | bytes, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
    ) -> subprocess.Popen[bytes]:  # fmt: skip
        return subprocess.Popen(
            [sys.executable, str(DEMO), *arguments], stdin=stdin, stdout=stdout, stderr=stderr,
            env=self.environment, cwd=self.away, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: str | bytes, stdin: bytes | None = None) -> tuple[int, str, str]:
        process = self.start(*arguments, stdin=subprocess.PIPE)
        out, complaint = process.communicate(stdin, timeout=SHOW_SECONDS)
        return process.returncode, out.decode(), complaint.decode()

    def inbox(self, worker: str = "marie") -> list[Path]:
        return sorted((self.root / "tasks" / worker).glob("*.json"))

    def only_task(self) -> dict[str, Any]:
        (path,) = self.inbox()
        value = json.loads(path.read_bytes())
        assert isinstance(value, dict)
        return value

    def answer(self, task_id: str, status: str = "completed", worker: str = "marie", **fields: Any) -> None:
        """What a worker would have written in the end."""
        known = {"task_id": task_id, "worker": worker, "status": status, "stdout": "the answer\n", "attempts": 1}
        self._show(self.root / "results" / worker / f"{task_id}.json", known | fields)

    def refuse(self, task_id: str, worker: str = "marie") -> None:
        letter = {"task_id": task_id, "worker": worker, "dlq_reason": "duplicate_id", "retry_count": 0}
        self._show(self.root / "dlq" / worker / f"{task_id}.json", letter)

    def _show(self, path: Path, fields: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_name(f".{path.name}.tmp")
        hidden.write_text(json.dumps(fields))
        hidden.rename(path)

    def serve(self, name: str, **settings: str) -> Process:
        """A real worker with the stand-in agent that has beaten once."""
        return self.site.start(name, AGENT_COMMAND=shlex.join(standin.command()), **settings)


@pytest.fixture
def desk(site: Site) -> Desk:
    return Desk(site)


def one_line(complaint: str) -> str:
    assert complaint.count("\n") == 1, complaint
    assert complaint.startswith("demo_watcher: ")
    return complaint


def processes_of(root: Path) -> list[int]:
    """Every process that was started for this root."""
    found = []
    for place in Path("/proc").iterdir():
        with suppress(OSError):
            if place.name.isdigit() and f"WATCHER_ROOT={root}\0".encode() in (place / "environ").read_bytes():
                found.append(int(place.name))
    return found


class Screen:
    """A terminal of 100 x 30 cells that a command runs in."""

    def __init__(self, desk: Desk, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.process = desk.start(*arguments, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.seen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()  # a character may come in two pieces

    def read_until(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            assert self._read(deadline), self.seen

    def finish(self) -> int:
        """Everything until the end; returns the exit code."""
        while self._read(time.monotonic() + SHOW_SECONDS):
            pass
        os.close(self._master)
        return self.process.wait(PATIENCE_SECONDS)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, self.seen
        try:
            chunk = os.read(self._master, 65_536)
        except OSError:  # EIO: nobody has the other end any more
            return False
        self.seen += self._decoder.decode(chunk)
        return bool(chunk)


# --- first steps


def test_without_arguments_it_says_what_it_can_do(desk: Desk) -> None:
    code, out, complaint = desk.run()
    assert (code, complaint) == (0, "")
    for command in ("--setup", "--task", "--batch", "--status", "--watch", "--examples", "--demo"):
        assert command in out
    assert not desk.root.exists()


def test_setup_makes_the_folders_and_says_what_comes_next(desk: Desk) -> None:
    code, out, _ = desk.run("--setup", "--workers", "marie, anga")
    assert code == 0
    for folder in ("tasks/marie", "results/anga", "dlq/marie", "triggers/anga", "heartbeats", "control"):
        assert (desk.root / folder).is_dir()
        assert f"made   {desk.root / folder}\n" in out
    assert "python worker_watcher.py marie" in out
    code, out, _ = desk.run("--setup", "--workers", "marie,anga")
    assert code == 0
    assert "10 folders were there already" in out
    assert "made " not in out


def test_examples_name_the_folders_that_are_in_force(desk: Desk) -> None:
    code, out, _ = desk.run("--examples")
    assert code == 0
    assert f"cat > {desk.root}/tasks/marie/hello.json" in out
    assert f"ls {desk.root}/dlq/marie" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bogus"], "--bogus"),
        (["--task", "marie"], "expected 2 arguments"),
        (["--task", "m/x", "hi"], "m/x"),
        (["--task", "marie", " "], "description"),
        (["--task", "marie", "hi", "--id", "../x"], "../x"),
        (["--task", "marie", "hi", "--priority", "urgent"], "critical, high, normal, low"),
        (["--task", "marie", "hi", "--timeout", "soon"], "timeout"),
        (["--task", "marie", "hi", "--timeout", "inf"], "not JSON"),
        (["--task", "marie", "hi", "--meta", "k"], "name=value"),
        (["--task", "marie", "hi", "--after", "a b"], "dependencies"),
        (["--task", "marie", b"caf\xe9"], "UTF-8"),
        (["--task", "marie", "hi", "--agent", b"\xff"], "UTF-8"),
        (["--batch", "0", "--worker", "marie"], "1 to"),
        (["--batch", "3"], "--worker"),
        (["--wait"], "--task or --batch"),
        (["--status", "--id", "x"], "--task"),
        (["--status", "--setup"], "not allowed"),
        (["--setup", "--workers", "../x"], "../x"),
        (["--setup", "--workers", ","], "--workers"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_and_leaves_nothing(
    desk: Desk, arguments: list[str | bytes], says: str
) -> None:
    code, out, complaint = desk.run(*arguments)
    assert (code, out) == (2, "")
    assert says in one_line(complaint)
    assert not desk.root.exists()


def test_misspelt_setting_is_named(desk: Desk) -> None:
    del desk.environment["WATCHER_ROOT"]
    desk.environment["WATCHER_ROOTT"] = str(desk.root)
    code, _, complaint = desk.run("--task", "marie", "hi")
    assert code == 2
    assert "did you mean WATCHER_ROOT?" in one_line(complaint)


def test_folder_that_cannot_be_made_is_named(desk: Desk) -> None:
    desk.root.write_text("a file stands where the folder should be")
    code, _, complaint = desk.run("--task", "marie", "hi")
    assert code == 2
    assert str(desk.root) in one_line(complaint)


# --- submitting


def test_task_is_in_the_inbox_when_the_command_returns(desk: Desk) -> None:
    desk.run("--setup")
    code, out, complaint = desk.run("--task", "marie", "List files")
    assert (code, complaint) == (0, "")
    task = desk.only_task()
    assert task["description"] == "List files"
    assert f"submitted {task['task_id']} to marie\n" in out
    assert f"{desk.root}/results/marie/{task['task_id']}.json\n" in out


def test_new_name_is_mentioned_because_it_may_be_a_slip(desk: Desk) -> None:
    assert "marei" in one_line(desk.run("--task", "marei", "hi")[2])
    assert desk.run("--task", "marei", "hi")[2] == ""


def test_every_option_of_a_task_is_in_its_file(desk: Desk) -> None:
    code, out, _ = desk.run(
        "--task", "marie", "- look at this", "--id", "x", "--priority", "high", "--timeout", "30", "--agent", "me",
        "--after", "a, anga/b", "--batch-id", "b1", "--meta", "k=v=w", "--meta", "n=1", "--provider", "claude",
        "--model", "opus", "--cwd", "sub", "--json",
    )  # fmt: skip
    assert code == 0
    (path,) = desk.inbox()
    task = parse_task(path.read_bytes(), "x", "marie")
    assert (task.description, task.priority, task.timeout, task.agent_id) == ("- look at this", 50, 30.0, "me")
    assert (task.dependencies, task.batch_id, task.provider, task.model) == (("a", "anga/b"), "b1", "claude", "opus")
    assert (task.metadata, task.cwd) == ({"k": "v=w", "n": "1"}, str(desk.away / "sub"))
    told = json.loads(out)
    assert (told["task_id"], told["worker"], told["task_path"]) == ("x", "marie", str(path))
    assert told["result_path"] == f"{desk.root}/results/marie/x.json"


def test_priority_may_be_a_number(desk: Desk) -> None:
    desk.run("--task", "marie", "hi", "--priority", "-7")
    assert desk.only_task()["priority"] == -7


def test_text_may_come_from_stdin_of_any_length(desk: Desk) -> None:
    text = "\u00fcber " * 50_000
    assert desk.run("--task", "marie", "-", stdin=text.encode())[0] == 0
    assert desk.only_task()["description"] == text


def test_stdin_that_is_not_utf8_is_refused(desk: Desk) -> None:
    code, _, complaint = desk.run("--task", "marie", "-", stdin=b"caf\xe9")
    assert code == 2
    assert "byte 3" in one_line(complaint)
    assert not desk.root.exists()


def test_id_that_waits_or_has_ended_is_not_taken_again(desk: Desk) -> None:
    assert desk.run("--task", "marie", "one", "--id", "x")[0] == 0
    code, _, complaint = desk.run("--task", "marie", "two", "--id", "x")
    assert code == 2
    assert "'x'" in one_line(complaint)
    assert desk.only_task()["description"] == "one"
    desk.inbox()[0].unlink()
    desk.answer("x")
    code, _, complaint = desk.run("--task", "marie", "two", "--id", "x", "--wait")
    assert code == 2
    assert "has ended" in one_line(complaint)
    assert desk.inbox() == []


def test_submit_imports_nothing_heavy(desk: Desk) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(DEMO), "--task", "marie", "hi"],
        env=desk.environment, cwd=desk.away, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "watcher.submit" in imported
    heavy = {"pydantic", "pydantic_settings", "asyncio", "filelock", "watchdog", "prometheus_client", "subprocess"}
    assert imported & (heavy | {"watcher.overview", "watcher.screen", "watcher.outcomes", "logging"}) == set()


# --- waiting, with the test as the worker


def waiting(desk: Desk, *options: str) -> tuple[subprocess.Popen[bytes], str]:
    """A command that waits for the task it has just submitted, and that task's id."""
    process = desk.start("--task", "marie", "hi", "--wait", *options)
    wait_for("the task in the inbox", desk.inbox)
    return process, desk.inbox()[0].stem


def test_wait_prints_the_result_of_a_completed_task(desk: Desk) -> None:
    process, task_id = waiting(desk)
    desk.answer(task_id)
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert out.decode().splitlines() == [
        f"marie/{task_id} completed, attempt 1", "the answer", f"file: {desk.root}/results/marie/{task_id}.json",
    ]  # fmt: skip


@pytest.mark.parametrize("status", ["failed", "timeout", "cancelled"])
def test_wait_ends_with_1_when_the_task_did_not_complete(desk: Desk, status: str) -> None:
    process, task_id = waiting(desk)
    desk.answer(task_id, status, stderr="no map")
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert f"{task_id} {status}" in out.decode()
    assert "no map" in out.decode()


def test_wait_ends_with_1_when_the_file_was_refused(desk: Desk) -> None:
    process, task_id = waiting(desk, "--json")
    desk.refuse(task_id)
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    told = json.loads(out)
    assert process.returncode == 1
    assert (told["outcome"], told["result"], told["dead_letter"]["dlq_reason"]) == ("refused", None, "duplicate_id")


def test_wait_for_programs_gives_the_whole_result(desk: Desk) -> None:
    process, task_id = waiting(desk, "--json")
    desk.answer(task_id)
    told = json.loads(process.communicate(timeout=PATIENCE_SECONDS)[0])
    assert (told["outcome"], told["result"]["stdout"], told["dead_letter"]) == ("completed", "the answer\n", None)


def test_wait_gives_up_in_time_says_that_nobody_serves_and_leaves_the_task(desk: Desk) -> None:
    code, out, complaint = desk.run("--task", "marie", "hi", "--wait", "1.2")
    assert code == 1
    assert "nobody serves marie now; start it: python worker_watcher.py marie" in complaint
    assert "has not ended within 1.2 s; it goes on" in complaint
    assert f"result    {desk.root}/results/marie/{desk.inbox()[0].stem}.json" in out


def test_ctrl_c_while_waiting_ends_at_once_and_leaves_the_task(desk: Desk) -> None:
    process, _ = waiting(desk)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert "goes on" in complaint.decode()
    assert "Traceback" not in complaint.decode()
    assert len(desk.inbox()) == 1


# --- a batch


def test_batch_submits_all_with_one_batch_id_and_its_text_filled_in(desk: Desk) -> None:
    code, out, _ = desk.run("--batch", "250", "--worker", "marie", "--text", "{n} of {total} {x}", "--no-wait")
    tasks = [json.loads(path.read_bytes()) for path in desk.inbox()]
    assert code == 0
    assert [task["description"] for task in tasks] == [f"{n} of 250 {{x}}" for n in range(1, 251)]
    (batch_id,) = {task["batch_id"] for task in tasks}
    assert batch_id in out


def test_batch_waits_until_all_have_ended_and_sums_up(desk: Desk) -> None:
    process = desk.start("--batch", "5", "--worker", "marie", "--batch-id", "b1")
    wait_for("the tasks", lambda: len(desk.inbox()) == 5)
    for number, path in enumerate(desk.inbox()):
        desk.answer(path.stem, "completed" if number else "failed")
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert "5/5 ended, 1 failed" in out.decode()
    assert "4 completed, 1 failed" in out.decode()
    assert "\x1b" not in out.decode()


def test_batch_that_is_interrupted_says_how_far_it_was(desk: Desk) -> None:
    process = desk.start("--batch", "3", "--worker", "marie")
    wait_for("the tasks", lambda: len(desk.inbox()) == 3)
    process.send_signal(signal.SIGINT)
    out, complaint = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert "3 not ended yet" in out.decode()
    assert "Traceback" not in complaint.decode()


def test_batch_that_is_interrupted_while_it_submits_says_how_many_there_are(desk: Desk) -> None:
    process = desk.start("--batch", "200000", "--worker", "marie")
    wait_for("the first of them", desk.inbox)
    process.send_signal(signal.SIGINT)
    out, complaint = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, "Traceback" in complaint.decode()) == (130, False)
    there = len(desk.inbox())
    assert 0 < there < 200000
    assert f"{there} not ended yet" in out.decode()
    assert f"{200000 - there} of 200000 tasks were not submitted" in out.decode()


def test_batch_in_a_terminal_redraws_one_line(desk: Desk) -> None:
    screen = Screen(desk, "--batch", "3", "--worker", "marie")
    screen.read_until("0/3 ended")
    wait_for("the tasks", lambda: len(desk.inbox()) == 3)
    for path in desk.inbox():
        desk.answer(path.stem)
    assert screen.finish() == 0
    assert "3/3 ended" in screen.seen
    bars = re.findall(r"\x1b\[1F[^\n]*ended", screen.seen)
    assert bars, "the bar is drawn over the one before it"


# --- looking


def test_status_of_nothing_says_what_to_do(desk: Desk) -> None:
    code, out, complaint = desk.run("--status")
    assert (code, complaint) == (0, "")
    assert "--setup" in out
    assert not desk.root.exists()


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
    assert "marie: 1 task waiting and nobody serves them: python worker_watcher.py marie" in out
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


def test_task_is_run_and_its_answer_printed(desk: Desk) -> None:
    desk.serve("marie")
    code, out, _ = desk.run("--task", "marie", "[print hello from here]", "--wait", "50")
    assert code == 0
    assert "hello from here\n" in out
    code, out, _ = desk.run("--task", "marie", "[stderr no map] [fail]", "--wait", "50")
    assert code == 1
    assert "max_retries_exceeded" in out
    assert "no map" in out


def test_batch_is_run(desk: Desk) -> None:
    desk.serve("anga")
    code, out, _ = desk.run("--batch", "10", "--worker", "anga", "--wait", "50")
    assert code == 0
    assert "10 completed, 0 failed" in out


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
    monkeypatch.setattr(showcase, "_TASKS_SECONDS", 5.0)
    said: list[str] = []
    code = showcase.Showcase(tmp_path / "show", said.append, Look, redrawn=False).run()
    assert code == 1
    assert "The demo FAILED" in "".join(said)
    assert "anga/numbers" in "".join(said)
    assert "came out as it must" not in "".join(said)
    assert processes_of(tmp_path / "show") == []


def test_demo_whose_worker_dies_fails_at_once_and_shows_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(showcase._SETTINGS, "MAX_RETRIES", "many")
    said: list[str] = []
    assert showcase.Showcase(tmp_path / "show", said.append, Look, redrawn=False).run() == 1
    assert "the worker marie does not start" in "".join(said)
    assert "MAX_RETRIES=many" in "".join(said)
