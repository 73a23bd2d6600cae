"""Putting tasks in with `demo_watcher.py`: folders, single tasks and batches, and waiting for what becomes of them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys

import pytest

from tests.acceptance.desk import DEMO, Desk, Screen, desk, one_line
from tests.waiting import PATIENCE_SECONDS, wait_for
from watcher.formats.task import parse_task

__all__ = ["desk"]

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
        (["--task", "marie", "hi", "--timeout", "soon"], "argument --timeout: soon: a number of seconds"),
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
    assert "watcher.store.submitting" in imported
    heavy = {"pydantic", "pydantic_settings", "asyncio", "filelock", "watchdog", "prometheus_client", "subprocess"}
    assert (
        imported & (heavy | {"watcher.store.overview", "watcher.cli.tables", "watcher.store.results", "logging"})
        == set()
    )


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
    assert "has not ended within 1.2 s; it continues" in complaint
    assert f"result    {desk.root}/results/marie/{desk.inbox()[0].stem}.json" in out


def test_ctrl_c_while_waiting_ends_at_once_and_leaves_the_task(desk: Desk) -> None:
    process, _ = waiting(desk)
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert "continue" in complaint.decode()
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
