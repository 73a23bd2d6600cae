"""What an attempt is started as: environment, folder, prompt, program; and what a start that fails is called."""

from __future__ import annotations

import errno
import os
import resource
import sys
from pathlib import Path

import pytest

from tests.adoption import family
from tests.workshop import Workshop, attempt, claude, reason, run, shop
from watcher.policy.after_attempt import Failure
from watcher.runner import oneshot
from watcher.runner.command_line import MAX_ARGUMENT_BYTES
from watcher.runner.providers.built_in import built_in

__all__ = ["family", "shop"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memfds, sessions and /proc of Linux")


def test_command_is_told_its_task_and_sees_nothing_that_is_not_allowed(shop: Workshop) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "LC_ALL": "C",
        "AWS_SECRET_ACCESS_KEY": "s",
        "ANTHROPIC_API_KEY": "k",
        "MY_TOOL_HOME": "/x",
        "WATCHER_MARK": "of our own worker",
    }
    runner = shop.runner("env", environ=environ, agent_env=("MY_TOOL_*",))
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
    monkeypatch.setattr(oneshot.processes, "spawn", refuse)
    assert reason(run(runner)) == (Failure.TROUBLE, "worker_trouble")


def test_missing_claim_folder_is_the_machines_fault(shop: Workshop) -> None:
    runner = shop.runner("cat")
    shop.folder.rmdir()
    assert reason(run(runner)) == (Failure.TROUBLE, "worker_trouble")


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
