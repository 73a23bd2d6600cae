"""Attempts as real processes: what goes in, what comes out, and what each way to fail is called."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import stat
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from watcher import childproc, leftovers
from watcher.clock import SystemClock
from watcher.policy.disposition import Failure
from watcher.runner import files, oneshot
from watcher.runner.builtin import built_in
from watcher.runner.interface import Attempt, Outcome
from watcher.runner.oneshot import MAX_ARGUMENT_BYTES, OneShotRunner, OneShotSettings
from watcher.runner.providers import Provider

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfds, sessions and /proc of Linux")

SOON = 30.0
_numbers = iter(range(10**6))


def attempt(prompt: str = "say hi", provider: str = "command", **more: Any) -> Attempt:
    number = next(_numbers)
    given: dict[str, Any] = {
        "task_id": f"t{number}",
        "worker": "marie",
        "number": 1,
        "mark": f"{os.getpid():016x}{'e' * 16}.{number}",
        "prompt": prompt,
        "provider": provider,
        "timeout_seconds": SOON,
    }
    return Attempt(**(given | more))


class Workshop:
    """A claim folder and the runners made for it; every run happens in a thread of its own, as in a slot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "claims"
        self.folder.mkdir()
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.busy_fd = os.open(folder / "x.busy", os.O_RDWR | os.O_CREAT)
        self.runners: list[OneShotRunner] = []

    def runner(
        self,
        *command: str,
        providers: Mapping[str, Provider] | None = None,
        environ: Mapping[str, str] | None = None,
        **more: Any,
    ) -> OneShotRunner:
        path = f"{self.bin}:{os.environ['PATH']}"
        environ = {"PATH": path, "HOME": str(self.folder.parent), "IS_SANDBOX": "1"} if environ is None else environ
        settings = OneShotSettings(self.folder, self.busy_fd, environ, **({"kill_grace_seconds": SOON} | more))
        known = built_in({"command": command}) if providers is None else providers
        runner = OneShotRunner(known, settings, SystemClock())
        self.runners.append(runner)
        return runner

    def shell(self, script: str, **more: Any) -> OneShotRunner:
        return self.runner("/bin/sh", "-c", script, **more)

    def program(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def close(self) -> None:
        for runner in self.runners:
            runner.close()
        os.close(self.busy_fd)


@pytest.fixture(autouse=True)
def subreaper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Orphans are adopted while a test runs and no longer."""
    family = leftovers._Family()
    monkeypatch.setattr(leftovers, "_family", family)
    assert childproc.become_subreaper()
    yield
    ctypes.CDLL(None).prctl(leftovers._PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    os.close(family._children_fd or -1)
    assert (family.started, family.running) == (set(), {})


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    shop = Workshop(tmp_path)
    yield shop
    shop.close()


def run(runner: OneShotRunner, one: Attempt | None = None) -> Outcome:
    return Running(runner, one or attempt()).outcome()


class Running:
    """An attempt under way in a thread."""

    def __init__(self, runner: OneShotRunner, one: Attempt) -> None:
        self._box: list[Outcome] = []
        self._thread = threading.Thread(target=lambda: self._box.append(runner.run(one)))
        self._thread.start()

    def outcome(self) -> Outcome:
        self._thread.join(2 * SOON)
        assert self._box, "it did not end, or it raised"
        return self._box[0]


def until_it_prints(runner: OneShotRunner, one: Attempt) -> Path:
    """Wait until a running attempt has printed something; the waiting itself is bounded."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        live = runner.live_output(one.mark)
        if live is not None and live[1] is not None:
            return live[0]
        time.sleep(0.002)  # a file has no event that is worth its code here
    raise AssertionError("it printed nothing")


def reason(outcome: Outcome) -> tuple[Failure | None, str | None]:
    return outcome.ending.failure, outcome.ending.reason


def no_processes_with(mark: str) -> bool:
    return childproc.kill_marked(mark) == 0


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

        monkeypatch.setattr(files.os, "memfd_create", refuse)
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
    began = time.monotonic()
    one = attempt()
    outcome = run(shop.shell("(trap '' TERM; sleep 600) & echo $!; exit 0"), one)
    assert reason(outcome) == (None, None)
    assert outcome.leftovers_killed >= 1
    assert time.monotonic() - began < 60
    assert no_processes_with(one.mark)


def test_attempt_that_takes_too_long_is_a_timeout(shop: Workshop) -> None:
    one = attempt(timeout_seconds=0.2)
    outcome = run(shop.shell("echo began; exec sleep 600"), one)
    assert reason(outcome) == (Failure.TRANSIENT, "timeout")
    assert outcome.ending.timed_out
    assert (outcome.exit_code, outcome.stdout.text) == (-15, "began\n")
    assert no_processes_with(one.mark)


def test_exit_0_on_our_own_term_is_no_success(shop: Workshop) -> None:
    outcome = run(shop.shell("trap 'exit 0' TERM; sleep 600 & wait"), attempt(timeout_seconds=0.2))
    assert reason(outcome) == (Failure.TRANSIENT, "timeout")
    assert outcome.exit_code == 0


def test_attempt_that_ignores_term_is_killed_with_its_children(shop: Workshop) -> None:
    one = attempt(timeout_seconds=0.2)
    runner = shop.shell("trap '' TERM; setsid sleep 600 & while :; do sleep 600; done", kill_grace_seconds=0.2)
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
        kill_grace_seconds=30.0,
    )
    one = attempt()
    running = Running(runner, one)
    until_it_prints(runner, one)
    live = runner.live_output(one.mark)
    assert live is not None
    runner.stop(one.mark, Failure.STOPPED)
    while "asked" not in live[0].read_text():
        time.sleep(0.005)  # it says so in its own time
    runner.stop(one.mark, Failure.STOPPED)
    assert running.outcome().stdout.text == "up\nasked\n"


def test_attempt_that_is_stopped_before_it_starts_never_starts(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = shop.shell("touch started")
    one = attempt(cwd=str(shop.folder))
    began = childproc.attempt_began

    def begin(mark: str) -> None:
        began(mark)
        runner.stop(mark, Failure.STOPPED)

    monkeypatch.setattr(oneshot.childproc, "attempt_began", begin)
    outcome = run(runner, one)
    assert (outcome.ending.failure, outcome.exit_code) == (Failure.STOPPED, None)
    assert not (shop.folder / "started").exists()


def test_attempt_that_is_stopped_while_it_starts_is_ended(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = shop.runner("sleep", "600")
    one = attempt()
    spawn = childproc.spawn

    def start(*arguments: Any) -> childproc.Child:
        child = spawn(*arguments)
        runner.stop(one.mark, Failure.STOPPED)  # before the runner knows the child
        return child

    monkeypatch.setattr(oneshot.childproc, "spawn", start)
    outcome = run(runner, one)
    assert (outcome.ending.failure, outcome.exit_code) == (Failure.STOPPED, -15)


def test_stopping_what_does_not_run_does_nothing(shop: Workshop) -> None:
    runner = shop.runner("cat")
    one = attempt()
    run(runner, one)
    runner.stop(one.mark, Failure.STOPPED)
    runner.stop("never heard of", Failure.CANCELLED)
    assert reason(run(runner, one)) == (None, None)


def test_command_is_told_its_task_and_sees_nothing_that_is_not_allowed(shop: Workshop) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "LC_ALL": "C",
        "AWS_SECRET_ACCESS_KEY": "s",
        "ANTHROPIC_API_KEY": "k",
        "MY_TOOL_HOME": "/x",
        "WATCHER_MARK": "of our own worker",
    }
    runner = shop.runner("env", environ=environ, more_environment=("MY_TOOL_*",))
    one = attempt(number=2, model="m1")
    seen = dict(line.split("=", 1) for line in run(runner, one).stdout.text.splitlines())
    assert seen == {
        "PATH": os.environ["PATH"],
        "LC_ALL": "C",
        "MY_TOOL_HOME": "/x",
        "WATCHER_TASK_ID": one.task_id,
        "WATCHER_WORKER": "marie",
        "WATCHER_ATTEMPT": "2",
        "WATCHER_MARK": one.mark,
        "WATCHER_MODEL": "m1",
    }


def test_command_inherits_the_busy_lock(shop: Workshop) -> None:
    outcome = run(shop.shell(f"readlink /proc/self/fd/{shop.busy_fd}"))
    assert outcome.stdout.text.strip() == str(shop.folder.parent / "x.busy")


def test_cwd_is_where_the_command_runs(shop: Workshop, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    assert run(shop.runner("pwd"), attempt(cwd=str(folder))).stdout.text.strip() == str(folder)
    assert run(shop.runner("pwd", default_cwd=folder)).stdout.text.strip() == str(folder)


@pytest.mark.parametrize(
    "case", ["missing", "a file", "outside", "a link that leads outside", "a name that begins alike"]
)
def test_cwd_that_cannot_be_is_permanent_and_says_what_to_do(shop: Workshop, tmp_path: Path, case: str) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "allowed2").mkdir()
    (allowed / "link").symlink_to("/usr")
    cwd = {
        "missing": tmp_path / "missing",
        "a file": tmp_path / "file",
        "outside": Path("/usr"),
        "a link that leads outside": allowed / "link",
        "a name that begins alike": tmp_path / "allowed2",
    }[case]
    outcome = run(shop.runner("pwd", allowed_cwd=(allowed,)), attempt(cwd=str(cwd)))
    assert reason(outcome) == (Failure.PERMANENT, "bad_cwd")
    assert str(cwd) in (outcome.ending.detail or "")


def test_cwd_in_an_allowed_folder_is_fine_through_a_link_too(shop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    runner = shop.runner("pwd", allowed_cwd=(tmp_path / "link",))
    outcome = run(runner, attempt(cwd=str(tmp_path / "link" / "inner")))
    assert outcome.stdout.text.strip() == str(tmp_path / "real" / "inner")


def test_prompt_can_be_the_last_argument_but_never_a_flag(shop: Workshop) -> None:
    providers = built_in({"command": ("printf", "%s|", "before")}, prompt="argument")
    runner = shop.runner(providers=providers)
    assert run(runner, attempt("two words")).stdout.text == "before|two words|"
    assert run(runner, attempt("--help")).stdout.text == "before| --help|"


def test_prompt_that_is_too_long_for_an_argument_is_permanent(shop: Workshop) -> None:
    runner = shop.runner(providers=built_in({"command": ("wc", "-c", "--")}, prompt="argument"))
    outcome = run(runner, attempt("é" * (MAX_ARGUMENT_BYTES // 2 + 1)))
    assert reason(outcome) == (Failure.PERMANENT, "prompt_too_long")
    runner = shop.runner(providers=built_in({"command": ("echo",)}, prompt="argument"))
    outcome = run(runner, attempt("x" * MAX_ARGUMENT_BYTES))
    assert (reason(outcome), outcome.stdout.size_bytes) == ((None, None), MAX_ARGUMENT_BYTES + 1)


def test_arguments_that_are_too_long_together_are_permanent(shop: Workshop) -> None:
    words = ("echo", *(["x" * 130_000] * 60))
    outcome = run(shop.runner(*words))
    assert reason(outcome) == (Failure.PERMANENT, "argument_too_long")


@pytest.mark.parametrize("words", [("cat", "{prompt_file}"), ("cat",)])
def test_prompt_can_be_in_a_file_that_is_gone_afterwards(shop: Workshop, words: tuple[str, ...]) -> None:
    runner = shop.runner(providers=built_in({"command": words}, prompt="file"))
    assert run(runner, attempt("read me")).stdout.text == "read me"
    assert sorted(path.suffix for path in shop.folder.iterdir()) == [".stderr", ".stdout"]


def test_file_with_a_prompt_is_only_ours_to_read(shop: Workshop) -> None:
    runner = shop.runner(providers=built_in({"command": ("stat", "-c", "%a", "{prompt_file}")}, prompt="file"))
    assert run(runner).stdout.text == "600\n"


def test_missing_command_holds_the_provider_and_is_found_once_it_is_there(shop: Workshop) -> None:
    runner = shop.runner("no-such-agent", "--flag")
    outcome = run(runner)
    assert reason(outcome) == (Failure.AUTH, "command_missing")
    assert "AGENT_COMMAND" in (outcome.ending.detail or "")
    assert outcome.ending.resets_at is not None
    problem = runner.problem("command")
    assert problem is not None
    assert problem.reason == "command_missing"
    shop.program("no-such-agent", "#!/bin/sh\necho here $1\n")
    assert run(runner).stdout.text == "here --flag\n"
    assert runner.problem("command") is None


def test_command_that_moved_to_another_folder_of_path_is_found_there(shop: Workshop, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    old = shop.program("agent-x", "#!/bin/sh\necho old\n")
    environ = {"PATH": f"{shop.bin}:{other}:{os.environ['PATH']}"}
    runner = shop.runner("agent-x", environ=environ)
    assert run(runner).stdout.text == "old\n"
    old.rename(other / "agent-x")
    assert run(runner).stdout.text == "old\n"
    (other / "agent-x").unlink()
    assert reason(run(runner)) == (Failure.AUTH, "command_missing")
    problem = runner.problem("command")
    assert problem is not None
    assert problem.reason == "command_missing"


@pytest.mark.parametrize(("text", "mode"), [("echo hi\n", 0o755), ("#!/no/such/interpreter\n", 0o755)])
def test_command_that_cannot_be_executed_holds_the_provider(shop: Workshop, text: str, mode: int) -> None:
    shop.program("agent-x", text).chmod(mode)
    outcome = run(shop.runner("agent-x"))
    assert reason(outcome) == (Failure.AUTH, "command_not_executable")
    assert str(shop.bin / "agent-x") in (outcome.ending.detail or "")


def test_unknown_provider_is_the_tasks_fault(shop: Workshop) -> None:
    runner = shop.runner("cat")
    outcome = run(runner, attempt(provider="nobody"))
    assert reason(outcome) == (Failure.PERMANENT, "unknown_provider")
    assert "claude" in (outcome.ending.detail or "")
    problem = runner.problem("nobody")
    assert problem is not None
    assert problem.reason == "unknown_provider"


def test_no_descriptors_left_is_the_machines_fault(shop: Workshop) -> None:
    runner = shop.runner("cat")
    run(runner)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(n) for n in os.listdir("/proc/self/fd")) + 1, hard))
        while True:
            try:
                held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        outcome = runner.run(attempt())
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert reason(outcome) == (Failure.TROUBLE, "worker_trouble")
    assert "EMFILE" in (outcome.ending.detail or "")
    assert reason(run(runner)) == (None, None)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_fork_that_fails_is_the_machines_fault(shop: Workshop, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    runner = shop.runner("cat")
    monkeypatch.setattr(oneshot.childproc, "spawn", refuse)
    assert reason(run(runner)) == (Failure.TROUBLE, "worker_trouble")


def test_missing_claim_folder_is_the_machines_fault(shop: Workshop) -> None:
    runner = shop.runner("cat")
    shop.folder.rmdir()
    assert reason(run(runner)) == (Failure.TROUBLE, "worker_trouble")


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


CLAUDE = """#!{python} -IS
import sys
prompt = sys.stdin.read()
sys.stdout.write('{{"type":"system","subtype":"init","model":"' + "--model".join(sys.argv[1:2]) + '"}}\\n')
{body}
"""


def claude(shop: Workshop, body: str) -> OneShotRunner:
    """A double of claude: its first line, then what the test says."""
    shop.program("claude", CLAUDE.format(python=sys.executable, body=body))
    return shop.runner()


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


def test_claude_gets_its_arguments_and_its_model(shop: Workshop) -> None:
    runner = claude(shop, "print(sys.argv[1:], prompt, file=sys.stderr)")
    outcome = run(runner, attempt("do it", provider="claude", model="opus"))
    expected = ["--print", "--dangerously-skip-permissions", "--output-format", "stream-json", "--verbose"]
    assert outcome.stderr.text == f"{[*expected, '--model', 'opus']} do it\n"


def test_claude_itself_is_not_started_as_root_without_its_sandbox_word(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (shop.bin / "claude").symlink_to("/bin/true")  # a native program, as the real one is
    environ = {"PATH": str(shop.bin)}
    problem = shop.runner(environ=environ).problem("claude")
    assert problem is not None
    assert (problem.failure, problem.reason) == (Failure.AUTH, "refuses_root")
    assert "IS_SANDBOX=1" in (problem.detail or "")
    assert shop.runner(environ=environ | {"IS_SANDBOX": "1"}).problem("claude") is None
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert shop.runner(environ=environ).problem("claude") is None


def test_wrapper_around_claude_may_set_the_sandbox_word_itself(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    words = "--dangerously-skip-permissions cannot be used with root/sudo privileges for security reasons"
    shop.program("claude", f"#!/bin/sh\necho '{words}' >&2\nexit 1\n")
    runner = shop.runner(environ={"PATH": f"{shop.bin}:/bin:/usr/bin"})
    assert runner.problem("claude") is None
    assert reason(run(runner, attempt(provider="claude"))) == (Failure.AUTH, "refuses_root")


def test_program_that_is_being_written_costs_no_attempt(shop: Workshop, tmp_path: Path) -> None:
    program = tmp_path / "agent"
    program.write_text("#!/bin/sh\necho done\n")
    program.chmod(0o755)
    runner = shop.runner(str(program))
    with program.open("a"):
        ending = runner.run(attempt()).ending
    assert (ending.failure, "ETXTBSY" in (ending.detail or "")) == (Failure.TROUBLE, True)
    assert runner.run(attempt()).ending.failure is None


# --- what it costs, what it prints, when it stops printing


def test_provider_that_can_be_told_a_limit_is_told_and_another_is_not(shop: Workshop) -> None:
    shop.program("claude", "#!/bin/sh\nprintf '%s ' \"$@\" >&2\n")
    providers = built_in({"claude": ["claude"], "command": ["/bin/sh", "-c", 'echo "$@" >&2', "x"]})
    runner = shop.runner(providers=providers)
    assert "--max-budget-usd 0.250000" in runner.run(attempt(provider="claude", max_cost_usd=0.25)).stderr.text
    assert "--max-budget-usd 0.000001" in runner.run(attempt(provider="claude", max_cost_usd=0.0)).stderr.text
    assert "budget" not in runner.run(attempt(provider="claude")).stderr.text
    assert runner.run(attempt(max_cost_usd=0.25)).stderr.text == "\n"


def test_attempt_that_is_ended_for_a_reason_says_which(shop: Workshop) -> None:
    runner = shop.shell("trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    one = attempt()
    out: list[Outcome] = []
    thread = threading.Thread(target=lambda: out.append(runner.run(one)))
    thread.start()
    until = time.monotonic() + SOON
    while (live := runner.live_output(one.mark)) is None or live[1] is None:
        assert time.monotonic() < until
        time.sleep(0.01)  # another process gives no event
    runner.stop(one.mark, Failure.PERMANENT, "budget_exceeded")
    runner.stop(one.mark, Failure.STOPPED, "too late")
    thread.join(SOON)
    assert (out[0].ending.failure, out[0].ending.reason) == (Failure.PERMANENT, "budget_exceeded")


def test_silent_command_is_ended_with_all_its_children_and_may_be_tried_again(shop: Workshop) -> None:
    runner = shop.shell("echo $$; sleep 600 & sleep 600", stall_timeout_seconds=0.4, kill_grace_seconds=0.2)
    out = runner.run(attempt())
    assert (out.ending.failure, out.ending.reason, out.ending.timed_out) == (Failure.TRANSIENT, "stalled", False)
    assert "STALL_TIMEOUT" in (out.ending.detail or "")
    with pytest.raises(ProcessLookupError):
        os.killpg(int(out.stdout.text), 0)


@pytest.mark.parametrize("stream", ["1", "2"])
def test_output_on_either_stream_is_progress_and_the_deadline_stays(shop: Workshop, stream: str) -> None:
    runner = shop.shell(f"while :; do echo x >&{stream}; sleep 0.05; done", stall_timeout_seconds=1.0)
    out = runner.run(attempt(timeout_seconds=2.5))
    assert out.ending.reason == "timeout" and out.ending.timed_out


def test_provider_whose_output_comes_at_the_end_is_not_watched_and_is_named_once(shop: Workshop) -> None:
    shop.program("claude", "#!/bin/sh\nsleep 1; echo done\n")
    runner = shop.runner(
        providers=built_in({"claude": ["claude", "--output-format", "text"]}), stall_timeout_seconds=0.2
    )
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
    until = time.monotonic() + SOON
    while not (shop.folder.parent / "there").exists():
        assert time.monotonic() < until
        time.sleep(0.01)  # another process gives no event
    assert runner.live(one.mark) is None
    runner.stop(one.mark, Failure.STOPPED)
    thread.join(SOON)
