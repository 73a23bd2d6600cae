"""Attempts as real processes: what comes out, how they are ended, and what each way to fail is called."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.adoption import family
from tests.waiting import wait_for
from tests.workshop import (
    SOON,
    Running,
    Workshop,
    attempt,
    claude,
    no_processes_with,
    printing,
    reason,
    run,
    shop,
    until_it_prints,
)
from watcher.policy.after_attempt import Failure
from watcher.runner import attempt_files, oneshot
from watcher.runner.providers.built_in import built_in
from watcher.runner.runner_interface import Outcome
from watcher.runner.stall_timer import StallWatch
from watcher.system import processes

__all__ = ["family", "printing", "shop"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfds, sessions and /proc of Linux")


def test_prompt_comes_on_stdin_and_its_answer_back(shop: Workshop) -> None:
    before = time.time()
    outcome = run(shop.runner("cat"), attempt("héllo\nworld"))
    assert reason(outcome) == (None, None)
    assert (outcome.exit_code, outcome.stdout.text, outcome.stderr.text) == (0, "héllo\nworld", "")
    assert (outcome.stdout.size_bytes, outcome.stdout.truncated, outcome.stdout.kept) == (12, False, None)
    assert before - 1 <= outcome.started_at <= time.time()
    assert outcome.duration_seconds > 0
    assert outcome.leftovers_killed == 0
    assert outcome.usage is None


@pytest.mark.parametrize("memfd", [True, False])
def test_long_prompt_is_whole(shop: Workshop, memfd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not memfd:

        def refuse(*_: object) -> int:
            raise OSError(errno.ENOSYS, "no such system call")

        monkeypatch.setattr(attempt_files.os, "memfd_create", refuse)
    prompt = "0123456789abcdef" * 65_536
    outcome = run(shop.runner("cat", max_output_bytes=2 << 20), attempt(prompt))
    assert outcome.stdout.text == prompt
    assert sorted(path.suffix for path in shop.folder.iterdir()) == [".stderr", ".stdout"]


def test_command_that_never_reads_its_prompt_is_not_blocked(shop: Workshop) -> None:
    outcome = run(shop.shell("echo done"), attempt("x" * (1 << 20)))
    assert (reason(outcome), outcome.stdout.text) == ((None, None), "done\n")


def test_half_a_surrogate_in_a_prompt_harms_nothing(shop: Workshop) -> None:
    assert run(shop.runner("cat"), attempt("a\ud800b")).stdout.text == "a?b"


def test_any_other_exit_code_is_transient_and_its_last_words_are_told(shop: Workshop) -> None:
    outcome = run(shop.shell("echo out; echo first >&2; echo 'it broke' >&2; exit 3"))
    assert reason(outcome) == (Failure.TRANSIENT, "exit_code")
    assert (outcome.exit_code, outcome.stdout.text, outcome.stderr.text) == (3, "out\n", "first\nit broke\n")
    assert outcome.ending.detail == "command: exit code 3; it broke"


def test_signal_that_we_did_not_send_is_transient(shop: Workshop) -> None:
    outcome = run(shop.shell("kill -9 $$"))
    assert reason(outcome) == (Failure.TRANSIENT, "killed_by_signal")
    assert outcome.exit_code == -9


def test_output_that_is_no_text_is_made_harmless(shop: Workshop) -> None:
    outcome = run(shop.shell(r"printf 'a\377\000b\303\251\n'; printf '\355\240\200' >&2"))
    assert outcome.stdout.text == "a\ufffd\ufffdbé\n"
    assert outcome.stdout.size_bytes == 7
    json.dumps([outcome.stdout.text, outcome.stderr.text]).encode("ascii")
    outcome.stderr.text.encode()


def test_large_output_costs_little_memory_and_is_kept_whole(shop: Workshop) -> None:
    runner = shop.shell("head -c 50000000 /dev/zero | tr '\\0' x; echo end; echo small >&2", max_output_bytes=1000)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far: proc_pid_clear_refs(5)
    before = peak_memory()
    outcome = run(runner)
    assert peak_memory() - before < 20 << 20
    assert outcome.stdout.size_bytes == 50_000_004
    assert outcome.stdout.truncated
    assert outcome.stdout.text == "x" * 500 + "\n[... 49999004 bytes left out ...]\n" + "x" * 496 + "end\n"
    assert (outcome.stderr.text, outcome.stderr.kept) == ("small\n", None)
    assert outcome.stdout.kept is not None
    assert (shop.folder / outcome.stdout.kept).stat().st_size == 50_000_004


def peak_memory() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def test_text_is_not_cut_inside_a_character(shop: Workshop) -> None:
    outcome = run(shop.runner("cat", max_output_bytes=101), attempt("é€😀" * 100))
    head, note, tail = outcome.stdout.text.split("\n")
    assert "\ufffd" not in outcome.stdout.text
    assert "é€😀".startswith(head[-3:]) or head[-3:] in "é€😀é€😀"
    left_out = int(note.split()[1])
    assert left_out == 900 - len(head.encode()) - len(tail.encode())


def test_files_are_used_again_and_show_nothing_of_the_attempt_before(shop: Workshop) -> None:
    runner = shop.runner("cat")
    run(runner, attempt("a long answer"))
    names = sorted(path.name for path in shop.folder.iterdir())
    assert run(runner, attempt("short")).stdout.text == "short"
    assert sorted(path.name for path in shop.folder.iterdir()) == names


def test_kept_file_is_the_callers_and_the_next_attempt_has_another(shop: Workshop) -> None:
    runner = shop.runner("cat", max_output_bytes=64)
    kept = run(runner, attempt("a" * 100)).stdout.kept
    assert kept is not None
    outcome = run(runner, attempt("b" * 10))
    assert (outcome.stdout.text, outcome.stdout.kept) == ("b" * 10, None)
    runner.close()
    assert [path.name for path in shop.folder.iterdir()] == [kept]
    assert (shop.folder / kept).read_text() == "a" * 100


def test_files_that_a_leftover_process_shared_are_not_used_again(shop: Workshop) -> None:
    runner = shop.shell("sleep 600 & echo hi")
    first = run(runner)
    assert (first.stdout.text, first.leftovers_killed) == ("hi\n", 1)
    run(runner)
    names = {path.name for path in shop.folder.iterdir()}
    assert len(names) == 2
    assert "output-1.stdout" not in names


def test_child_that_holds_stdout_does_not_hold_up_the_attempt(shop: Workshop) -> None:
    one = attempt()
    outcome = run(shop.shell("(trap '' TERM; sleep 600) & echo $!; exit 0"), one)
    assert reason(outcome) == (None, None)
    assert outcome.leftovers_killed >= 1
    assert no_processes_with(one.mark)


@pytest.mark.usefixtures("printing")
def test_attempt_that_takes_too_long_is_a_timeout(shop: Workshop) -> None:
    one = attempt(timeout_seconds=0.2)
    outcome = run(shop.shell("echo began; exec sleep 600"), one)
    assert reason(outcome) == (Failure.TRANSIENT, "timeout")
    assert outcome.ending.timed_out
    assert (outcome.exit_code, outcome.stdout.text) == (-15, "began\n")
    assert no_processes_with(one.mark)


@pytest.mark.usefixtures("printing")
def test_exit_0_on_our_own_term_is_no_success(shop: Workshop) -> None:
    outcome = run(shop.shell("trap 'exit 0' TERM; echo up; sleep 600 & wait"), attempt(timeout_seconds=0.2))
    assert reason(outcome) == (Failure.TRANSIENT, "timeout")
    assert outcome.exit_code == 0


@pytest.mark.usefixtures("printing")
def test_attempt_that_ignores_term_is_killed_with_its_children(shop: Workshop) -> None:
    one = attempt(timeout_seconds=0.2)
    script = "trap '' TERM; echo up; setsid sleep 600 & while :; do sleep 600; done"
    runner = shop.shell(script, kill_grace=0.2)
    outcome = run(runner, one)
    assert reason(outcome) == (Failure.TRANSIENT, "timeout")
    assert outcome.exit_code == -9
    assert no_processes_with(one.mark)


@pytest.mark.parametrize("failure", [Failure.STOPPED, Failure.CANCELLED])
def test_attempt_is_stopped_from_another_thread(shop: Workshop, failure: Failure) -> None:
    runner = shop.shell("echo up; exec sleep 600")
    one = attempt()
    running = Running(runner, one)
    until_it_prints(runner, one)
    runner.stop(one.mark, failure)
    runner.stop(one.mark, Failure.STOPPED)  # the first word counts
    outcome = running.outcome()
    assert outcome.ending.failure is failure
    assert outcome.stdout.text == "up\n"
    assert no_processes_with(one.mark)


def test_command_that_tidies_up_is_asked_once_however_often_it_is_stopped(shop: Workshop) -> None:
    runner = shop.shell(
        "trap 'echo asked; sleep 0.3; sleep 0.3; exit 0' TERM; echo up; while :; do sleep 0.05; done",
        kill_grace=30.0,
    )
    one = attempt()
    running = Running(runner, one)
    until_it_prints(runner, one)
    live = runner.live_output(one.mark)
    assert live is not None
    runner.stop(one.mark, Failure.STOPPED)
    printed = live[0]
    wait_for("its word", lambda: "asked" in printed.read_text())
    runner.stop(one.mark, Failure.STOPPED)
    assert running.outcome().stdout.text == "up\nasked\n"


def test_attempt_that_is_stopped_before_it_starts_never_starts(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = shop.shell("touch started")
    one = attempt(cwd=str(shop.folder))
    began = processes.attempt_began

    def begin(mark: str) -> None:
        began(mark)
        runner.stop(mark, Failure.STOPPED)

    monkeypatch.setattr(oneshot.processes, "attempt_began", begin)
    outcome = run(runner, one)
    assert (outcome.ending.failure, outcome.exit_code) == (Failure.STOPPED, None)
    assert not (shop.folder / "started").exists()


def test_attempt_that_is_stopped_while_it_starts_is_ended(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = shop.runner("sleep", "600")
    one = attempt()
    spawn = processes.spawn

    def start(*arguments: Any) -> processes.Child:
        child = spawn(*arguments)
        runner.stop(one.mark, Failure.STOPPED)  # before the runner knows the child
        return child

    monkeypatch.setattr(oneshot.processes, "spawn", start)
    outcome = run(runner, one)
    assert (outcome.ending.failure, outcome.exit_code) == (Failure.STOPPED, -15)


def test_stopping_what_does_not_run_does_nothing(shop: Workshop) -> None:
    runner = shop.runner("cat")
    one = attempt()
    run(runner, one)
    runner.stop(one.mark, Failure.STOPPED)
    runner.stop("never heard of", Failure.CANCELLED)
    assert reason(run(runner, one)) == (None, None)


def test_running_attempts_show_where_they_print_to(shop: Workshop) -> None:
    runner = shop.shell("echo working; exec sleep 600")
    one = attempt()
    running = Running(runner, one)
    path = until_it_prints(runner, one)
    assert path.read_text() == "working\n"
    runner.stop(one.mark, Failure.STOPPED)
    running.outcome()
    assert runner.live_output(one.mark) is None


def test_many_threads_do_not_mix_their_outputs(shop: Workshop) -> None:
    runner = shop.shell("cat; echo err $WATCHER_TASK_ID >&2")
    wrong: list[Outcome] = []

    def slot(name: int) -> None:
        for k in range(25):
            one = attempt(f"prompt {name} {k} " + "x" * k * 50)
            outcome = runner.run(one)
            if (outcome.stdout.text, outcome.stderr.text) != (one.prompt, f"err {one.task_id}\n"):
                wrong.append(outcome)

    threads = [threading.Thread(target=slot, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert len(list(shop.folder.iterdir())) <= 8
    runner.close()
    assert list(shop.folder.iterdir()) == []


def test_output_files_are_readable_as_the_results_are(shop: Workshop) -> None:
    old = os.umask(0o022)
    try:
        run(shop.runner("cat"))
    finally:
        os.umask(old)
    assert {stat.S_IMODE(path.stat().st_mode) for path in shop.folder.iterdir()} == {0o644}


def test_claude_answers_with_its_final_event_and_its_transcript_is_kept(shop: Workshop) -> None:
    event = {
        "duration_api_ms": 84,
        "total_cost_usd": 0.5,
        "usage": {"input_tokens": 11, "cache_read_input_tokens": 100, "output_tokens": 5},
        "is_error": False,
        "subtype": "success",
        "result": "Hello \ud83d\ude00 \x00",
        "type": "result",
    }
    runner = claude(shop, f"print({json.dumps(event)!r})")
    outcome = run(runner, attempt(provider="claude"))
    assert reason(outcome) == (None, None)
    assert outcome.stdout.text == "Hello 😀 \ufffd"
    assert outcome.usage is not None
    assert outcome.usage.as_json() == {
        "input_tokens": 111,
        "cached_input_tokens": 100,
        "output_tokens": 5,
        "cost_usd": 0.5,
        "model": "--print",
    }
    assert outcome.stdout.kept is not None
    kept = (shop.folder / outcome.stdout.kept).read_text()
    assert kept.count("\n") == 2
    assert outcome.stdout.size_bytes == len(kept.encode())


def test_claude_that_ends_without_its_final_event_has_not_answered(shop: Workshop) -> None:
    outcome = run(claude(shop, 'sys.stdout.write(\'{"type":"resu\')'), attempt(provider="claude"))
    assert reason(outcome) == (Failure.TRANSIENT, "no_result")
    assert outcome.exit_code == 0
    assert '{"type":"resu' in outcome.stdout.text


def test_words_of_a_failure_do_not_count_when_an_agent_only_quotes_them(shop: Workshop) -> None:
    quoted = {"type": "assistant", "message": {"content": [{"type": "text", "text": "\nCredit balance is too low"}]}}
    body = f"print({json.dumps(quoted)!r}); print('boom', file=sys.stderr); sys.exit(1)"
    assert reason(run(claude(shop, body), attempt(provider="claude"))) == (Failure.TRANSIENT, "exit_code")


def test_words_in_the_events_of_an_unfinished_run_do_not_count(shop: Workshop) -> None:
    event = {"type": "message", "role": "assistant", "content": "The log says: exhausted your daily quota"}
    shop.program("gemini", f"#!/bin/sh\necho '{json.dumps(event)}'\nexit 1\n")
    outcome = run(shop.runner(), attempt(provider="gemini"))
    assert reason(outcome) == (Failure.TRANSIENT, "exit_code")


def test_attempt_that_is_ended_for_a_reason_says_which(shop: Workshop) -> None:
    runner = shop.shell("trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    one = attempt()
    out: list[Outcome] = []
    thread = threading.Thread(target=lambda: out.append(runner.run(one)))
    thread.start()
    until_it_prints(runner, one)
    runner.stop(one.mark, Failure.PERMANENT, "budget_exceeded")
    runner.stop(one.mark, Failure.STOPPED, "too late")
    thread.join(SOON)
    assert (out[0].ending.failure, out[0].ending.reason) == (Failure.PERMANENT, "budget_exceeded")


@pytest.mark.usefixtures("printing")
def test_silent_command_is_ended_with_all_its_children_and_may_be_tried_again(shop: Workshop) -> None:
    runner = shop.shell("echo $$; sleep 600 & sleep 600", stall_timeout=0.4, kill_grace=0.2)
    out = runner.run(attempt())
    assert (out.ending.failure, out.ending.reason, out.ending.timed_out) == (Failure.TRANSIENT, "stalled", False)
    assert "STALL_TIMEOUT" in (out.ending.detail or "")
    with pytest.raises(ProcessLookupError):
        os.killpg(int(out.stdout.text), 0)


@pytest.mark.parametrize("stream", ["1", "2"])
def test_output_on_either_stream_is_progress_and_the_deadline_stays(
    shop: Workshop, stream: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Any] = []

    class Noting(StallWatch):
        pause_seconds = 0.05  # type: ignore[assignment]

        def is_stalled(self, printed: object, now: float) -> bool:
            looks.append(printed)
            return False

    monkeypatch.setattr(oneshot, "StallWatch", Noting)
    runner = shop.shell(f"while :; do echo x >&{stream}; sleep 0.05; done", stall_timeout=1.0)
    one = attempt()
    running = Running(runner, one)
    wait_for("looks at what it prints that differ", lambda: len(set(looks)) >= 3)
    runner.stop(one.mark, Failure.STOPPED)
    assert running.outcome().ending.failure is Failure.STOPPED
    out = runner.run(attempt(timeout_seconds=0.3))
    assert out.ending.reason == "timeout" and out.ending.timed_out


def test_provider_whose_output_comes_at_the_end_is_not_watched_and_is_named_once(shop: Workshop) -> None:
    shop.program("claude", "#!/bin/sh\nsleep 1; echo done\n")
    runner = shop.runner(providers=built_in({"claude": ["claude", "--output-format", "text"]}), stall_timeout=0.2)
    for _ in range(2):
        assert runner.run(attempt(provider="claude")).ending.failure is None
    (named,) = runner.unwatched()
    assert named[0] == "claude" and "text" in named[1] and runner.unwatched() == []


def test_nothing_is_said_about_plain_text_and_about_what_does_not_run(shop: Workshop) -> None:
    runner = shop.shell('echo \'{"type": "tool_use", "tool_name": "fake"}\'; touch "$HOME/there"; sleep 600')
    one = attempt()
    assert runner.live(one.mark) is None
    thread = threading.Thread(target=runner.run, args=(one,))
    thread.start()
    wait_for("the command to be there", (shop.folder.parent / "there").exists)
    assert runner.live(one.mark) is None
    runner.stop(one.mark, Failure.STOPPED)
    thread.join(SOON)
